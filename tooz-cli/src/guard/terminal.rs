//! Who has the terminal. The command gets it when standard input is one and `tooz` had it, and it goes back.

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
    // It may have hung up meanwhile; then nobody has it.
    let _ = tcsetpgrp(stdin(), to);
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
}
