//! Following a group: the server tells nothing by itself, so a task looks whether the group changed, and reads it if it did.

use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;
use std::time::Duration;

use tooz_core::driver::support::errors::group_not_found;
use tooz_core::driver::support::feed::GroupFeed;
use tooz_core::driver::{ChangeStream, Departure, Epoch, Instant, MemberRecord};
use tooz_core::{ErrorKind, GroupId, Result};

use crate::client::Client;
use crate::connection::command::{Batch, Look};
use crate::lock::epoch::Origin;
use crate::session_state::Version;
use crate::view::{Group, Seen, living, read_group};

/// How often a watch looks.
const LOOK: Duration = Duration::from_millis(250);

struct Follower {
    client: Arc<Client>,
    group: GroupId,
    feed: GroupFeed,
    /// Which data it is, if a session of ours ever wrote that.
    epoch: Option<Epoch>,
    /// The data was lost, and the group with it; it may come back.
    lost: bool,
    identity: Option<Vec<u8>>,
    /// The map as it was read.
    seen: Version,
    members: Vec<MemberRecord>,
    /// When the first member may die.
    due: Option<Instant>,
}

/// Follows a group.
pub(crate) async fn follow(client: &Arc<Client>, group: &GroupId) -> Result<ChangeStream> {
    let epoch = read_epoch(client).await?;
    let Seen::There(found) = read_group(client, &mut client.tries(), group).await? else {
        return Err(group_not_found(group));
    };
    let feed = GroupFeed::new([]);
    let mut follower = Follower {
        client: Arc::clone(client),
        group: group.clone(),
        feed: feed.clone(),
        epoch,
        lost: false,
        identity: found.identity.clone(),
        seen: Version::default(),
        members: Vec::new(),
        due: None,
    };
    follower.take(&found).await?;
    follower.feed.reset(follower.members.clone());
    let spawner = client.context.spawner.clone();
    let task = spawner.clone().spawn(async move {
        loop {
            spawner.sleep(LOOK).await;
            match follower.look().await {
                Ok(Continue(())) => {}
                Ok(Break(())) => return,
                Err(error) if error.kind() == ErrorKind::Closed => return follower.feed.fail(error),
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%error, group = %follower.group, "the group could not be read");
                }
                Err(error) => follower.feed.report(error),
            }
        }
    });
    Ok(feed.stream(task))
}

async fn read_epoch(client: &Client) -> Result<Option<Epoch>> {
    let mut batch = Batch::new();
    batch.get(&client.keys.epoch(), Look::Whole);
    let epoch = client.ask(&batch).await?.answers.item()?;
    epoch.map(|epoch| Ok(Origin::read(client, &epoch)?.stamp.epoch)).transpose()
}

impl Follower {
    /// Takes over a group that was read. Returns the records that stood there before.
    async fn take(&mut self, found: &Group) -> Result<Vec<MemberRecord>> {
        let now = self.client.context.clock.now();
        let living = living(&self.client, &mut self.client.tries(), &found.entries).await?;
        let shortest = living.iter().map(|(_, left)| *left).min();
        self.due = shortest.map(|left| now + Duration::from_secs(left.into()));
        self.seen = Version { link: found.link.number, cas: found.cas.unwrap_or_default() };
        let members = living.into_iter().map(|(record, _)| record).collect();
        Ok(std::mem::replace(&mut self.members, members))
    }

    /// How each of these members went that is gone. One of ours that left said so.
    async fn departures(&self, before: &[MemberRecord]) -> Result<Vec<(u128, Departure)>> {
        let stays = |gone: &&MemberRecord| self.members.iter().any(|now| now.incarnation == gone.incarnation);
        let gone: Vec<_> = before.iter().filter(|gone| gone.incarnation != 0 && !stays(gone)).collect();
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let mut batch = Batch::new();
        for record in &gone {
            batch.get(&self.client.keys.left(record.incarnation), Look::Presence);
        }
        let mut answers = self.client.ask(&batch).await?.answers;
        let mut departures = Vec::new();
        for record in gone {
            let how = if answers.item()?.is_some() { Departure::Left } else { Departure::Died };
            departures.push((record.incarnation, how));
        }
        Ok(departures)
    }

    /// The group is gone with all data, and no member deleted it.
    fn lose(&mut self) {
        self.members.clear();
        self.lost = true;
        (self.seen, self.due) = (Version::default(), None);
        self.feed.reset([]);
    }

    async fn look(&mut self) -> Result<ControlFlow<()>> {
        let keys = self.client.keys.group(&self.group);
        let mut batch = Batch::new();
        batch
            .get(&self.client.keys.epoch(), Look::Whole)
            .get(&keys.identity, Look::Whole)
            .get(&keys.members, Look::Cas);
        let mut reply = self.client.ask(&batch).await?;
        let (epoch, identity, map) = (reply.answers.item()?, reply.answers.item()?, reply.answers.item()?);
        let epoch = epoch.map(|epoch| Origin::read(&self.client, &epoch)).transpose()?;
        let epoch = epoch.map(|origin| origin.stamp.epoch);
        // An epoch that is missing says nothing alone: Python writes none, and it may be evicted alone.
        let is_other = self.epoch.is_some() && epoch.is_some() && epoch != self.epoch;
        let identity = identity.map(|identity| identity.value);
        let is_another = self.identity.is_some() && identity.is_some() && identity != self.identity;
        if is_another && !is_other && !self.lost {
            self.feed.deleted(); // another group of the same name
            return Ok(Break(()));
        }
        let seen = map.map(|map| Version { link: reply.link.number, cas: map.cas });
        let is_due = self.due.is_some_and(|due| due <= self.client.context.clock.now());
        if !is_other && !self.lost && !is_due && seen == Some(self.seen) {
            self.identity = identity.or(self.identity.take());
            return Ok(Continue(()));
        }
        match read_group(&self.client, &mut self.client.tries(), &self.group).await? {
            Seen::There(found) if is_other || self.lost || found.cas.is_none() => {
                // The data is another's, or the group was evicted: the reader gets a view.
                let was_evicted = found.cas.is_none() && self.members.is_empty() && !is_other && !self.lost;
                self.take(&found).await?;
                (self.epoch, self.identity, self.lost) = (epoch.or(self.epoch), identity, false);
                if !was_evicted {
                    self.feed.reset(self.members.clone());
                }
            }
            Seen::There(found) => {
                let before = self.take(&found).await?;
                let departures = match self.departures(&before).await {
                    Ok(departures) => departures,
                    Err(error) => {
                        // The next look finds the same difference again.
                        (self.members, self.seen) = (before, Version::default());
                        return Err(error);
                    }
                };
                let how = |gone: &MemberRecord| {
                    let told = departures.iter().find(|(incarnation, _)| *incarnation == gone.incarnation);
                    told.map_or(Departure::Unknown, |(_, how)| *how)
                };
                self.feed.update(self.members.clone(), how);
                (self.epoch, self.identity) = (epoch.or(self.epoch), identity.or(self.identity.take()));
            }
            // The data stands again, and the group is not in it.
            Seen::Missing if self.lost && epoch.is_some() && epoch == self.epoch => {
                self.feed.deleted();
                return Ok(Break(()));
            }
            Seen::Missing if self.lost => {}
            Seen::Missing if is_other || (self.epoch.is_some() && epoch.is_none()) => self.lose(),
            Seen::Missing => {
                self.feed.deleted();
                return Ok(Break(()));
            }
        }
        Ok(Continue(()))
    }
}
