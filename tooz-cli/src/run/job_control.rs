//! Signals for the command; ^Z, `fg` and `bg`: a stopped command stops `tooz`, and a continued `tooz` continues the command.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpid, getsid};

use super::guarded::Guard;
use super::signals::Caught;
use crate::guard::descendants::Process;
use crate::guard::terminal;

/// Passes a signal that `tooz` received on to the command `command`, and to those that are in its group.
pub(super) fn pass_on(caught: Caught, guard: &mut Guard, command: Pid, home: Pid) {
    guard.was_told_to_end |= caught.is_ending();
    if !guard.shares_group {
        if caught.signal == Signal::SIGCONT {
            // After `fg` our group has the terminal and passes it on; after `bg` our group does not have it.
            terminal::pass(home, command);
        }
        send(command, caught.signal);
        return;
    }
    // What the kernel sends goes to the whole group, and the command is in it. Only a hang-up goes to the session's leader
    // alone.
    let leads = getsid(None) == Ok(getpid());
    if !caught.from_kernel || (caught.signal == Signal::SIGHUP && leads) {
        guard.descendants.signal_group(home, caught.signal);
    }
}

/// Sends `signal` to every process of the group. Errors are ignored: the group may be gone or run as another user.
fn send(group: Pid, signal: Signal) {
    let _ = killpg(group, signal);
}

/// The command was stopped by `signal`. If that came from the terminal, our own job stops with it, so that the
/// shell sees it. While stopped, nothing renews: where sessions live by time, the guard acts at the deadline.
pub(super) fn stopped(signal: i32, guard: &Guard, home: Pid) {
    let Some(group) = guard.running else { return };
    let from_terminal = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];
    // `kill -STOP` of the command alone: `tooz` goes on renewing. In a group with us, the terminal has stopped us, too.
    if guard.shares_group || !from_terminal.iter().any(|&stop| stop as i32 == signal) {
        return;
    }
    terminal::pass(group, home);
    if is_orphaned(home) {
        // No shell would ever continue us. The kernel drops terminal stops of orphaned groups; so does `tooz`.
        if terminal::has(home) {
            terminal::pass(home, group);
        }
        if signal == Signal::SIGTSTP as i32 {
            send(group, Signal::SIGCONT);
        }
        return;
    }
    // Stop the whole job, as the terminal's own ^Z would.
    let _ = killpg(home, Signal::SIGSTOP);
}

/// Whether no shell controls the group: no process of the session outside the group is a member's parent. Only the
/// group's leader is examined. A group whose leader is gone counts as orphaned, so ^Z has no effect there.
fn is_orphaned(home: Pid) -> bool {
    let parent = Process::of(home).and_then(|leader| Process::of(leader.parent));
    let session = getsid(None).ok();
    parent.is_none_or(|parent| Some(parent.session) != session || parent.group == home)
}
