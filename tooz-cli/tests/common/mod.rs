//! What the tests of the command share: real processes, watched from outside.
#![allow(dead_code)] // each test uses a part

pub(crate) mod counting;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

/// Generous: a loaded machine must not redden a test that asserts order and cause.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Polls until `condition` holds, and says how long that took.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) -> Duration {
    within(LIMIT, what, condition)
}

/// Polls until `condition` holds, for at most `limit`.
pub(crate) fn within(limit: Duration, what: &str, condition: impl FnMut() -> bool) -> Duration {
    tooz_servers::poll(what, Duration::from_millis(1), limit, condition).unwrap()
}

/// Asserts what holds at a moment, of the best of some runs: a machine that stands still then says nothing about the mechanism.
pub(crate) fn in_time(what: &str, run: impl Fn() -> bool) {
    assert!((0..5).any(|_| run()), "too late, again and again: {what}");
}

/// A process with the default disposition of every signal. A test run may ignore some, as it does below `nohup`, and its
/// children inherit that.
pub(crate) fn process(program: impl AsRef<OsStr>) -> Command {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    // Rust's runtime ignores this one, and gives it back to children.
    let pipe = 1 << (Signal::SIGPIPE as u64 - 1);
    if u64::from_str_radix(ignored, 16).unwrap() & !pipe == 0 {
        return Command::new(program);
    }
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(program);
    command
}

/// A directory with a backend of its own, and the processes of one test, killed at its end whatever happens.
#[derive(Debug)]
pub(crate) struct TestBackend {
    directory: tempfile::TempDir,
    backend: Backend,
}

/// What coordinates the processes of a test.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Backend {
    Sqlite,
    File,
    /// With this ttl in seconds.
    Memcached(SocketAddr, u32),
}

impl TestBackend {
    pub(crate) fn new() -> Self {
        Self::on(Backend::Sqlite)
    }

    pub(crate) fn on(backend: Backend) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), backend }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn url(&self) -> String {
        match self.backend {
            Backend::Sqlite => format!("sqlite://{}", self.path("tooz.db").display()),
            Backend::File => format!("file://{}", self.path("coordination").display()),
            Backend::Memcached(address, ttl) => format!("memcached://{address}?ttl={ttl}s"),
        }
    }

    /// `tooz` on this place's backend, in a process group of its own as a shell would start it.
    pub(crate) fn tooz(&self, arguments: &[&str]) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = process(env!("CARGO_BIN_EXE_tooz"));
        command
            .args(arguments)
            .env("TOOZ_URL", self.url())
            .env("DIR", self.directory.path())
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Runs `tooz` to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        Finished::from(self.tooz(arguments).output().unwrap())
    }

    /// The number that a process wrote into a file, once it is whole.
    pub(crate) fn number(&self, name: &str) -> i32 {
        let path = self.path(name);
        let mut number = None;
        eventually(&format!("a number in {name}"), || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            number = text.strip_suffix('\n').and_then(|text| text.trim().parse().ok());
            number.is_some()
        });
        number.unwrap()
    }

    /// Every path below the directory, with the content of files.
    pub(crate) fn everything(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut found, mut left) = (BTreeMap::new(), vec![self.path("")]);
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path.clone());
                }
                let content = if path.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                found.insert(path, content);
            }
        }
        found
    }

    pub(crate) fn wait_for(&self, name: &str) {
        let path = self.path(name);
        eventually(&format!("{name} is there"), || path.exists());
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

/// A process that was run to its end.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A child that does not outlive its test, even a failing one.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Stops it, see [`tooz_servers::stop`].
    pub(crate) fn stop(&self) {
        tooz_servers::stop(self.0.id()).unwrap();
    }

    /// The exit code; 128 + the signal if one ended it.
    pub(crate) fn code(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let mut status = None;
        eventually("the process ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `state`, parent and group of a process; `None` if it is gone.
fn stat(pid: i32) -> Option<(char, i32, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Whether a process runs; a zombie does not.
pub(crate) fn runs(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, ..)| !matches!(state, 'Z' | 'X'))
}

pub(crate) fn parent(pid: i32) -> i32 {
    stat(pid).map_or(0, |(_, parent, _)| parent)
}

pub(crate) fn group(pid: i32) -> i32 {
    stat(pid).map_or(0, |(_, _, group)| group)
}

/// Whether any member of a group runs.
pub(crate) fn group_runs(group: i32) -> bool {
    killpg(Pid::from_raw(group), None).is_ok()
        && fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            pid.and_then(stat).is_some_and(|(state, _, of)| of == group && !matches!(state, 'Z' | 'X'))
        })
}

pub(crate) fn is_empty(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.len() == 0)
}

/// The processes that carry this place's URL in their environment: `tooz`, what stands below it, and every command
/// that it started. Zombies are none.
pub(crate) fn below(place: &TestBackend) -> Vec<i32> {
    let marked = format!("TOOZ_URL={}", place.url());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == marked.as_bytes()) && runs(*pid)
    })
    .collect()
}

/// The children of a process.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Topics and severities in the order of telling.
fn topics(finished: &Finished) -> Vec<(String, String)> {
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap().to_owned();
    let findings = finished.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    findings.map(|finding| (text(&finding, "topic"), text(&finding, "severity"))).collect()
}

/// What was found on `topic`.
pub(crate) fn finding(finished: &Finished, topic: &str) -> Value {
    let found = findings(finished, topic).into_iter().next();
    found.unwrap_or_else(|| panic!("no {topic}: {finished:?}"))
}

/// All that was found on `topic`.
pub(crate) fn findings(finished: &Finished, topic: &str) -> Vec<Value> {
    let findings = finished.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    findings.filter(|finding| finding["topic"] == topic).collect()
}

/// The topics of what is not good.
pub(crate) fn worse_than_good(finished: &Finished) -> Vec<String> {
    let bad = topics(finished).into_iter().filter(|(_, severity)| severity != "good");
    bad.map(|(topic, _)| topic).collect()
}
