//! The launcher: starts the command, waits for it, and survives when `tooz` and the guard are killed together.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpid};

use super::link::ourselves;
use super::protocol::Report;
use super::warden::{Wake, Warden};
use super::{EXEC, Orders, group};
use crate::exit;

/// Runs until the command has ended or the guard is gone.
pub(super) fn run(orders: &Orders) -> ExitCode {
    match launch(orders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tooz: the command could not be started or watched ({error})");
            ExitCode::from(exit::CANNOT_RUN)
        }
    }
}

fn launch(orders: &Orders) -> io::Result<()> {
    let mut warden = Warden::new(orders, false)?;
    let orders = Orders { input: 0, output: 0, parent: getpid(), ..orders.clone() };
    // Not before the first deadline is known here: the guard could be stopped before it passes one on.
    while warden.orders_seen.is_empty() {
        if warden.wait(None)? == Wake::Orphaned {
            return Ok(());
        }
    }
    if warden.is_over() {
        warden.report(Report::Signaled(Signal::SIGKILL as i32));
        return Ok(());
    }
    // The group exists, with this very number, as soon as the stub runs; it becomes the command.
    let child = ourselves(EXEC, &orders).process_group(0).spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    super::let_go_of_output(false);
    warden.started(pid);
    warden.report(Report::Started(pid));
    loop {
        match warden.wait(None)? {
            Wake::Orphaned => return Ok(()),
            Wake::Child => {
                if let Some(end) = look(pid, &mut warden)? {
                    warden.report(end);
                    return Ok(());
                }
            }
            Wake::Other => {}
        }
        warden.orders_seen.clear();
    }
}

/// What happened to the command; `Some` is its end.
fn look(pid: Pid, warden: &mut Warden) -> io::Result<Option<Report>> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
    loop {
        match waitid(Id::Pid(pid), flags) {
            Ok(WaitStatus::Exited(_, code)) => {
                return Ok(Some(Report::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX))));
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                // It did not end by its own will, so its children may be in the middle of the protected work.
                group::kill(pid);
                return Ok(Some(Report::Signaled(signal as i32)));
            }
            Ok(WaitStatus::Stopped(_, signal)) => warden.report(Report::Stopped(signal as i32)),
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
