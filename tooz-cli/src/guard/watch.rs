//! The guard: between `tooz` and the launcher.

use std::io;
use std::process::ExitCode;

use nix::unistd::Pid;

use super::descendants::Process;
use super::link::{Heard, Link, Prepared};
use super::orders::{LAUNCH, Orders};
use super::protocol::{Lines, Order, Report};
use super::supervisor::{Supervisor, Wake};
use super::terminal;
use crate::{exit, messages};

/// Runs until it is told to leave, or until one of its neighbours is gone.
pub(super) fn run(orders: &Orders) -> ExitCode {
    match guard(orders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            messages::error(&format!(
                "the guard process failed ({}) and ended the command; run it again",
                exit::told(&error)
            ));
            ExitCode::from(exit::CANNOT_RUN)
        }
    }
}

fn guard(orders: &Orders) -> io::Result<()> {
    let mut supervisor = Supervisor::new(orders, true)?;
    let (mut prepared, mut launcher) = Prepared::new(LAUNCH, orders)?;
    let mut child = prepared.command.spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    supervisor.child = Some(pid);
    supervisor.descendants.own.extend(Process::of(pid));
    // Close our copies of its pipe ends; otherwise we would never read the end of its pipe.
    drop(prepared);
    terminal::release_streams();
    let mut lines = Lines::default();
    let mut command = None;
    let was_left = loop {
        let was_ending = supervisor.is_ending();
        let wake = supervisor.wait(Some(launcher.input()))?;
        for order in std::mem::take(&mut supervisor.orders_seen) {
            // A deadline that does not count here must not count there.
            if !(matches!(order, Order::Deadline(_)) && was_ending) {
                launcher.send(order);
            }
        }
        if matches!(wake, Wake::Orphaned | Wake::Left)
            || !relay(&mut supervisor, &mut launcher, &mut lines, &mut command)
        {
            break wake == Wake::Left;
        }
    };
    if let Some(group) = command {
        // A living `tooz` does it, too. If `tooz` was killed, the shell script around it must get the terminal back, at
        // once: it reads next.
        terminal::give_back(group, orders.home);
    }
    // The launcher is about to end: it was told to leave, or it reads the end of our pipe.
    drop(launcher);
    if !was_left {
        supervisor.kill_all(Some(pid));
    }
    let _ = child.wait();
    Ok(())
}

/// Passes reports on to `tooz`; returns whether the launcher lives. If not, all that the command started is killed.
fn relay(
    supervisor: &mut Supervisor,
    launcher: &mut Link,
    lines: &mut Lines,
    command: &mut Option<Pid>,
) -> bool {
    let (bytes, gone) = match launcher.read() {
        Heard::Bytes(bytes) => (bytes, false),
        Heard::Gone(bytes) => (bytes, true),
    };
    for report in lines.push(&bytes).iter().filter_map(|line| Report::parse(line)) {
        supervisor.report(report);
        if let Report::Started { command: pid, .. } = report {
            *command = Some(pid);
            supervisor.descendants.group = Some(pid);
        }
    }
    if gone {
        supervisor.kill();
    }
    !gone
}
