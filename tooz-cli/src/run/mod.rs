//! Runs a command under a lock, a leadership or a membership, and ends it at the loss.

mod guarded;
mod job_control;
mod signals;

use std::future::Future;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::getpgrp;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use tooz::Deadline;

use crate::args::Children;
use crate::guard::descendants::{Descendants, Process};
use crate::guard::killing::Killing;
use crate::guard::protocol::{Order, Report};
use crate::guard::{boot_time, terminal};
use crate::messages;
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
#[derive(Debug)]
pub(crate) enum Ended {
    /// The command exited with this code.
    Exited(u8),
    /// This signal ended the command.
    Signaled(i32),
    /// The lock or leadership was lost, and all that the command started was killed.
    Lost {
        /// The reason.
        why: String,
        /// What could not be killed.
        left: Vec<Process>,
    },
}

/// How often `tooz` reads the deadline. A renewal moves the deadline every third of a ttl, and a ttl is at least a
/// second.
const LOOK: Duration = Duration::from_millis(100);
/// How often it looks whether what the command started has ended. No event announces the end of a process that is no
/// child.
const LOOK_FOR_END: Duration = Duration::from_millis(10);
/// The same after a while.
const LOOK_LATER: Duration = Duration::from_millis(250);
/// How long a killed process may take before `tooz` names it. The kernel needs milliseconds, unless the process waits
/// for a disk.
const KILLED: Duration = Duration::from_secs(1);

const TOO_LATE: &str = "the session was not renewed before its deadline";

/// Runs `job` to its end.
///
/// Must be polled on the main thread, which lives as long as `tooz`. When it returns, nothing that the command started
/// runs any more, but for what [`Ended::Lost`] names, what [`Children::Leave`] leaves alone, and what a second signal
/// told `tooz` not to wait for.
pub(crate) async fn run(job: &Job<'_>, held: &impl Hold, signals: &mut Signals) -> io::Result<Ended> {
    let home = getpgrp();
    let shares_group = terminal::is_shared(home);
    signals.of_a_job = !shares_group;
    let mut deadline = absolute(held.deadline());
    let left = deadline.map(|at| at.saturating_sub(boot_time()));
    // The first deadline is at most a ttl away, so this is at most a third of the ttl.
    let grace = left.map_or(job.grace, |left| job.grace.min(left / 3));
    let mut guard = Guard::start(job, grace, shares_group)?;
    signals.guard = guard.pid;
    guard.order(Order::Deadline(deadline));
    let ending = held.lost();
    tokio::pin!(ending);
    let (mut lost, mut end) = (None::<String>, None::<Ended>);
    let (mut early, mut finishing, mut named, mut pause) = (Vec::new(), None, false, LOOK_FOR_END);
    let (mut look, mut look_for_end) = (every(LOOK), every(LOOK_FOR_END));
    loop {
        tokio::select! {
            biased;
            // Reports come first: once the command has ended, no signal must go to its group, which may be gone.
            report = guard.report() => match report {
                Some(Report::Started { command, .. }) => {
                    early.drain(..).for_each(|caught| job_control::pass_on(caught, &mut guard, command, home));
                    // A command that is to end does not begin.
                    if lost.is_none() {
                        guard.order(Order::Begin);
                    }
                }
                Some(Report::Stopped(signal)) => job_control::stopped(signal, &guard, home),
                Some(Report::Expired) => {
                    finish(&mut guard, &mut finishing);
                    lost = lost.or_else(|| held.reason().or_else(|| Some(TOO_LATE.into())));
                }
                Some(Report::Exited(code)) => {
                    end = Some(Ended::Exited(code));
                    match job.children {
                        Children::Leave if lost.is_none() => break,
                        Children::End => finish(&mut guard, &mut finishing),
                        // The signal was for them, too.
                        Children::Wait if guard.was_told_to_end => finish(&mut guard, &mut finishing),
                        Children::Leave | Children::Wait => {}
                    }
                }
                Some(Report::Signaled(signal)) => {
                    end = Some(Ended::Signaled(signal));
                    finish(&mut guard, &mut finishing);
                }
                None if guard.command.is_none() => {
                    return Err(io::Error::other("it ended before the command was started"));
                }
                None => {
                    lost = lost.or_else(|| Some("the guard process, which ends the command in time, was killed".into()));
                    break;
                }
            },
            // Polled also after the guard has acted: the reason of the loss says more than the guard's report.
            reason = &mut ending => {
                lost = Some(reason);
                break;
            }
            caught = signals.next() => match guard.running {
                Some(command) => job_control::pass_on(caught, &mut guard, command, home),
                None if end.is_none() => early.push(caught),
                None if !caught.is_ending() => {}
                None if named => break,
                None => finish(&mut guard, &mut finishing),
            },
            _ = look_for_end.tick(), if end.is_some() => {
                if guard.descendants.are_gone() {
                    break;
                }
                pause = (pause * 2).min(LOOK_LATER);
                look_for_end.reset_after(pause);
                if !named && finishing.is_some_and(|at| boot_time() > at + grace + KILLED) {
                    named = true;
                    name_survivors(&guard.descendants.running());
                }
            }
            _ = look.tick(), if lost.is_none() => {
                let now = absolute(held.deadline());
                if moved(deadline, now) {
                    deadline = now;
                    guard.order(Order::Deadline(now));
                }
                guard.note_strangers();
                guard.descendants.continue_own();
            }
        }
    }
    let mut left = Vec::new();
    if lost.is_some() {
        left = kill(&mut guard, held, signals).await;
    } else if matches!(end, Some(Ended::Exited(_))) && job.children == Children::Leave {
        name_rest(&guard.descendants, job.held);
    }
    if let Some(command) = guard.command {
        terminal::give_back(command, home);
    }
    guard.leave(KILLED).await;
    Ok(match (lost, end) {
        (Some(why), _) => Ended::Lost { why, left },
        (None, Some(end)) => end,
        (None, None) => Ended::Signaled(Signal::SIGKILL as i32),
    })
}

