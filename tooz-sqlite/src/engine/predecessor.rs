//! The processes that stand before this process's waiters. This process listens for exactly their ends, so that a death
//! wakes the one process that comes next, however many wait.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::engine::queue;
use crate::engine::tx::Tx;
use crate::error::Work;
use crate::keys::Lock;
use crate::reaper::{self, Recorded};

/// One process before ours.
#[derive(Debug)]
pub(crate) struct Predecessor {
    pub(crate) wakeup: File,
    pub(crate) sessions: BTreeSet<i64>,
}

/// The processes before ours, by their FIFOs.
#[derive(Debug, Default)]
pub(crate) struct Predecessors(pub(crate) HashMap<u128, Predecessor>);

impl Predecessors {
    pub(crate) fn files(&self) -> impl Iterator<Item = &File> {
        self.0.values().map(|before| &before.wakeup)
    }

    /// The sessions whose processes ended, each returned once.
    pub(crate) fn take_ended(&mut self) -> Vec<i64> {
        let mut ended = Vec::new();
        self.0.retain(|_, before| {
            // The end is all that matters here, and the kernel reports it without being asked.
            let mut file = [PollFd::new(before.wakeup.as_fd(), PollFlags::empty())];
            let is_over = poll(&mut file, PollTimeout::ZERO).is_ok_and(|reported| reported > 0);
            if is_over {
                ended.extend(&before.sessions);
            }
            !is_over
        });
        ended
    }
}

/// A session before ours, and whether it looks dead already.
pub(crate) struct Found {
    pub(crate) seq: i64,
    pub(crate) wakeup: Option<u128>,
    pub(crate) dead: bool,
}

/// The sessions before our waiters, and the locks that should have been handed on. Leaves out damaged records.
pub(crate) fn find(tx: &mut Tx<'_>, locks: &BTreeSet<Lock>) -> Work<(Vec<Found>, Vec<Lock>)> {
    fn skip<T: Default>(answer: Work<T>) -> Work<T> {
        match answer {
            Err(fail) if fail.is_unreadable() => Ok(T::default()),
            answer => answer,
        }
    }
    let (mut before, mut overdue) = (BTreeSet::new(), Vec::new());
    for lock in locks {
        let those = skip(queue::immediately_before(tx, lock))?;
        if those.is_empty() && skip(queue::is_overdue(tx, lock))? {
            overdue.push(lock.clone());
        }
        before.extend(those);
    }
    let mut found = Vec::new();
    for seq in before {
        if let Some(session) = skip(Recorded::by_seq(tx, seq))? {
            found.push(Found { seq, wakeup: session.wakeup, dead: reaper::looks_dead(tx.site, &session) });
        }
    }
    Ok((found, overdue))
}
