//! Streams of changes, fed by the database thread.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use tooz_core::driver::{GroupChange, Holders};
use tooz_core::{Error, GroupId, Result};

use crate::engine::jobs::User;
use crate::keys::Lock;

/// How many changes wait for a slow reader before it gets a view instead (W3).
pub(crate) const BACKLOG: usize = 256;

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
    /// The view was asked for.
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

    /// The state as of event `seq`.
    pub(crate) fn view(&self, seq: i64, view: GroupChange) {
        let mut state = self.state();
        let ended = matches!(view, GroupChange::Deleted);
        *state = GroupState {
            changes: VecDeque::from([Ok(view)]),
            seen: seq,
            ended,
            waker: state.waker.take(),
            ..GroupState::default()
        };
        wake(state.waker.take());
    }

    /// Event `seq` changed the group.
    pub(crate) fn change(&self, seq: i64, change: GroupChange) {
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
        wake(state.waker.take());
    }

    /// Events up to `missed` cannot be told any more.
    pub(crate) fn miss(&self, missed: i64) {
        if self.state().seen < missed {
            self.fall_behind(false);
        }
    }

    /// What was delivered so far may have a gap; `replaced`: since the database was deleted or replaced.
    pub(crate) fn fall_behind(&self, replaced: bool) {
        let mut state = self.state();
        if !state.ended {
            state.replaced |= replaced;
            state.changes.clear();
            state.behind = true;
            state.asked = false;
            wake(state.waker.take());
        }
    }

    /// Whether a missing group was lost rather than deleted: it may come back, so the watch goes on.
    pub(crate) fn was_replaced(&self) -> bool {
        self.state().replaced
    }

    /// The view that was asked for could not be had.
    fn failed(&self, error: Error) {
        let mut state = self.state();
        state.asked = false;
        state.changes.push_back(Err(error));
        wake(state.waker.take());
    }

    pub(crate) fn end(&self, error: Error) {
        let mut state = self.state();
        if !state.ended {
            state.ended = true;
            state.behind = false;
            state.changes.push_back(Err(error));
            wake(state.waker.take());
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// What the caller of `watch` holds; dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct GroupStream {
    pub(crate) watch: Arc<GroupWatch>,
    pub(crate) user: Arc<User>,
    pub(crate) refused: bool,
}

impl Stream for GroupStream {
    type Item = Result<GroupChange>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.refused {
            return Poll::Ready(None);
        }
        if let Err(error) = self.user.client().check_process() {
            self.refused = true;
            return Poll::Ready(Some(Err(error)));
        }
        let mut state = self.watch.state();
        if let Some(change) = state.changes.pop_front() {
            return Poll::Ready(Some(change));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        let ask = state.behind && !state.asked;
        state.asked |= ask;
        drop(state);
        if ask {
            let watch = self.watch.clone();
            let failed = self.watch.clone();
            self.user.client().view_again(watch, move |error| failed.failed(error));
        }
        Poll::Pending
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

    pub(crate) fn set(&self, holders: Holders) {
        let mut state = self.state();
        if state.latest.as_ref().is_none_or(|latest| latest.holders != holders.holders) {
            state.latest = Some(holders);
            wake(state.waker.take());
        }
    }

    pub(crate) fn end(&self, error: Error) {
        let mut state = self.state();
        if !state.ended {
            state.ended = true;
            state.error = Some(error);
            wake(state.waker.take());
        }
    }
}

/// What the caller of `watch` holds; dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct HoldersStream {
    pub(crate) watch: Arc<LockWatch>,
    pub(crate) user: Arc<User>,
    pub(crate) refused: bool,
}

impl Stream for HoldersStream {
    type Item = Result<Holders>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.refused {
            return Poll::Ready(None);
        }
        if let Err(error) = self.user.client().check_process() {
            self.refused = true;
            return Poll::Ready(Some(Err(error)));
        }
        let mut state = self.watch.state();
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
}
