//! The log of events, for other processes and for the watches of this one.
//!
//! Every process remembers how far it has read. After its own commit or another process's, it reads on from there. So the
//! cost is that of the changes, however many callers wait. The numbers have no holes. A missing number means that the reader
//! was too slow and the rows were cut off; then it reads the state itself.

use rusqlite::Row;
use tooz_core::driver::{AttemptId, GroupChange, MemberRecord};
use tooz_core::{Capabilities, MemberId};

use crate::engine::tx::{Effect, Tx, from_micros};
use crate::error::Work;
use crate::keys::{Id, Lock};

/// How many events are kept. A reader that is further behind reads the state instead; more would only cost space
/// (at most 64 KiB each, with the largest capabilities).
pub(crate) const KEPT: i64 = 1024;
/// How often the log is cut: not at every event, since a range delete costs as much as the event.
const CUT_EVERY: i64 = 64;

/// An entry to write.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A member joined, published other capabilities, or left.
    Member(Change, &'a str, &'a [u8], &'a MemberRow),
    /// A group was deleted.
    GroupDeleted(&'a str, &'a [u8]),
    /// The holders of a leadership changed.
    LeaderChanged(&'a str, &'a [u8]),
    /// An attempt of another process was granted.
    Granted(i64, AttemptId),
    /// A grant of another process was broken.
    Broken(i64, AttemptId),
    /// A session of another process was ended.
    SessionEnded(i64),
}

/// What happened to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Joined,
    Updated,
    Left,
}

/// A member as its columns hold it.
#[derive(Clone, Debug)]
pub(crate) struct MemberRow {
    pub(crate) member: Vec<u8>,
    pub(crate) capabilities: Vec<u8>,
    pub(crate) incarnation: u128,
    pub(crate) joined_at: i64,
    pub(crate) updated_at: i64,
}

impl MemberRow {
    /// From five columns in this order, the first of which is `at`.
    pub(crate) fn read(row: &Row<'_>, at: usize) -> rusqlite::Result<Self> {
        Ok(Self {
            member: row.get(at)?,
            capabilities: row.get(at + 1)?,
            incarnation: row.get::<_, Id>(at + 2)?.0,
            joined_at: row.get(at + 3)?,
            updated_at: row.get(at + 4)?,
        })
    }

    /// As [`MemberRow::read`], of a member that is leaving: the watches need only its id.
    pub(crate) fn leaving(row: &Row<'_>, at: usize) -> rusqlite::Result<Self> {
        let capabilities =
            row.get::<_, Vec<u8>>(at + 1).ok().and_then(|c| Capabilities::from_msgpack(&c).ok());
        Ok(Self {
            member: row.get(at)?,
            capabilities: capabilities.unwrap_or_default().as_msgpack().to_vec(),
            incarnation: row.get::<_, Id>(at + 2).map_or(0, |id| id.0),
            joined_at: row.get(at + 3).unwrap_or_default(),
            updated_at: row.get(at + 4).unwrap_or_default(),
        })
    }

    /// `None`, and a warning, if the row is damaged.
    pub(crate) fn record(&self) -> Option<MemberRecord> {
        let record = MemberId::new(&self.member).and_then(|member| {
            let capabilities = Capabilities::from_msgpack(&self.capabilities)?;
            Ok(MemberRecord::new(member, capabilities, self.incarnation)
                .at(from_micros(self.joined_at), from_micros(self.updated_at)))
        });
        record.inspect_err(|error| tracing::warn!(%error, "a member's record is skipped")).ok()
    }
}

/// An entry as it is read.
#[derive(Debug)]
pub(crate) enum Entry {
    Member(Change, String, Vec<u8>, MemberRow),
    GroupDeleted(String, Vec<u8>),
    LeaderChanged(String, Vec<u8>),
    Granted(i64, AttemptId),
    Broken(i64, AttemptId),
    SessionEnded(i64),
    /// An entry of a newer version, or written by hand.
    Unknown,
}

/// A change as a watch delivers it.
pub(crate) fn to_change(change: Change, record: MemberRecord) -> GroupChange {
    match change {
        Change::Joined => GroupChange::Joined(record),
        Change::Updated => GroupChange::Updated(record),
        Change::Left => GroupChange::Left(record),
    }
}

