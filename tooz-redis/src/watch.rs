//! Following a group: a view with its version, then each change with the next one; after a gap a view again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;
use std::time::Duration;

use sha1::{Digest, Sha1};
use tokio::sync::mpsc;
use tooz_core::driver::support::errors::group_not_found;
use tooz_core::driver::support::feed::GroupFeed;
use tooz_core::driver::{ChangeStream, Departure, MemberRecord};
use tooz_core::{ErrorKind, GroupId, Result};

use crate::client::Client;
use crate::connection::subscription::Subscription;
use crate::scripts::codes::unpair;
use crate::view::{Seen, Tick, View, member_record, read_group, read_tick};

/// How often the server looks for dead members, and for what Python changed.
const TICK: Duration = Duration::from_secs(1);
/// Digests are sums of 48 bits, which a Lua number holds exactly.
const DIGEST: u64 = 1 << 48;
/// How many versions are remembered with their digest. A server's digest is at most a second old. More changes than this in
/// that time delay the search for Python's changes, and cost no more memory.
const VERSIONS: usize = 4_096;

/// A member as it is on the server, with its part of the digest.
type Known = (Option<MemberRecord>, u64);

struct Follower {
    client: Arc<Client>,
    group: GroupId,
    feed: GroupFeed,
    epoch: String,
    instance: String,
    version: u64,
    members: BTreeMap<Vec<u8>, Known>,
    /// The sum of all members' parts.
    sum: u64,
    /// The digests of the last versions, in order. The server's digest is that of the version at which it last read the
    /// group, which a busy group has left behind when the digest comes.
    digests: VecDeque<(u64, u64)>,
    /// A version with the server's digest of it, which is not compared yet.
    told: Option<(u64, u64)>,
    /// The data was lost, and the group with it; it may come back.
    lost: bool,
    /// The version that a tick said, although its messages have not come.
    behind: Option<u64>,
    /// The group as it was read at a later version than this. The messages up to there say how members went, and come first.
    ahead: Option<View>,
}

/// Follows a group.
pub(crate) async fn follow(client: &Arc<Client>, group: &GroupId) -> Result<ChangeStream> {
    let (sender, mut messages) = mpsc::unbounded_channel();
    let listener = move |message: Option<&[u8]>| {
        // If the reader is gone, this listener soon is, too.
        let _ = sender.send(message.map(<[u8]>::to_vec));
    };
    // The subscription comes before the first read: what changes in between comes as a message, too, whose version tells.
    let subscription =
        Subscription::start(client, client.keys.group(group).channel, Arc::new(listener)).await?;
    let Seen::There(view) = read_group(client, group, b"").await? else { return Err(group_not_found(group)) };
    let feed = GroupFeed::new([]);
    let mut follower = Follower {
        client: Arc::clone(client),
        group: group.clone(),
        feed: feed.clone(),
        epoch: view.epoch.clone(),
        instance: view.instance.clone(),
        version: 0,
        members: BTreeMap::new(),
        sum: 0,
        digests: VecDeque::new(),
        told: None,
        lost: false,
        behind: None,
        ahead: None,
    };
    follower.take(view);
    follower.feed.reset(follower.records());
    let spawner = client.context().spawner.clone();
    let task = spawner.clone().spawn(async move {
        let _subscription = subscription;
        let mut tick = spawner.sleep(TICK);
        loop {
            let following = tokio::select! {
                biased; // due once a second, even if messages never end: only a tick finds dead members
                () = &mut tick => {
                    let following = follower.tick().await;
                    tick = spawner.sleep(TICK);
                    following
                }
                message = messages.recv() => match message {
                    Some(Some(message)) => follower.receive(&message).await,
                    Some(None) => follower.read_again(true).await,
                    None => return follower.feed.end(),
                },
            };
            if following.is_break() {
                return;
            }
        }
    });
    Ok(feed.stream(task))
}

