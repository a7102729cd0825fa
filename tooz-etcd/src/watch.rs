//! Streams of changes: a task follows the server and keeps a view, the stream takes from it.
//!
//! The task reads every event at once, because a stream that is not read holds up every other one on its connection.
//! A reader that falls behind costs a bounded number of changes and then gets a view.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use etcd_client::{Event, EventType, KeyValue};
use futures_core::Stream;
use tooz_core::driver::{ChangeStream, GroupChange, HolderStream, Holders, MemberRecord, Task};
use tooz_core::{ErrorKind, GroupId, MemberId, Result};

use crate::client::Client;
use crate::connection::watcher::{News, Watcher};
use crate::keys::{GroupKeys, LockKeys, Range, only};
use crate::lock::state::{Verdict, ranges};
use crate::view::{self, Snapshot, member_record, no_group};

/// How many changes wait for a slow reader before it gets a view instead (W3).
const BACKLOG: usize = 256;

/// What the task has for the reader.
trait Source: Send + 'static {
    type Item;
    fn take(&mut self) -> Option<Result<Self::Item>>;
    fn has_ended(&self) -> bool;
}

#[derive(Debug)]
struct Shared<S> {
    source: S,
    waker: Option<Waker>,
}

/// What the caller of `watch` holds; dropping it ends the task, and with it the watch on the server.
struct Reader<S> {
    shared: Arc<Mutex<Shared<S>>>,
    _task: Task<()>,
}

