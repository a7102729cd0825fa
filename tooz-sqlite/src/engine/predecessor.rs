//! The processes that stand before this process's waiters. This process listens for exactly their ends, so that a death
//! wakes the one process that comes next, however many wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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

/// What stands before our waiters.
#[derive(Default)]
pub(crate) struct Found {
    /// Sessions that look dead already.
    pub(crate) dead: Vec<i64>,
    /// The other sessions, by their processes' FIFOs.
    pub(crate) by_wakeup: BTreeMap<u128, BTreeSet<i64>>,
    /// Locks that should have been handed on.
    pub(crate) overdue: Vec<Lock>,
}

/// Reads what stands before our waiters, leaving out damaged records.
pub(crate) fn find(tx: &mut Tx<'_>, locks: &BTreeSet<Lock>) -> Work<Found> {
    fn skip<T: Default>(answer: Work<T>) -> Work<T> {
        match answer {
            Err(fail) if fail.is_unreadable() => Ok(T::default()),
            answer => answer,
        }
    }
    let (mut found, mut before) = (Found::default(), BTreeSet::new());
    for lock in locks {
        let those = skip(queue::immediately_before(tx, lock))?;
        if those.is_empty() && skip(queue::is_overdue(tx, lock))? {
            found.overdue.push(lock.clone());
        }
        before.extend(those);
    }
    for seq in before {
        let Some(session) = skip(Recorded::by_seq(tx, seq))? else { continue };
        if reaper::looks_dead(tx.site, &session) {
            found.dead.push(seq);
        } else if let Some(id) = session.wakeup {
            found.by_wakeup.entry(id).or_default().insert(seq);
        }
    }
    Ok(found)
}
