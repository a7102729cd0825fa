//! The controlling terminal and the standard streams.
//!
//! The command has a process group of its own, and that gets the terminal while the command runs, if the group of `tooz`
//! has it. Where others are in the group of `tooz` (the other commands of a pipeline, a script's shell), they would lose
//! the terminal, and be stopped when they use it. There the command stays in the group of `tooz`.
//!
//! It is the terminal that counts, not standard input: ssh, sudo, git and gpg ask `/dev/tty`.

use std::fs::File;

use nix::unistd::{Pid, getpid, tcgetpgrp, tcsetpgrp};

use super::descendants::{Process, everything};

/// The controlling terminal, if there is one.
fn controlling() -> Option<File> {
    File::options().read(true).write(true).open("/dev/tty").ok()
}

/// Whether the command has to stay in `home`, the group of `tooz`: there is a terminal, and another process is in the group.
pub(crate) fn is_shared(home: Pid) -> bool {
    controlling().is_some() && has_another(home, getpid())
}

/// Whether a process besides `known` runs in the group.
fn has_another(group: Pid, known: Pid) -> bool {
    let is_another = |process: &Process| process.group == group && process.is_running && process.pid != known;
    everything().is_ok_and(|all| all.iter().any(is_another))
}

/// Whether `group` has the terminal.
pub(crate) fn has(group: Pid) -> bool {
    controlling().is_some_and(|terminal| is_before(&terminal, group))
}

fn is_before(terminal: &File, group: Pid) -> bool {
    tcgetpgrp(terminal).is_ok_and(|foreground| foreground == group)
}

/// Gives it from the group `from` to the group `to`; nothing happens if `from` does not have it, so that
/// `tooz … &` takes nothing away from the shell.
pub(crate) fn pass(from: Pid, to: Pid) {
    if let Some(terminal) = controlling().filter(|terminal| from != to && is_before(terminal, from)) {
        give(&terminal, to);
    }
}

/// Gives it back to `home` after the end of `command`. A command that does job control itself may have left it to another
/// group, of which no process runs any more.
pub(crate) fn give_back(command: Pid, home: Pid) {
    let Some(terminal) = controlling() else { return };
    let is_left = |foreground| foreground == command || !has_another(foreground, getpid());
    if tcgetpgrp(&terminal).is_ok_and(|foreground| foreground != home && is_left(foreground)) {
        give(&terminal, home);
    }
}

/// A process outside the terminal's group that moves it is stopped by SIGTTOU, but `tooz`, guard, launcher and stub block that.
fn give(terminal: &File, to: Pid) {
    // It may have hung up meanwhile; then no group has it.
    let _ = tcsetpgrp(terminal, to);
}

/// Points the standard streams elsewhere once the process below has them, so that the other end of a pipe sees the end
/// when the command closes them.
pub(super) fn release_streams() {
    let Ok(null) = File::options().read(true).write(true).open("/dev/null") else { return };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::unistd::dup2_stderr(&null);
}
