//! Groups and their members.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tooz_core::driver::{
    ChangeStream, GroupChange, Groups, Join, MemberRecord, Notice, SessionGroups, SessionId,
};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};

use crate::client::Memory;
use crate::fault::Fault;
use crate::gate::Operation;
use crate::session::MemorySession;
use crate::state::{Fate, State};
use crate::truth::Happened;
use crate::watch::{GroupFollower, LogId};

/// One group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) members: BTreeMap<MemberId, Member>,
    /// The log of its changes, while somebody watches.
    pub(crate) log: Option<LogId>,
}

#[derive(Debug)]
pub(crate) struct Member {
    record: MemberRecord,
    session: SessionId,
    /// The last update, where a planted fault lets it arrive again.
    late: Option<Capabilities>,
}

impl Group {
    pub(crate) fn view(&self) -> Vec<MemberRecord> {
        self.members.values().map(|member| member.record.clone()).collect()
    }
}

fn no_group(group: &GroupId) -> Error {
    Error::new(ErrorKind::GroupNotFound, format!("group \"{group}\"; create it first"))
}

fn no_member(group: &GroupId, member: &MemberId) -> Error {
    Error::new(ErrorKind::MemberNotFound, format!("member \"{member}\" in group \"{group}\""))
}

impl State {
    /// The id as it is compared: itself, unless the planted fault folds it.
    pub(crate) fn folded(&self, group: &GroupId) -> GroupId {
        if !self.has(Fault::GroupIdsFold) {
            return group.clone();
        }
        let cut = group.as_bytes().split(|byte| *byte == 0).next().unwrap_or_default();
        // An id that begins with a NUL has nothing left and stays as it is.
        GroupId::new(cut.to_ascii_lowercase()).unwrap_or_else(|_| group.clone())
    }

    fn group(&self, space: &str, group: &GroupId) -> Result<&Group> {
        let found = self.spaces.get(space).and_then(|space| space.groups.get(&self.folded(group)));
        found.ok_or_else(|| no_group(group))
    }

    fn group_mut(&mut self, space: &str, group: &GroupId) -> Result<&mut Group> {
        let folded = self.folded(group);
        let found = self.spaces.get_mut(space).and_then(|space| space.groups.get_mut(&folded));
        found.ok_or_else(|| no_group(group))
    }

    fn create_group(&mut self, space: &Arc<str>, group: &GroupId) -> Result<()> {
        let folded = self.folded(group);
        let known = self.spaces.entry(space.clone()).or_default();
        if known.groups.contains_key(&folded) {
            return Err(Error::new(ErrorKind::GroupExists, format!("group \"{group}\"")));
        }
        let log = known.orphans.remove(&folded);
        known.groups.insert(folded.clone(), Group { log, ..Group::default() });
        self.tell(space, || Happened::Created(folded));
        Ok(())
    }

    fn delete_group(&mut self, space: &str, group: &GroupId) -> Result<()> {
        let found = self.group(space, group)?;
        if !found.members.is_empty() {
            return Err(Error::new(
                ErrorKind::GroupNotEmpty,
                format!("group \"{group}\" has {} members; let them leave first", found.members.len()),
            ));
        }
        let log = found.log;
        let folded = self.folded(group);
        if let Some(space) = self.spaces.get_mut(space) {
            space.groups.remove(&folded);
        }
        self.tell(space, || Happened::Deleted(folded));
        let log = log.filter(|_| !self.has(Fault::DeletionUntold));
        self.publish(log, GroupChange::Deleted);
        Ok(())
    }

    fn list_groups(&self, space: &str) -> Vec<GroupId> {
        let leaks = self.has(Fault::NamespaceLeak);
        let spaces = self.spaces.iter().filter(|(name, _)| leaks || &***name == space);
        let mut groups: Vec<GroupId> = spaces.flat_map(|(_, space)| space.groups.keys().cloned()).collect();
        groups.sort_unstable(); // already sorted in one namespace
        groups
    }

