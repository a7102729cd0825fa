//! Watches: what stands is read again when the kernel tells of a change, and compared with what was read before.
//!
//! What happened between two readings is folded. A reader that is slow makes fewer readings, and costs no memory
//! beyond one view of the group and the changes to the next.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tooz_core::driver::{ChangeStream, GroupChange, HolderStream, Holders, LockKey, MemberRecord};
use tooz_core::{ErrorKind, GroupId, MemberId, Result};

use crate::client::Client;
use crate::error;
use crate::groups::{self, View};
use crate::holders;
use crate::host::os_lock::{FileId, Hold};
use crate::keys::{self, KeyHash};
use crate::tree::directory::Directory;
use crate::tree::inotify::{Area, Watch};
use crate::tree::open_tree::Site;
use crate::tree::python_lock;
use crate::tree::topics::{Listener, Topic};

/// How often a watcher of a group or of a leader looks when nobody tells it: each look reads the whole group.
const WATCH_POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(200));
/// How often a watcher looks although it heard nothing: for what makes no event, such as Python's members that stop
/// beating and Python's lock holders that unlock without closing.
const SAFETY_POLL: Duration = Duration::from_secs(1);

/// Something that is read again and again.
trait Follow: Send + 'static {
    type Item: Send;

    /// What comes next; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Result<Self::Item>>> + Send;
}

type Step<F> = Pin<Box<dyn Future<Output = (F, Option<Result<<F as Follow>::Item>>)> + Send>>;

/// A stream that follows.
enum Following<F: Follow> {
    Idle(F),
    Busy(Step<F>),
    Over,
}

// The step is behind a box, and nothing else is pinned.
impl<F: Follow> Unpin for Following<F> {}

impl<F: Follow> Stream for Following<F> {
    type Item = Result<F::Item>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut step: Step<F> = match std::mem::replace(&mut *self, Self::Over) {
            Self::Over => return Poll::Ready(None),
            Self::Busy(step) => step,
            Self::Idle(mut follow) => Box::pin(async move {
                let next = follow.next().await;
                (follow, next)
            }),
        };
        let Poll::Ready((follow, next)) = step.as_mut().poll(cx) else {
            *self = Self::Busy(step);
            return Poll::Pending;
        };
        if next.is_some() {
            *self = Self::Idle(follow);
        }
        Poll::Ready(next)
    }
}

/// Follows one group.
struct GroupFollower {
    client: Arc<Client>,
    site: Arc<Site>,
    group: GroupId,
    /// The group's metadata, open: another file there is another group of the same name.
    metadata: Option<(File, FileId)>,
    listener: Listener,
    watched: Vec<Watch>,
    seen: BTreeMap<MemberId, MemberRecord>,
    expires: Option<Duration>,
    started: bool,
    pending: VecDeque<GroupChange>,
    over: bool,
}

fn metadata(directory: &Directory) -> std::io::Result<(File, FileId)> {
    let file = directory.open(keys::METADATA)?;
    let id = FileId::of(&file)?;
    Ok((file, id))
}

/// Of its own changes, and of every session's end: whoever dies is cleared away at once where somebody watches.
fn hear(site: &Site, group: &GroupId) -> Vec<Watch> {
    let name = keys::group(group);
    let own = site.groups.child(&name).ok();
    let own = own.and_then(|directory| site.watch(&directory, Area::Group(name)));
    own.into_iter().chain(site.watch(&site.sessions, Area::Sessions)).collect()
}

pub(crate) async fn group(client: &Arc<Client>, group: &GroupId) -> Result<ChangeStream> {
    let site = client.enter()?;
    let listener = site.hub.listen(vec![Topic::Group(keys::group(group))]);
    let watched = hear(&site, group);
    let mut follower = GroupFollower {
        client: client.clone(),
        site,
        group: group.clone(),
        metadata: None,
        listener,
        watched,
        seen: BTreeMap::new(),
        expires: None,
        started: false,
        pending: VecDeque::new(),
        over: false,
    };
    follower.look().await?;
    Ok(Box::pin(Following::Idle(follower)))
}

