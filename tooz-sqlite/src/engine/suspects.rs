//! Sessions that may be dead: from the first hint to clearing them away.

use std::collections::BTreeSet;
use std::time::Duration;

use tooz_core::Result;
use tooz_core::driver::{Instant, SessionId};

use crate::engine::jobs::Level;
use crate::engine::predecessor::{self, Found, Predecessor};
use crate::engine::state::{CHECK_EVERY, Engine, POLL_HIGH, REAP_LIMIT};
use crate::engine::wakeup;
use crate::keys::Lock;
use crate::reaper::{self, Recorded};

/// A process that hears of a death which other processes hear of, too, waits for a random part of this time for each
/// session: about what it takes one of them to look.
const TURNS: Duration = Duration::from_micros(100);
/// The kernel tells that a file was closed shortly before it drops the file's lock. After the first look, the thread looks
/// at the file again after these times. The look every second finds later deaths.
const AGAIN: [Duration; 5] = [
    Duration::from_micros(200),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(100),
];

impl Engine {
    /// Looks at a session as soon as possible.
    pub(crate) fn suspect(&mut self, seq: i64) {
        self.probes.doubt(seq);
        let now = self.now();
        self.suspects.entry(seq).or_insert((now, 0)).0 = now;
    }

    pub(crate) fn suspect_by_id(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.values().find(|session| session.id == id) {
            if session.is_over() {
                let seq = session.seq;
                self.suspect(seq);
            }
            return;
        }
        let found = self.read(|tx| {
            let sessions = tx.value::<u32>("SELECT count(*) FROM sessions", [])?;
            Ok(Recorded::by_id(tx, id)?.map(|session| (session.seq, sessions.unwrap_or(0))))
        });
        match found {
            Ok(Some((seq, sessions))) => {
                self.probes.doubt(seq);
                // Every process with a watch hears it at once: one is enough to clear it away, and the rest find it done.
                let wait = self.jobs.context.entropy.between(Duration::ZERO, TURNS * sessions);
                let at = self.now() + wait.min(CHECK_EVERY);
                self.suspects.entry(seq).or_insert((at, 0));
            }
            Ok(None) => {} // cleared away already
            Err(error) => tracing::debug!(%error, "a session that may be dead is looked at later"),
        }
    }

    /// Suspects the sessions of this process that ended without being closed in the database.
    pub(crate) fn suspect_ended_sessions(&mut self) {
        let over = self.sessions.values().filter(|session| session.is_over());
        for seq in over.map(|session| session.seq).collect::<Vec<_>>() {
            self.suspect(seq);
        }
    }

    pub(crate) fn check_all_sessions(&mut self) {
        self.check_own_files();
        match self.read(reaper::find_dead) {
            Ok(dead) => dead.into_iter().for_each(|seq| self.suspect(seq)),
            Err(error) => tracing::debug!(%error, "dead sessions are looked for later"),
        }
    }

    /// Clears away the suspects that are dead, and looks at the others again a few times.
    pub(crate) fn clear_suspects(&mut self) {
        let now = self.now();
        let due: Vec<i64> =
            self.suspects.iter().filter(|(_, (at, _))| *at <= now).map(|(seq, _)| *seq).collect();
        if due.is_empty() || self.database.is_none() {
            return;
        }
        for seq in &due {
            self.probes.doubt(*seq);
        }
        let cleared = self.clear_dead(&due, now + REAP_LIMIT);
        let now = self.now();
        match cleared {
            Ok(cleared) => {
                // Then another session stands before our waiters.
                self.predecessors_changed |= !cleared.is_empty();
                for seq in due {
                    let looked = self.suspects.get(&seq).map_or(0, |(_, looked)| *looked);
                    match AGAIN.get(looked).filter(|_| !cleared.contains(&seq)) {
                        Some(wait) => self.suspects.insert(seq, (now + *wait, looked + 1)),
                        None => self.suspects.remove(&seq),
                    };
                }
            }
            Err(error) => {
                tracing::debug!(%error, "dead sessions are cleared away later");
                for seq in due {
                    self.suspects.insert(seq, (now + POLL_HIGH, 0));
                }
            }
        }
        self.dispatch_own();
    }

    /// Ends those of these sessions that are dead; which of them have no record now.
    fn clear_dead(&mut self, suspects: &[i64], limit: Instant) -> Result<Vec<i64>> {
        // First without the write lock: most suspects live, or another process was faster.
        let (dead, gone) = self.read(|tx| {
            let (mut dead, mut gone) = (Vec::new(), Vec::new());
            for seq in suspects {
                let stands = tx.exists("SELECT 1 FROM sessions WHERE seq = ?1", [*seq])?;
                if !stands {
                    gone.push(*seq);
                } else if reaper::is_dead(tx, *seq)? {
                    dead.push(*seq);
                }
            }
            // They are looked at below; the reads' own suspicion would only repeat that.
            tx.effects.clear();
            Ok((dead, gone))
        })?;
        if dead.is_empty() {
            return Ok(gone);
        }
        self.write(Level::Write, limit, |tx| {
            let mut cleared = gone.clone();
            for seq in &dead {
                if reaper::reap(tx, *seq)? {
                    cleared.push(*seq);
                }
            }
            Ok(cleared)
        })
    }

    /// Finds the processes that stand before our waiters now, and listens for their ends.
    pub(crate) fn follow_predecessors(&mut self) {
        self.predecessors_changed = false;
        let waiting = self.sessions.values().flat_map(|session| session.waiting());
        let locks: BTreeSet<Lock> = waiting.map(|(_, attempt)| attempt.lock.clone()).collect();
        if locks.is_empty() {
            self.predecessors.0.clear();
            return;
        }
        let found = self.read(|tx| predecessor::find(tx, &locks));
        let Found { dead, by_wakeup, overdue } = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "who stands before us is looked at with the next beat");
                return;
            }
        };
        if !overdue.is_empty() {
            // When the hand-on was due, a damaged record was in the way.
            let handed_on = self.write(Level::Write, self.now() + REAP_LIMIT, |tx| {
                tx.unsettled.clone_from(&overdue);
                Ok(())
            });
            if let Err(error) = handed_on {
                tracing::debug!(%error, "a lock is handed on with the next beat");
            }
        }
        let sessions = self.jobs.paths.sessions();
        let mut known = std::mem::take(&mut self.predecessors.0);
        for seq in dead {
            self.suspect(seq);
        }
        for (id, seqs) in by_wakeup {
            let file = match known.remove(&id) {
                Some(before) => Ok(Some(before.wakeup)),
                None => wakeup::watch_owner(&sessions, id),
            };
            match file {
                Ok(Some(wakeup)) => {
                    self.predecessors.0.insert(id, Predecessor { wakeup, sessions: seqs });
                }
                // It died just now, or its FIFO was taken away; the session's own file decides.
                Ok(None) => seqs.into_iter().for_each(|seq| self.suspect(seq)),
                Err(error) => tracing::debug!(%error, "a process before us is looked at every second"),
            }
        }
    }
}