    /// Joins in one step: judges who owns the member id, then claims it (G2, S9).
    fn join(&mut self, fate: &Fate, request: &Join) -> Result<()> {
        let Some(session) = self.sessions.get(&fate.id) else { return Err(fate.error()) };
        let (space, member) = (session.space.clone(), session.member.clone());
        let group = self.folded(&request.group);
        let known = self.spaces.get(&space).is_some_and(|space| space.groups.contains_key(&group));
        if !known && !request.create {
            return Err(no_group(&request.group));
        }
        // Claims of dead sessions do not exist: they go with the session.
        let owner = self.spaces.get(&space).and_then(|space| space.claims.get(&member)).copied();
        if owner.is_some_and(|owner| owner != fate.id) {
            return Err(Error::new(
                ErrorKind::MemberExists,
                format!("member id \"{member}\" belongs to another live coordinator; use another id"),
            ));
        }
        if session.groups.contains(&group) {
            return Err(Error::new(
                ErrorKind::MemberExists,
                format!("member \"{member}\" joined group \"{}\" before", request.group),
            ));
        }
        if !known {
            self.create_group(&space, &request.group)?;
        }
        self.put_member(&space, &group, &member, fate.id, request.capabilities.clone())?;
        if let Some(space) = self.spaces.get_mut(&space) {
            space.claims.insert(member, fate.id);
        }
        if let Some(session) = self.sessions.get_mut(&fate.id) {
            session.groups.insert(group);
        }
        Ok(())
    }

    /// Writes a new incarnation of a member. One that stands there is a dead one's that a fault kept.
    fn put_member(
        &mut self,
        space: &str,
        group: &GroupId,
        member: &MemberId,
        session: SessionId,
        capabilities: Capabilities,
    ) -> Result<()> {
        self.incarnation += 1;
        let now = self.wall();
        let record = MemberRecord::new(member.clone(), capabilities, self.incarnation).at(now, now);
        let found = self.group_mut(space, group)?;
        let log = found.log;
        let earlier =
            found.members.insert(member.clone(), Member { record: record.clone(), session, late: None });
        if let Some(earlier) = earlier {
            self.tell(space, || Happened::Left(group.clone(), earlier.record.clone()));
            self.publish(log, GroupChange::Left(earlier.record));
        }
        self.tell(space, || Happened::Joined(group.clone(), record.clone()));
        self.publish(log, GroupChange::Joined(record));
        Ok(())
    }

    /// Removes a member's record and tells the watchers. Answers whether there was one.
    pub(crate) fn remove_member(&mut self, space: &str, group: &GroupId, member: &MemberId) -> bool {
        let folded = self.folded(group);
        let Ok(found) = self.group_mut(space, group) else { return false };
        let log = found.log;
        let Some(removed) = found.members.remove(member) else { return false };
        self.tell(space, || Happened::Left(folded.clone(), removed.record.clone()));
        self.publish(log, GroupChange::Left(removed.record));
        true
    }

    fn leave(&mut self, fate: &Fate, group: &GroupId) -> Result<()> {
        let folded = self.folded(group);
        let Some(session) = self.sessions.get_mut(&fate.id) else { return Err(fate.error()) };
        let (space, member) = (session.space.clone(), session.member.clone());
        if self.fault == Some(Fault::LeaveIgnored) && session.groups.contains(&folded) {
            return Ok(());
        }
        let joined = session.groups.remove(&folded);
        self.group(&space, group)?;
        if joined && self.remove_member(&space, &folded, &member) {
            Ok(())
        } else {
            Err(no_member(group, &member))
        }
    }

