//! Streams of changes: a task follows the server and keeps a view, the stream takes from it.
//!
//! The task reads every event at once, because a stream that is not read holds up every other one on its connection.
//! A reader that falls behind costs a bounded number of changes and then gets a view.

use std::sync::Arc;

use etcd_client::{Event, EventType, GetOptions, KeyValue, Txn, TxnOp};
use tooz_core::driver::support::errors::group_not_found;
use tooz_core::driver::support::feed::{GroupFeed, HolderFeed};
use tooz_core::driver::{ChangeStream, Departure, HolderStream};
use tooz_core::{GroupId, Result};

use crate::client::Client;
use crate::connection::answer;
use crate::connection::call::MOST_OPERATIONS;
use crate::connection::watcher::{News, Watcher};
use crate::keys::{GroupKeys, LockKeys};
use crate::lock::state::{Verdict, ranges};
use crate::view::{self, Snapshot, member_record};

/// Follows a group.
pub(crate) async fn group(client: &Arc<Client>, group: &GroupId) -> Result<ChangeStream> {
    let Snapshot { revision, epoch, born, members } = client.snapshot(group).await?;
    let feed = GroupFeed::new(members.ok_or_else(|| group_not_found(group))?);
    let keys = client.keys.group(group);
    let watcher = Watcher::new(&client.connection, &client.keys, epoch.clone(), keys.watched(), revision);
    let follower = GroupFollower {
        client: Arc::clone(client),
        group: group.clone(),
        keys,
        epoch,
        born,
        feed: feed.clone(),
    };
    let task = client.connection.context.spawner.spawn(follower.follow(watcher));
    Ok(feed.stream(task))
}

struct GroupFollower {
    client: Arc<Client>,
    group: GroupId,
    keys: GroupKeys,
    epoch: Vec<u8>,
    /// The create revision of the group's key.
    born: i64,
    feed: GroupFeed,
}

impl GroupFollower {
    async fn follow(mut self, mut watcher: Watcher) {
        loop {
            let deleted = match watcher.next().await {
                News::End => return self.feed.end(),
                News::Behind | News::Resumed | News::Other => continue,
                News::Gap => false,
                News::Events(events, _) => {
                    let made = events.iter().filter(|event| event.event_type() == EventType::Put);
                    let made = made.filter_map(Event::kv).rfind(|kv| kv.key() == self.keys.group());
                    self.born = made.map_or(self.born, KeyValue::create_revision);
                    if !self.apply(&events).await {
                        continue;
                    }
                    true
                }
            };
            match self.look_again(deleted).await {
                Some((epoch, revision)) => watcher.restart(epoch, revision),
                None => return,
            }
        }
    }

    /// Applies the events of one range; `true`: the group's own key went. Events after that belong to another group of the
    /// same name.
    async fn apply(&self, events: &[Event]) -> bool {
        let mut departures = self.departures(events).await.into_iter();
        for event in events {
            let Some(kv) = event.kv() else { continue };
            let gone = event.event_type() == EventType::Delete;
            if self.keys.is_head(kv.key()) {
                if gone && kv.key() == self.keys.group() {
                    return true;
                }
            } else if gone {
                if let Some(member) = self.keys.parse_member(kv.key()) {
                    self.feed.remove(&member, departures.next().unwrap_or(Departure::Unknown));
                }
            } else if let Some(record) = member_record(&self.keys, kv) {
                self.feed.put(record);
            }
        }
        false
    }

