//! Real processes: this binary once more, in a part of its own.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PART: &str = "TOOZ_ROUNDS_PART";

/// What this process is to do, if it was started as one of them.
pub(crate) fn part() -> Option<Vec<String>> {
    Some(std::env::var(PART).ok()?.split('\n').map(str::to_owned).collect())
}

/// The next line from whoever started this process. `None`: it wants no more, or is gone.
pub(crate) fn told() -> Option<String> {
    std::io::stdin().lines().next()?.ok()
}

/// A line for whoever started this process.
pub(crate) fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    // Nobody may be left to hear it.
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

/// A process. Dropping it kills it.
pub(crate) struct Participant {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<Lines<BufReader<ChildStdout>>>,
}

impl Participant {
    pub(crate) fn start(part: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(PART, part.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = child.stdout.take().map(|output| BufReader::new(output).lines());
        Self { child, input, output }
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The next line; `None` when it has ended.
    pub(crate) fn hear(&mut self) -> Option<String> {
        self.output.as_mut().unwrap().next()?.ok()
    }

    /// Whatever it says from now on, to be read elsewhere.
    pub(crate) fn lines(&mut self) -> impl Iterator<Item = String> + Send + use<> {
        self.output.take().unwrap().map_while(Result::ok)
    }

    /// Asks it to end, and for its last line.
    pub(crate) fn end(&mut self) -> Option<String> {
        self.input = None;
        let mut last = None;
        while let Some(line) = self.hear() {
            last = Some(line);
        }
        last
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Stops it, and waits until the last of its threads stands: one may still take a lock after the signal was sent.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let stands = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat"));
            // One that has just ended does nothing any more.
            stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
        };
        let tasks = format!("/proc/{}/task", self.child.id());
        while !std::fs::read_dir(&tasks).unwrap().all(stands) {
            std::thread::yield_now();
        }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        // It may be gone already; SIGKILL also ends a stopped process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
