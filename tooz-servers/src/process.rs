//! Helper processes: a program that is told what to do line by line, and says line by line what came of it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::Notify;

use crate::wait::Outcome;

/// Names the part that a process is to do, in its environment.
const PART: &str = "TOOZ_TEST_PART";

/// How long a process may take until each of its threads has stopped: a thread stops when it next runs, which is at once on
/// an idle machine.
const STANDS: Duration = Duration::from_secs(20);

/// Returns the part that this process is to do, if [`Helper::part`] started it. `None`: this process is no helper.
pub fn part() -> Option<Vec<String>> {
    Some(std::env::var(PART).ok()?.split('\n').map(str::to_owned).collect())
}

/// Reads the next line for this helper. `None`: the parent has no more to tell, or is gone.
pub fn told() -> Option<String> {
    std::io::stdin().lines().next()?.ok()
}

/// Writes a line for the parent of this helper.
pub fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    // The parent may be gone.
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

/// Runs a command to its end.
///
/// # Errors
/// What the command wrote, if it cannot be started or does not succeed.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&said).trim()))
}

/// What a helper said and its parent has not read yet.
#[derive(Debug, Default)]
struct Inbox {
    state: Mutex<Said>,
    /// Wakes threads, [`Inbox::news`] tasks.
    arrived: Condvar,
    news: Notify,
}

#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<String>,
    ended: bool,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, Said> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.state());
        self.arrived.notify_all();
        // The permit stays when nothing waits, so that no line is missed between looking and waiting.
        self.news.notify_one();
    }

    async fn next(&self) -> Option<String> {
        loop {
            {
                let mut said = self.state();
                if let Some(line) = said.lines.pop_front() {
                    return Some(line);
                }
                if said.ended {
                    return None;
                }
            }
            self.news.notified().await;
        }
    }

    fn next_blocking(&self) -> Option<String> {
        let wait = |said: &mut Said| said.lines.is_empty() && !said.ended;
        let said = self.arrived.wait_while(self.state(), wait);
        said.unwrap_or_else(PoisonError::into_inner).lines.pop_front()
    }

    fn next_within(&self, limit: Duration) -> Option<String> {
        let wait = |said: &mut Said| said.lines.is_empty() && !said.ended;
        let said = self.arrived.wait_timeout_while(self.state(), limit, wait);
        said.unwrap_or_else(PoisonError::into_inner).0.lines.pop_front()
    }
}

/// Another process. Dropping this kills and reaps the process.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    input: Option<ChildStdin>,
    inbox: Arc<Inbox>,
}