    /// How each member went that these events delete. A leave writes the head of the range at the same revision. Of the
    /// others, those have died whose member id was claimed on the same lease. Python's claims nothing, and may have left.
    async fn departures(&self, events: &[Event]) -> Vec<Departure> {
        let (mut departures, mut unsaid, mut head) = (Vec::new(), Vec::new(), 0);
        for event in events {
            let Some(kv) = event.kv() else { continue };
            if self.keys.is_head(kv.key()) {
                // It goes with the lease of the one that left last, at the revision of a death.
                if event.event_type() == EventType::Put {
                    head = kv.mod_revision();
                }
            } else if event.event_type() == EventType::Delete
                && let Some(member) = self.keys.parse_member(kv.key())
            {
                let left = head == kv.mod_revision();
                if !left {
                    unsaid.push((departures.len(), member, kv.mod_revision() - 1));
                }
                departures.push(if left { Departure::Left } else { Departure::Unknown });
            }
        }
        for page in unsaid.chunks(MOST_OPERATIONS / 2) {
            let before = |key: Vec<u8>, at: i64| TxnOp::get(key, Some(GetOptions::new().with_revision(at)));
            let looks = page.iter().flat_map(|(_, member, at)| {
                [before(self.keys.member(member), *at), before(self.client.keys.claim(member), *at)]
            });
            let look = Txn::new().and_then(looks.collect::<Vec<_>>());
            let response = match self.client.connection.send(true, look).await {
                Ok(response) => response,
                Err(error) => {
                    tracing::debug!(%error, group = %self.group, "how members went is not known");
                    break;
                }
            };
            for (index, (place, ..)) in page.iter().enumerate() {
                let lease = |at| answer::one(&response, at).map(|kv| kv.lease());
                if lease(2 * index).is_some_and(|member| lease(2 * index + 1) == Some(member)) {
                    departures[*place] = Departure::Died;
                }
            }
        }
        departures
    }

    /// After a gap, or when the group's key went (`deleted`): finds out whether the group was deleted or the backend lost
    /// its data. `None`: the watch ends.
    async fn look_again(&mut self, deleted: bool) -> Option<(Vec<u8>, i64)> {
        let what = format!("group \"{}\"", self.group);
        let found = self.client.connection.ask_again(&what, || self.client.snapshot(&self.group)).await;
        let Some(Snapshot { revision, epoch, born, members }) = found else {
            self.feed.end();
            return None;
        };
        // A missing id means the same as another one: the data is gone, and the group may come back.
        let lost = epoch != self.epoch;
        // One of the same name that was made in the gap is another group.
        let members = members.filter(|_| lost || (!deleted && born == self.born));
        let Some(members) = members.or_else(|| lost.then(Vec::new)) else {
            self.feed.deleted();
            return None;
        };
        self.feed.reset(members);
        if !epoch.is_empty() {
            self.epoch.clone_from(&epoch);
        }
        self.born = born;
        Some((epoch, revision))
    }
}

/// Follows the holders of a lock.
pub(crate) async fn holders(client: &Arc<Client>, keys: LockKeys) -> Result<HolderStream> {
    let (state, epoch) = client.look_with_epoch(&keys).await?;
    let feed = HolderFeed::new(view::holders(&state));
    let ranges = ranges(&keys, &Verdict::Held);
    let mut watcher = Watcher::new(&client.connection, &client.keys, epoch, ranges, state.revision);
    let (client, told) = (Arc::clone(client), feed.clone());
    let mut seen = state.revision;
    let spawner = client.connection.context.spawner.clone();
    let task = spawner.spawn(async move {
        loop {
            let (at_least, restart) = match watcher.next().await {
                News::End => return told.end(),
                News::Behind | News::Resumed | News::Other => continue,
                News::Events(_, revision) if revision <= seen => continue, // the last look showed it
                News::Events(_, revision) => (revision, false),
                News::Gap => (0, true),
            };
            let (state, epoch) = loop {
                match client.connection.ask_again("holders", || client.look_with_epoch(&keys)).await {
                    // A member that was away may answer from the past.
                    Some((state, _)) if state.revision < at_least => client.connection.pause().await,
                    Some(found) => break found,
                    None => return told.end(),
                }
            };
            seen = state.revision;
            told.set(view::holders(&state));
            if restart {
                watcher.restart(epoch, state.revision);
            }
        }
    });
    Ok(feed.stream(task))
}
