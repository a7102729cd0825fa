//! The log of events, for other processes and for the watches of this one.
//!
//! Every process remembers how far it has read. After its own commit or another process's, it reads on from there. So the
//! cost is that of the changes, however many callers wait. The numbers have no holes. A missing number means that the reader
//! was too slow and the rows were cut off; then it reads the state itself.

use std::collections::BTreeMap;

use rusqlite::Row;
use tooz_core::driver::{AttemptId, Departure, MemberRecord};
use tooz_core::{Capabilities, MemberId};

use crate::engine::tx::{Effect, Tx, from_micros};
use crate::error::Work;
use crate::keys::Id;

/// How many events are kept. A reader that is further behind reads the state instead; more would only cost space
/// (at most 64 KiB each, with the largest capabilities).
pub(crate) const KEPT: i64 = 1024;
/// How often the log is cut: not at every event, since a range delete costs as much as the event.
const CUT_EVERY: i64 = 64;

/// An entry. Groups stand there by namespace and name.
#[derive(Debug)]
pub(crate) enum Event {
    /// A member joined, published other capabilities, or left.
    Member(Change, String, Vec<u8>, MemberRow),
    /// A group was deleted.
    GroupDeleted(String, Vec<u8>),
    /// The holders of a leadership changed.
    LeaderChanged(String, Vec<u8>),
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
    Left(Departure),
}

impl Change {
    /// The topic of the entry, and how a member went, which the column `session` holds.
    fn columns(self) -> (i64, Option<&'static i64>) {
        match self {
            Self::Joined => (1, None),
            Self::Updated => (2, None),
            Self::Left(Departure::Died) => (3, Some(&0)),
            Self::Left(Departure::Left) => (3, Some(&1)),
            Self::Left(_) => (3, None),
        }
    }

    /// How a member went by the column; an earlier version leaves it empty.
    fn left(column: Option<i64>) -> Self {
        Self::Left(match column {
            Some(0) => Departure::Died,
            Some(1) => Departure::Left,
            _ => Departure::Unknown,
        })
    }
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

/// Adds an entry.
pub(crate) fn append(tx: &mut Tx<'_>, event: &Event) -> Work<()> {
    let (topic, session, group, attempt, member) = match event {
        Event::Member(change, namespace, name, row) => {
            let (topic, session) = change.columns();
            (topic, session, Some((namespace, name)), None, Some(row))
        }
        Event::GroupDeleted(namespace, name) => (4, None, Some((namespace, name)), None, None),
        Event::LeaderChanged(namespace, name) => (5, None, Some((namespace, name)), None, None),
        Event::Granted(session, attempt) => (6, Some(session), None, Some(attempt), None),
        Event::Broken(session, attempt) => (7, Some(session), None, Some(attempt), None),
        Event::SessionEnded(session) => (8, Some(session), None, None, None),
    };
    tx.run(
        "INSERT INTO events (topic, session, namespace, name, attempt, \
         member, capabilities, incarnation, joined_at, updated_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        (
            topic,
            session,
            group.map(|(namespace, _)| namespace),
            group.map(|(_, name)| name),
            attempt.map(|attempt| Id(attempt.0)),
            member.map(|row| &row.member),
            member.map(|row| &row.capabilities),
            member.map(|row| Id(row.incarnation)),
            member.map(|row| row.joined_at),
            member.map(|row| row.updated_at),
        ),
    )?;
    let seq = tx.connection.last_insert_rowid();
    if seq % CUT_EVERY == 0 {
        tx.run("DELETE FROM events WHERE seq <= ?1", [seq - KEPT])?;
    }
    tx.effect(Effect::Logged);
    Ok(())
}

/// Logs that every membership of a session ends; `closed`: its own process said so.
pub(crate) fn members_left(tx: &mut Tx<'_>, session: i64, closed: bool) -> Work<()> {
    let change = Change::Left(if closed { Departure::Left } else { Departure::Died });
    let left = tx.readable(
        "SELECT g.namespace, g.name, m.member, m.capabilities, m.incarnation, m.joined_at, m.updated_at \
         FROM members m JOIN groups g ON g.id = m.group_id WHERE m.session = ?1",
        [session],
        |row| Ok(Event::Member(change, row.get(0)?, row.get(1)?, MemberRow::leaving(row, 2)?)),
    )?;
    left.iter().try_for_each(|event| append(tx, event))
}

/// The number of the latest entry.
pub(crate) fn latest(tx: &Tx<'_>) -> Work<i64> {
    let latest = tx.value::<Option<i64>>("SELECT max(seq) FROM events", [])?;
    Ok(latest.flatten().unwrap_or(0))
}

/// The entries after `cursor`, in order; `None` for one of a newer version, or one that is damaged.
pub(crate) fn read_after(tx: &Tx<'_>, cursor: i64) -> Work<Vec<(i64, Option<Event>)>> {
    tx.all(
        "SELECT seq, topic, session, namespace, name, attempt, \
         member, capabilities, incarnation, joined_at, updated_at \
         FROM events WHERE seq > ?1 ORDER BY seq",
        [cursor],
        |row| Ok((row.get(0)?, read(row).unwrap_or_default())),
    )
}

/// How members of all groups went after `cursor`, by incarnation; `None`: the log was cut since, or cannot be read.
pub(crate) fn departures(tx: &Tx<'_>, cursor: i64) -> Work<Option<BTreeMap<u128, Departure>>> {
    let entries = read_after(tx, cursor)?;
    if entries.first().is_some_and(|(first, _)| *first > cursor.saturating_add(1)) {
        return Ok(None);
    }
    let mut departures = BTreeMap::new();
    for (_, event) in entries {
        match event {
            Some(Event::Member(Change::Left(how), _, _, row)) => {
                departures.insert(row.incarnation, how);
            }
            Some(_) => {}
            None => return Ok(None),
        }
    }
    Ok(Some(departures))
}

fn read(row: &Row<'_>) -> rusqlite::Result<Option<Event>> {
    let member = |change| -> rusqlite::Result<Event> {
        Ok(Event::Member(change, row.get(3)?, row.get(4)?, MemberRow::read(row, 6)?))
    };
    let attempt = || -> rusqlite::Result<AttemptId> { Ok(AttemptId(row.get::<_, Id>(5)?.0)) };
    Ok(Some(match row.get::<_, i64>(1)? {
        1 => member(Change::Joined)?,
        2 => member(Change::Updated)?,
        3 => member(Change::left(row.get(2)?))?,
        4 => Event::GroupDeleted(row.get(3)?, row.get(4)?),
        5 => Event::LeaderChanged(row.get(3)?, row.get(4)?),
        6 => Event::Granted(row.get(2)?, attempt()?),
        7 => Event::Broken(row.get(2)?, attempt()?),
        8 => Event::SessionEnded(row.get(2)?),
        _ => return Ok(None),
    }))
}
