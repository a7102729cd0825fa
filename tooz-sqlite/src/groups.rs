//! Groups and memberships.

use async_trait::async_trait;
use tooz_core::driver::support::errors::{
    group_exists, group_not_empty, joined_before, member_id_taken, member_not_found,
};
use tooz_core::driver::{ChangeStream, Departure, Groups, Join, MemberRecord, SessionGroups};
use tooz_core::{Capabilities, GroupId, MemberId, Result};

use crate::driver::SqliteDriver;
use crate::engine::jobs::Level;
use crate::engine::log::{self, Change, Event, MemberRow};
use crate::engine::tx::Tx;
use crate::error::Work;
use crate::keys::Id;
use crate::session::SqliteSession;
use crate::session_state::SessionState;
use crate::view::find;
use crate::{reaper, view, watch};

/// Creates a group; returns whether it was missing.
fn create(tx: &Tx<'_>, namespace: &str, group: &GroupId) -> Work<bool> {
    let created = tx.run(
        "INSERT INTO groups (namespace, name) VALUES (?1, ?2) ON CONFLICT (namespace, name) DO NOTHING",
        (namespace, group.as_bytes()),
    )?;
    Ok(created > 0)
}

fn delete(tx: &mut Tx<'_>, namespace: &str, group: &GroupId) -> Work<()> {
    let id = find(tx, namespace, group)?;
    let sessions =
        tx.all("SELECT DISTINCT session FROM members WHERE group_id = ?1", [id], |row| row.get::<_, i64>(0))?;
    let mut living = 0;
    for session in sessions {
        living += u64::from(!reaper::reap(tx, session)?);
    }
    if living > 0 {
        return Err(group_not_empty(group, living).into());
    }
    tx.run("DELETE FROM groups WHERE id = ?1", [id])?;
    log::append(tx, &Event::GroupDeleted(namespace.to_owned(), group.as_bytes().to_vec()))
}

/// Claims the member id (S9): it belongs to the session that claimed it first, until that session ends.
fn claim(tx: &mut Tx<'_>, session: &SessionState) -> Work<()> {
    let owner = tx.value::<i64>(
        "SELECT session FROM claims WHERE namespace = ?1 AND member = ?2",
        (&*session.namespace, session.member.as_bytes()),
    )?;
    if let Some(owner) = owner {
        if owner == session.seq {
            return Ok(());
        }
        if !reaper::reap(tx, owner)? {
            return Err(member_id_taken(&session.member).into());
        }
    }
    tx.run(
        "INSERT INTO claims (namespace, member, session) VALUES (?1, ?2, ?3)",
        (&*session.namespace, session.member.as_bytes(), session.seq),
    )?;
    Ok(())
}

fn log_change(
    tx: &mut Tx<'_>,
    session: &SessionState,
    group: &GroupId,
    change: Change,
    row: MemberRow,
) -> Work<()> {
    let (namespace, group) = (session.namespace.to_string(), group.as_bytes().to_vec());
    log::append(tx, &Event::Member(change, namespace, group, row))
}

fn join(tx: &mut Tx<'_>, session: &SessionState, request: &Join) -> Work<()> {
    session.check()?;
    if request.create {
        create(tx, &session.namespace, &request.group)?;
    }
    let id = find(tx, &session.namespace, &request.group)?;
    claim(tx, session)?;
    let exists = tx.exists(
        "SELECT 1 FROM members WHERE group_id = ?1 AND member = ?2",
        (id, session.member.as_bytes()),
    )?;
    if exists {
        // It is our own record: an earlier owner of the id lost its records together with the claim.
        return Err(joined_before(&request.group, &session.member).into());
    }
    let now = tx.wall();
    let row = MemberRow {
        member: session.member.as_bytes().to_vec(),
        capabilities: request.capabilities.as_msgpack().to_vec(),
        incarnation: tx.site.context.entropy.id(),
        joined_at: now,
        updated_at: now,
    };
    tx.run(
        "INSERT INTO members (group_id, member, session, capabilities, incarnation, joined_at, updated_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
        (id, &row.member, session.seq, &row.capabilities, Id(row.incarnation), now),
    )?;
    log_change(tx, session, &request.group, Change::Joined, row)
}

