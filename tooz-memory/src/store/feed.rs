//! What watches read: a log of changes for each watched group, and the versions of each watched lock.
//!
//! A watcher is a cursor in the log. The log has a bound, so a watcher that falls behind delays no other call. Instead
//! of the changes that it missed, it finds a view of the whole group.

use std::collections::VecDeque;
use std::sync::Arc;

use tooz_core::driver::{GroupChange, Holders, LockKey, MemberRecord};
use tooz_core::{GroupId, Result};

use super::state::{Group, Log, LogId, State, Step};
use crate::faults::planted::Fault;

/// How many changes a log has. A view of the largest group that is watched in one process is cheaper than more; fewer
/// would turn a burst of joins into views.
const LOG_CHANGES: usize = 1_024;

/// A watch: what its watcher reads next, and how it ends.
pub(crate) trait Watch: Send + 'static {
    type Item: Send;

    /// The next item; `None` at the end. The watch moves on only when it returns `Done`.
    fn next(&mut self, state: &State) -> Step<Option<Self::Item>>;

    /// Counts a watcher less.
    fn end(&self, state: &mut State);
}

impl State {
    /// Begins a watch of a group; its log begins with the first watch.
    pub(crate) fn watch_group(&mut self, space: &Arc<str>, group: &GroupId) -> Result<GroupWatch> {
        self.group(space, group)?;
        let group = &self.folded(group);
        let Self { spaces, logs, next_log, .. } = self;
        let known = spaces.get_mut(space).and_then(|space| space.groups.get_mut(group));
        let mut none = None;
        let slot = known.map_or(&mut none, |group| &mut group.log);
        let id = *slot.get_or_insert_with(|| {
            *next_log += 1;
            *next_log
        });
        let log = logs.entry(id).or_insert_with(|| Log {
            space: space.clone(),
            group: group.clone(),
            changes: VecDeque::new(),
            first: 0,
            watchers: 0,
            woken: Arc::default(),
        });
        log.watchers += 1;
        Ok(GroupWatch { log: id, cursor: Cursor::Start })
    }

    /// Writes a change into a group's log, if the group has watchers.
    pub(super) fn publish(&mut self, log: Option<LogId>, change: GroupChange) {
        let Some(log) = log.and_then(|id| self.logs.get_mut(&id)) else { return };
        if self.fault == Some(Fault::WatchGap)
            && !matches!(change, GroupChange::View(_) | GroupChange::Deleted)
        {
            self.events += 1;
            if self.events.is_multiple_of(2) {
                return;
            }
        }
        log.changes.push_back(change);
        if log.changes.len() > LOG_CHANGES {
            log.changes.pop_front();
            log.first += 1;
        }
        self.wakes.push(log.woken.clone());
    }

    /// The group as it is now; empty when it was deleted or went with the data.
    fn view(&self, id: LogId, log: &Log) -> Vec<MemberRecord> {
        let group = self.spaces.get(&log.space).and_then(|space| space.groups.get(&log.group));
        group.filter(|group| group.log == Some(id)).map(Group::view).unwrap_or_default()
    }

    /// Begins a watch of a lock.
    pub(crate) fn watch_lock(&mut self, space: &Arc<str>, key: &LockKey) -> LockWatch {
        let watched = self.spaces.entry(space.clone()).or_default().watched.entry(key.clone()).or_default();
        watched.watchers += 1;
        LockWatch { space: space.clone(), key: key.clone(), version: None, last: None, again: None }
    }
}

/// A watch of a group.
pub(crate) struct GroupWatch {
    log: LogId,
    cursor: Cursor,
}

#[derive(Clone, Copy)]
enum Cursor {
    /// Nothing was delivered yet.
    Start,
    /// The number of the next change.
    At(u64),
    /// The group was deleted.
    Ended,
}

impl Watch for GroupWatch {
    type Item = GroupChange;

    fn next(&mut self, state: &State) -> Step<Option<GroupChange>> {
        let Some(log) = state.logs.get(&self.log) else { return Step::Done(None) };
        let next = match self.cursor {
            Cursor::Ended => return Step::Done(None),
            Cursor::At(next) if next >= log.first => next,
            Cursor::Start | Cursor::At(_) => {
                let deleted = matches!(log.changes.back(), Some(GroupChange::Deleted));
                // The deletion is still to be delivered after the view.
                let next = log.end() - u64::from(deleted);
                self.cursor = Cursor::At(match state.fault {
                    Some(Fault::ResumeTooFar) => next + 1,
                    Some(Fault::ResumeTooEarly) => next.saturating_sub(1).max(log.first),
                    _ => next,
                });
                return Step::Done(Some(GroupChange::View(state.view(self.log, log))));
            }
        };
        let Some(change) = log.get(next) else { return Step::Wait(log.woken.clone()) };
        self.cursor = if *change == GroupChange::Deleted { Cursor::Ended } else { Cursor::At(next + 1) };
        Step::Done(Some(change.clone()))
    }

    /// The log ends with its last watcher.
    fn end(&self, state: &mut State) {
        let Some(log) = state.logs.get_mut(&self.log) else { return };
        log.watchers -= 1;
        if log.watchers > 0 {
            return;
        }
        let Some(log) = state.logs.remove(&self.log) else { return };
        let Some(space) = state.spaces.get_mut(&log.space) else { return };
        if let Some(group) = space.groups.get_mut(&log.group)
            && group.log == Some(self.log)
        {
            group.log = None;
        }
        if space.orphans.get(&log.group) == Some(&self.log) {
            space.orphans.remove(&log.group);
        }
    }
}

/// A watch of a lock's holders.
pub(crate) struct LockWatch {
    space: Arc<str>,
    key: LockKey,
    version: Option<u64>,
    /// For the fault that goes back: the last holders that were shown, and those to show again.
    last: Option<Holders>,
    again: Option<Holders>,
}

impl Watch for LockWatch {
    type Item = Holders;

    fn next(&mut self, state: &State) -> Step<Option<Holders>> {
        let watched = state.spaces.get(&self.space).and_then(|space| space.watched.get(&self.key));
        let Some(watched) = watched else { return Step::Done(None) };
        if self.version == Some(watched.version) {
            return match self.again.take() {
                Some(older) => Step::Done(Some(older)),
                None => Step::Wait(watched.changed.clone()),
            };
        }
        self.version = Some(watched.version);
        let present = state.holders(&self.space, &self.key);
        if state.has(Fault::LeaderBackwards) && !present.holders.is_empty() {
            self.again = self.last.replace(present.clone());
        }
        Step::Done(Some(present))
    }

    fn end(&self, state: &mut State) {
        let Some(space) = state.spaces.get_mut(&self.space) else { return };
        let Some(watched) = space.watched.get_mut(&self.key) else { return };
        watched.watchers -= 1;
        if watched.watchers == 0 {
            space.watched.remove(&self.key);
        }
    }
}
