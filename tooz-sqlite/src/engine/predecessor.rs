//! Who stands before this process's waiters: listening for exactly their ends, so that a death wakes the one process
//! that comes next, however many wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::engine::jobs::Level;
use crate::engine::tx::Tx;
use crate::engine::wakeup;
use crate::engine::{Engine, REAP_LIMIT};
use crate::error::Work;
use crate::keys::Lock;
use crate::locks;
use crate::reaper::{self, Recorded};

/// One process before ours.
#[derive(Debug)]
struct Before {
    bell: File,
    sessions: BTreeSet<i64>,
}

/// The processes before ours, by their bells.
#[derive(Debug, Default)]
pub(crate) struct Ahead(HashMap<u128, Before>);

impl Ahead {
    pub(crate) fn files(&self) -> impl Iterator<Item = &File> {
        self.0.values().map(|before| &before.bell)
    }

    /// The sessions whose processes ended, each told once.
    fn ended(&mut self) -> Vec<i64> {
        let mut ended = Vec::new();
        self.0.retain(|_, before| {
            // Only the end is listened for; that is told without being asked for.
            let mut file = [PollFd::new(before.bell.as_fd(), PollFlags::empty())];
            let told = poll(&mut file, PollTimeout::ZERO).is_ok_and(|told| told > 0);
            if told {
                ended.extend(&before.sessions);
            }
            !told
        });
        ended
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A session before ours, and whether it looks dead already.
struct Found {
    seq: i64,
    bell: Option<u128>,
    dead: bool,
}

/// Who stands before our waiters, and which locks should have been handed on. What somebody damaged is left out.
fn find(tx: &mut Tx<'_>, locks: &BTreeSet<Lock>) -> Work<(Vec<Found>, Vec<Lock>)> {
    fn skip<T: Default>(answer: Work<T>) -> Work<T> {
        match answer {
            Err(fail) if fail.is_unreadable() => Ok(T::default()),
            answer => answer,
        }
    }
    let (mut before, mut overdue) = (BTreeSet::new(), Vec::new());
    for lock in locks {
        let those = skip(locks::immediately_before(tx, lock))?;
        if those.is_empty() && skip(locks::is_overdue(tx, lock))? {
            overdue.push(lock.clone());
        }
        before.extend(those);
    }
    let mut found = Vec::new();
    for seq in before {
        if let Some(session) = skip(Recorded::by_seq(tx, seq))? {
            found.push(Found { seq, bell: session.bell, dead: reaper::looks_dead(tx.site, &session) });
        }
    }
    Ok((found, overdue))
}

impl Engine {
    /// Looks who stands before our waiters now, and listens for their ends.
    pub(crate) fn look_ahead(&mut self) {
        self.ahead_changed = false;
        let waiting = self.hub.locals.values().flat_map(|local| local.waiting());
        let locks: BTreeSet<Lock> = waiting.map(|(_, slot)| slot.lock.clone()).collect();
        if locks.is_empty() {
            self.ahead.clear();
            return;
        }
        let found = match self.write(Level::Read, self.client.clock.now() + REAP_LIMIT, |tx| find(tx, &locks))
        {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "who stands before us is looked at with the next beat");
                return;
            }
        };
        let (found, overdue) = found;
        if !overdue.is_empty() {
            // When it was due, a damaged record was in the way.
            let handed_on = self.write(Level::Write, self.client.clock.now() + REAP_LIMIT, |tx| {
                tx.unsettled.clone_from(&overdue);
                Ok(())
            });
            if let Err(error) = handed_on {
                tracing::debug!(%error, "a lock is handed on with the next beat");
            }
        }
        let sessions = self.client.place.sessions();
        let mut known = std::mem::take(&mut self.ahead.0);
        let mut by_bell: BTreeMap<u128, BTreeSet<i64>> = BTreeMap::new();
        for Found { seq, bell, dead } in found {
            if dead {
                self.suspect(seq);
            } else if let Some(bell) = bell {
                by_bell.entry(bell).or_default().insert(seq);
            }
        }
        for (id, seqs) in by_bell {
            let file = match known.remove(&id) {
                Some(before) => Ok(Some(before.bell)),
                None => wakeup::overhear(&sessions, id),
            };
            match file {
                Ok(Some(bell)) => {
                    self.ahead.0.insert(id, Before { bell, sessions: seqs });
                }
                // It died just now, or its bell was taken away; the session's own file decides.
                Ok(None) => seqs.into_iter().for_each(|seq| self.suspect(seq)),
                Err(error) => tracing::debug!(%error, "a process before us is looked at every second"),
            }
        }
    }

    /// Suspects those before us whose processes ended.
    pub(crate) fn hear_ends(&mut self) {
        for seq in self.ahead.ended() {
            self.suspect(seq);
        }
    }
}
