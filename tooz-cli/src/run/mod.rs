//! Runs a command under a lock, a leadership or a membership, and ends it at the loss.

mod guarded;
mod job_control;
mod signals;

use std::future::Future;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::getpgrp;
use tokio::time::sleep;
use tooz::Deadline;

use crate::guard::protocol::{Order, Report};
use crate::guard::{boot_time, group, terminal};
use guarded::Guard;
pub(crate) use guarded::Job;
pub(crate) use signals::Signals;

/// What the command runs under.
pub(crate) trait Hold {
    /// Until when it is held; `None`: the session has no ttl.
    fn deadline(&self) -> Option<Deadline> {
        None
    }
    /// Waits for the loss. Dropping it changes nothing.
    fn lost(&self) -> impl Future<Output = String>;
    /// Why it was lost; `None` while it is held.
    fn reason(&self) -> Option<String> {
        None
    }
}

/// How the command ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The command exited with this code.
    Exited(u8),
    /// This signal ended it.
    Signaled(i32),
    /// The lock or leadership was lost for this reason, and the command's group was killed.
    Lost(String),
}

/// How often `tooz` reads the deadline. A renewal moves the deadline every third of a ttl, and a ttl is at least a
/// second.
const LOOK: Duration = Duration::from_millis(100);

const TOO_LATE: &str = "the session was not renewed before its deadline";

/// Runs `job` to its end.
///
/// Must be polled on the main thread, which lives as long as `tooz`. When it returns [`Ended::Signaled`] or
/// [`Ended::Lost`], no member of the command's group runs any more.
pub(crate) async fn run(job: &Job<'_>, held: &impl Hold, signals: &mut Signals) -> io::Result<Ended> {
    signals.catch_job()?;
    let mut deadline = absolute(held.deadline());
    let left = deadline.map(|at| at.saturating_sub(boot_time()));
    // The first deadline is at most a ttl away, so this is at most a third of the ttl.
    let grace = left.map_or(job.grace, |left| job.grace.min(left / 3));
    let mut guard = Guard::start(job, grace)?;
    guard.order(Order::Deadline(deadline));
    let ending = held.lost();
    tokio::pin!(ending);
    let mut lost: Option<String> = None;
    let mut told = false;
    let mut early = Vec::new();
    let home = getpgrp();
    let end = loop {
        tokio::select! {
            biased;
            // Reports come first: once the command has ended, no signal must go to its group, which may be gone.
            report = guard.report() => match report {
                Some(Report::Started(group)) => {
                    for signal in early.drain(..) {
                        group::signal(group, signal);
                    }
                    if lost.is_some() {
                        guard.kill();
                    } else {
                        guard.order(Order::Begin);
                    }
                }
                Some(Report::Stopped(signal)) => job_control::stopped(signal, guard.group, home),
                Some(Report::Expired) => lost = lost.or_else(|| held.reason().or_else(|| Some(TOO_LATE.into()))),
                Some(Report::Exited(code)) => break Some(Ended::Exited(code)),
                Some(Report::Signaled(signal)) => break Some(Ended::Signaled(signal)),
                None => break None,
            },
            // Polled also after the guard has acted: the reason of the loss says more than the guard's report.
            reason = &mut ending, if !told => {
                told = true;
                lost = Some(reason);
                guard.kill();
            }
            signal = signals.next() => match guard.group {
                Some(group) => job_control::pass_on(signal, group, home),
                None => early.push(signal),
            },
            () = sleep(LOOK), if lost.is_none() => {
                let now = absolute(held.deadline());
                if moved(deadline, now) {
                    deadline = now;
                    guard.order(Order::Deadline(now));
                }
            }
        }
    };
    if end.is_none() {
        // The guard was killed. The launcher kills the group, too.
        guard.kill();
        lost = lost.or_else(|| Some("the guard process, which ends the command in time, was killed".into()));
    }
    if !matches!(end, Some(Ended::Exited(_))) {
        guard.gone().await;
    }
    if let Some(group) = guard.group {
        terminal::pass(group, home);
    }
    guard.reap().await;
    Ok(match (lost, end) {
        (Some(reason), _) => Ended::Lost(reason),
        (None, Some(end)) => end,
        (None, None) => Ended::Signaled(Signal::SIGKILL as i32),
    })
}

/// The deadline on the boot-time clock, which every process of the machine reads alike. The clock is read first,
/// so the result is early rather than late.
fn absolute(deadline: Option<Deadline>) -> Option<Duration> {
    let now = boot_time();
    deadline.map(|deadline| now + deadline.remaining())
}

/// Whether the deadline moved by more than the noise of measuring the same one again.
fn moved(old: Option<Duration>, new: Option<Duration>) -> bool {
    const NOISE: Duration = Duration::from_millis(5);
    match (old, new) {
        (Some(old), Some(new)) => old.abs_diff(new) > NOISE,
        (old, new) => old != new,
    }
}
