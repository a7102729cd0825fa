//! What a driver's task tells the reader of a watch.
//!
//! The task never waits for the reader: it keeps the newest state, and a bounded number of changes. A reader that falls
//! behind gets a view of the whole instead (W3).

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use crate::driver::{Departure, GroupChange, Holders, MemberRecord};
use crate::{Error, MemberId, Result};

/// How many changes wait for a slow reader before it gets a view instead.
const MOST_CHANGES: usize = 256;

mod source {
    /// What a task has for a reader.
    pub trait Source: Default + Send + 'static {
        /// What the reader gets.
        type Item;

        /// What comes next, if there is something.
        fn take(&mut self) -> Option<Self::Item>;
    }
}
use source::Source;

/// What the reader and the task meet at.
#[derive(Debug, Default)]
struct Shared<S> {
    source: S,
    /// The reader gets it after what the source has.
    error: Option<Error>,
    ended: bool,
    waker: Option<Waker>,
}

/// What a task tells a reader: a [`GroupFeed`] or a [`HolderFeed`]. A cheap clone. Empty until it is told something.
#[derive(Debug, Default)]
pub struct Feed<S>(Arc<Mutex<Shared<S>>>);

impl<S> Clone for Feed<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Source> Feed<S> {
    fn shared(&self) -> MutexGuard<'_, Shared<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change and wakes the reader. After the end nothing changes any more.
    fn change(&self, change: impl FnOnce(&mut Shared<S>)) {
        let mut shared = self.shared();
        if shared.ended {
            return;
        }
        change(&mut shared);
        let waker = shared.waker.take();
        drop(shared);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The stream. It drops `kept` when it is dropped: the task that fills the feed, or what else the watch needs.
    pub fn stream(&self, kept: impl Send + 'static) -> Pin<Box<dyn Stream<Item = Result<S::Item>> + Send>> {
        Box::pin(Reader { feed: self.clone(), _kept: kept })
    }

    /// What the stream has for its reader, for a driver with a stream of its own.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<S::Item>>> {
        let mut shared = self.shared();
        if let Some(item) = shared.source.take() {
            return Poll::Ready(Some(Ok(item)));
        }
        if let Some(error) = shared.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if shared.ended {
            return Poll::Ready(None);
        }
        shared.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The reader gets this error after the changes so far, and the watch goes on.
    pub fn report(&self, error: Error) {
        self.change(|shared| shared.error = Some(error));
    }

    /// The watch ends with this error.
    pub fn fail(&self, error: Error) {
        self.change(|shared| (shared.error, shared.ended) = (Some(error), true));
    }

    /// The watch ends.
    pub fn end(&self) {
        self.change(|shared| shared.ended = true);
    }
}

/// The reader's end.
struct Reader<S, K> {
    feed: Feed<S>,
    _kept: K,
}

impl<S, K> Unpin for Reader<S, K> {}

impl<S: Source, K> Stream for Reader<S, K> {
    type Item = Result<S::Item>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.feed.poll(cx)
    }
}

/// A group's members and the changes that the reader has not taken.
pub type GroupFeed = Feed<GroupChanges>;

/// What a [`GroupFeed`] has for its reader.
#[derive(Debug, Default)]
pub struct GroupChanges {
    members: BTreeMap<MemberId, MemberRecord>,
    changes: VecDeque<GroupChange>,
    /// The reader gets the whole view before the changes.
    whole: bool,
}

impl GroupChanges {
    fn push(&mut self, change: GroupChange) {
        if self.whole {
            return; // the view shows it
        }
        if self.changes.len() >= MOST_CHANGES {
            self.changes.clear();
            self.whole = true;
        } else {
            self.changes.push_back(change);
        }
    }

    /// `how` tells how the incarnation before this one ended.
    fn put(&mut self, record: MemberRecord, how: impl FnOnce(&MemberRecord) -> Departure) {
        match self.members.insert(record.member.clone(), record.clone()) {
            Some(before) if before == record => {}
            Some(before) if before.incarnation == record.incarnation => {
                self.push(GroupChange::Updated(record));
            }
            Some(before) => {
                let how = how(&before);
                self.push(GroupChange::Left(before, how));
                self.push(GroupChange::Joined(record));
            }
            None => self.push(GroupChange::Joined(record)),
        }
    }

