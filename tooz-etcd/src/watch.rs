//! Streams of changes: a task follows the server and keeps a view, the stream takes from it.
//!
//! The task reads every event at once, because a stream that is not read holds up every other one on its connection.
//! A reader that falls behind costs a bounded number of changes and then gets a view.

use std::sync::Arc;

use etcd_client::{Event, EventType, KeyValue};
use tooz_core::driver::support::errors::group_not_found;
use tooz_core::driver::support::feed::{GroupFeed, HolderFeed};
use tooz_core::driver::{ChangeStream, Departure, HolderStream};
use tooz_core::{GroupId, Result};

use crate::client::Client;
use crate::connection::watcher::{News, Watcher};
use crate::keys::{GroupKeys, LockKeys};
use crate::lock::state::{Verdict, ranges};
use crate::view::{self, Snapshot, member_record};

/// Follows a group.
pub(crate) async fn group(client: &Arc<Client>, group: &GroupId) -> Result<ChangeStream> {
    let Snapshot { revision, epoch, born, members } = client.snapshot(group).await?;
    let feed = GroupFeed::new(members.ok_or_else(|| group_not_found(group))?);
    let keys = client.keys.group(group);
    // The group's key comes right before the first range of its members: one range is both.
    let mut ranges = keys.members();
    ranges[0].0 = keys.group().to_vec();
    let watcher = Watcher::new(&client.connection, &client.keys, epoch.clone(), ranges, revision);
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
                    // Events after the group's end belong to another group of the same name.
                    if !events.iter().any(|event| self.apply(event)) {
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

    /// Applies an event; `true`: the group's own key went.
    fn apply(&self, event: &Event) -> bool {
        let Some(kv) = event.kv() else { return false };
        let gone = event.event_type() == EventType::Delete;
        if kv.key() == self.keys.group() {
            return gone;
        }
        if gone {
            if let Some(member) = self.keys.parse_member(kv.key()) {
                self.feed.remove(&member, Departure::Unknown);
            }
        } else if let Some(record) = member_record(&self.keys, kv) {
            self.feed.put(record);
        }
        false
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
