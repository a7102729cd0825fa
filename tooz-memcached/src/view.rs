//! The state of a group or a lock, as listings and watches read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tooz_core::driver::support::lock_state::Holder;
use tooz_core::driver::support::msgpack::{Reader, Writer};
use tooz_core::driver::support::rule::Foreign;
use tooz_core::driver::{HolderRecord, Holders, LockKey, LockMode, MemberRecord, SessionId};
use tooz_core::{Capabilities, Error, GroupId, MemberId, Result};

use crate::client::{Client, Tries};
use crate::connection::command::{Answers, Batch, Item, Look};
use crate::connection::greeting::time;
use crate::connection::link::Link;
use crate::error::corrupt;
use crate::lock::cell::Cell;
use crate::lock::record::{Data, State};

const CAPABILITIES: &[u8] = b"capabilities";
const OWN: &[u8] = b"tooz_rs";
/// What Python stores in a group that is being deleted.
const NIL: &[u8] = &[0xc0];

/// What stands beside the capabilities of a member of ours; Python keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) session: SessionId,
    pub(crate) incarnation: u128,
    /// In seconds, by the server's clock.
    pub(crate) joined: u64,
    pub(crate) updated: u64,
}

impl Own {
    fn write(self) -> Vec<u8> {
        let Self { session, incarnation, joined, updated } = self;
        let mut out = session.0.to_be_bytes().to_vec();
        out.extend(incarnation.to_be_bytes());
        out.extend(joined.to_be_bytes());
        out.extend(updated.to_be_bytes());
        out
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (session, rest) = bytes.split_first_chunk()?;
        let (incarnation, rest) = rest.split_first_chunk()?;
        let (joined, rest) = rest.split_first_chunk()?;
        let updated = rest.try_into().ok()?;
        Some(Self {
            session: SessionId(u128::from_be_bytes(*session)),
            incarnation: u128::from_be_bytes(*incarnation),
            joined: u64::from_be_bytes(*joined),
            updated: u64::from_be_bytes(updated),
        })
    }
}

/// One member, as it stands in the group's map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) member: Vec<u8>,
    /// The map at the member, as it stands there.
    value: Vec<u8>,
    /// `None`: a member of Python's.
    pub(crate) own: Option<Own>,
}

impl Entry {
    pub(crate) fn new(member: &MemberId, capabilities: &Capabilities, own: Own) -> Self {
        let mut value = Writer::map(2);
        value.bin(CAPABILITIES).raw(capabilities.as_msgpack());
        value.bin(OWN).bin(&own.write());
        Self { member: member.as_bytes().to_vec(), value: value.finish(), own: Some(own) }
    }

    fn read(member: &[u8], value: &[u8]) -> Option<Self> {
        let own = fields(value)?.get(OWN).and_then(|own| Own::read(Reader::new(own).text()?));
        Some(Self { member: member.to_vec(), value: value.to_vec(), own })
    }

    /// `None`, after a warning, for what is none: any program may have written it.
    pub(crate) fn record(&self) -> Option<MemberRecord> {
        let read = || {
            let member = MemberId::new(&self.member)?;
            let fields = fields(&self.value).unwrap_or_default();
            let capabilities = fields.get(CAPABILITIES).copied().unwrap_or(NIL);
            // Python's members have no incarnation.
            let incarnation = self.own.map_or(0, |own| own.incarnation);
            Ok::<_, Error>(
                MemberRecord::new(member, Capabilities::from_msgpack(capabilities)?, incarnation).at(
                    self.own.and_then(|own| time(own.joined)),
                    self.own.and_then(|own| time(own.updated)),
                ),
            )
        };
        match read() {
            Ok(record) => Some(record),
            Err(error) => {
                let member = self.member.escape_ascii();
                tracing::warn!(%member, %error, "a member that cannot be understood is left out");
                None
            }
        }
    }
}

/// The fields of a map, whose names are bytes or text; `None`: it is no map.
fn fields(map: &[u8]) -> Option<BTreeMap<&[u8], &[u8]>> {
    let mut reader = Reader::new(map);
    let mut fields = BTreeMap::new();
    for _ in 0..reader.map()? {
        let (name, value) = (reader.value()?, reader.value()?);
        if let Some(name) = Reader::new(name).text() {
            fields.insert(name, value);
        }
    }
    reader.is_done().then_some(fields)
}