impl GroupFollower {
    /// Reads the group and notes what changed.
    async fn look(&mut self) -> Result<()> {
        let lock = self.client.driver_lock(&self.site, Hold::Together, self.client.deadline()).await?;
        let missed = self.listener.missed();
        let read = groups::open(&self.site, &self.group).and_then(|directory| {
            let view = groups::view(&self.client, &self.site, &self.group, &directory)?;
            Ok((directory, view))
        });
        drop(lock);
        match read {
            Ok((directory, view)) => {
                let same = self.metadata.as_ref().is_none_or(|(_, id)| directory.has(keys::METADATA, *id));
                if !same {
                    self.delete();
                    return Ok(());
                }
                if self.metadata.is_none() {
                    self.metadata = metadata(&directory).ok();
                }
                self.note(view, missed);
                Ok(())
            }
            // Not there yet after the loss of everything; else somebody deleted it.
            Err(error) if error.kind() == ErrorKind::GroupNotFound && self.metadata.is_some() => {
                if self.site.is_in_place() {
                    self.delete();
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn delete(&mut self) {
        self.pending.push_back(GroupChange::Deleted);
        self.over = true;
    }

    /// The whole directory was lost: nobody deleted the group, and its members will create it again (S7).
    fn start_anew(&mut self) -> Result<()> {
        self.site = self.client.site()?;
        self.listener = self.site.hub.listen(vec![Topic::Group(keys::group(&self.group))]);
        self.metadata = None;
        self.expires = None;
        self.seen.clear();
        self.pending.push_back(GroupChange::View(Vec::new()));
        Ok(())
    }

    fn note(&mut self, view: View, missed: bool) {
        self.expires = view.expires;
        let before = std::mem::replace(&mut self.seen, view.members);
        if !self.started || missed {
            self.started = true;
            self.pending.push_back(GroupChange::View(self.seen.values().cloned().collect()));
            return;
        }
        for (id, old) in &before {
            if self.seen.get(id).is_none_or(|new| new.incarnation != old.incarnation) {
                self.pending.push_back(GroupChange::Left(old.clone()));
            }
        }
        for (id, new) in &self.seen {
            match before.get(id) {
                Some(old) if old.incarnation == new.incarnation => {
                    if old.capabilities != new.capabilities || old.updated_at != new.updated_at {
                        self.pending.push_back(GroupChange::Updated(new.clone()));
                    }
                }
                _ => self.pending.push_back(GroupChange::Joined(new.clone())),
            }
        }
    }

    fn pause(&self) -> Duration {
        let poll = if self.site.hears() {
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
            if let Some(change) = self.pending.pop_front() {
                return Some(Ok(change));
            }
            if self.over || self.client.is_closed() || self.client.check_process().is_err() {
                return None;
            }
            let pause = self.pause();
            self.client.context.spawner.timeout(pause, self.listener.heard()).await;
            if self.client.is_closed() {
                return None;
            }
            if !self.site.is_in_place() {
                match self.start_anew() {
                    Ok(()) => continue,
                    // Nothing is there for a view yet.
                    Err(error)
                        if matches!(error.kind(), ErrorKind::GroupNotFound | ErrorKind::Unavailable) =>
                    {
                        continue;
                    }
                    Err(error) => return Some(Err(error)),
                }
            }
            // A group that was created again after the loss of everything is a new directory.
            if self.metadata.is_none() {
                self.watched = hear(&self.site, &self.group);
            }
            match self.look().await {
                // Not there yet, or something stopped under the lock: it stays as it was and is read again.
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
    /// `None`: for a view, where nothing is yet.
    listening: Option<Listening>,
    seen: Option<Holders>,
    /// It looked, and next waits to hear something; also after an error, or whoever asks on would ask without end.
    waits: bool,
}

/// A directory, and what is heard of a lock there.
struct Listening {
    site: Arc<Site>,
    listener: Listener,
    _watched: Vec<Watch>,
    /// Whether there were records of the lock's stripe to watch.
    complete: bool,
}

fn listen(site: &Arc<Site>, key: &LockKey) -> Listening {
    let hash = KeyHash::new(key);
    let complete = site.has_stripe(hash.stripe());
    let mut watched = site.watch_lock(&hash);
    let mut topics = vec![Topic::Lock(hash), Topic::Deaths];
    if let Some(path) = site.python_path(key) {
        watched.extend(python_lock::watch(site, &path));
        topics.push(Topic::LockFile(path.join("/")));
    }
    let listener = site.hub.listen(topics);
    Listening { site: site.clone(), listener, _watched: watched, complete }
}

/// `None` for a view where nothing is yet.
fn enter(client: &Client, key: &LockKey) -> Result<Option<Listening>> {
    match client.enter() {
        Err(error) if error::is_nothing_here(&error) => Ok(None),
        site => Ok(Some(listen(&site?, key))),
    }
}

pub(crate) fn holders(client: &Arc<Client>, key: &LockKey) -> Result<HolderStream> {
    let listening = enter(client, key)?;
    let (client, key) = (client.clone(), key.clone());
    let follower = HolderFollower { client, key, listening, seen: None, waits: false };
    Ok(Box::pin(Following::Idle(follower)))
}

impl Follow for HolderFollower {
    type Item = Holders;

    async fn next(&mut self) -> Option<Result<Holders>> {
        loop {
            if self.client.is_closed() || self.client.check_process().is_err() {
                return None;
            }
            if self.listening.as_ref().is_none_or(|listening| !listening.site.is_in_place()) {
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
                        let pause = if listening.site.hears() { SAFETY_POLL } else { poll };
                        spawner.timeout(pause, listening.listener.heard()).await;
                    }
                }
                continue;
            }
            let stripe = KeyHash::new(&self.key).stripe();
            if let Some(listening) = &mut self.listening
                && !listening.complete
                && listening.site.has_stripe(stripe)
            {
                *listening = listen(&listening.site, &self.key);
            }
            let now = match &self.listening {
                None => Ok(Holders::new(Vec::new(), Some(0))),
                Some(listening) => holders::holders(&self.client, &listening.site, &self.key).await,
            };
            match now {
                // Who waits is of no interest here.
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