/// Names what goes on when `tooz` is about to let go of what was `held`.
fn name_rest(descendants: &Descendants, held: &str) {
    let left = if descendants.are_gone() { Vec::new() } else { descendants.running() };
    if !left.is_empty() {
        let left = list(&left);
        messages::notice(&format!(
            "the command exited, and what it started still runs without the {held}: {left}"
        ));
    }
}

/// Ticks that never come closer together.
fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Orders that all be asked to end, and be killed after the grace.
fn finish(guard: &mut Guard, since: &mut Option<Duration>) {
    guard.order(Order::Finish);
    since.get_or_insert_with(boot_time);
}

/// Kills all that the command started, by the guard and directly, and waits until it is gone. Returns what is left of it
/// after a while if the lock is lost. As long as the lock is held, the wait goes on: a process in the middle of a write
/// that the kernel cannot interrupt still belongs to the work that the lock protects. A second signal ends the wait.
async fn kill(guard: &mut Guard, held: &impl Hold, signals: &mut Signals) -> Vec<Process> {
    guard.order(Order::End);
    let mut killing = Killing::new(false);
    let mut named = false;
    loop {
        killing.strike(&guard.descendants);
        let left = || killing.left.iter().flatten().map(|left| left.process).collect::<Vec<_>>();
        if killing.is_done() {
            return Vec::new();
        }
        if killing.lasts() > KILLED {
            if held.reason().is_some() {
                return left();
            }
            if !named {
                named = true;
                name_survivors(&left());
            }
        }
        tokio::select! {
            caught = signals.next() => if named && caught.is_ending() { return left() },
            () = sleep(LOOK_FOR_END) => {}
        }
    }
}

fn name_survivors(left: &[Process]) {
    let left = list(left);
    messages::error(&format!(
        "waiting for what could not be killed: {left}; end it by hand, or send tooz a second signal to leave it alone"
    ));
}

/// Processes for a message.
pub(crate) fn list(processes: &[Process]) -> String {
    processes.iter().map(Process::describe).collect::<Vec<_>>().join(", ")
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
