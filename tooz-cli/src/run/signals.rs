//! The signals that `tooz` catches. While `tooz` waits they end it in order; while the command runs `tooz` passes
//! them on.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::signal::unix::{self, SignalKind};

use crate::guard::descendants::reap_adopted;

/// By default each ends a process. `tooz` releases what it holds before it ends.
const ENDING: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Caught only while a command runs; before that, their default action is right.
const OF_A_JOB: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGCONT, Signal::SIGWINCH];

/// The streams of caught signals.
#[derive(Debug)]
pub(crate) struct Signals {
    streams: Vec<(Signal, unix::Signal)>,
    /// If our parent ignored SIGCHLD, children could not be waited for; catching the signal undoes that.
    child: unix::Signal,
    /// The child that the runtime reaps.
    pub(super) guard: Option<Pid>,
}

impl Signals {
    /// Catches the signals that end a process.
    pub(crate) fn catch() -> io::Result<Self> {
        let mut signals =
            Self { streams: Vec::new(), child: unix::signal(SignalKind::child())?, guard: None };
        signals.add(&ENDING)?;
        Ok(signals)
    }

    /// Catches those of a job, too.
    pub(crate) fn catch_job(&mut self) -> io::Result<()> {
        self.add(&OF_A_JOB)
    }

    fn add(&mut self, list: &[Signal]) -> io::Result<()> {
        let ignored = ignored();
        for &signal in list {
            let number = signal as i32;
            // A signal that our parent ignored stays ignored for the command: `nohup tooz lock …` survives a hang-up.
            if ignored >> (number - 1) & 1 == 0 {
                self.streams.push((signal, unix::signal(SignalKind::from_raw(number))?));
            }
        }
        Ok(())
    }

    /// The next signal. Cancel-safe. While it is awaited, adopted processes are reaped.
    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            while let Poll::Ready(Some(())) = self.child.poll_recv(context) {
                reap_adopted(self.guard);
            }
            for (signal, stream) in &mut self.streams {
                if let Poll::Ready(Some(())) = stream.poll_recv(context) {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Whether this signal asks a process to end.
pub(super) fn is_ending(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT)
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
