//! The guard: between `tooz` and the launcher.

use std::io;
use std::process::ExitCode;

use super::link::{Heard, Link, Prepared};
use super::orders::{LAUNCH, Orders};
use super::protocol::{Lines, Report};
use super::supervisor::{Supervisor, Wake};
use super::terminal;
use crate::exit;

/// Runs until the launcher has reported the command's end, or until one of its neighbours is gone.
pub(super) fn run(orders: &Orders) -> ExitCode {
    match guard(orders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tooz: the guard process failed ({error}) and ended the command; run it again");
            ExitCode::from(exit::CANNOT_RUN)
        }
    }
}

fn guard(orders: &Orders) -> io::Result<()> {
    let mut supervisor = Supervisor::new(orders, true)?;
    let (mut prepared, mut launcher) = Prepared::new(LAUNCH, orders)?;
    let mut child = prepared.command.spawn()?;
    // Our copies of its ends must go, or we would never see the end of its pipe.
    drop(prepared);
    terminal::release_streams(true);
    let mut lines = Lines::default();
    let mut over = false;
    while !over {
        let wake = supervisor.wait(Some(launcher.input()))?;
        for order in std::mem::take(&mut supervisor.orders_seen) {
            launcher.send(order);
        }
        if wake == Wake::Orphaned {
            break;
        }
        over = relay(&mut supervisor, &mut launcher, &mut lines);
    }
    if let Some(group) = supervisor.group {
        // `tooz` does it, too, if it lives; without this a shell script would lose the terminal with it.
        terminal::pass(group, orders.home);
    }
    // Orphaned or not, it is about to end: it has reported, or it sees the end of our pipe.
    drop(launcher);
    let _ = child.wait();
    Ok(())
}

/// Passes reports on; says whether it is over.
fn relay(supervisor: &mut Supervisor, launcher: &mut Link, lines: &mut Lines) -> bool {
    let (bytes, gone) = match launcher.read() {
        Heard::Bytes(bytes) => (bytes, false),
        Heard::Gone(bytes) => (bytes, true),
    };
    for report in lines.push(&bytes).iter().filter_map(|line| Report::parse(line)) {
        supervisor.report(report);
        match report {
            Report::Started(group) => supervisor.started(group),
            Report::Exited(_) | Report::Signaled(_) => return true,
            Report::Stopped(_) | Report::Expired => {}
        }
    }
    if gone {
        supervisor.kill();
    }
    gone
}