fn lock<S>(shared: &Mutex<Shared<S>>) -> MutexGuard<'_, Shared<S>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn change<S>(shared: &Mutex<Shared<S>>, change: impl FnOnce(&mut S)) {
    let waker = {
        let mut shared = lock(shared);
        change(&mut shared.source);
        shared.waker.take()
    };
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<S: Source> Stream for Reader<S> {
    type Item = Result<S::Item>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut shared = lock(&self.shared);
        if let Some(item) = shared.source.take() {
            return Poll::Ready(Some(item));
        }
        if shared.source.has_ended() {
            return Poll::Ready(None);
        }
        shared.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A group as the task knows it, and what the reader has not taken yet.
#[derive(Debug, Default)]
struct GroupView {
    members: BTreeMap<MemberId, MemberRecord>,
    changes: VecDeque<GroupChange>,
    /// The reader is to get the whole view next.
    whole: bool,
    ended: bool,
}

impl GroupView {
    fn push(&mut self, change: GroupChange) {
        if self.whole {
            return; // the view shows it
        }
        if self.changes.len() >= BACKLOG {
            self.changes.clear();
            self.whole = true;
        } else {
            self.changes.push_back(change);
        }
    }

    fn replace(&mut self, members: Vec<MemberRecord>) {
        self.members = members.into_iter().map(|record| (record.member.clone(), record)).collect();
        self.changes.clear();
        self.whole = true;
    }

    fn put(&mut self, record: MemberRecord) {
        match self.members.insert(record.member.clone(), record.clone()) {
            Some(before) if before.incarnation == record.incarnation => {
                self.push(GroupChange::Updated(record));
            }
            Some(before) => {
                self.push(GroupChange::Left(before));
                self.push(GroupChange::Joined(record));
            }
            None => self.push(GroupChange::Joined(record)),
        }
    }

    fn remove(&mut self, member: &MemberId) {
        if let Some(record) = self.members.remove(member) {
            self.push(GroupChange::Left(record));
        }
    }

    fn end(&mut self, deleted: bool) {
        if deleted {
            for member in self.members.keys().cloned().collect::<Vec<_>>() {
                self.remove(&member);
            }
            // After everything else, also where the reader is to get the view.
            self.changes.push_back(GroupChange::Deleted);
        }
        self.ended = true;
    }
}

impl Source for GroupView {
    type Item = GroupChange;

    fn take(&mut self) -> Option<Result<GroupChange>> {
        if std::mem::take(&mut self.whole) {
            return Some(Ok(GroupChange::View(self.members.values().cloned().collect())));
        }
        self.changes.pop_front().map(Ok)
    }

    fn has_ended(&self) -> bool {
        self.ended
    }
}

/// Follows a group.
pub(crate) async fn group(client: &Arc<Client>, group: &GroupId) -> Result<ChangeStream> {
    let Snapshot { revision, epoch, born, members } = client.snapshot(group).await?;
    let mut view = GroupView::default();
    view.replace(members.ok_or_else(|| no_group(group))?);
    let keys = client.keys.group(group);
    let mut ranges: Vec<Range> = vec![only(keys.group())];
    ranges.extend(keys.members());
    // The group's key comes right before its members: one range is both.
    if ranges[1].0 == [keys.group(), b"\0"].concat() {
        let (_, end) = ranges.remove(1);
        ranges[0].1 = end;
    }
    let watcher = Watcher::new(&client.connection, &client.keys, epoch.clone(), ranges, revision);
    let shared = Arc::new(Mutex::new(Shared { source: view, waker: None }));
    let follower = GroupFollower {
        client: Arc::clone(client),
        group: group.clone(),
        keys,
        epoch,
        born,
        shared: Arc::clone(&shared),
    };
    let task = client.connection.context.spawner.spawn(follower.follow(watcher));
    Ok(Box::pin(Reader { shared, _task: task }))
}

struct GroupFollower {
    client: Arc<Client>,
    group: GroupId,
    keys: GroupKeys,
    epoch: Vec<u8>,
    /// The create revision of the group's key.
    born: i64,
    shared: Arc<Mutex<Shared<GroupView>>>,
}

impl GroupFollower {
    async fn follow(mut self, mut watcher: Watcher) {
        loop {
            let deleted = match watcher.next().await {
                News::End => return change(&self.shared, |view| view.end(false)),
                News::Behind | News::Resumed | News::Other => continue,
                News::Gap => false,
                News::Events(events, _) => {
                    let made = events.iter().filter(|event| event.event_type() == EventType::Put);
                    let made = made.filter_map(Event::kv).rfind(|kv| kv.key() == self.keys.group());
                    self.born = made.map_or(self.born, KeyValue::create_revision);
                    let mut deleted = false;
                    // Events after the group's end belong to another group of the same name.
                    change(&self.shared, |view| deleted = events.iter().any(|event| self.apply(view, event)));
                    if !deleted {
                        continue;
                    }
                    deleted
                }
            };
            match self.look_again(deleted).await {
                Some((epoch, revision)) => watcher.restart(epoch, revision),
                None => return,
            }
        }
    }

    /// Applies an event; `true`: the group's own key went.
    fn apply(&self, view: &mut GroupView, event: &Event) -> bool {
        let Some(kv) = event.kv() else { return false };
        let gone = event.event_type() == EventType::Delete;
        if kv.key() == self.keys.group() {
            return gone;
        }
        if gone {
            if let Some(member) = self.keys.parse_member(kv.key()) {
                view.remove(&member);
            }
        } else if let Some(record) = member_record(&self.keys, kv) {
            view.put(record);
        }
        false
    }

    /// After a gap, or when the group's key went (`deleted`): finds out whether the group was deleted or the backend lost
    /// its data. `None`: the watch ends.
    async fn look_again(&mut self, deleted: bool) -> Option<(Vec<u8>, i64)> {
        loop {
            match self.client.snapshot(&self.group).await {
                Ok(Snapshot { revision, epoch, born, members }) => {
                    // A missing id means the same as another one: the data is gone, and the group may come back.
                    let lost = epoch != self.epoch;
                    // One of the same name that was made in the gap is another group.
                    let members = members.filter(|_| lost || (!deleted && born == self.born));
                    let Some(members) = members.or_else(|| lost.then(Vec::new)) else {
                        change(&self.shared, |view| view.end(true));
                        return None;
                    };
                    change(&self.shared, |view| view.replace(members));
                    if !epoch.is_empty() {
                        self.epoch.clone_from(&epoch);
                    }
                    self.born = born;
                    return Some((epoch, revision));
                }
                Err(error) if error.kind() == ErrorKind::Closed => {
                    change(&self.shared, |view| view.end(false));
                    return None;
                }
                Err(error) => {
                    tracing::debug!(%error, group = %self.group, "the group cannot be looked at; it is tried again");
                    self.client.connection.pause().await;
                }
            }
        }
    }
}

/// The present holders of a lock, until the reader takes them.
#[derive(Debug, Default)]
struct Present {
    latest: Option<Holders>,
    delivered: Option<Holders>,
    ended: bool,
}

impl Source for Present {
    type Item = Holders;

    fn take(&mut self) -> Option<Result<Holders>> {
        let latest = self.latest.take()?;
        if self.delivered.as_ref().is_some_and(|delivered| delivered.holders == latest.holders) {
            return None;
        }
        self.delivered = Some(latest.clone());
        Some(Ok(latest))
    }

    fn has_ended(&self) -> bool {
        self.ended
    }
}

/// Follows the holders of a lock.
pub(crate) async fn holders(client: &Arc<Client>, keys: LockKeys) -> Result<HolderStream> {
    let (state, epoch) = client.look_with_epoch(&keys).await?;
    let present = Present { latest: Some(view::holders(&state)), ..Present::default() };
    let shared = Arc::new(Mutex::new(Shared { source: present, waker: None }));
    let ranges = ranges(&keys, &Verdict::Held);
    let mut watcher = Watcher::new(&client.connection, &client.keys, epoch, ranges, state.revision);
    let (client, told) = (Arc::clone(client), Arc::clone(&shared));
    let mut seen = state.revision;
    let spawner = client.connection.context.spawner.clone();
    let task = spawner.spawn(async move {
        loop {
            let (at_least, restart) = match watcher.next().await {
                News::End => return change(&told, |present| present.ended = true),
                News::Behind | News::Resumed | News::Other => continue,
                News::Events(_, revision) if revision <= seen => continue, // the last look showed it
                News::Events(_, revision) => (revision, false),
                News::Gap => (0, true),
            };
            loop {
                match client.look_with_epoch(&keys).await {
                    // A member that was away may answer from the past.
                    Ok((state, _)) if state.revision < at_least => client.connection.pause().await,
                    Ok((state, epoch)) => {
                        seen = state.revision;
                        let holders = view::holders(&state);
                        change(&told, |present| present.latest = Some(holders));
                        if restart {
                            watcher.restart(epoch, state.revision);
                        }
                        break;
                    }
                    Err(error) if error.kind() == ErrorKind::Closed => break,
                    Err(error) => {
                        tracing::debug!(%error, "the holders cannot be looked at; it is tried again");
                        client.connection.pause().await;
                    }
                }
            }
        }
    });
    Ok(Box::pin(Reader { shared, _task: task }))
}
