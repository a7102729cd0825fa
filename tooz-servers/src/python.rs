//! Python tooz in a virtual environment, and processes of it that are told what to do.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::{Helper, run};

/// Returns the interpreter of a virtual environment at `place` that has `requirements`. The first call makes the environment.
/// It is complete when Python can import `imports`.
///
/// # Errors
/// There is no Python with `venv`, or the packages cannot be had.
pub fn environment(place: &Path, requirements: &[&str], imports: &str) -> Result<PathBuf, String> {
    // Another test binary may be about to install the same one.
    let turn = File::create(place.with_extension("lock")).map_err(|error| error.to_string())?;
    turn.lock().map_err(|error| error.to_string())?;
    let python = place.join("bin/python");
    let works = || run(Command::new(&python).args(["-c", &format!("import {imports}")])).is_ok();
    if !works() {
        run(Command::new("python3").args(["-m", "venv"]).arg(place))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(requirements))?;
        if !works() {
            return Err(format!(
                "{} were installed, and cannot be imported: {imports}",
                requirements.join(", ")
            ));
        }
    }
    Ok(python)
}

/// A Python process that answers each line with one of JSON. Dropping this kills the process.
#[derive(Debug)]
pub struct Peer(Helper);

impl Peer {
    /// Runs `script`, which says "started" when it is connected to `url` as `member`.
    ///
    /// # Panics
    /// The process cannot be started, or says something else.
    pub fn start(python: &Path, script: &Path, url: &str, member: &str) -> Self {
        let mut command = Command::new(python);
        command.arg(script).args([url, member]);
        match Helper::start(command) {
            Ok(helper) => {
                let mut peer = Self(helper);
                assert_eq!(peer.hear(), "started");
                peer
            }
            Err(error) => panic!("{}: {error}", python.display()),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its next answer.
    ///
    /// # Panics
    /// The process has ended, or its line is no JSON.
    pub fn hear(&mut self) -> Value {
        let line = self.0.hear().unwrap_or_default();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the Python process said {line:?}"))
    }

    /// Writes a command to the process, without waiting for its answer.
    ///
    /// # Panics
    /// The process is gone.
    pub fn tell(&mut self, command: &str) {
        if let Err(error) = self.0.tell(command) {
            panic!("the Python process: {error}");
        }
    }

    /// Writes a command to the process and returns its answer.
    ///
    /// # Panics
    /// The process is gone, or its line is no JSON.
    pub fn does(&mut self, command: &str) -> Value {
        self.tell(command);
        self.hear()
    }

    /// Sends a signal to the process.
    ///
    /// # Panics
    /// The process is gone.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = self.0.signal(signal) {
            panic!("the Python process: {error}");
        }
    }
}