/// The members that a group's map holds; `None`: it cannot be understood.
pub(crate) fn read_members(value: &[u8]) -> Option<Vec<Entry>> {
    let mut reader = Reader::new(value);
    let count = reader.map()?;
    let mut entries = Vec::with_capacity(count.min(1_024));
    for _ in 0..count {
        let (member, value) = (reader.value()?, reader.value()?);
        entries.push(Entry::read(Reader::new(member).text()?, value)?);
    }
    reader.is_done().then_some(entries)
}

pub(crate) fn write_members(entries: &[Entry]) -> Vec<u8> {
    let mut out = Writer::map(entries.len());
    for entry in entries {
        out.bin(&entry.member).raw(&entry.value);
    }
    out.finish()
}

/// The ids of the list of groups; `None`: it cannot be understood.
pub(crate) fn read_list(value: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut reader = Reader::new(value);
    let count = reader.array()?;
    let mut ids = Vec::with_capacity(count.min(1_024));
    for _ in 0..count {
        ids.push(reader.text()?.to_vec());
    }
    reader.is_done().then_some(ids)
}

pub(crate) fn write_list(ids: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Writer::array(ids.len());
    for id in ids {
        out.bin(id);
    }
    out.finish()
}

/// A group that was read.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) link: Arc<Link>,
    /// The cas number of the map; `None`: it is not there, and stands in the list all the same: it was evicted.
    pub(crate) cas: Option<u64>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) identity: Option<Vec<u8>>,
}

/// What stands at a group's key.
#[derive(Debug)]
pub(crate) enum Seen {
    There(Group),
    Missing,
}

/// Asks for a group's map and identity.
pub(crate) fn look_at_group(batch: &mut Batch, client: &Client, group: &GroupId) {
    let keys = client.keys.group(group);
    batch.get(&keys.members, Look::Whole).get(&keys.identity, Look::Whole);
}

/// Reads the answers to [`look_at_group`], and looks into the list if there is no map.
pub(crate) async fn seen_group(
    client: &Client,
    tries: &mut Tries<'_>,
    link: &Arc<Link>,
    group: &GroupId,
    answers: &mut Answers,
) -> Result<Seen> {
    let (map, identity) = (answers.item()?, answers.item()?);
    let link = Arc::clone(link);
    let identity = identity.map(|item| item.value);
    match map {
        Some(item) if item.value == NIL => Ok(Seen::Missing),
        Some(Item { value, cas, .. }) => {
            let entries = read_members(&value);
            let key = || client.keys.group(group).members;
            let entries = entries.ok_or_else(|| corrupt(&key(), "is no map of members"))?;
            Ok(Seen::There(Group { link, cas: Some(cas), entries, identity }))
        }
        None if is_listed(client, tries, group).await? => {
            Ok(Seen::There(Group { link, cas: None, entries: Vec::new(), identity }))
        }
        None => Ok(Seen::Missing),
    }
}

/// Whether the group stands in the list.
async fn is_listed(client: &Client, tries: &mut Tries<'_>, group: &GroupId) -> Result<bool> {
    let mut batch = Batch::new();
    batch.get(&client.keys.groups(), Look::Whole);
    let list = tries.ask(&batch).await?.answers.item()?;
    Ok(listed(client, list.as_ref())?.iter().any(|id| id == group.as_bytes()))
}

/// The ids of the list of groups, as it was read.
pub(crate) fn listed(client: &Client, list: Option<&Item>) -> Result<Vec<Vec<u8>>> {
    let Some(list) = list else { return Ok(Vec::new()) };
    read_list(&list.value).ok_or_else(|| corrupt(&client.keys.groups(), "is no list of groups"))
}

/// Reads a group.
pub(crate) async fn read_group(client: &Client, tries: &mut Tries<'_>, group: &GroupId) -> Result<Seen> {
    let mut batch = Batch::new();
    look_at_group(&mut batch, client, group);
    let mut reply = tries.ask(&batch).await?;
    seen_group(client, tries, &reply.link, group, &mut reply.answers).await
}

