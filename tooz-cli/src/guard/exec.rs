//! The stub: `tooz` started in another role, which becomes the command. Safe Rust can run no code between fork and
//! exec.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{getpgrp, getppid};

use super::link::adopt;
use super::orders::Orders;
use super::{refusal, terminal};
use crate::{exit, messages};

/// Becomes the command; returns only if that fails.
pub(super) fn run(orders: &Orders) -> ExitCode {
    if let Err(error) = prepare(orders) {
        messages::error(&format!("cannot prepare the command ({}); it was not started", exit::told(&error)));
        return ExitCode::from(exit::CANNOT_RUN);
    }
    let [program, arguments @ ..] = orders.command.as_slice() else {
        return ExitCode::from(exit::USAGE);
    };
    let error = Command::new(program).args(arguments).exec();
    let (code, what) = refusal::explain(program, &error);
    if program.is_empty() {
        messages::error(&what);
    } else {
        messages::error(&format!("{}: {what}", program.display()));
    }
    ExitCode::from(code)
}

fn prepare(orders: &Orders) -> io::Result<()> {
    // The setting survives the exec below (except into a set-user-ID program), so the command never outlives the
    // launcher.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The launcher may have died before that.
    if getppid() != orders.parent {
        return Err(io::Error::other("the launcher process has died"));
    }
    wait_to_begin(orders.input)?;
    // Before the exec: a command that reads at once must not be stopped by SIGTTIN.
    if !orders.shares_group {
        terminal::pass(orders.home, getpgrp());
    }
    // The launcher blocks every signal, and a mask is inherited.
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Waits until `tooz` knows this process. From then on any of `tooz`, guard and launcher can kill what it starts.
fn wait_to_begin(gate: i32) -> io::Result<()> {
    let mut gate = adopt(gate, OpenOptions::new().read(true))?;
    let mut ready = [PollFd::new(gate.as_fd(), PollFlags::POLLIN)];
    while poll(&mut ready, PollTimeout::NONE) == Err(Errno::EINTR) {}
    match gate.read(&mut [0]) {
        Ok(1..) => Ok(()),
        Ok(0) => Err(io::Error::other("the launcher process has died")),
        Err(error) => Err(error),
    }
}
