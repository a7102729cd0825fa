//! The present state of groups and locks, as listings and watches read it.

use rusqlite::Row;
use tooz_core::driver::support::errors::{group_not_found, member_not_found};
use tooz_core::driver::{AttemptId, GroupChange, HolderRecord, Holders, MemberRecord};
use tooz_core::{ErrorKind, FencingToken, GroupId, MemberId};

use crate::engine::log::{self, MemberRow};
use crate::engine::tx::{Tx, from_micros};
use crate::engine::watches::GroupWatch;
use crate::error::{self, Fail, Work};
use crate::keys::{Id, Lock, Mode};
use crate::reaper;
use crate::session_state::SessionState;

pub(crate) fn find(tx: &Tx<'_>, namespace: &str, group: &GroupId) -> Work<i64> {
    let id =
        tx.value("SELECT id FROM groups WHERE namespace = ?1 AND name = ?2", (namespace, group.as_bytes()))?;
    Ok(id.ok_or_else(|| group_not_found(group))?)
}

pub(crate) fn list(tx: &Tx<'_>, namespace: &str) -> Work<Vec<GroupId>> {
    let names =
        tx.readable("SELECT name FROM groups WHERE namespace = ?1 ORDER BY name", [namespace], |row| {
            row.get::<_, Vec<u8>>(0)
        })?;
    Ok(names.into_iter().filter_map(|name| GroupId::new(name).ok()).collect())
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
    let (session, row) = found.ok_or_else(|| member_not_found(group, member))?;
    if reaper::is_dead(tx, session)? {
        return Err(member_not_found(group, member).into());
    }
    let damaged = || {
        error::corrupt(format!(
            "member \"{member}\" of group \"{group}\": its record in table members of the database cannot be \
             understood; look at it, then correct or delete it"
        ))
    };
    Ok(row.record().ok_or_else(damaged)?)
}

/// The present state for a watch that fell behind, and the last event that it includes.
pub(crate) fn view_again(tx: &mut Tx<'_>, watch: &GroupWatch) -> Work<(i64, GroupChange)> {
    let seq = log::latest(tx)?;
    let missing = if watch.was_replaced() { GroupChange::View(Vec::new()) } else { GroupChange::Deleted };
    let change = match members(tx, &watch.namespace, &watch.group) {
        Ok(members) => GroupChange::View(members),
        Err(Fail::Tooz(error)) if error.kind() == ErrorKind::GroupNotFound => missing,
        Err(fail) => return Err(fail),
    };
    Ok((seq, change))
}

/// Whether the session is a member of a group.
pub(crate) fn is_member(tx: &Tx<'_>, session: &SessionState, group: &GroupId) -> Work<bool> {
    tx.exists(
        "SELECT 1 FROM members m JOIN groups g ON g.id = m.group_id \
         WHERE g.namespace = ?1 AND g.name = ?2 AND m.member = ?3 AND m.session = ?4",
        (&*session.namespace, group.as_bytes(), session.member.as_bytes(), session.seq),
    )
}

pub(crate) struct HolderRow {
    pub(crate) session: i64,
    pub(crate) attempt: AttemptId,
    pub(crate) record: HolderRecord,
}

pub(crate) fn holder_rows(tx: &Tx<'_>, lock: &Lock) -> Work<Vec<HolderRow>> {
    tx.all(
        "SELECT h.session, h.attempt, s.member, h.token, h.mode, h.since FROM holders h \
         JOIN sessions s ON s.seq = h.session \
         WHERE h.namespace = ?1 AND h.kind = ?2 AND h.name = ?3 ORDER BY h.token",
        lock.columns()?,
        |row: &Row<'_>| {
            let record = HolderRecord::new(
                MemberId::new(row.get::<_, Vec<u8>>(2)?).ok(),
                FencingToken::new(row.get(3)?),
                row.get::<_, Mode>(4)?.0,
                from_micros(row.get(5)?),
            );
            Ok(HolderRow { session: row.get(0)?, attempt: AttemptId(row.get::<_, Id>(1)?.0), record })
        },
    )
    .map_err(|fail| fail.about(&lock.key))
}

/// The holders of a lock and the number of its waiters, without holders that are dead.
pub(crate) fn holders(tx: &mut Tx<'_>, lock: &Lock) -> Work<Holders> {
    let mut holders = Vec::new();
    for row in holder_rows(tx, lock)? {
        if !reaper::is_dead(tx, row.session)? {
            holders.push(row.record);
        }
    }
    let waiters = tx.value::<u64>(
        "SELECT count(*) FROM waiters WHERE namespace = ?1 AND kind = ?2 AND name = ?3",
        lock.columns()?,
    )?;
    Ok(Holders::new(holders, waiters))
}
