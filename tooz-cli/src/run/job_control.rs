//! ^Z, `fg` and `bg`: a stopped command stops `tooz`, and a continued `tooz` continues the command.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getsid};

use crate::guard::descendants::Process;
use crate::guard::terminal;

/// Passes a signal that `tooz` received on to the command's group.
pub(super) fn pass_on(signal: Signal, group: Pid, home: Pid) {
    if signal == Signal::SIGCONT {
        // After `fg` our group has the terminal and passes it on; after `bg` our group does not have it.
        terminal::pass(home, group);
    }
    send(group, signal);
}

/// Sends `signal` to every process of the group. Errors are ignored: the group may be gone or run as another user.
pub(super) fn send(group: Pid, signal: Signal) {
    let _ = killpg(group, signal);
}

/// The command was stopped by `signal`. If that came from the terminal, our own job stops with it, so that the
/// shell sees it. While stopped, nothing renews: where sessions live by time, the guard acts at the deadline.
pub(super) fn stopped(signal: i32, group: Option<Pid>, home: Pid) {
    let Some(group) = group else { return };
    let from_terminal = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];
    if !from_terminal.iter().any(|&stop| stop as i32 == signal) {
        return; // `kill -STOP` of the command alone: `tooz` goes on renewing
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
    // Stop the whole job, as the terminal's own ^Z would: the script that runs `tooz`, the other end of a pipe.
    let _ = killpg(home, Signal::SIGSTOP);
}

/// Whether no shell controls the group: no process of the session outside the group is a member's parent. Only the
/// group's leader is examined. A group whose leader is gone counts as orphaned, so ^Z has no effect there.
fn is_orphaned(home: Pid) -> bool {
    let parent = Process::of(home).and_then(|leader| Process::of(leader.parent));
    let session = getsid(None).ok();
    parent.is_none_or(|parent| Some(parent.session) != session || parent.group == home)
}
