//! Groups without a session: listings, and a watch that compares what it reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tooz_core::driver::support::errors::group_not_found;
use tooz_core::driver::support::feed::GroupFeed;
use tooz_core::driver::{ChangeStream, Departure, Groups, MemberRecord};
use tooz_core::{ErrorKind, GroupId, MemberId, Result};

use crate::engine::log;
use crate::engine::tx::Tx;
use crate::error::Fail;
use crate::read_only::driver::{ReadOnly, refuse};
use crate::read_only::{LOOK, Reader};
use crate::view;

#[async_trait]
impl Groups for ReadOnly {
    async fn create(&self, _: &GroupId) -> Result<()> {
        Err(refuse())
    }

    async fn delete(&self, _: &GroupId) -> Result<()> {
        Err(refuse())
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        let namespace = self.0.config.namespace.clone();
        let found = self.0.look(move |tx| view::list(tx, &namespace)).await?;
        Ok(found.unwrap_or_default())
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        let (namespace, id) = (self.0.config.namespace.clone(), group.clone());
        let found = self.0.look(move |tx| view::members(tx, &namespace, &id)).await?;
        found.ok_or_else(|| group_not_found(group))
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        let (namespace, id, name) = (self.0.config.namespace.clone(), group.clone(), member.clone());
        let found = self.0.look(move |tx| view::member(tx, &namespace, &id, &name)).await?;
        found.ok_or_else(|| group_not_found(group))
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        let reader = Arc::clone(&self.0);
        let mut known = read_group(&reader, group, None).await?;
        if known.which.id == 0 {
            return Err(group_not_found(group));
        }
        let feed = GroupFeed::new(std::mem::take(&mut known.members));
        let task = self.0.site.context.spawner.spawn(follow(reader, group.clone(), known, feed.clone()));
        Ok(feed.stream(task))
    }
}

/// The identity of a group: the database's data, and the group of that name in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Which {
    epoch: u128,
    /// 0: there is no such group.
    id: i64,
}

/// A group that was read.
#[derive(Debug, Default)]
struct Read {
    which: Which,
    members: Vec<MemberRecord>,
    /// The latest entry of the log.
    seq: i64,
    /// How members went since the reading before this one; `None`: the log does not say it.
    gone: Option<BTreeMap<u128, Departure>>,
}

/// Reads a group, and how members went after the entry `after` of the log; without members if there is no such group, or no database.
async fn read_group(reader: &Arc<Reader>, group: &GroupId, after: Option<i64>) -> Result<Read> {
    let (namespace, group) = (reader.config.namespace.clone(), group.clone());
    let work = move |tx: &mut Tx<'_>| {
        let (epoch, seq) = (tx.epoch()?, log::latest(tx)?);
        let gone = after.map(|after| log::departures(tx, after)).transpose()?.flatten();
        let (id, members) = match view::find(tx, &namespace, &group) {
            Ok(id) => (id, view::members(tx, &namespace, &group)?),
            Err(Fail::Tooz(error)) if error.kind() == ErrorKind::GroupNotFound => (0, Vec::new()),
            Err(fail) => return Err(fail),
        };
        Ok(Read { which: Which { epoch, id }, members, seq, gone })
    };
    Ok(reader.look(work).await?.unwrap_or_default())
}

/// Looks at a group again and again.
async fn follow(reader: Arc<Reader>, group: GroupId, mut known: Read, feed: GroupFeed) {
    loop {
        reader.site.context.spawner.sleep(LOOK).await;
        match read_group(&reader, &group, Some(known.seq)).await {
            Ok(mut read) => {
                let lost = read.which.epoch != known.which.epoch || known.which.id == 0;
                let gone = read.gone.take();
                // Who is gone without an entry is dead, and was not cleared away yet.
                let unsaid = if gone.is_some() { Departure::Died } else { Departure::Unknown };
                let gone = gone.unwrap_or_default();
                let how = |member: &MemberRecord| *gone.get(&member.incarnation).unwrap_or(&unsaid);
                if !lost && read.which.id != known.which.id {
                    feed.update([], how);
                    return feed.deleted();
                }
                let members = std::mem::take(&mut read.members);
                if read.which == known.which {
                    feed.update(members, how);
                } else {
                    // The data was lost, and the group with it. The group was not deleted and may come back.
                    feed.reset(members);
                }
                known = read;
            }
            Err(_) if reader.is_closed() => return feed.end(),
            Err(error) if error.is_retryable() => {}
            Err(error) => feed.report(error),
        }
    }
}