    fn update(&mut self, fate: &Fate, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        let Some(session) = self.sessions.get(&fate.id) else { return Err(fate.error()) };
        let (space, member) = (session.space.clone(), session.member.clone());
        let now = self.wall();
        let (resurrects, late) = (self.has(Fault::Resurrect), self.has(Fault::LateUpdate));
        let found = self.group_mut(&space, group)?;
        let log = found.log;
        let owned = |known: &&mut Member| known.session == fate.id || resurrects;
        let Some(known) = found.members.get_mut(&member).filter(owned) else {
            if resurrects {
                return self.put_member(&space, group, &member, fate.id, capabilities.clone());
            }
            return Err(no_member(group, &member));
        };
        known.record.capabilities = capabilities.clone();
        known.record.updated_at = now;
        let mut records = vec![known.record.clone()];
        if late && let Some(late) = known.late.replace(capabilities.clone()) {
            known.record.capabilities = late;
            records.push(known.record.clone());
        }
        let folded = self.folded(group);
        for record in records {
            self.tell(&space, || Happened::Updated(folded.clone(), record.clone()));
            self.publish(log, GroupChange::Updated(record));
        }
        Ok(())
    }

    /// Removes a member's record while its session lives, as an operator would by hand.
    pub(crate) fn evict(&mut self, space: &str, group: &GroupId, member: &MemberId) -> bool {
        let folded = self.folded(group);
        let owner =
            self.group(space, group).ok().and_then(|found| found.members.get(member)).map(|m| m.session);
        if !self.remove_member(space, group, member) {
            return false;
        }
        if let Some(session) = owner.and_then(|id| self.sessions.get_mut(&id)) {
            session.groups.remove(&folded);
            session.tell(Notice::Evicted(group.clone()), &mut self.wakes);
        }
        true
    }

    /// All groups of a namespace are gone with the backend's data; watchers see an empty group and go on.
    pub(crate) fn lose_groups(&mut self, space: &str) {
        let Some(known) = self.spaces.get_mut(space) else { return };
        known.claims.clear();
        let lost = std::mem::take(&mut known.groups);
        let logs: Vec<LogId> = lost.values().filter_map(|group| group.log).collect();
        let gone: Vec<GroupId> = lost.keys().cloned().collect();
        known.orphans.extend(lost.into_iter().filter_map(|(id, group)| Some((id, group.log?))));
        for group in gone {
            self.tell(space, || Happened::Lost(group));
        }
        if self.has(Fault::LossUntold) {
            return;
        }
        for log in logs {
            self.publish(Some(log), GroupChange::View(Vec::new()));
        }
    }
}

#[async_trait]
impl SessionGroups for MemorySession {
    async fn join(&self, request: &Join) -> Result<()> {
        let call = self.client.call(Operation::Join, |state| state.join(&self.fate, request));
        self.client.assumed(call.await, ())
    }

    async fn leave(&self, group: &GroupId) -> Result<()> {
        let call = self.client.call(Operation::Leave, |state| state.leave(&self.fate, group));
        self.client.assumed(call.await, ())
    }

    async fn update(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        let call = self.client.call(Operation::Update, |state| state.update(&self.fate, group, capabilities));
        self.client.assumed(call.await, ())
    }
}

#[async_trait]
impl Groups for Memory {
    async fn create(&self, group: &GroupId) -> Result<()> {
        self.0.call(Operation::Create, |state| state.create_group(&self.0.space, group)).await
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        self.0.call(Operation::Delete, |state| state.delete_group(&self.0.space, group)).await
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        self.0.call(Operation::List, |state| Ok(state.list_groups(&self.0.space))).await
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        self.0.call(Operation::Members, |state| Ok(state.group(&self.0.space, group)?.view())).await
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        self.0
            .call(Operation::Members, |state| {
                let known = state.group(&self.0.space, group)?.members.get(member);
                Ok(known.ok_or_else(|| no_member(group, member))?.record.clone())
            })
            .await
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        self.0
            .call(Operation::Watch, |state| {
                let space = &self.0.space;
                state.group(space, group)?;
                let log = state.log_of(space, &state.folded(group));
                Ok(GroupFollower::stream(&self.0, log))
            })
            .await
    }
}
