//! What this process waits for, and how it hears of it: effects of our own commits, the log after others'.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use tooz_core::LossReason;
use tooz_core::driver::{AttemptId, GroupChange, LockKey, Notice, Turn};

use crate::engine::jobs::Level;
use crate::engine::log::{self, Entry};
use crate::engine::tx::Effect;
use crate::engine::wakeup;
use crate::engine::{Engine, REAP_LIMIT};
use crate::keys::Lock;
use crate::locks;
use crate::session_state::Local;
use crate::watch::{GroupWatch, LockWatch};

/// What this process waits for.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    pub(crate) locals: HashMap<i64, Arc<Local>>,
    pub(crate) groups: Vec<Weak<GroupWatch>>,
    pub(crate) locks: Vec<Weak<LockWatch>>,
}

impl Engine {
    /// Does what follows from a commit.
    pub(crate) fn apply(&mut self, effects: Vec<Effect>) {
        let mut rung = Vec::new();
        for effect in effects {
            match effect {
                Effect::Opened(local) => {
                    local.record();
                    if let Some(ears) = &mut self.ears {
                        ears.watch_session(&local.path, local.id);
                    }
                    self.check_own_file(&local); // it may have gone before that
                    self.hub.locals.insert(local.seq, local);
                }
                Effect::Ended(seq, reason) => {
                    self.suspects.remove(&seq);
                    if let Some(local) = self.hub.locals.remove(&seq) {
                        if let Some(ears) = &mut self.ears {
                            ears.forget_session(local.id);
                        }
                        local.end(reason);
                    }
                }
                Effect::Queued(seq, attempt, lock) => {
                    if let Some(local) = self.hub.locals.get(&seq) {
                        local.queue(attempt, lock);
                    }
                }
                Effect::Granted(seq, grant) => {
                    if let Some(local) = self.hub.locals.get(&seq) {
                        local.granted(grant);
                    }
                }
                Effect::Forgotten(seq, attempt) => {
                    if let Some(local) = self.hub.locals.get(&seq) {
                        local.forget(attempt);
                    }
                }
                Effect::Broken(seq, attempt) => self.broken(seq, attempt),
                Effect::Clear(file) => file.remove(),
                Effect::Suspect(seq) => self.suspect(seq),
                Effect::WatchGroup(watch, seq, change) => {
                    watch.view(seq, change);
                    let known = self.hub.groups.iter().any(|known| known.as_ptr() == Arc::as_ptr(&watch));
                    if !known {
                        self.hub.groups.retain(|watch| watch.strong_count() > 0);
                        self.hub.groups.push(Arc::downgrade(&watch));
                        self.hear_commits();
                    }
                }
                Effect::WatchLock(watch, holders) => {
                    watch.set(holders);
                    self.hub.locks.retain(|watch| watch.strong_count() > 0);
                    self.hub.locks.push(Arc::downgrade(&watch));
                    self.hear_commits();
                }
                Effect::Holders(lock) => {
                    if !self.hub.locks.is_empty() {
                        self.touched.push(lock);
                    }
                }
                Effect::Logged => self.logged = true,
                Effect::Ring(bell) => {
                    if !rung.contains(&bell) {
                        wakeup::ring(&self.client.place.sessions(), bell);
                        rung.push(bell);
                    }
                }
                Effect::Unhang(bell) => wakeup::remove_dead(&self.client.place.sessions(), bell),
                Effect::LookAhead => self.ahead_changed = true,
            }
        }
    }

    pub(crate) fn broken(&mut self, seq: i64, attempt: AttemptId) {
        let Some(local) = self.hub.locals.get(&seq).cloned() else { return };
        let deadline = self.client.clock.now() + REAP_LIMIT;
        let reason = self.write(Level::Read, deadline, |tx| locks::why_gone(tx, attempt));
        local.forget(attempt);
        local.tell(Notice::GrantLost(attempt, reason.unwrap_or(LossReason::Vanished)));
    }

    /// Tells this process what its own commits changed.
    pub(crate) fn dispatch_own(&mut self) {
        if self.logged {
            self.dispatch(false);
        }
        let touched = std::mem::take(&mut self.touched);
        if !touched.is_empty() {
            self.refresh(|lock| touched.contains(lock));
        }
        if self.ahead_changed {
            self.look_ahead();
        }
    }

