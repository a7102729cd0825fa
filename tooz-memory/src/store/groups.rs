//! Groups and their members: how they change, each change in one step.

use std::sync::Arc;

use tooz_core::driver::support::errors::{
    group_exists, group_not_empty, group_not_found, joined_before, member_id_taken, member_not_found,
};
use tooz_core::driver::{Departure, GroupChange, Join, MemberRecord, Notice, SessionId};
use tooz_core::{Capabilities, GroupId, MemberId, Result};

use super::state::{Fate, Group, LogId, Member, State};
use crate::faults::oracle::Happened;
use crate::faults::planted::Fault;

impl State {
    /// The id as it is compared: itself, unless the planted fault folds it.
    pub(super) fn folded(&self, group: &GroupId) -> GroupId {
        if !self.has(Fault::GroupIdsFold) {
            return group.clone();
        }
        let cut = group.as_bytes().split(|byte| *byte == 0).next().unwrap_or_default();
        // An id that begins with a NUL has nothing left and stays as it is.
        GroupId::new(cut.to_ascii_lowercase()).unwrap_or_else(|_| group.clone())
    }

    pub(crate) fn group(&self, space: &str, group: &GroupId) -> Result<&Group> {
        let found = self.spaces.get(space).and_then(|space| space.groups.get(&self.folded(group)));
        found.ok_or_else(|| group_not_found(group))
    }

    pub(crate) fn member(&self, space: &str, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        let known = self.group(space, group)?.members.get(member);
        Ok(known.ok_or_else(|| member_not_found(group, member))?.record.clone())
    }

    fn group_mut(&mut self, space: &str, group: &GroupId) -> Result<&mut Group> {
        let folded = self.folded(group);
        let found = self.spaces.get_mut(space).and_then(|space| space.groups.get_mut(&folded));
        found.ok_or_else(|| group_not_found(group))
    }

    pub(crate) fn create_group(&mut self, space: &Arc<str>, group: &GroupId) -> Result<()> {
        let folded = self.folded(group);
        let known = self.spaces.entry(space.clone()).or_default();
        if known.groups.contains_key(&folded) {
            return Err(group_exists(group));
        }
        let log = known.orphans.remove(&folded);
        known.groups.insert(folded.clone(), Group { log, ..Group::default() });
        self.tell(space, || Happened::Created(folded));
        Ok(())
    }

    pub(crate) fn delete_group(&mut self, space: &str, group: &GroupId) -> Result<()> {
        let found = self.group(space, group)?;
        if !found.members.is_empty() {
            return Err(group_not_empty(group, found.members.len() as u64));
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

    pub(crate) fn list_groups(&self, space: &str) -> Vec<GroupId> {
        let leaks = self.has(Fault::NamespaceLeak);
        let spaces = self.spaces.iter().filter(|(name, _)| leaks || &***name == space);
        let mut groups: Vec<GroupId> = spaces.flat_map(|(_, space)| space.groups.keys().cloned()).collect();
        groups.sort_unstable(); // already sorted in one namespace
        groups
    }

    /// Joins in one step: checks which session owns the member id, then claims it (G2, S9).
    pub(crate) fn join(&mut self, fate: &Fate, request: &Join) -> Result<()> {
        let Some(session) = self.sessions.get(&fate.id) else { return Err(fate.error()) };
        let (space, member) = (session.space.clone(), session.member.clone());
        let group = self.folded(&request.group);
        let known = self.spaces.get(&space).is_some_and(|space| space.groups.contains_key(&group));
        if !known && !request.create {
            return Err(group_not_found(&request.group));
        }
        // Claims of dead sessions do not exist: they go with the session.
        let owner = self.spaces.get(&space).and_then(|space| space.claims.get(&member)).copied();
        if owner.is_some_and(|owner| owner != fate.id) {
            return Err(member_id_taken(&member));
        }
        if session.groups.contains(&group) {
            return Err(joined_before(&request.group, &member));
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

    /// Writes a new incarnation of a member. A record that is there already is of a dead session, kept by a fault.
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
            let how = Departure::Died;
            self.tell(space, || Happened::Left(group.clone(), earlier.record.clone(), how));
            self.publish(log, GroupChange::Left(earlier.record, how));
        }
        self.tell(space, || Happened::Joined(group.clone(), record.clone()));
        self.publish(log, GroupChange::Joined(record));
        Ok(())
    }

    /// Removes a member's record, tells the watchers how it went, and returns whether there was one.
    pub(super) fn remove_member(
        &mut self,
        space: &str,
        group: &GroupId,
        member: &MemberId,
        how: Departure,
    ) -> bool {
        let folded = self.folded(group);
        let Ok(found) = self.group_mut(space, group) else { return false };
        let log = found.log;
        let Some(removed) = found.members.remove(member) else { return false };
        self.tell(space, || Happened::Left(folded.clone(), removed.record.clone(), how));
        self.publish(log, GroupChange::Left(removed.record, how));
        true
    }

    pub(crate) fn leave(&mut self, fate: &Fate, group: &GroupId) -> Result<()> {
        let folded = self.folded(group);
        let Some(session) = self.sessions.get_mut(&fate.id) else { return Err(fate.error()) };
        let (space, member) = (session.space.clone(), session.member.clone());
        if self.fault == Some(Fault::LeaveIgnored) && session.groups.contains(&folded) {
            return Ok(());
        }
        let joined = session.groups.remove(&folded);
        self.group(&space, group)?;
        if joined && self.remove_member(&space, &folded, &member, Departure::Left) {
            Ok(())
        } else {
            Err(member_not_found(group, &member))
        }
    }

    pub(crate) fn update(&mut self, fate: &Fate, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
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
            return Err(member_not_found(group, &member));
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

    /// Removes a member's record while its session lives, as if by hand.
    pub(crate) fn evict(&mut self, space: &str, group: &GroupId, member: &MemberId) -> bool {
        let folded = self.folded(group);
        let owner =
            self.group(space, group).ok().and_then(|found| found.members.get(member)).map(|m| m.session);
        if !self.remove_member(space, group, member, Departure::Died) {
            return false;
        }
        if let Some(session) = owner.and_then(|id| self.sessions.get_mut(&id)) {
            session.groups.remove(&folded);
            session.notify(Notice::Evicted(group.clone()), &mut self.wakes);
        }
        true
    }

    /// All groups of a namespace are gone with the backend's data; watchers see an empty group and go on.
    pub(super) fn lose_groups(&mut self, space: &str) {
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
