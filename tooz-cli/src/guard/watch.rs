//! The guard: between `tooz` and the launcher.

use std::io;
use std::process::ExitCode;

use super::link::{Heard, Link, Prepared};
use super::protocol::{Lines, Report};
use super::warden::{Wake, Warden};
use super::{LAUNCH, Orders, terminal};
use crate::exit;

/// Runs until the launcher has reported the command's end, or until one of its neighbours is gone.
pub(super) fn run(orders: &Orders) -> ExitCode {
    match guard(orders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tooz: the guard process failed ({error}); the command was ended");
            ExitCode::from(exit::CANNOT_RUN)
        }
    }
}

fn guard(orders: &Orders) -> io::Result<()> {
    let mut warden = Warden::new(orders, true)?;
    let (mut prepared, mut launcher) = Prepared::new(LAUNCH, orders)?;
    let mut child = prepared.command.spawn()?;
    // Our copies of its ends must go, or we would never see the end of its pipe.
    drop(prepared);
    super::let_go_of_output(true);
    let mut lines = Lines::default();
    let mut over = false;
    while !over {
        let wake = warden.wait(Some(launcher.input()))?;
        for order in std::mem::take(&mut warden.orders_seen) {
            launcher.send(order);
        }
        if wake == Wake::Orphaned {
            break;
        }
        over = relay(&mut warden, &mut launcher, &mut lines);
    }
    if let Some(group) = warden.group {
        // `tooz` does it, too, if it lives; without this a shell script would lose the terminal with it.
        terminal::pass(group, orders.home);
    }
    // Orphaned or not, it is about to end: it has reported, or it sees the end of our pipe.
    drop(launcher);
    let _ = child.wait();
    Ok(())
}

/// Passes reports on; says whether it is over.
fn relay(warden: &mut Warden, launcher: &mut Link, lines: &mut Lines) -> bool {
    let (bytes, gone) = match launcher.read() {
        Heard::Bytes(bytes) => (bytes, false),
        Heard::Gone(bytes) => (bytes, true),
    };
    for report in lines.push(&bytes).iter().filter_map(|line| Report::parse(line)) {
        warden.report(report);
        match report {
            Report::Started(group) => warden.started(group),
            Report::Exited(_) | Report::Signaled(_) => return true,
            Report::Stopped(_) | Report::Expired => {}
        }
    }
    if gone {
        warden.kill();
    }
    gone
}
