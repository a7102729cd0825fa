//! The launcher: starts the command, waits for it, and survives when `tooz` and the guard are killed together.

use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitCode};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpid};

use rustix::process::{PidfdFlags, pidfd_open};

use super::descendants::Process;
use super::link::ourselves;
use super::orders::{EXEC, Orders};
use super::protocol::{Order, Report};
use super::supervisor::{Supervisor, Wake};
use super::terminal;
use crate::{exit, messages};

/// Runs until it is told to leave, or until the guard is gone.
pub(super) fn run(orders: &Orders) -> ExitCode {
    match launch(orders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            messages::error(&format!(
                "cannot start or watch the command ({}); check that /proc is mounted",
                exit::told(&error)
            ));
            ExitCode::from(exit::CANNOT_RUN)
        }
    }
}

fn launch(orders: &Orders) -> io::Result<()> {
    let mut supervisor = Supervisor::new(orders, false)?;
    let top = watch_top(orders);
    let orders = Orders { input: 0, output: 0, parent: getpid(), ..orders.clone() };
    // Wait for the first deadline: the guard could be stopped before it passes one on.
    while !supervisor.orders_seen.iter().any(|order| matches!(order, Order::Deadline(_) | Order::End)) {
        // Nothing was started.
        if matches!(supervisor.wait(None)?, Wake::Orphaned | Wake::Left) {
            return Ok(());
        }
    }
    let mut gate = None;
    if supervisor.is_over() {
        supervisor.report(Report::Signaled(Signal::SIGKILL as i32));
    } else {
        // The stub becomes the command. Its own group exists, with this very number, as soon as it runs.
        let (child, opened) = stub(&orders)?;
        gate = Some(opened);
        let command = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        supervisor.child = Some(command);
        supervisor.descendants.group = Some(command);
        supervisor.report(Report::Started { command, launcher: getpid() });
    }
    terminal::release_streams();
    loop {
        let wake = supervisor.wait(top.as_ref().map(AsFd::as_fd))?;
        if wake != Wake::Left && top.as_ref().is_some_and(has_ended) {
            supervisor.kill_all(None);
            return Ok(());
        }
        match wake {
            Wake::Left => return Ok(()),
            Wake::Orphaned => {
                supervisor.kill_all(None);
                return Ok(());
            }
            Wake::Child => {
                if let Some(end) = look(&mut supervisor)? {
                    supervisor.child = None;
                    supervisor.report(end);
                }
            }
            Wake::Other => {}
        }
        if supervisor.orders_seen.contains(&Order::Begin)
            && !supervisor.is_over()
            && let Some(mut gate) = gate.take()
        {
            // A stub that is gone is seen as a child that has ended.
            let _ = gate.write(b"\n");
        }
        supervisor.orders_seen.clear();
    }
}

/// A descriptor of `tooz` by which its end can be waited for. `None` if this kernel has none; and if `tooz` is dead, which
/// the guard sees.
fn watch_top(orders: &Orders) -> Option<OwnedFd> {
    let top = rustix::process::Pid::from_raw(orders.top.as_raw())?;
    let descriptor = pidfd_open(top, PidfdFlags::empty()).ok()?;
    // Its process id was not given away before: it still is the guard's parent.
    Process::of(orders.parent).filter(|guard| guard.parent == orders.top).map(|_| descriptor)
}

/// Whether the process of this descriptor has ended.
fn has_ended(descriptor: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Starts the stub, which becomes the command once something is written to the pipe, and ends when that is closed.
fn stub(orders: &Orders) -> io::Result<(Child, PipeWriter)> {
    let (theirs, gate) = io::pipe()?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let orders = Orders { input: theirs.as_raw_fd(), ..orders.clone() };
    let group = if orders.shares_group { orders.home.as_raw() } else { 0 };
    Ok((ourselves(EXEC, &orders).process_group(group).spawn()?, gate))
}

/// What happened to the command; `Some` is its end.
fn look(supervisor: &mut Supervisor) -> io::Result<Option<Report>> {
    let Some(pid) = supervisor.child else { return Ok(None) };
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
    loop {
        match waitid(Id::Pid(pid), flags) {
            Ok(WaitStatus::Exited(_, code)) => {
                return Ok(Some(Report::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX))));
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(Report::Signaled(signal as i32))),
            Ok(WaitStatus::Stopped(_, signal)) => supervisor.report(Report::Stopped(signal as i32)),
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
