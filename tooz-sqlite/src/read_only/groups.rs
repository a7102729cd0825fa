//! Groups without a session: listings, and a watch that compares what it reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tooz_core::driver::{ChangeStream, GroupChange, Groups, MemberRecord};
use tooz_core::{ErrorKind, GroupId, MemberId, Result};

use crate::engine::tx::Tx;
use crate::error::Fail;
use crate::read_only::Reader;
use crate::read_only::driver::{Feed, LOOK, ReadOnly, refuse};
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
        let namespace = self.reader.config.namespace.clone();
        let found = self.reader.look("list groups", move |tx| view::list(tx, &namespace)).await?;
        Ok(found.unwrap_or_default())
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        let (namespace, id) = (self.reader.config.namespace.clone(), group.clone());
        let found = self.reader.look("members", move |tx| view::members(tx, &namespace, &id)).await?;
        found.ok_or_else(|| view::not_found(group))
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        let (namespace, id, name) = (self.reader.config.namespace.clone(), group.clone(), member.clone());
        let found = self.reader.look("member", move |tx| view::member(tx, &namespace, &id, &name)).await?;
        found.ok_or_else(|| view::not_found(group))
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        let reader = Arc::clone(&self.reader);
        let first = read_group(&reader, group).await?;
        let Some((known, Some(members))) = first else { return Err(view::not_found(group)) };
        let (changes, stream) = mpsc::channel(1);
        let follower = Follower { reader, group: group.clone(), known, members: by_id(members), changes };
        let task = self.reader.context.spawner.spawn(follower.run());
        Ok(Box::pin(Feed { stream, _task: task }))
    }
}

/// The identity of a group: the database's data, and the group of that name in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Which {
    epoch: u128,
    /// 0: there is no such group.
    id: i64,
}

/// Reads a group; the members are `None` if there is no such group.
async fn read_group(
    reader: &Arc<Reader>,
    group: &GroupId,
) -> Result<Option<(Which, Option<Vec<MemberRecord>>)>> {
    let (namespace, group) = (reader.config.namespace.clone(), group.clone());
    let work = move |tx: &mut Tx<'_>| {
        let epoch = tx.epoch()?;
        match view::find(tx, &namespace, &group) {
            Ok(id) => Ok((Which { epoch, id }, Some(view::members(tx, &namespace, &group)?))),
            Err(Fail::Tooz(error)) if error.kind() == ErrorKind::GroupNotFound => {
                Ok((Which { epoch, id: 0 }, None))
            }
            Err(fail) => Err(fail),
        }
    };
    reader.look("watch group", work).await
}

type Members = BTreeMap<MemberId, MemberRecord>;

fn by_id(members: Vec<MemberRecord>) -> Members {
    members.into_iter().map(|record| (record.member.clone(), record)).collect()
}

/// Looks at a group again and again, and sends the differences. Waits for a slow receiver before the next look.
struct Follower {
    reader: Arc<Reader>,
    group: GroupId,
    known: Which,
    members: Members,
    changes: mpsc::Sender<Result<GroupChange>>,
}

impl Follower {
    async fn run(mut self) {
        let mut next = vec![Ok(self.view())];
        loop {
            for change in next {
                let over = matches!(change, Ok(GroupChange::Deleted));
                if self.changes.send(change).await.is_err() || over {
                    return;
                }
            }
            self.reader.context.spawner.sleep(LOOK).await;
            next = match read_group(&self.reader, &self.group).await {
                Ok(found) => self.compare(found).into_iter().map(Ok).collect(),
                Err(_) if self.reader.is_closed() => return,
                Err(error) if error.is_retryable() => Vec::new(),
                Err(error) => vec![Err(error)],
            };
        }
    }

    fn view(&self) -> GroupChange {
        GroupChange::View(self.members.values().cloned().collect())
    }

    fn compare(&mut self, found: Option<(Which, Option<Vec<MemberRecord>>)>) -> Vec<GroupChange> {
        let (which, members) = found.unwrap_or((Which { epoch: 0, id: 0 }, None));
        let lost = which.epoch != self.known.epoch || self.known.id == 0;
        if !lost && which.id != self.known.id {
            return vec![GroupChange::Deleted];
        }
        let now = by_id(members.unwrap_or_default());
        let before = std::mem::replace(&mut self.members, now);
        let known = std::mem::replace(&mut self.known, which);
        if lost {
            // The data was lost, and the group with it. The group was not deleted and may come back.
            let same = known == which && before == self.members;
            return if same { Vec::new() } else { vec![self.view()] };
        }
        let mut changes = Vec::new();
        for (id, old) in &before {
            if self.members.get(id).is_none_or(|new| new.incarnation != old.incarnation) {
                changes.push(GroupChange::Left(old.clone()));
            }
        }
        for (id, new) in &self.members {
            match before.get(id) {
                Some(old) if old == new => {}
                Some(old) if old.incarnation == new.incarnation => {
                    changes.push(GroupChange::Updated(new.clone()));
                }
                _ => changes.push(GroupChange::Joined(new.clone())),
            }
        }
        changes
    }
}
