//! Groups and memberships.

use std::sync::Arc;

use async_trait::async_trait;
use tooz_core::driver::{ChangeStream, GroupChange, Groups, Join, MemberRecord, SessionGroups};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};

use crate::engine::jobs::{Level, User};
use crate::engine::log::{self, Change, Event, MemberRow};
use crate::engine::tx::{Effect, Tx};
use crate::error::Work;
use crate::keys::Id;
use crate::reaper;
use crate::session_state::Local;
use crate::watch::{GroupStream, GroupWatch};

pub(crate) fn not_found(group: &GroupId) -> Error {
    Error::new(ErrorKind::GroupNotFound, format!("group \"{group}\""))
}

fn no_member(group: &GroupId, member: &MemberId) -> Error {
    Error::new(ErrorKind::MemberNotFound, format!("member \"{member}\" of group \"{group}\""))
}

pub(crate) fn find(tx: &Tx<'_>, namespace: &str, group: &GroupId) -> Work<i64> {
    let id = tx.first(
        "SELECT id FROM groups WHERE namespace = ?1 AND name = ?2",
        (namespace, group.as_bytes()),
        |row| row.get(0),
    )?;
    Ok(id.ok_or_else(|| not_found(group))?)
}

pub(crate) fn list(tx: &Tx<'_>, namespace: &str) -> Work<Vec<GroupId>> {
    let names =
        tx.readable("SELECT name FROM groups WHERE namespace = ?1 ORDER BY name", [namespace], |row| {
            row.get::<_, Vec<u8>>(0)
        })?;
    Ok(names.into_iter().filter_map(|name| GroupId::new(name).ok()).collect())
}

/// Creates a group; whether it was missing.
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
    for session in sessions {
        if !reaper::reap(tx, session)? {
            return Err(Error::new(ErrorKind::GroupNotEmpty, format!("group \"{group}\"")).into());
        }
    }
    tx.run("DELETE FROM groups WHERE id = ?1", [id])?;
    log::log(tx, &Event::GroupDeleted(namespace, group.as_bytes()))
}

pub(crate) fn members(tx: &mut Tx<'_>, namespace: &str, group: &GroupId) -> Work<Vec<MemberRecord>> {
    let id = find(tx, namespace, group)?;
    let rows = tx.readable(
        "SELECT session, member, capabilities, incarnation, joined_at, updated_at FROM members \
         WHERE group_id = ?1 ORDER BY member",
        [id],
        |row| Ok((row.get::<_, i64>(0)?, MemberRow::read(row, 1)?)),
    )?;
    let mut members = Vec::with_capacity(rows.len());
    for (session, row) in rows {
        if !reaper::is_dead(tx, session)? {
            members.extend(row.record());
        }
    }
    Ok(members)
}

pub(crate) fn member(
    tx: &mut Tx<'_>,
    namespace: &str,
    group: &GroupId,
    member: &MemberId,
) -> Work<MemberRecord> {
    let id = find(tx, namespace, group)?;
    let found = tx.first(
        "SELECT session, member, capabilities, incarnation, joined_at, updated_at FROM members \
         WHERE group_id = ?1 AND member = ?2",
        (id, member.as_bytes()),
        |row| Ok((row.get::<_, i64>(0)?, MemberRow::read(row, 1)?)),
    );
    let found = found.map_err(|fail| fail.about(format!("member \"{member}\" of group \"{group}\"")))?;
    let (session, row) = found.ok_or_else(|| no_member(group, member))?;
    if reaper::is_dead(tx, session)? {
        return Err(no_member(group, member).into());
    }
    Ok(row.record().ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "member \"{member}\" of group \"{group}\": its record in table members of the database cannot be \
                 understood; look at it, then correct or delete it"
            ),
        )
    })?)
}

/// The state for a watch that fell behind, and the event up to which it counts.
pub(crate) fn view_again(tx: &mut Tx<'_>, watch: &GroupWatch) -> Work<(i64, GroupChange)> {
    let seq = log::latest(tx)?;
    let change = match members(tx, &watch.namespace, &watch.group) {
        Ok(members) => GroupChange::View(members),
        Err(crate::error::Fail::Tooz(error)) if error.kind() == ErrorKind::GroupNotFound => {
            if watch.was_replaced() { GroupChange::View(Vec::new()) } else { GroupChange::Deleted }
        }
        Err(fail) => return Err(fail),
    };
    Ok((seq, change))
}

