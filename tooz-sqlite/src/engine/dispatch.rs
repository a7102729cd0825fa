//! Telling this process what has changed: by the effects of our own commits, and by the log after other processes' commits.

use std::sync::{Arc, Weak};

use tooz_core::LossReason;
use tooz_core::driver::{AttemptId, GroupChange, LockKey, Notice, Turn};

use crate::engine::log::{self, Change, Event};
use crate::engine::state::Engine;
use crate::engine::tx::Effect;
use crate::engine::{lock_rows, wakeup};
use crate::keys::Lock;
use crate::session_state::SessionState;
use crate::view;

impl Engine {
    /// Does what follows from a commit.
    pub(crate) fn apply(&mut self, effects: Vec<Effect>) {
        let mut woken = Vec::new();
        for effect in effects {
            match effect {
                Effect::Opened(session) => self.add_session(session),
                Effect::Ended(seq, reason) => {
                    self.suspects.remove(&seq);
                    if let Some(session) = self.remove_session(seq) {
                        session.end(reason);
                    }
                }
                Effect::Queued(seq, id, lock) => self.tell_session(seq, |session| session.add(id, lock)),
                Effect::Granted(seq, grant) => self.tell_session(seq, |session| session.grant(grant)),
                Effect::Forgotten(seq, id) => self.tell_session(seq, |session| session.forget(id)),
                Effect::Broken(seq, attempt) => self.tell_broken(seq, attempt),
                Effect::Clear(file) => file.remove(),
                Effect::Suspect(seq) => self.suspect(seq),
                Effect::WatchGroup(watch, seq, change) => {
                    watch.set_view(seq, change);
                    let known = self.group_watches.iter().any(|known| known.as_ptr() == Arc::as_ptr(&watch));
                    if !known {
                        self.group_watches.retain(|watch| watch.strong_count() > 0);
                        self.group_watches.push(Arc::downgrade(&watch));
                        self.follow_commits();
                    }
                }
                Effect::WatchLock(watch, holders) => {
                    watch.feed.set(holders);
                    self.lock_watches.retain(|watch| watch.strong_count() > 0);
                    self.lock_watches.push(Arc::downgrade(&watch));
                    self.follow_commits();
                }
                Effect::Holders(lock) => {
                    if !self.lock_watches.is_empty() {
                        self.changed_locks.push(lock);
                    }
                }
                Effect::Logged => self.logged = true,
                Effect::Wake(id) => {
                    if !woken.contains(&id) {
                        wakeup::wake(&self.jobs.paths.sessions(), id);
                        woken.push(id);
                    }
                }
                Effect::RemoveWakeup(id) => wakeup::remove_dead(&self.jobs.paths.sessions(), id),
                Effect::FollowPredecessors => self.predecessors_changed = true,
            }
        }
    }

    fn add_session(&mut self, session: Arc<SessionState>) {
        session.record();
        if let Some(events) = &mut self.events {
            events.watch_session(&session.path, session.id);
        }
        self.check_own_file(&session); // the file may have gone before the thread listened to it
        self.sessions.insert(session.seq, session);
    }

    fn tell_session(&self, seq: i64, tell: impl FnOnce(&SessionState)) {
        if let Some(session) = self.sessions.get(&seq) {
            tell(session);
        }
    }

    fn remove_session(&mut self, seq: i64) -> Option<Arc<SessionState>> {
        let session = self.sessions.remove(&seq)?;
        if let Some(events) = &mut self.events {
            events.forget_session(session.id);
        }
        Some(session)
    }

    fn tell_broken(&mut self, seq: i64, attempt: AttemptId) {
        let Some(session) = self.sessions.get(&seq).cloned() else { return };
        let reason = self.read(|tx| lock_rows::why_gone(tx, attempt));
        session.forget(attempt);
        session.notices.add(Notice::GrantLost(attempt, reason.unwrap_or(LossReason::Vanished)));
    }

    /// Tells this process what its own commits changed.
    pub(crate) fn dispatch_own(&mut self) {
        if self.logged {
            self.dispatch(false);
        }
        let touched = std::mem::take(&mut self.changed_locks);
        if !touched.is_empty() {
            self.refresh(|lock| touched.contains(lock));
        }
        if self.predecessors_changed {
            self.follow_predecessors();
        }
    }