    fn remove(&mut self, member: &MemberId, how: impl FnOnce(&MemberRecord) -> Departure) {
        if let Some(record) = self.members.remove(member) {
            let how = how(&record);
            self.push(GroupChange::Left(record, how));
        }
    }
}

impl Source for GroupChanges {
    type Item = GroupChange;

    fn take(&mut self) -> Option<GroupChange> {
        if std::mem::take(&mut self.whole) {
            return Some(GroupChange::View(self.members.values().cloned().collect()));
        }
        self.changes.pop_front()
    }
}

impl GroupFeed {
    /// A feed that begins with a view of these members.
    pub fn new(members: impl IntoIterator<Item = MemberRecord>) -> Self {
        let feed = Self::default();
        feed.reset(members);
        feed
    }

    /// After a gap: these are the members now, and the reader gets a view.
    pub fn reset(&self, members: impl IntoIterator<Item = MemberRecord>) {
        self.change(|shared| {
            let group = &mut shared.source;
            group.members = members.into_iter().map(|record| (record.member.clone(), record)).collect();
            group.changes.clear();
            group.whole = true;
        });
    }

    /// The group was read again: the reader gets the differences, by incarnation. `how` tells how an incarnation ended
    /// that is gone.
    pub fn update(
        &self,
        members: impl IntoIterator<Item = MemberRecord>,
        how: impl Fn(&MemberRecord) -> Departure,
    ) {
        self.change(|shared| {
            let group = &mut shared.source;
            let now: BTreeMap<_, _> =
                members.into_iter().map(|record| (record.member.clone(), record)).collect();
            let gone: Vec<_> =
                group.members.keys().filter(|member| !now.contains_key(*member)).cloned().collect();
            for member in gone {
                group.remove(&member, &how);
            }
            for record in now.into_values() {
                group.put(record, &how);
            }
        });
    }

    /// A member joined, or published other capabilities. An equal record changes nothing. Another incarnation that stands
    /// in its place has died: who leaves is removed first.
    pub fn put(&self, record: MemberRecord) {
        self.change(|shared| shared.source.put(record, |_| Departure::Died));
    }

    /// A member is gone.
    pub fn remove(&self, member: &MemberId, how: Departure) {
        self.change(|shared| shared.source.remove(member, |_| how));
    }

    /// What a log says of the group.
    pub fn apply(&self, change: GroupChange) {
        match change {
            GroupChange::View(members) => self.reset(members),
            GroupChange::Joined(record) | GroupChange::Updated(record) => self.put(record),
            GroupChange::Left(record, how) => self.remove(&record.member, how),
            GroupChange::Deleted => self.deleted(),
        }
    }

    /// Changes may be missing from here on: drops those that were not read, and lets the reader poll again. A
    /// [`reset`](Self::reset) has to follow.
    pub fn gap(&self) {
        self.change(|shared| {
            shared.source.changes.clear();
            shared.source.whole = false;
        });
    }

    /// The group was deleted: the members that it still had are gone, and the watch ends.
    pub fn deleted(&self) {
        self.change(|shared| {
            let group = &mut shared.source;
            let members: Vec<_> = group.members.keys().cloned().collect();
            for member in members {
                group.remove(&member, |_| Departure::Unknown);
            }
            // After all others, also where the reader gets a view first.
            group.changes.push_back(GroupChange::Deleted);
            shared.ended = true;
        });
    }
}

/// The holders of a lock, of which the reader gets the newest.
pub type HolderFeed = Feed<NewestHolders>;

/// What a [`HolderFeed`] has for its reader.
#[derive(Debug, Default)]
pub struct NewestHolders {
    latest: Option<Holders>,
    delivered: Option<Holders>,
}

impl Source for NewestHolders {
    type Item = Holders;

    fn take(&mut self) -> Option<Holders> {
        // A watch of holders has no interest in the number of waiters.
        let latest = self.latest.take().filter(|latest| {
            self.delivered.as_ref().is_none_or(|delivered| delivered.holders != latest.holders)
        })?;
        self.delivered = Some(latest.clone());
        Some(latest)
    }
}

impl HolderFeed {
    /// A feed that begins with these holders.
    pub fn new(holders: Holders) -> Self {
        let feed = Self::default();
        feed.set(holders);
        feed
    }

