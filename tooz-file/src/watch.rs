//! Watches: the present state is read again when the kernel tells of a change, and compared with what was read before.
//!
//! What happened between two readings is folded. A reader that is slow makes fewer readings, and costs no memory
//! beyond one view of the group and the changes to the next.

use std::collections::BTreeSet;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use tooz_core::driver::support::feed::GroupFeed;
use tooz_core::driver::{
    ChangeStream, Departure, GroupChange, HolderStream, Holders, Instant, LockKey, MemberRecord,
};
use tooz_core::{ErrorKind, GroupId, MemberId, Result};
use tooz_local::file_id::FileId;
use tooz_local::os_lock::Hold;

use crate::client::Client;
use crate::error;
use crate::keys::{self, KeyHash};
use crate::reaper::LEFTOVER;
use crate::tree::{Area, Listener, Topic, Tree, Watch, members, python_lock};
use crate::view::{read_group, read_holders};

/// How often a watcher of a group or of a leader looks where no event tells of a change: each look reads the whole
/// group.
const WATCH_POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(200));
/// How often a watcher looks without an event: for what makes none, such as Python's members that stop beating and
/// Python's lock holders that unlock without closing.
const SAFETY_POLL: Duration = Duration::from_secs(1);

/// Something that is read again and again.
trait Follow: Send + 'static {
    type Item: Send;

    /// What comes next; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Result<Self::Item>>> + Send;
}

type Step<F> = Pin<Box<dyn Future<Output = (F, Option<Result<<F as Follow>::Item>>)> + Send>>;

fn step<F: Follow>(mut follow: F) -> Step<F> {
    Box::pin(async move {
        let next = follow.next().await;
        (follow, next)
    })
}

/// A stream that follows: the step that it is at; `None` after the end.
struct Following<F: Follow>(Option<Step<F>>);

impl<F: Follow> Stream for Following<F> {
    type Item = Result<F::Item>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(here) = &mut self.0 else { return Poll::Ready(None) };
        let (follow, next) = ready!(here.as_mut().poll(cx));
        self.0 = next.is_some().then(|| step(follow));
        Poll::Ready(next)
    }
}

/// Follows one group.
struct GroupFollower {
    client: Arc<Client>,
    tree: Arc<Tree>,
    group: GroupId,
    /// The group's metadata, open: another file there is another group of the same name.
    metadata: Option<(FileId, File)>,
    listener: Listener,
    watched: Vec<Watch>,
    feed: GroupFeed,
    expires: Option<Duration>,
    /// Which of the members that were read are Python's.
    pythons: BTreeSet<MemberId>,
    /// When they were read.
    read_at: Instant,
}

/// Watches the group's files and every session's end, so that dead members are cleared away at once.
fn watch_group(tree: &Tree, group: &GroupId) -> Vec<Watch> {
    let name = keys::group(group);
    let own = tree.groups.child(&name).ok();
    let own = own.and_then(|directory| tree.watch(&directory, Area::Group(name)));
    own.into_iter().chain(tree.watch(&tree.sessions.directory, Area::Sessions)).collect()
}

pub(crate) async fn group(client: &Arc<Client>, group: &GroupId) -> Result<ChangeStream> {
    let tree = client.enter()?;
    let listener = tree.topics.listen(vec![Topic::Group(keys::group(group))]);
    let mut follower = GroupFollower {
        client: client.clone(),
        tree,
        group: group.clone(),
        metadata: None,
        listener,
        watched: Vec::new(),
        feed: GroupFeed::default(),
        expires: None,
        pythons: BTreeSet::new(),
        read_at: client.context.clock.now(),
    };
    follower.look(true).await?;
    Ok(Box::pin(Following(Some(step(follower)))))
}