impl Helper {
    /// Starts `command` with its standard input and output connected to this.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(command: Command) -> Outcome<Self> {
        Self::start_marked(command, "")
    }

    /// Starts `command`, whose lines count from `mark` on: the compiler's test harness around a helper writes lines of its own,
    /// also before the mark.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_marked(mut command: Command, mark: &'static str) -> Outcome<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) =
            (child.stdin.take(), child.stdout.take().ok_or("the helper process has no pipe")?);
        let inbox = Arc::new(Inbox::default());
        let into = Arc::clone(&inbox);
        // Ends with the process, whose end of the pipe closes.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((_, line)) = line.split_once(mark) {
                    into.change(|said| said.lines.push_back(line.to_owned()));
                }
            }
            into.change(|said| said.ended = true);
        });
        Ok(Self { child, input, inbox })
    }

    /// Starts this program again to do a [`part`].
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn part(words: &[&str]) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(PART, words.join("\n"));
        Self::start(command)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to the process, without waiting for an answer.
    ///
    /// # Errors
    /// The process is gone, or was told to [`end`](Helper::end).
    pub fn tell(&mut self, line: &str) -> Outcome {
        let input = self.input.as_mut().ok_or("the helper process was told to end")?;
        writeln!(input, "{line}")?;
        Ok(input.flush()?)
    }

    /// Awaits the process's next line; `None` when it has ended.
    pub async fn line(&mut self) -> Option<String> {
        self.inbox.next().await
    }

    /// Blocks this thread until the next line; `None` when the process has ended.
    pub fn hear(&self) -> Option<String> {
        self.inbox.next_blocking()
    }

    /// Blocks this thread until the next line; `None` when the process has ended, or says nothing within `limit`.
    pub fn hear_within(&self, limit: Duration) -> Option<String> {
        self.inbox.next_within(limit)
    }

    /// All further lines, to be read on another thread.
    pub fn lines(&mut self) -> impl Iterator<Item = String> + Send + use<> {
        let inbox = Arc::clone(&self.inbox);
        std::iter::from_fn(move || inbox.next_blocking())
    }

    /// Closes the process's input, by which it knows that it is to end, and returns its last line.
    pub fn end(&mut self) -> Option<String> {
        self.input = None;
        self.lines().last()
    }

    /// Waits until the process has ended, and reaps it.
    ///
    /// # Errors
    /// The process cannot be waited for.
    pub fn wait(&mut self) -> Outcome<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(Pid::from_raw(i32::try_from(self.id())?), signal)?)
    }

    /// Stops the process, see [`stop`].
    ///
    /// # Errors
    /// The process is gone, or does not stop.
    pub fn stop(&self) -> Outcome {
        stop(self.id())
    }

    /// Sends SIGCONT: the process goes on.
    ///
    /// # Errors
    /// The process is gone.
    pub fn resume(&self) -> Outcome {
        self.signal(Signal::SIGCONT)
    }

    /// Sends SIGKILL, which leaves no chance to clean up, and reaps the process.
    ///
    /// # Errors
    /// The process cannot be killed.
    pub fn kill(&mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

/// Sends SIGSTOP and waits until each thread of the process has stopped: a thread may still take a lock, or answer, after
/// the signal was sent.
///
/// # Errors
/// The process is gone, or does not stop.
pub fn stop(id: u32) -> Outcome {
    kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGSTOP)?;
    let tasks = format!("/proc/{id}/task");
    let begin = Instant::now();
    while !std::fs::read_dir(&tasks)?.all(|task| task.is_ok_and(|task| stands(&task.path(), "TXZ"))) {
        if begin.elapsed() > STANDS {
            return Err(format!("process {id} does not stop").into());
        }
        std::thread::yield_now();
    }
    if !stands(std::path::Path::new(&format!("/proc/{id}")), "T") {
        return Err(format!("process {id} has ended").into());
    }
    Ok(())
}

/// Whether a process or thread is in one of these states, by its folder in `/proc`; also if the folder is gone.
fn stands(folder: &std::path::Path, states: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(folder.join("stat")) else { return true };
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).is_some_and(|state| states.contains(state))
}

impl Drop for Helper {
    fn drop(&mut self) {
        // The process may be gone already; SIGKILL also ends a stopped one.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn it_is_told_and_heard_and_ends_when_there_is_no_more() {
        let mut helper =
            Helper::start(shell("while read -r line; do echo \"got $line\"; done; echo over")).unwrap();
        helper.tell("one").unwrap();
        assert_eq!(crate::block_on(helper.line()).as_deref(), Some("got one"));
        assert_eq!(helper.hear_within(Duration::from_millis(1)), None);
        helper.tell("two").unwrap();
        assert_eq!(helper.hear().as_deref(), Some("got two"));
        assert_eq!(helper.end().as_deref(), Some("over"));
        assert_eq!(crate::block_on(helper.line()), None);
        assert!(helper.wait().unwrap().success() && helper.tell("three").is_err());
    }

    #[test]
    fn only_what_is_marked_was_said() {
        let mut helper =
            Helper::start_marked(shell("echo noise; echo 'test x ... SAYS word'"), "SAYS ").unwrap();
        assert_eq!(helper.lines().collect::<Vec<_>>(), ["word"]);
        helper.kill().unwrap();
    }

    #[test]
    fn a_stopped_one_stands_and_goes_on() {
        let mut helper = Helper::start(shell("while read -r line; do echo $line; done")).unwrap();
        helper.stop().unwrap();
        assert!(stands(std::path::Path::new(&format!("/proc/{}", helper.id())), "T"));
        helper.tell("word").unwrap();
        assert_eq!(helper.hear_within(Duration::from_millis(20)), None);
        helper.resume().unwrap();
        assert_eq!(helper.hear().as_deref(), Some("word"));
        assert!(helper.end().is_none() && helper.wait().unwrap().success());
        assert!(helper.stop().is_err(), "it has ended");
    }
}