    /// Reads the log from where it was left; `foreign`: after another process's commit.
    pub(crate) fn dispatch(&mut self, foreign: bool) {
        self.logged = false;
        let cursor = self.cursor;
        let deadline = self.client.clock.now() + REAP_LIMIT;
        let entries = match self.write(Level::Read, deadline, |tx| log::after(tx, cursor)) {
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
        for (seq, entry) in entries {
            self.cursor = seq;
            self.tell(seq, entry, &mut leaders);
        }
        // Another process's acquire of a named lock is in no log: it would cost every acquire an entry.
        self.refresh(|lock| match &lock.key {
            LockKey::Leader(group) => leaders
                .iter()
                .any(|(namespace, name)| **namespace == *lock.namespace && name == group.as_bytes()),
            _ => foreign,
        });
    }

    pub(crate) fn tell(&mut self, seq: i64, entry: Entry, leaders: &mut Vec<(String, Vec<u8>)>) {
        match entry {
            Entry::Member(change, namespace, name, row) => {
                let Some(record) = row.record() else { return };
                self.tell_group(seq, &namespace, &name, &log::to_change(change, record));
            }
            Entry::GroupDeleted(namespace, name) => {
                self.tell_group(seq, &namespace, &name, &GroupChange::Deleted);
            }
            Entry::LeaderChanged(namespace, name) => leaders.push((namespace, name)),
            Entry::Granted(session, attempt) => {
                let local = self.hub.locals.get(&session).cloned();
                if let Some((local, slot)) =
                    local.and_then(|local| Some((local.clone(), local.slot(attempt)?)))
                {
                    self.settle(&local, attempt, &slot.lock);
                }
            }
            Entry::Broken(session, attempt) => self.broken(session, attempt),
            Entry::SessionEnded(session) => {
                if let Some(local) = self.hub.locals.remove(&session) {
                    if let Some(ears) = &mut self.ears {
                        ears.forget_session(local.id);
                    }
                    tracing::warn!(session = %local.id, "another process took this session for dead");
                    local.end(LossReason::Vanished);
                }
            }
            Entry::Unknown => {}
        }
    }

    pub(crate) fn tell_group(&self, seq: i64, namespace: &str, name: &[u8], change: &GroupChange) {
        for watch in self.hub.groups.iter().filter_map(Weak::upgrade) {
            if *watch.namespace == *namespace && watch.group.as_bytes() == name {
                watch.change(seq, change.clone());
            }
        }
    }

    /// Looks what stands for an attempt that waits.
    pub(crate) fn settle(&mut self, local: &Arc<Local>, attempt: AttemptId, lock: &Lock) {
        let deadline = self.client.clock.now() + REAP_LIMIT;
        let seq = local.seq;
        match self.write(Level::Read, deadline, |tx| locks::outcome(tx, seq, lock, attempt)) {
            Ok(Some(Turn::Granted(grant))) => local.granted(grant),
            Ok(Some(_)) => local.forget(attempt),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "a grant is looked at with the next beat"),
        }
    }

    /// Events up to `missed` were cut off before they were read: looks at the state instead.
    pub(crate) fn resync(&mut self, missed: i64) {
        for local in self.hub.locals.values().cloned().collect::<Vec<_>>() {
            for (attempt, slot) in local.waiting() {
                self.settle(&local, attempt, &slot.lock);
            }
        }
        for watch in self.hub.groups.iter().filter_map(Weak::upgrade) {
            watch.miss(missed);
        }
        self.refresh(|_| true);
    }

    /// Shows the present holders to those who watch one of these locks.
    pub(crate) fn refresh(&mut self, concerns: impl Fn(&Lock) -> bool) {
        let watches: Vec<_> = self.hub.locks.iter().filter_map(Weak::upgrade).collect();
        for watch in watches.into_iter().filter(|watch| concerns(&watch.lock)) {
            let deadline = self.client.clock.now() + REAP_LIMIT;
            match self.write(Level::Read, deadline, |tx| locks::holders(tx, &watch.lock)) {
                Ok(holders) => watch.set(holders),
                Err(error) => tracing::debug!(%error, "the holders of a lock are shown later"),
            }
        }
    }
}