    /// Reads the log from where it was left; `foreign`: after another process's commit.
    pub(crate) fn dispatch(&mut self, foreign: bool) {
        self.logged = false;
        let cursor = self.cursor;
        let entries = match self.read(|tx| log::read_after(tx, cursor)) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::debug!(%error, "the log of events is read later");
                self.logged = true;
                return;
            }
        };
        if let Some((first, _)) = entries.first()
            && *first > cursor.saturating_add(1)
        {
            self.resync(first.saturating_sub(1));
        }
        let mut leaders = Vec::new();
        for (seq, event) in entries {
            self.cursor = seq;
            if let Some(event) = event {
                self.tell(seq, event, &mut leaders);
            }
        }
        // Another process's acquire of a named lock is in no log: it would cost every acquire an entry.
        self.refresh(|lock| match &lock.key {
            LockKey::Leader(group) => leaders
                .iter()
                .any(|(namespace, name)| **namespace == *lock.namespace && name == group.as_bytes()),
            _ => foreign,
        });
    }

    fn tell(&mut self, seq: i64, event: Event, leaders: &mut Vec<(String, Vec<u8>)>) {
        match event {
            Event::Member(change, namespace, name, row) => {
                let Some(record) = row.record() else { return };
                let change = match change {
                    Change::Joined => GroupChange::Joined(record),
                    Change::Updated => GroupChange::Updated(record),
                    Change::Left(how) => GroupChange::Left(record, how),
                };
                self.tell_group(seq, &namespace, &name, &change);
            }
            Event::GroupDeleted(namespace, name) => {
                self.tell_group(seq, &namespace, &name, &GroupChange::Deleted);
            }
            Event::LeaderChanged(namespace, name) => leaders.push((namespace, name)),
            Event::Granted(session, attempt) => {
                if let Some(session) = self.sessions.get(&session).cloned()
                    && let Some(waiting) = session.attempt(attempt)
                {
                    self.settle(&session, attempt, &waiting.lock);
                }
            }
            Event::Broken(session, attempt) => self.tell_broken(session, attempt),
            Event::SessionEnded(session) => {
                if let Some(session) = self.remove_session(session) {
                    tracing::warn!(session = %session.id, "another process took this session for dead");
                    session.end(LossReason::Vanished);
                }
            }
        }
    }

    fn tell_group(&self, seq: i64, namespace: &str, name: &[u8], change: &GroupChange) {
        for watch in self.group_watches.iter().filter_map(Weak::upgrade) {
            if *watch.namespace == *namespace && watch.group.as_bytes() == name {
                watch.push(seq, change.clone());
            }
        }
    }

    /// Reads the outcome of an attempt that waits.
    fn settle(&mut self, session: &SessionState, attempt: AttemptId, lock: &Lock) {
        let seq = session.seq;
        match self.read(|tx| lock_rows::outcome(tx, seq, lock, attempt)) {
            Ok(Some(Turn::Granted(grant))) => session.grant(grant),
            Ok(Some(_)) => session.forget(attempt),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "a grant is looked at with the next beat"),
        }
    }

    /// Reads the state itself, since events up to `missed` were cut off before this process has read them.
    pub(crate) fn resync(&mut self, missed: i64) {
        for session in self.sessions.values().cloned().collect::<Vec<_>>() {
            for (id, attempt) in session.waiting() {
                self.settle(&session, id, &attempt.lock);
            }
        }
        for watch in self.group_watches.iter().filter_map(Weak::upgrade) {
            watch.miss(missed);
        }
        self.refresh(|_| true);
    }

    /// Gives the present holders to the watches of these locks.
    fn refresh(&mut self, concerns: impl Fn(&Lock) -> bool) {
        let watches: Vec<_> = self.lock_watches.iter().filter_map(Weak::upgrade).collect();
        for watch in watches.into_iter().filter(|watch| concerns(&watch.lock)) {
            match self.read(|tx| view::holders(tx, &watch.lock)) {
                Ok(holders) => watch.feed.set(holders),
                Err(error) => tracing::debug!(%error, "the holders of a lock are shown later"),
            }
        }
    }
}