    /// These are the holders now.
    pub fn set(&self, holders: Holders) {
        self.change(|shared| shared.source.latest = Some(holders));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{ChangeStream, HolderRecord, LockMode};
    use crate::{Capabilities, ErrorKind};

    fn record(name: &str, incarnation: u128, gpus: u32) -> MemberRecord {
        let member = MemberId::new(name).unwrap();
        MemberRecord::new(member, Capabilities::new(&gpus).unwrap(), incarnation)
    }

    fn next<T>(stream: &mut Pin<Box<dyn Stream<Item = T> + Send>>) -> Poll<Option<T>> {
        stream.as_mut().poll_next(&mut Context::from_waker(Waker::noop()))
    }

    fn shown(stream: &mut ChangeStream) -> Vec<String> {
        let mut all = Vec::new();
        while let Poll::Ready(Some(change)) = next(stream) {
            all.push(match change {
                Ok(GroupChange::View(members)) => format!("{} members", members.len()),
                Ok(GroupChange::Joined(member)) => format!("+{}", member.member),
                Ok(GroupChange::Updated(member)) => format!("~{}", member.member),
                Ok(GroupChange::Left(member, how)) => format!("-{} {how:?}", member.member),
                Ok(GroupChange::Deleted) => "deleted".into(),
                Err(error) => error.to_string(),
            });
        }
        all
    }

    #[test]
    fn each_change_once_and_in_order() {
        let feed = GroupFeed::new([record("a", 1, 0)]);
        let mut stream = feed.stream(());
        feed.put(record("b", 2, 0));
        assert_eq!(shown(&mut stream), ["2 members"], "what came before the first look is in the view");
        feed.put(record("b", 2, 0));
        feed.put(record("b", 2, 1));
        feed.put(record("a", 3, 0));
        feed.remove(&MemberId::new("b").unwrap(), Departure::Left);
        feed.remove(&MemberId::new("nobody").unwrap(), Departure::Left);
        assert_eq!(shown(&mut stream), ["~b", "-a Died", "+a", "-b Left"]);
        feed.put(record("b", 4, 0));
        let left =
            |gone: &MemberRecord| if gone.incarnation == 3 { Departure::Left } else { Departure::Died };
        feed.update([record("b", 7, 0), record("c", 5, 0)], left);
        assert_eq!(shown(&mut stream), ["+b", "-a Left", "-b Died", "+b", "+c"]);
        feed.remove(&MemberId::new("b").unwrap(), Departure::Unknown);
        assert_eq!(shown(&mut stream), ["-b Unknown"]);
        feed.put(record("d", 6, 0));
        feed.gap();
        assert!(shown(&mut stream).is_empty());
        feed.reset([record("c", 5, 0), record("d", 6, 0)]);
        assert_eq!(shown(&mut stream), ["2 members"]);
        feed.deleted();
        feed.put(record("e", 7, 0));
        assert_eq!(shown(&mut stream), ["-c Unknown", "-d Unknown", "deleted"]);
        assert!(matches!(next(&mut stream), Poll::Ready(None)));
    }

    #[test]
    fn a_slow_reader_gets_a_view() {
        let feed = GroupFeed::new([]);
        let mut stream = feed.stream(());
        assert_eq!(shown(&mut stream), ["0 members"]);
        for number in 0..=MOST_CHANGES as u128 {
            feed.put(record("a", number, 0));
        }
        assert!(feed.shared().source.changes.len() <= MOST_CHANGES);
        assert_eq!(shown(&mut stream), ["1 members"]);
        feed.fail(Error::new(ErrorKind::Corrupt, "unreadable"));
        assert_eq!(shown(&mut stream).len(), 1);
        assert!(matches!(next(&mut stream), Poll::Ready(None)));
    }

    #[test]
    fn of_holders_the_newest_counts() {
        let holder =
            |name| HolderRecord::new(Some(MemberId::new(name).unwrap()), None, LockMode::Exclusive, None);
        let held = |name, waiters| Holders::new(vec![holder(name)], Some(waiters));
        let feed = HolderFeed::new(Holders::default());
        let kept = Arc::new(());
        let mut stream = feed.stream(Arc::clone(&kept));
        feed.set(held("a", 0));
        feed.set(held("b", 0));
        assert!(matches!(next(&mut stream), Poll::Ready(Some(Ok(now))) if now == held("b", 0)));
        feed.set(held("b", 3));
        assert!(next(&mut stream).is_pending(), "only the waiters changed");
        feed.end();
        feed.set(held("c", 0));
        assert!(matches!(next(&mut stream), Poll::Ready(None)));
        drop(stream);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
