//! Watches as the database thread and their streams share them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tooz_core::driver::GroupChange;
use tooz_core::driver::support::feed::{GroupFeed, HolderFeed};
use tooz_core::{Error, GroupId, Result};

use crate::keys::Lock;

/// One watch of a group, as the database thread and the stream share it.
#[derive(Debug)]
pub(crate) struct GroupWatch {
    pub(crate) namespace: Arc<str>,
    pub(crate) group: GroupId,
    pub(crate) feed: GroupFeed,
    state: Mutex<GroupState>,
}

#[derive(Debug, Default)]
struct GroupState {
    /// The feed has the changes up to this event.
    seen: i64,
    /// Events were missed, or the database was replaced: the group has to be read.
    behind: bool,
    /// A job for that is queued.
    asked: bool,
    /// The group may be gone because the whole database is.
    replaced: bool,
}

impl GroupWatch {
    pub(crate) fn new(namespace: Arc<str>, group: GroupId) -> Self {
        Self { namespace, group, feed: GroupFeed::default(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the state as of event `seq`.
    pub(crate) fn set_view(&self, seq: i64, view: GroupChange) {
        *self.state() = GroupState { seen: seq, ..GroupState::default() };
        self.feed.apply(view);
    }

    /// Adds a change, which is event `seq`.
    pub(crate) fn push(&self, seq: i64, change: GroupChange) {
        let mut state = self.state();
        if seq > state.seen && !state.behind {
            state.seen = seq;
            drop(state);
            self.feed.apply(change);
        }
    }

    /// Events up to `missed` are lost.
    pub(crate) fn miss(&self, missed: i64) {
        if self.state().seen < missed {
            self.fall_behind(false);
        }
    }

    /// The changes so far may have a gap; `replaced`: since the database was deleted or replaced.
    pub(crate) fn fall_behind(&self, replaced: bool) {
        {
            let mut state = self.state();
            state.replaced |= replaced;
            state.behind = true;
            state.asked = false;
        }
        self.feed.gap();
    }

    /// Whether a missing group was lost rather than deleted: it may come back, so the watch goes on.
    pub(crate) fn was_replaced(&self) -> bool {
        self.state().replaced
    }

    /// The next change for the stream. `ask` runs if the group has to be read for it.
    pub(crate) fn poll(&self, cx: &mut Context<'_>, ask: impl FnOnce()) -> Poll<Option<Result<GroupChange>>> {
        let next = self.feed.poll(cx);
        if next.is_pending() {
            // After the feed has the waker: what is set later wakes it.
            let mut state = self.state();
            let asks = state.behind && !state.asked;
            state.asked |= asks;
            drop(state);
            if asks {
                ask();
            }
        }
        next
    }

    /// The job for a new view has failed.
    pub(crate) fn fail_view(&self, error: Error) {
        self.state().asked = false;
        self.feed.report(error);
    }
}

/// One watch of a lock's holders, as the database thread and the stream share it.
#[derive(Debug)]
pub(crate) struct LockWatch {
    pub(crate) lock: Lock,
    pub(crate) feed: HolderFeed,
}
