//! Watches: a log of changes for each watched group, and the versions of each watched lock.
//!
//! A watcher is a cursor in the log. The log has a bound, so a watcher that falls behind it costs nobody anything
//! and finds a view of the whole group instead of what it missed.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::sync::Notify;
use tooz_core::driver::{ChangeStream, GroupChange, HolderStream, Holders, LockKey, MemberRecord};
use tooz_core::{GroupId, Result};

use crate::backend::Step;
use crate::client::Client;
use crate::fault::Fault;
use crate::state::State;

/// Which log.
pub(crate) type LogId = u64;

/// How many changes a log keeps. A view of the largest group that anybody watches in one process is cheaper than
/// more; fewer would turn a burst of joins into views.
pub(crate) const LOG_CHANGES: usize = 1_024;

/// The changes of one group, or what is left of it.
#[derive(Debug)]
pub(crate) struct Log {
    space: Arc<str>,
    group: GroupId,
    changes: VecDeque<GroupChange>,
    /// The number of the oldest change that is still here.
    first: u64,
    pub(crate) watchers: usize,
    woken: Arc<Notify>,
}

impl Log {
    fn end(&self) -> u64 {
        self.first + u64::try_from(self.changes.len()).unwrap_or(u64::MAX)
    }

    fn get(&self, number: u64) -> Option<&GroupChange> {
        self.changes.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}

impl State {
    /// The log of a group, begun if nobody watches yet; counts one watcher more.
    pub(crate) fn log_of(&mut self, space: &Arc<str>, group: &GroupId) -> LogId {
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
        id
    }

    /// Writes a change into a group's log, if somebody watches.
    pub(crate) fn publish(&mut self, log: Option<LogId>, change: GroupChange) {
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

    /// One watcher less; the last one takes the log with it.
    fn unwatch(&mut self, id: LogId) {
        let Some(log) = self.logs.get_mut(&id) else { return };
        log.watchers -= 1;
        if log.watchers > 0 {
            return;
        }
        let Some(log) = self.logs.remove(&id) else { return };
        let Some(space) = self.spaces.get_mut(&log.space) else { return };
        if let Some(group) = space.groups.get_mut(&log.group)
            && group.log == Some(id)
        {
            group.log = None;
        }
        if space.orphans.get(&log.group) == Some(&id) {
            space.orphans.remove(&log.group);
        }
    }

    /// The group as it is now; empty when it was deleted or went with the data.
    fn view(&self, id: LogId, log: &Log) -> Vec<MemberRecord> {
        let group = self.spaces.get(&log.space).and_then(|space| space.groups.get(&log.group));
        group.filter(|group| group.log == Some(id)).map(super::groups::Group::view).unwrap_or_default()
    }
}

/// Something that is followed by looking at the state again and again.
trait Follow: Send + Sync + 'static {
    type Item: Send;

    fn client(&self) -> &Client;

    /// What comes next; `None` at the end. It moves on only when it says `Done`.
    fn look(&self, state: &mut State) -> Step<Option<Self::Item>>;
}

type Next<T> = Pin<Box<dyn Future<Output = Option<T>> + Send>>;

/// A stream that follows. Dropping it in the middle of a wait loses nothing but itself.
struct Following<F: Follow> {
    follow: Arc<F>,
    next: Option<Next<F::Item>>,
}

impl<F: Follow> Stream for Following<F> {
    type Item = Result<F::Item>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { follow, next } = self.get_mut();
        let future = next.get_or_insert_with(|| {
            let follow = follow.clone();
            Box::pin(async move {
                let look = |state: &mut State| {
                    if follow.client().is_closed() { Step::Done(None) } else { follow.look(state) }
                };
                follow.client().listen(look).await
            })
        });
        let item = ready!(future.as_mut().poll(cx));
        *next = None;
        Poll::Ready(item.map(Ok))
    }
}

/// Follows one group.
#[derive(Debug)]
pub(crate) struct GroupFollower {
    client: Arc<Client>,
    log: LogId,
    cursor: Mutex<Cursor>,
}