/// S9: the id belongs to the session that claimed it first, until that session ends.
fn claim(tx: &mut Tx<'_>, session: &Local) -> Work<()> {
    let owner = tx.first(
        "SELECT session FROM claims WHERE namespace = ?1 AND member = ?2",
        (&*session.namespace, session.member.as_bytes()),
        |row| row.get::<_, i64>(0),
    )?;
    if let Some(owner) = owner {
        if owner == session.seq {
            return Ok(());
        }
        if !reaper::reap(tx, owner)? {
            return Err(Error::new(
                ErrorKind::MemberExists,
                format!("member \"{}\" belongs to another live session; use another id", session.member),
            )
            .into());
        }
    }
    tx.run(
        "INSERT INTO claims (namespace, member, session) VALUES (?1, ?2, ?3)",
        (&*session.namespace, session.member.as_bytes(), session.seq),
    )?;
    Ok(())
}

fn join(tx: &mut Tx<'_>, session: &Local, request: &Join) -> Work<()> {
    session.check()?;
    if request.create {
        create(tx, &session.namespace, &request.group)?;
    }
    let id = find(tx, &session.namespace, &request.group)?;
    claim(tx, session)?;
    let exists = tx.first(
        "SELECT 1 FROM members WHERE group_id = ?1 AND member = ?2",
        (id, session.member.as_bytes()),
        |_| Ok(()),
    )?;
    if exists.is_some() {
        // Only ours can stand there: whoever is not us has lost the claim together with its records.
        return Err(Error::new(
            ErrorKind::MemberExists,
            format!("member \"{}\" has joined group \"{}\" already", session.member, request.group),
        )
        .into());
    }
    let now = tx.wall();
    let row = MemberRow {
        member: session.member.as_bytes().to_vec(),
        capabilities: request.capabilities.as_msgpack().to_vec(),
        incarnation: tx.site.entropy.id(),
        joined_at: now,
        updated_at: now,
    };
    tx.run(
        "INSERT INTO members (group_id, member, session, capabilities, incarnation, joined_at, updated_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
        (id, &row.member, session.seq, &row.capabilities, Id(row.incarnation), now),
    )?;
    let event = Event::Member(Change::Joined, &session.namespace, request.group.as_bytes(), &row);
    log::log(tx, &event)
}

fn leave(tx: &mut Tx<'_>, session: &Local, group: &GroupId) -> Work<()> {
    session.check()?;
    let id = find(tx, &session.namespace, group)?;
    let row = tx.first(
        "DELETE FROM members WHERE group_id = ?1 AND member = ?2 AND session = ?3 \
         RETURNING member, capabilities, incarnation, joined_at, updated_at",
        (id, session.member.as_bytes(), session.seq),
        |row| MemberRow::leaving(row, 0),
    )?;
    let row = row.ok_or_else(|| no_member(group, &session.member))?;
    log::log(tx, &Event::Member(Change::Left, &session.namespace, group.as_bytes(), &row))
}

fn update(tx: &mut Tx<'_>, session: &Local, group: &GroupId, capabilities: &Capabilities) -> Work<()> {
    session.check()?;
    let id = find(tx, &session.namespace, group)?;
    let row = tx.first(
        "UPDATE members SET capabilities = ?4, updated_at = ?5 \
         WHERE group_id = ?1 AND member = ?2 AND session = ?3 \
         RETURNING member, capabilities, incarnation, joined_at, updated_at",
        (id, session.member.as_bytes(), session.seq, capabilities.as_msgpack(), tx.wall()),
        |row| MemberRow::read(row, 0),
    )?;
    let row = row.ok_or_else(|| no_member(group, &session.member))?;
    log::log(tx, &Event::Member(Change::Updated, &session.namespace, group.as_bytes(), &row))
}

