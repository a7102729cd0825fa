//! Real processes, the parent's side: the test's own binary, started again and told what to do line by line.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tooz_servers::Helper;

use crate::tools::{Outcome, within};

/// Set in a helper's environment; such a process runs no tests.
pub(crate) const HELPER: &str = "TOOZ_CONFORMANCE_HELPER";

/// Starting a process and connecting takes some 50 ms; a loaded machine is given more.
const ANSWER: Duration = Duration::from_secs(10);

/// Another process with a coordinator of its own. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process(Helper);

impl Process {
    pub(crate) async fn start(url: &str, namespace: &str, member: &str) -> Outcome<Self> {
        Self::start_other(&std::env::current_exe()?, url, namespace, member).await
    }

    /// The same of another program that runs the suite, such as one of an earlier version.
    ///
    /// # Errors
    /// It cannot be started, or cannot connect.
    pub async fn start_other(program: &Path, url: &str, namespace: &str, member: &str) -> Outcome<Self> {
        let mut command = Command::new(program);
        command.env(HELPER, format!("{url}\n{namespace}\n{member}"));
        let mut process = Self(Helper::start(command)?);
        process.answer().await?;
        Ok(process)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Tells it to do something, without waiting for the answer.
    ///
    /// # Errors
    /// It is gone.
    pub fn tell(&mut self, command: &str) -> Outcome {
        self.0.tell(command)
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
        let line = within("the helper's answer", limit, self.0.line()).await?;
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
        while within("the helper's end", ANSWER, self.0.line()).await?.is_some() {}
        let status = self.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the helper ended with {status}").into()) }
    }

    /// SIGKILL: it gets no chance to clean up.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> Outcome {
        self.0.kill()
    }

    /// SIGSTOP: it stands still.
    ///
    /// # Errors
    /// It is gone.
    pub fn stop(&self) -> Outcome {
        self.0.stop()
    }

    /// SIGCONT: it goes on.
    ///
    /// # Errors
    /// It is gone.
    pub fn resume(&self) -> Outcome {
        self.0.resume()
    }
}