/// Adds an entry.
pub(crate) fn append(tx: &mut Tx<'_>, event: &Event<'_>) -> Work<()> {
    let seq = match event {
        Event::Member(change, namespace, name, row) => insert_member(tx, *change, namespace, name, row)?,
        Event::GroupDeleted(namespace, name) => insert(tx, 4, None, Some((*namespace, *name)), None)?,
        Event::LeaderChanged(namespace, name) => insert(tx, 5, None, Some((*namespace, *name)), None)?,
        Event::Granted(session, attempt) => insert(tx, 6, Some(*session), None, Some(*attempt))?,
        Event::Broken(session, attempt) => insert(tx, 7, Some(*session), None, Some(*attempt))?,
        Event::SessionEnded(session) => insert(tx, 8, Some(*session), None, None)?,
    };
    if seq % CUT_EVERY == 0 {
        tx.run("DELETE FROM events WHERE seq <= ?1", [seq - KEPT])?;
    }
    tx.effect(Effect::Logged);
    Ok(())
}

fn insert_member(tx: &Tx<'_>, change: Change, namespace: &str, name: &[u8], row: &MemberRow) -> Work<i64> {
    let topic = match change {
        Change::Joined => 1,
        Change::Updated => 2,
        Change::Left => 3,
    };
    tx.run(
        "INSERT INTO events (topic, namespace, name, member, capabilities, incarnation, joined_at, updated_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        (
            topic,
            namespace,
            name,
            &row.member,
            &row.capabilities,
            Id(row.incarnation),
            row.joined_at,
            row.updated_at,
        ),
    )?;
    Ok(tx.connection.last_insert_rowid())
}

fn insert(
    tx: &Tx<'_>,
    topic: i64,
    session: Option<i64>,
    name: Option<(&str, &[u8])>,
    attempt: Option<AttemptId>,
) -> Work<i64> {
    tx.run(
        "INSERT INTO events (topic, session, namespace, name, attempt) VALUES (?1, ?2, ?3, ?4, ?5)",
        (
            topic,
            session,
            name.map(|(namespace, _)| namespace),
            name.map(|(_, name)| name),
            attempt.map(|a| Id(a.0)),
        ),
    )?;
    Ok(tx.connection.last_insert_rowid())
}

/// Logs that every membership of a session ends.
pub(crate) fn members_left(tx: &mut Tx<'_>, session: i64) -> Work<()> {
    let rows = tx.readable(
        "SELECT g.namespace, g.name, m.member, m.capabilities, m.incarnation, m.joined_at, m.updated_at \
         FROM members m JOIN groups g ON g.id = m.group_id WHERE m.session = ?1",
        [session],
        |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?, MemberRow::leaving(row, 2)?)),
    )?;
    for (namespace, name, row) in rows {
        append(tx, &Event::Member(Change::Left, &namespace, &name, &row))?;
    }
    Ok(())
}

/// Logs that the holders of a leadership changed.
pub(crate) fn leader_changed(tx: &mut Tx<'_>, lock: &Lock) -> Work<()> {
    let (namespace, kind, name) = lock.columns()?;
    if kind == 1 {
        append(tx, &Event::LeaderChanged(namespace, name))?;
    }
    Ok(())
}

/// The number of the latest entry.
pub(crate) fn latest(tx: &Tx<'_>) -> Work<i64> {
    let latest = tx.first("SELECT max(seq) FROM events", [], |row| row.get::<_, Option<i64>>(0))?;
    Ok(latest.flatten().unwrap_or(0))
}

/// The entries after `cursor`, in order.
pub(crate) fn read_after(tx: &Tx<'_>, cursor: i64) -> Work<Vec<(i64, Entry)>> {
    tx.all(
        "SELECT seq, topic, session, namespace, name, attempt, \
         member, capabilities, incarnation, joined_at, updated_at \
         FROM events WHERE seq > ?1 ORDER BY seq",
        [cursor],
        |row| {
            let seq = row.get(0)?;
            // A damaged entry is skipped, not trusted.
            Ok((seq, read(row).unwrap_or(Entry::Unknown)))
        },
    )
}

fn read(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let member = |change| -> rusqlite::Result<Entry> {
        Ok(Entry::Member(change, row.get(3)?, row.get(4)?, MemberRow::read(row, 6)?))
    };
    let attempt = || -> rusqlite::Result<AttemptId> { Ok(AttemptId(row.get::<_, Id>(5)?.0)) };
    Ok(match row.get::<_, i64>(1)? {
        1 => member(Change::Joined)?,
        2 => member(Change::Updated)?,
        3 => member(Change::Left)?,
        4 => Entry::GroupDeleted(row.get(3)?, row.get(4)?),
        5 => Entry::LeaderChanged(row.get(3)?, row.get(4)?),
        6 => Entry::Granted(row.get(2)?, attempt()?),
        7 => Entry::Broken(row.get(2)?, attempt()?),
        8 => Entry::SessionEnded(row.get(2)?),
        _ => Entry::Unknown,
    })
}