fn leave(tx: &mut Tx<'_>, session: &SessionState, group: &GroupId) -> Work<()> {
    session.check()?;
    let id = find(tx, &session.namespace, group)?;
    let row = tx.first(
        "DELETE FROM members WHERE group_id = ?1 AND member = ?2 AND session = ?3 \
         RETURNING member, capabilities, incarnation, joined_at, updated_at",
        (id, session.member.as_bytes(), session.seq),
        |row| MemberRow::leaving(row, 0),
    )?;
    let row = row.ok_or_else(|| member_not_found(group, &session.member))?;
    log_change(tx, session, group, Change::Left(Departure::Left), row)
}

fn update(tx: &mut Tx<'_>, session: &SessionState, group: &GroupId, capabilities: &Capabilities) -> Work<()> {
    session.check()?;
    let id = find(tx, &session.namespace, group)?;
    let row = tx.first(
        "UPDATE members SET capabilities = ?4, updated_at = ?5 \
         WHERE group_id = ?1 AND member = ?2 AND session = ?3 \
         RETURNING member, capabilities, incarnation, joined_at, updated_at",
        (id, session.member.as_bytes(), session.seq, capabilities.as_msgpack(), tx.wall()),
        |row| MemberRow::read(row, 0),
    )?;
    let row = row.ok_or_else(|| member_not_found(group, &session.member))?;
    log_change(tx, session, group, Change::Updated, row)
}

#[async_trait]
impl Groups for SqliteDriver {
    async fn create(&self, group: &GroupId) -> Result<()> {
        let (namespace, group) = (self.client.config.namespace.clone(), group.clone());
        // Durable: after a power cut members join again by themselves, but a group would be gone.
        let work = move |tx: &mut Tx<'_>| {
            if create(tx, &namespace, &group)? {
                return Ok(());
            }
            Err(group_exists(&group).into())
        };
        self.client.call(Level::Durable, work).await
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        let (namespace, group) = (self.client.config.namespace.clone(), group.clone());
        self.client.call(Level::Durable, move |tx| delete(tx, &namespace, &group)).await
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        let namespace = self.client.config.namespace.clone();
        self.client.call(Level::Read, move |tx| view::list(tx, &namespace)).await
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        let (namespace, group) = (self.client.config.namespace.clone(), group.clone());
        self.client.call(Level::Read, move |tx| view::members(tx, &namespace, &group)).await
    }

    async fn member(&self, group: &GroupId, id: &MemberId) -> Result<MemberRecord> {
        let (namespace, group, id) = (self.client.config.namespace.clone(), group.clone(), id.clone());
        self.client.call(Level::Read, move |tx| view::member(tx, &namespace, &group, &id)).await
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        watch::group(&self.client, self.client.config.namespace.clone(), group.clone()).await
    }
}

#[async_trait]
impl SessionGroups for SqliteSession {
    async fn join(&self, request: &Join) -> Result<()> {
        let (session, request) = (self.session.clone(), request.clone());
        // A group that a join creates has to be as durable as one from `create`.
        let level = if request.create { Level::Durable } else { Level::Write };
        self.client.call(level, move |tx| join(tx, &session, &request)).await
    }

    async fn leave(&self, group: &GroupId) -> Result<()> {
        let (session, group) = (self.session.clone(), group.clone());
        self.client.call(Level::Write, move |tx| leave(tx, &session, &group)).await
    }

    async fn update(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        let (session, group, capabilities) = (self.session.clone(), group.clone(), capabilities.clone());
        let work = move |tx: &mut Tx<'_>| update(tx, &session, &group, &capabilities);
        self.client.call(Level::Write, work).await
    }
}