#[derive(Clone, Copy, Debug)]
enum Cursor {
    /// Nothing was delivered yet.
    Start,
    /// The number of the next change.
    At(u64),
    /// The group was deleted.
    Ended,
}

impl GroupFollower {
    /// A stream on a log in which it was counted as a watcher.
    pub(crate) fn stream(client: &Arc<Client>, log: LogId) -> ChangeStream {
        let follow = Arc::new(Self { client: client.clone(), log, cursor: Mutex::new(Cursor::Start) });
        Box::pin(Following { follow, next: None })
    }
}

impl Follow for GroupFollower {
    type Item = GroupChange;

    fn client(&self) -> &Client {
        &self.client
    }

    fn look(&self, state: &mut State) -> Step<Option<GroupChange>> {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(log) = state.logs.get(&self.log) else { return Step::Done(None) };
        let next = match *cursor {
            Cursor::Ended => return Step::Done(None),
            Cursor::At(next) if next >= log.first => next,
            Cursor::Start | Cursor::At(_) => {
                let deleted = matches!(log.changes.back(), Some(GroupChange::Deleted));
                // The deletion is still to be delivered after the view.
                let next = log.end() - u64::from(deleted);
                *cursor = Cursor::At(match state.fault {
                    Some(Fault::ResumeTooFar) => next + 1,
                    Some(Fault::ResumeTooEarly) => next.saturating_sub(1).max(log.first),
                    _ => next,
                });
                return Step::Done(Some(GroupChange::View(state.view(self.log, log))));
            }
        };
        let Some(change) = log.get(next) else { return Step::Wait(log.woken.clone()) };
        *cursor = if *change == GroupChange::Deleted { Cursor::Ended } else { Cursor::At(next + 1) };
        Step::Done(Some(change.clone()))
    }
}

impl Drop for GroupFollower {
    fn drop(&mut self) {
        self.client.backend.act(|state| state.unwatch(self.log));
    }
}

/// Follows the holders of one lock.
#[derive(Debug)]
pub(crate) struct HolderFollower {
    client: Arc<Client>,
    key: LockKey,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    version: Option<u64>,
    /// For the fault that goes back: the last holders that were shown, and those to show again.
    last: Option<Holders>,
    again: Option<Holders>,
}

impl HolderFollower {
    /// A stream on the holders of `key`; counts as a watcher from now on.
    pub(crate) fn stream(state: &mut State, client: &Arc<Client>, key: &LockKey) -> HolderStream {
        let space = state.spaces.entry(client.space.clone()).or_default();
        space.watched.entry(key.clone()).or_default().watchers += 1;
        let follow = Self { client: client.clone(), key: key.clone(), seen: Mutex::default() };
        Box::pin(Following { follow: Arc::new(follow), next: None })
    }
}

impl Follow for HolderFollower {
    type Item = Holders;

    fn client(&self) -> &Client {
        &self.client
    }

    fn look(&self, state: &mut State) -> Step<Option<Holders>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let space = &self.client.space;
        let watched = state.spaces.get(space).and_then(|space| space.watched.get(&self.key));
        let Some(watched) = watched else { return Step::Done(None) };
        if seen.version == Some(watched.version) {
            return match seen.again.take() {
                Some(older) => Step::Done(Some(older)),
                None => Step::Wait(watched.changed.clone()),
            };
        }
        seen.version = Some(watched.version);
        let present = state.holders(space, &self.key);
        if state.has(Fault::LeaderBackwards) && !present.holders.is_empty() {
            seen.again = seen.last.replace(present.clone());
        }
        Step::Done(Some(present))
    }
}

impl Drop for HolderFollower {
    fn drop(&mut self) {
        self.client.backend.act(|state| {
            let Some(space) = state.spaces.get_mut(&self.client.space) else { return };
            let Some(watched) = space.watched.get_mut(&self.key) else { return };
            watched.watchers -= 1;
            if watched.watchers == 0 {
                space.watched.remove(&self.key);
            }
        });
    }
}
