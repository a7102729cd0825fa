//! Real processes, the parent's side: the test's own binary, started again and told what to do line by line.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use crate::tools::{Outcome, within};

/// Set in a helper's environment; such a process runs no tests.
pub(crate) const HELPER: &str = "TOOZ_CONFORMANCE_HELPER";

/// Starting a process and connecting takes some 50 ms; a loaded machine is given more.
const ANSWER: Duration = Duration::from_secs(10);

/// Another process with a coordinator of its own. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: ChildStdin,
    answers: mpsc::UnboundedReceiver<String>,
}

impl Process {
    pub(crate) async fn start(url: &str, namespace: &str, member: &str) -> Outcome<Self> {
        Self::start_other(&std::env::current_exe()?, url, namespace, member).await
    }

    /// The same of another program that runs the suite, such as one of an earlier version.
    ///
    /// # Errors
    /// It cannot be started, or cannot connect.
    pub async fn start_other(program: &Path, url: &str, namespace: &str, member: &str) -> Outcome<Self> {
        let mut child = Command::new(program)
            .env(HELPER, format!("{url}\n{namespace}\n{member}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the helper process has no pipes".into());
        };
        let (sender, answers) = mpsc::unbounded_channel();
        // Ends with the process, whose end of the pipe closes.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut process = Self { child, input, answers };
        process.answer().await?;
        Ok(process)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to do something, without waiting for the answer.
    ///
    /// # Errors
    /// It is gone.
    pub fn tell(&mut self, command: &str) -> Outcome {
        writeln!(self.input, "{command}")?;
        Ok(self.input.flush()?)
    }

    /// Waits for the answer to the oldest command without one.
    ///
    /// # Errors
    /// The command failed, or there is no answer.
    pub async fn answer(&mut self) -> Outcome<String> {
        self.answer_within(ANSWER).await
    }

    /// The same with another limit, for a command that is work.
    ///
    /// # Errors
    /// The command failed, or there is no answer.
    pub async fn answer_within(&mut self, limit: Duration) -> Outcome<String> {
        let line = within("the helper's answer", limit, self.answers.recv()).await?;
        let line = line.ok_or("the helper process is gone")?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("ok", answer) => Ok(answer.to_owned()),
            (_, error) => Err(format!("helper: {error}").into()),
        }
    }

    /// Tells it to do something and waits for the answer.
    ///
    /// # Errors
    /// The command failed, or there is no answer.
    pub async fn ask(&mut self, command: &str) -> Outcome<String> {
        self.tell(command)?;
        self.answer().await
    }

    /// Waits until it has ended by itself, well.
    ///
    /// # Errors
    /// It has not ended in time, or not well.
    pub async fn ended(&mut self) -> Outcome {
        // Its output ends with it.
        while within("the helper's end", ANSWER, self.answers.recv()).await?.is_some() {}
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the helper ended with {status}").into()) }
    }

    fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// SIGKILL: it gets no chance to clean up.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGSTOP: it stands still.
    ///
    /// # Errors
    /// It is gone.
    pub fn stop(&self) -> Outcome {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT: it goes on.
    ///
    /// # Errors
    /// It is gone.
    pub fn resume(&self) -> Outcome {
        self.signal(Signal::SIGCONT)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already; SIGKILL also ends a stopped process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
