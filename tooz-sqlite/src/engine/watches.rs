//! Watches as the database thread and their streams share them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tooz_core::driver::{GroupChange, Holders};
use tooz_core::{Error, GroupId, Result};

use crate::keys::Lock;

/// How many changes wait for a slow reader before it gets a view instead (W3).
const BACKLOG: usize = 256;

/// One watch of a group, as the database thread and the stream share it.
#[derive(Debug)]
pub(crate) struct GroupWatch {
    pub(crate) namespace: Arc<str>,
    pub(crate) group: GroupId,
    state: Mutex<GroupState>,
}

#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // independent facts, not one state
struct GroupState {
    changes: VecDeque<Result<GroupChange>>,
    /// Events up to this one are in the last view.
    seen: i64,
    /// Changes were dropped, or the database was replaced: a view is due.
    behind: bool,
    /// A job for the view is queued.
    asked: bool,
    /// The group may be gone because the whole database is.
    replaced: bool,
    ended: bool,
    waker: Option<Waker>,
}

impl GroupWatch {
    pub(crate) fn new(namespace: Arc<str>, group: GroupId) -> Self {
        Self { namespace, group, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the state as of event `seq`.
    pub(crate) fn set_view(&self, seq: i64, view: GroupChange) {
        let mut state = self.state();
        let ended = matches!(view, GroupChange::Deleted);
        *state = GroupState {
            changes: VecDeque::from([Ok(view)]),
            seen: seq,
            ended,
            waker: state.waker.take(),
            ..GroupState::default()
        };
        wake(&mut state.waker);
    }

    /// Adds a change, which is event `seq`.
    pub(crate) fn push(&self, seq: i64, change: GroupChange) {
        let mut state = self.state();
        if seq <= state.seen || state.behind || state.ended {
            return;
        }
        if state.changes.len() >= BACKLOG {
            state.changes.clear();
            state.behind = true;
        } else {
            state.seen = seq;
            state.ended = matches!(change, GroupChange::Deleted);
            state.changes.push_back(Ok(change));
        }
        wake(&mut state.waker);
    }

    /// Events up to `missed` are lost.
    pub(crate) fn miss(&self, missed: i64) {
        if self.state().seen < missed {
            self.fall_behind(false);
        }
    }

    /// The changes so far may have a gap; `replaced`: since the database was deleted or replaced.
    pub(crate) fn fall_behind(&self, replaced: bool) {
        let mut state = self.state();
        if !state.ended {
            state.replaced |= replaced;
            state.changes.clear();
            state.behind = true;
            state.asked = false;
            wake(&mut state.waker);
        }
    }

    /// Whether a missing group was lost rather than deleted: it may come back, so the watch goes on.
    pub(crate) fn was_replaced(&self) -> bool {
        self.state().replaced
    }

    /// The next change for the stream. `ask` runs if the stream needs a new view.
    pub(crate) fn poll(&self, cx: &mut Context<'_>, ask: impl FnOnce()) -> Poll<Option<Result<GroupChange>>> {
        let mut state = self.state();
        if let Some(change) = state.changes.pop_front() {
            return Poll::Ready(Some(change));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        let asks = state.behind && !state.asked;
        state.asked |= asks;
        drop(state);
        if asks {
            ask();
        }
        Poll::Pending
    }

    /// The job for a new view has failed.
    pub(crate) fn fail_view(&self, error: Error) {
        let mut state = self.state();
        state.asked = false;
        state.changes.push_back(Err(error));
        wake(&mut state.waker);
    }

    pub(crate) fn end(&self, error: Error) {
        let mut state = self.state();
        if !state.ended {
            state.ended = true;
            state.behind = false;
            state.changes.push_back(Err(error));
            wake(&mut state.waker);
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// One watch of a lock's holders, as the database thread and the stream share it.
#[derive(Debug)]
pub(crate) struct LockWatch {
    pub(crate) lock: Lock,
    state: Mutex<LockState>,
}

#[derive(Debug, Default)]
struct LockState {
    latest: Option<Holders>,
    delivered: Option<Holders>,
    error: Option<Error>,
    ended: bool,
    waker: Option<Waker>,
}

impl LockWatch {
    pub(crate) fn new(lock: Lock) -> Self {
        Self { lock, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, LockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next state for the stream.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Holders>>> {
        let mut state = self.state();
        if state.latest != state.delivered {
            let latest = state.latest.clone();
            state.delivered.clone_from(&latest);
            if let Some(latest) = latest {
                return Poll::Ready(Some(Ok(latest)));
            }
        }
        if let Some(error) = state.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn set(&self, holders: Holders) {
        let mut state = self.state();
        if state.latest.as_ref().is_none_or(|latest| latest.holders != holders.holders) {
            state.latest = Some(holders);
            wake(&mut state.waker);
        }
    }

    pub(crate) fn end(&self, error: Error) {
        let mut state = self.state();
        if !state.ended {
            state.ended = true;
            state.error = Some(error);
            wake(&mut state.waker);
        }
    }
}
