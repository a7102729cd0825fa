//! The terminal and the standard streams. The command gets the terminal when standard input is one and `tooz` had it,
//! and afterwards the terminal goes back.

use std::fs::File;
use std::io::{IsTerminal, stdin};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, tcgetpgrp, tcsetpgrp};

/// Whether standard input is a terminal and `group` has it.
pub(crate) fn has(group: Pid) -> bool {
    let input = stdin();
    input.is_terminal() && tcgetpgrp(&input).is_ok_and(|foreground| foreground == group)
}

/// Gives it from the group `from` to the group `to`; nothing happens if `from` does not have it, so that
/// `tooz … &` takes nothing away from the shell.
pub(crate) fn pass(from: Pid, to: Pid) {
    if !has(from) {
        return;
    }
    // A process outside the terminal's group that moves it is stopped by SIGTTOU, unless that is blocked.
    let mut output = SigSet::empty();
    output.add(Signal::SIGTTOU);
    let before = SigSet::thread_get_mask();
    let _ = output.thread_block();
    // It may have hung up meanwhile; then no group has it.
    let _ = tcsetpgrp(stdin(), to);
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
}

/// Points standard output and error elsewhere once the process below has them, so that their reader sees the end when
/// the command closes them. Standard input goes, too, unless it is the terminal and `keeps_terminal`: the guard has to
/// give it back.
pub(super) fn release_streams(keeps_terminal: bool) {
    let Ok(null) = File::options().read(true).write(true).open("/dev/null") else { return };
    if !(keeps_terminal && stdin().is_terminal()) {
        let _ = nix::unistd::dup2_stdin(&null);
    }
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::unistd::dup2_stderr(&null);
}