impl GroupFollower {
    /// Reads the group and notes what changed; `whole`: the reader gets a view.
    async fn look(&mut self, whole: bool) -> Result<()> {
        let lock = self.client.driver_lock(&self.tree, Hold::Together).await?;
        let whole = self.listener.missed() || whole;
        // A group that was created again after the loss of everything is a new directory.
        if self.metadata.is_none() {
            self.watched = watch_group(&self.tree, &self.group);
        }
        let read = members::open_group(&self.tree, &self.group).and_then(|directory| {
            let view = read_group(&self.client, &self.tree, &self.group, &directory)?;
            Ok((directory, view))
        });
        drop(lock);
        match read {
            Ok((directory, view)) => {
                let same = self.metadata.as_ref().is_none_or(|(id, _)| directory.has(keys::METADATA, *id));
                if !same {
                    self.delete();
                    return Ok(());
                }
                if self.metadata.is_none() {
                    let metadata = directory.open(keys::METADATA);
                    self.metadata = metadata.and_then(|file| Ok((FileId::of(&file)?, file))).ok();
                }
                self.expires = view.expires;
                let members = view.members.into_values();
                if whole {
                    self.feed.reset(members);
                } else {
                    self.feed.update(members, |member| self.departure(member, Departure::Died));
                }
                self.pythons = view.pythons;
                self.read_at = self.client.context.clock.now();
                Ok(())
            }
            // If the tree was lost, the group is not there yet; else it was deleted.
            Err(error) if error.kind() == ErrorKind::GroupNotFound && self.metadata.is_some() => {
                if self.tree.is_in_place() {
                    self.delete();
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// How a member went that was read before; `missing`: what it means that it left no file.
    fn departure(&self, gone: &MemberRecord, missing: Departure) -> Departure {
        let age = self.client.context.clock.now().saturating_since(self.read_at);
        match self.tree.tmp.stat(&keys::left(&self.group, gone.incarnation)) {
            Ok(Some(_)) => Departure::Left,
            // The file of a member that left may have been tidied away since.
            Ok(None) if age < LEFTOVER / 2 && !self.pythons.contains(&gone.member) => missing,
            _ => Departure::Unknown,
        }
    }

    /// A delete also removes the files of those that left.
    fn delete(&self) {
        self.feed.update([], |member| self.departure(member, Departure::Unknown));
        self.feed.deleted();
    }

    /// The whole directory was lost: the group was not deleted, and its members will create it again (S7).
    fn start_anew(&mut self) -> Result<()> {
        self.tree = self.client.tree()?;
        self.listener = self.tree.topics.listen(vec![Topic::Group(keys::group(&self.group))]);
        self.metadata = None;
        self.expires = None;
        self.feed.reset([]);
        Ok(())
    }

    fn pause(&self) -> Duration {
        let poll = if self.tree.pushes_changes() {
            SAFETY_POLL
        } else {
            self.client.context.entropy.between(WATCH_POLL.0, WATCH_POLL.1)
        };
        // A little later than the end itself, so that one look finds it over.
        self.expires.map_or(poll, |left| poll.min(left + Duration::from_millis(5)))
    }
}

impl Follow for GroupFollower {
    type Item = GroupChange;

    async fn next(&mut self) -> Option<Result<GroupChange>> {
        loop {
            if let Poll::Ready(next) = poll_fn(|cx| Poll::Ready(self.feed.poll(cx))).await {
                return next;
            }
            if self.client.is_closed() || self.client.check_process().is_err() {
                return None;
            }
            let pause = self.pause();
            self.client.context.spawner.timeout(pause, self.listener.heard()).await;
            if self.client.is_closed() {
                return None;
            }
            let looked = if self.tree.is_in_place() { self.look(false).await } else { self.start_anew() };
            match looked {
                // Not there yet (for a view, nothing is), or a process stands still under the lock: the group is read
                // again later.
                Err(error) if matches!(error.kind(), ErrorKind::GroupNotFound | ErrorKind::Unavailable) => {}
                Err(error) => return Some(Err(error)),
                Ok(()) => {}
            }
        }
    }
}

/// Follows the holders of one lock.
struct HolderFollower {
    client: Arc<Client>,
    key: LockKey,
    /// `None`: for a view, while nothing is there.
    listening: Option<Listening>,
    seen: Option<Holders>,
    /// It looked, and next waits for a change; also after an error, so that a caller that asks on does not loop.
    waits: bool,
}

/// A tree, and what is watched of a lock there.
struct Listening {
    tree: Arc<Tree>,
    listener: Listener,
    _watched: Vec<Watch>,
    /// Whether there were records of the lock's stripe to watch.
    complete: bool,
}

fn listen(tree: &Arc<Tree>, key: &LockKey) -> Listening {
    let hash = KeyHash::new(key);
    let complete = tree.mutexes.has_stripe(hash.stripe());
    let mut watched = tree.watch_lock(&hash);
    let mut topics = vec![Topic::Lock(hash), Topic::Deaths];
    if let Some(path) = tree.python_path(key) {
        watched.extend(python_lock::watch(tree, &path));
        topics.push(Topic::LockFile(path.join("/")));
    }
    let listener = tree.topics.listen(topics);
    Listening { tree: tree.clone(), listener, _watched: watched, complete }
}

/// `None` for a view, while nothing is there.
fn enter(client: &Client, key: &LockKey) -> Result<Option<Listening>> {
    match client.enter() {
        Err(error) if error::is_nothing_here(&error) => Ok(None),
        tree => Ok(Some(listen(&tree?, key))),
    }
}

pub(crate) fn holders(client: &Arc<Client>, key: &LockKey) -> Result<HolderStream> {
    let listening = enter(client, key)?;
    let (client, key) = (client.clone(), key.clone());
    let follower = HolderFollower { client, key, listening, seen: None, waits: false };
    Ok(Box::pin(Following(Some(step(follower)))))
}

impl Follow for HolderFollower {
    type Item = Holders;

    async fn next(&mut self) -> Option<Result<Holders>> {
        loop {
            if self.client.is_closed() || self.client.check_process().is_err() {
                return None;
            }
            if self.listening.as_ref().is_none_or(|listening| !listening.tree.is_in_place()) {
                match enter(&self.client, &self.key) {
                    Ok(listening) => self.listening = listening,
                    Err(error) => return Some(Err(error)),
                }
            }
            let (spawner, entropy) = (&self.client.context.spawner, &self.client.context.entropy);
            if std::mem::take(&mut self.waits) {
                let poll = entropy.between(WATCH_POLL.0, WATCH_POLL.1);
                match &mut self.listening {
                    None => spawner.sleep(poll).await,
                    Some(listening) => {
                        let pause = if listening.tree.pushes_changes() { SAFETY_POLL } else { poll };
                        spawner.timeout(pause, listening.listener.heard()).await;
                    }
                }
                continue;
            }
            let stripe = KeyHash::new(&self.key).stripe();
            if let Some(listening) = &mut self.listening
                && !listening.complete
                && listening.tree.mutexes.has_stripe(stripe)
            {
                *listening = listen(&listening.tree, &self.key);
            }
            let now = match &self.listening {
                None => Ok(Holders::new(Vec::new(), Some(0))),
                Some(listening) => read_holders(&self.client, &listening.tree, &self.key).await,
            };
            match now {
                // Waiters are of no interest here.
                Ok(now) if self.seen.as_ref().is_none_or(|seen| seen.holders != now.holders) => {
                    self.seen = Some(now.clone());
                    return Some(Ok(now));
                }
                Err(error) if error.kind() != ErrorKind::Unavailable => {
                    self.waits = true;
                    return Some(Err(error));
                }
                _ => self.waits = true,
            }
        }
    }
}
