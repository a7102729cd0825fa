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

use crate::breaks;
use crate::client::Client;
use crate::directory::Directory;
use crate::ears::{Area, Watch};
use crate::groups::{self, View};
use crate::hub::{Listener, Topic};
use crate::kernel::{FileId, Hold};
use crate::keys::{self, KeyHash};
use crate::oslock;
use crate::portable::WATCH_POLL;
use crate::site::Site;

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
                    Err(error) if error.kind() != ErrorKind::Unavailable => return Some(Err(error)),
                    _ => continue,
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
    site: Arc<Site>,
    key: LockKey,
    listener: Listener,
    watched: Vec<Watch>,
    /// Whether there were records of the lock's stripe to watch.
    complete: bool,
    seen: Option<Holders>,
    /// It looked, and next waits to hear something; also after an error, or whoever asks on would ask without end.
    waits: bool,
}

fn listen(site: &Arc<Site>, key: &LockKey) -> (Listener, Vec<Watch>, bool) {
    let hash = KeyHash::new(key);
    let complete = site.has_stripe(hash.stripe());
    let mut watched = site.watch_lock(&hash);
    let mut topics = vec![Topic::Lock(hash), Topic::Deaths];
    if let Some(path) = site.python_path(key) {
        watched.extend(oslock::watch(site, &path));
        topics.push(Topic::LockFile(path.join("/")));
    }
    (site.hub.listen(topics), watched, complete)
}

pub(crate) fn holders(client: &Arc<Client>, key: &LockKey) -> Result<HolderStream> {
    let site = client.enter()?;
    let (listener, watched, complete) = listen(&site, key);
    let (client, key) = (client.clone(), key.clone());
    let follower =
        HolderFollower { client, site, key, listener, watched, complete, seen: None, waits: false };
    Ok(Box::pin(Following::Idle(follower)))
}

impl Follow for HolderFollower {
    type Item = Holders;

    async fn next(&mut self) -> Option<Result<Holders>> {
        loop {
            if self.client.is_closed() || self.client.check_process().is_err() {
                return None;
            }
            if !self.site.is_in_place() {
                match self.client.site() {
                    Ok(site) => self.site = site,
                    Err(error) => return Some(Err(error)),
                }
                (self.listener, self.watched, self.complete) = listen(&self.site, &self.key);
            }
            if std::mem::take(&mut self.waits) {
                let pause = if self.site.hears() {
                    SAFETY_POLL
                } else {
                    self.client.context.entropy.between(WATCH_POLL.0, WATCH_POLL.1)
                };
                self.client.context.spawner.timeout(pause, self.listener.heard()).await;
                continue;
            }
            if !self.complete && self.site.has_stripe(KeyHash::new(&self.key).stripe()) {
                (self.listener, self.watched, self.complete) = listen(&self.site, &self.key);
            }
            match breaks::holders(&self.client, &self.site, &self.key).await {
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