/// Whether the session's record in a group still stands.
pub(crate) fn is_member(tx: &Tx<'_>, session: &Local, group: &GroupId) -> Work<bool> {
    let found = tx.first(
        "SELECT 1 FROM members m JOIN groups g ON g.id = m.group_id \
         WHERE g.namespace = ?1 AND g.name = ?2 AND m.member = ?3 AND m.session = ?4",
        (&*session.namespace, group.as_bytes(), session.member.as_bytes(), session.seq),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Groups, as anybody sees them.
#[derive(Debug)]
pub(crate) struct SqliteGroups {
    pub(crate) user: Arc<User>,
}

impl SqliteGroups {
    fn namespace(&self) -> Arc<str> {
        self.user.config.namespace.clone()
    }
}

#[async_trait]
impl Groups for SqliteGroups {
    async fn create(&self, group: &GroupId) -> Result<()> {
        let (namespace, group) = (self.namespace(), group.clone());
        // Durable: members come back by themselves after a power cut, a group does not.
        let work = move |tx: &mut Tx<'_>| {
            if create(tx, &namespace, &group)? {
                return Ok(());
            }
            Err(Error::new(ErrorKind::GroupExists, format!("group \"{group}\"")).into())
        };
        self.user.call(Level::Durable, work).await.map_err(|error| error.during("create group"))
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        let (namespace, group) = (self.namespace(), group.clone());
        let work = move |tx: &mut Tx<'_>| delete(tx, &namespace, &group);
        self.user.call(Level::Durable, work).await.map_err(|error| error.during("delete group"))
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        let namespace = self.namespace();
        let work = move |tx: &mut Tx<'_>| list(tx, &namespace);
        self.user.call(Level::Read, work).await.map_err(|error| error.during("list groups"))
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        let (namespace, group) = (self.namespace(), group.clone());
        let work = move |tx: &mut Tx<'_>| members(tx, &namespace, &group);
        self.user.call(Level::Read, work).await.map_err(|error| error.during("members"))
    }

    async fn member(&self, group: &GroupId, id: &MemberId) -> Result<MemberRecord> {
        let (namespace, group, id) = (self.namespace(), group.clone(), id.clone());
        let work = move |tx: &mut Tx<'_>| member(tx, &namespace, &group, &id);
        self.user.call(Level::Read, work).await.map_err(|error| error.during("member"))
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        let watch = Arc::new(GroupWatch::new(self.namespace(), group.clone()));
        let work = {
            let watch = watch.clone();
            move |tx: &mut Tx<'_>| {
                let seq = log::latest(tx)?;
                let view = GroupChange::View(members(tx, &watch.namespace, &watch.group)?);
                tx.effect(Effect::WatchGroup(watch.clone(), seq, view));
                Ok(())
            }
        };
        self.user.call(Level::Read, work).await.map_err(|error| error.during("watch group"))?;
        Ok(Box::pin(GroupStream { watch, user: self.user.clone(), refused: false }))
    }
}

/// Memberships of one session.
#[derive(Debug)]
pub(crate) struct SqliteSessionGroups {
    pub(crate) user: Arc<User>,
    pub(crate) local: Arc<Local>,
}

#[async_trait]
impl SessionGroups for SqliteSessionGroups {
    async fn join(&self, request: &Join) -> Result<()> {
        let (local, request) = (self.local.clone(), request.clone());
        // A group that is made on the way has to be as durable as one that is made by itself.
        let level = if request.create { Level::Durable } else { Level::Write };
        let work = move |tx: &mut Tx<'_>| join(tx, &local, &request);
        self.user.call(level, work).await.map_err(|error| error.during("join"))
    }

    async fn leave(&self, group: &GroupId) -> Result<()> {
        let (local, group) = (self.local.clone(), group.clone());
        let work = move |tx: &mut Tx<'_>| leave(tx, &local, &group);
        self.user.call(Level::Write, work).await.map_err(|error| error.during("leave"))
    }

    async fn update(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        let (local, group, capabilities) = (self.local.clone(), group.clone(), capabilities.clone());
        let work = move |tx: &mut Tx<'_>| update(tx, &local, &group, &capabilities);
        self.user.call(Level::Write, work).await.map_err(|error| error.during("update capabilities"))
    }
}