/// A member's part of the digest: 48 bits of SHA-1.
fn part(member: &[u8], caps: &[u8]) -> u64 {
    let hash = Sha1::new()
        .chain_update(member.len().to_string())
        .chain_update(":")
        .chain_update(member)
        .chain_update(caps)
        .finalize();
    hash.iter().take(6).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// How a member went that did not say so. One of Python's may have left.
fn ended(gone: &MemberRecord) -> Departure {
    if gone.incarnation == 0 { Departure::Unknown } else { Departure::Died }
}

impl Follower {
    fn records(&self) -> impl Iterator<Item = MemberRecord> {
        self.members.values().filter_map(|(record, _)| record.clone())
    }

    fn end(&self) -> ControlFlow<()> {
        self.feed.deleted();
        Break(())
    }

    fn take(&mut self, view: View) {
        self.clear();
        for (id, caps, record) in view.members {
            self.put(id, &caps, record);
        }
        self.reach(view.version);
    }

    fn clear(&mut self) {
        self.members.clear();
        self.sum = 0;
        self.digests.clear();
        self.told = None;
        self.ahead = None;
    }

    /// Returns the record that it replaces.
    fn put(&mut self, id: Vec<u8>, caps: &[u8], record: Option<MemberRecord>) -> Option<MemberRecord> {
        let part = part(&id, caps);
        self.sum = (self.sum + part) % DIGEST;
        self.members.insert(id, (record, part)).and_then(|known| self.without(known))
    }

    /// Takes a member's part out of the digest; returns its record.
    fn without(&mut self, (record, part): Known) -> Option<MemberRecord> {
        self.sum = (self.sum + DIGEST - part) % DIGEST;
        record
    }

    /// The members are those of this version.
    fn reach(&mut self, version: u64) {
        self.version = version;
        self.digests.push_back((version, self.sum));
        if self.digests.len() > VERSIONS {
            self.digests.pop_front();
        }
    }

    /// Whether the group is another one of the same name. A group that Python made gets its id when the first driver of ours
    /// that may write reads it; a view may have seen it before.
    fn is_another(&self, instance: &str) -> bool {
        !self.instance.is_empty() && instance != self.instance
    }

    /// Reads the whole group; `missed`: changes may have been missed, so the reader gets a view.
    async fn read_again(&mut self, missed: bool) -> ControlFlow<()> {
        match read_group(&self.client, &self.group, b"").await {
            Ok(seen) => self.see(seen, missed),
            Err(error) if error.is_retryable() || error.is_indeterminate() => {
                tracing::debug!(%error, group = %self.group, "the group could not be read");
                // The next tick tries again.
                self.behind = Some(u64::MAX);
                Continue(())
            }
            Err(error) => {
                self.feed.fail(error);
                Break(())
            }
        }
    }

    fn see(&mut self, seen: Seen, missed: bool) -> ControlFlow<()> {
        self.behind = None;
        match seen {
            Seen::Missing(epoch) if epoch == self.epoch && !self.lost => return self.end(),
            Seen::Missing(_) => self.lose(),
            Seen::There(view)
                if view.epoch == self.epoch && self.is_another(&view.instance) && !self.lost =>
            {
                return self.end();
            }
            Seen::There(view) => {
                let another = self.is_another(&view.instance);
                self.epoch.clone_from(&view.epoch);
                self.instance.clone_from(&view.instance);
                if missed || another || self.lost {
                    self.lost = false;
                    self.take(view);
                    self.feed.reset(self.records());
                } else if view.version > self.version {
                    self.ahead = Some(view);
                } else {
                    self.update(view);
                }
            }
        }
        Continue(())
    }

    /// The group differs from what the messages said up to this version: a driver that may not write found members dead, or
    /// Python changed it. Python's members may have left. Ours say so in a message.
    fn update(&mut self, view: View) {
        self.take(view);
        self.feed.update(self.records(), ended);
    }

    /// The data is gone, and the group with it; no member deleted it.
    fn lose(&mut self) {
        if !self.lost {
            self.lost = true;
            self.version = 0;
            self.clear();
            self.feed.reset(self.records());
        }
    }

    async fn receive(&mut self, message: &[u8]) -> ControlFlow<()> {
        let Some((version, rest)) = split_number(message) else { return self.read_again(true).await };
        if version <= self.version && !self.lost {
            return Continue(());
        }
        if rest.first() == Some(&b'D') {
            return self.end();
        }
        if version != self.version + 1 || self.lost {
            return self.read_again(true).await;
        }
        let understood = self.apply(rest).is_some();
        self.reach(version);
        if let Some(view) = self.ahead.take_if(|view| view.version <= version) {
            self.update(view);
        }
        if understood { self.verify().await } else { self.read_again(false).await }
    }

    /// Applies one change; `None`: the message does not say it.
    fn apply(&mut self, message: &[u8]) -> Option<()> {
        let (kind, rest) = (message.first()?, message.get(2..)?);
        match kind {
            b'L' | b'Q' | b'X' => {
                let known = self.members.remove(rest)?;
                if let Some(old) = self.without(known) {
                    let how = match kind {
                        b'Q' => Departure::Left,
                        b'X' => ended(&old),
                        _ => Departure::Unknown,
                    };
                    self.feed.remove(&old.member, how);
                }
            }
            b'J' | b'U' => {
                let mut words = rest.splitn(4, |byte| *byte == b' ');
                let mut word = || words.next().and_then(|word| std::str::from_utf8(word).ok());
                let (incarnation, joined, updated) = (word()?, word()?, word()?);
                let (id, caps) = unpair(words.next()?)?;
                let new = member_record(id, caps, incarnation, joined, updated);
                let old = self.put(id.to_vec(), caps, new.clone());
                match (old, new) {
                    (_, Some(new)) => self.feed.put(new),
                    (Some(old), None) => self.feed.remove(&old.member, Departure::Unknown),
                    (None, None) => {}
                }
            }
            _ => return None,
        }
        Some(())
    }

    async fn tick(&mut self) -> ControlFlow<()> {
        match read_tick(&self.client, &self.group).await {
            Ok(tick) => self.compare(tick).await,
            Err(error) if error.kind() == ErrorKind::Closed => {
                self.feed.fail(error);
                Break(())
            }
            Err(error) => {
                tracing::debug!(%error, group = %self.group, "the group could not be asked");
                Continue(())
            }
        }
    }

    async fn compare(&mut self, tick: Tick) -> ControlFlow<()> {
        let (epoch, version, instance, digest) = match tick {
            Tick::There { epoch, version, instance, digest } => (epoch, version, instance, digest),
            Tick::Missing(epoch) => return self.see(Seen::Missing(epoch), true),
        };
        if self.lost || epoch != self.epoch || self.is_another(&instance) {
            return self.read_again(true).await;
        }
        if self.behind.is_some_and(|behind| self.version < behind) {
            return self.read_again(true).await;
        }
        self.behind = (version > self.version).then_some(version);
        self.told = digest;
        self.verify().await
    }

    /// Compares the server's digest with that of the same version, once the messages up to it have come.
    async fn verify(&mut self) -> ControlFlow<()> {
        let Some((at, theirs)) = self.told.take_if(|(at, _)| *at <= self.version) else {
            return Continue(());
        };
        // The server never answers with an older version than this.
        while self.digests.front().is_some_and(|(version, _)| *version < at) {
            self.digests.pop_front();
        }
        match self.digests.front() {
            // No driver of ours changed the group: Python did.
            Some((version, ours)) if *version == at && *ours != theirs => self.read_again(false).await,
            _ => Continue(()),
        }
    }
}

/// A number, a space, the rest.
fn split_number(message: &[u8]) -> Option<(u64, &[u8])> {
    let space = message.iter().position(|byte| *byte == b' ')?;
    let number = std::str::from_utf8(&message[..space]).ok()?.parse().ok()?;
    Some((number, &message[space + 1..]))
}
