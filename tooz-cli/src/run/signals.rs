//! The signals that `tooz` catches. While `tooz` waits they end it in order; while the command runs `tooz` passes
//! them on.

use std::io;
use std::os::fd::AsFd;

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::signal::unix::{self, SignalKind};

use crate::guard::descendants::reap_adopted;

/// By default each ends a process. `tooz` releases what it holds before it ends.
const ENDING: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Passed on while a command runs in a process group of its own. Otherwise they have their default action: the first stops
/// `tooz`, and the others do nothing.
const OF_A_JOB: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGCONT, Signal::SIGWINCH];

/// `si_code` of a signal that the kernel sent, as the terminal's ^C; see sigaction(2).
const SI_KERNEL: i32 = 0x80;

/// The caught signals.
#[derive(Debug)]
pub(crate) struct Signals {
    /// signalfd(2), and no handlers: only it tells where a signal came from. The signals are blocked, in this thread and in
    /// those that are started from now on.
    caught: pipe::Receiver,
    /// If our parent ignored SIGCHLD, children could not be waited for; catching the signal undoes that.
    child: unix::Signal,
    /// The child that the runtime reaps.
    pub(super) guard: Option<Pid>,
    /// Whether those of a job are wanted.
    pub(super) of_a_job: bool,
}

/// A signal that arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caught {
    pub(crate) signal: Signal,
    /// Whether the kernel sent it: those of the terminal go to the whole process group in the foreground.
    pub(super) from_kernel: bool,
}

impl Signals {
    /// Catches the signals. Must be called on the main thread before there are others: where one thread does not block a
    /// signal, the kernel gives it to that thread.
    pub(crate) fn catch() -> io::Result<Self> {
        let mut set = SigSet::empty();
        let ignored = ignored();
        // A signal that our parent ignored stays ignored for the command: `nohup tooz lock …` survives a hang-up.
        set.extend(
            ENDING.into_iter().chain(OF_A_JOB).filter(|&signal| ignored >> (signal as i32 - 1) & 1 == 0),
        );
        // With `stty tostop`, a message from the background would stop `tooz`, and renewals with it.
        let mut blocked = set;
        blocked.add(Signal::SIGTTOU);
        blocked.thread_block()?;
        let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // It is no pipe, but it is read like one.
        let caught = pipe::Receiver::from_owned_fd_unchecked(descriptor.as_fd().try_clone_to_owned()?)?;
        Ok(Self { caught, child: unix::signal(SignalKind::child())?, guard: None, of_a_job: false })
    }

    /// The next signal. Cancel-safe. While it is awaited, adopted processes are reaped.
    pub(crate) async fn next(&mut self) -> Caught {
        loop {
            tokio::select! {
                biased;
                Some(()) = self.child.recv() => reap_adopted(self.guard),
                Ok(()) = self.caught.readable() => {
                    // One whole record, or none.
                    let mut record = [0; size_of::<siginfo>()];
                    if self.caught.try_read(&mut record).is_ok_and(|length| length == record.len())
                        && let Some(caught) = Caught::of(&record)
                    {
                        if self.of_a_job || !OF_A_JOB.contains(&caught.signal) {
                            return caught;
                        }
                        if caught.signal == Signal::SIGTSTP {
                            stop();
                        }
                    }
                }
            }
        }
    }
}

impl Caught {
    /// From a record of signalfd(2), whose first three fields are the signal's number, an error number and the code.
    fn of(record: &[u8; size_of::<siginfo>()]) -> Option<Self> {
        let field = |at: usize| Some(i32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
        Some(Self { signal: Signal::try_from(field(0)?).ok()?, from_kernel: field(8)? == SI_KERNEL })
    }

    /// Whether it asks a process to end.
    pub(super) fn is_ending(self) -> bool {
        matches!(self.signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT)
    }
}

/// Lets SIGTSTP have its default action: this process stops, unless no shell could continue it, which the kernel knows.
fn stop() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTSTP);
    let _ = set.thread_unblock();
    let _ = raise(Signal::SIGTSTP);
    let _ = set.thread_block();
}

/// The signals that this process ignores, one bit each. No other safe interface tells the disposition.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_ignores_sigpipe_and_that_is_seen() {
        assert_eq!(ignored() >> (Signal::SIGPIPE as i32 - 1) & 1, 1);
        assert_eq!(ignored() >> (Signal::SIGTERM as i32 - 1) & 1, 0);
    }
}