/// How many seconds each member still lives at least; `None`: it is dead. A member of ours lives as long as its session, one of
/// Python's as long as its beat stands there.
pub(crate) async fn lives(
    client: &Client,
    tries: &mut Tries<'_>,
    entries: &[Entry],
) -> Result<Vec<Option<u32>>> {
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let mut batch = Batch::new();
    for entry in entries {
        let key = match (&entry.own, MemberId::new(&entry.member)) {
            (Some(own), _) => client.keys.session(own.session),
            (None, Ok(member)) => client.keys.member(&member),
            (None, Err(_)) => client.keys.lives(), // it is left out anyway
        };
        batch.get(&key, Look::Time);
    }
    let mut answers = tries.ask(&batch).await?.answers;
    entries.iter().map(|_| Ok(answers.item()?.map(|item| item.left.unwrap_or(u32::MAX)))).collect()
}

/// The living members of a group that was read, in order, and how many seconds each lives at least.
pub(crate) async fn living(
    client: &Client,
    tries: &mut Tries<'_>,
    entries: &[Entry],
) -> Result<Vec<(MemberRecord, u32)>> {
    let lives = lives(client, tries, entries).await?;
    let living = entries.iter().zip(lives).filter_map(|(entry, left)| Some((entry.record()?, left?)));
    let mut living: Vec<_> = living.collect();
    living.sort_by(|(one, _), (other, _)| one.member.cmp(&other.member));
    Ok(living)
}

/// Reads a lock, without those of its holders whose session is over.
pub(crate) async fn read_lock(client: &Client, tries: &mut Tries<'_>, key: &LockKey) -> Result<Cell> {
    loop {
        let mut cell = Cell::ask(client, tries, key).await?;
        if cell.without_dead(client, tries, None).await?.is_some() {
            return Ok(cell);
        }
    }
}

/// Reads who holds a lock. How many wait is not known: there is no queue.
pub(crate) async fn read_holders(client: &Client, key: &LockKey) -> Result<Holders> {
    let cell = read_lock(client, &mut client.tries(), key).await?;
    Ok(Holders::new(holder_records(&cell), None))
}

/// The holders of a lock, in the order of their tokens.
pub(crate) fn holder_records(cell: &Cell) -> Vec<HolderRecord> {
    let Cell { gate, state: State { holders, foreign, .. }, .. } = cell;
    let mut records: Vec<_> = holders.iter().map(holder_record).collect();
    records.sort_by_key(|holder| holder.token);
    if let (Some(gate), Foreign::Exclusive) = (gate, foreign) {
        // What Python's lock holds is the member id.
        let mut holder = HolderRecord::foreign(LockMode::Exclusive, gate.value.clone());
        holder.member = MemberId::new(&gate.value).ok();
        records.push(holder);
    }
    records
}

pub(crate) fn holder_record(holder: &Holder<Data>) -> HolderRecord {
    let Holder { mode, data, token, .. } = holder;
    HolderRecord::new(Some(data.member.clone()), Some(*token), *mode, time(data.since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_ours_and_of_pythons() {
        let own = Own { session: SessionId(1), incarnation: 2, joined: 3, updated: 4 };
        let member = MemberId::new(b"\xff\0").unwrap();
        let ours = Entry::new(&member, &Capabilities::new(&7).unwrap(), own);
        // {b"p": {b"capabilities": nil, "later": 1}}
        let python = b"\x81\xc4\x01p\x82\xc4\x0ccapabilities\xc0\xa5later\x01";
        let mut entries = read_members(python).unwrap();
        assert_eq!(write_members(&entries), python, "as it stands");
        entries.push(ours.clone());
        let written = write_members(&entries);
        assert_eq!(read_members(&written), Some(entries));
        assert_eq!(ours.record().unwrap().incarnation, 2);
        for length in 0..written.len() {
            assert_eq!(read_members(&written[..length]), None);
        }
        assert_eq!(read_members(NIL), None);
        let ids = vec![b"a".to_vec(), vec![7; 300]];
        assert_eq!(read_list(&write_list(&ids)), Some(ids));
    }
}
