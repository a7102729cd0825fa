//! The records that Python reads: a group's metadata and a member's file, in its MessagePack.
//!
//! Python refuses unknown fields in a group's metadata and ignores them in a member's, so what only we know stands
//! in the latter: the owner, the incarnation and the times. A record without an owner is Python's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use tooz_core::driver::MemberRecord;
use tooz_core::driver::support::msgpack::{Reader, Writer};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};

use crate::tree::owner::Owner;

const OWNER: &str = "tooz_rs_owner";
const INCARNATION: &str = "tooz_rs_incarnation";
const JOINED: &str = "tooz_rs_joined";
const UPDATED: &str = "tooz_rs_updated";

/// What oslo.serialization calls a datetime.
const DATETIME: i8 = 1;

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn time(micros: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_micros(micros))
}

pub(crate) fn write_group(id: &GroupId) -> Vec<u8> {
    let mut out = Writer::map(2);
    out.str("group_id").bin(id.as_bytes());
    // Whether Python is to decode the id into text: ids are bytes here.
    out.str("encoded").bool(false);
    out.finish()
}

pub(crate) fn read_group(bytes: &[u8]) -> Result<GroupId> {
    let mut id = None;
    fields(bytes, |name, value| {
        if name == b"group_id" {
            id = Reader::new(value).text();
        }
    })?;
    id.and_then(|id| GroupId::new(id).ok()).ok_or_else(|| corrupt("has no group_id"))
}

/// A member's file.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) record: MemberRecord,
    /// `None`: Python's.
    pub(crate) owner: Option<Owner>,
}

impl Member {
    pub(crate) fn write(&self) -> Vec<u8> {
        let MemberRecord { member, capabilities, incarnation, joined_at, updated_at, .. } = &self.record;
        let joined = joined_at.unwrap_or(UNIX_EPOCH);
        let ours = self.owner.as_ref();
        let mut out = Writer::map(if ours.is_some() { 8 } else { 4 });
        out.str("capabilities").raw(capabilities.as_msgpack());
        // Python demands it and never looks at it. It writes its local time without a zone; ours is UTC.
        out.str("joined_on").ext(DATETIME, &datetime(joined));
        out.str("member_id").bin(member.as_bytes());
        out.str("encoded").bool(false);
        if let Some(owner) = ours {
            out.str(OWNER).str(&owner.to_string());
            out.str(INCARNATION).str(&format!("{incarnation:032x}"));
            out.str(JOINED).uint(micros(joined));
            out.str(UPDATED).uint(micros(updated_at.unwrap_or(joined)));
        }
        out.finish()
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let (mut member, mut capabilities, mut joined_on) = (None, None, None);
        let (mut owner, mut incarnation, mut joined, mut updated) = (None, None, None, None);
        fields(bytes, |name, value| match name {
            b"member_id" => member = Reader::new(value).text(),
            b"capabilities" => capabilities = Some(value),
            b"joined_on" => joined_on = Some(value),
            _ if name == OWNER.as_bytes() => owner = Reader::new(value).text(),
            _ if name == INCARNATION.as_bytes() => incarnation = Reader::new(value).text(),
            _ if name == JOINED.as_bytes() => joined = Reader::new(value).uint(),
            _ if name == UPDATED.as_bytes() => updated = Reader::new(value).uint(),
            _ => {}
        })?;
        let member =
            member.and_then(|id| MemberId::new(id).ok()).ok_or_else(|| corrupt("has no member_id"))?;
        let capabilities = Capabilities::from_msgpack(capabilities.unwrap_or(b"\xc0"))?;
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let owner = match owner {
            None => None,
            Some(owner) => {
                Some(text(owner).and_then(Owner::parse).ok_or_else(|| corrupt("has an unreadable owner"))?)
            }
        };
        let incarnation = match incarnation.and_then(text).and_then(|hex| u128::from_str_radix(hex, 16).ok())
        {
            Some(incarnation) if owner.is_some() => incarnation,
            // Python's: each join writes its own time.
            _ => {
                let digest = Sha256::digest(joined_on.unwrap_or_default());
                digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
            }
        };
        let record = MemberRecord::new(member, capabilities, incarnation)
            .at(joined.and_then(time), updated.and_then(time));
        Ok(Self { record, owner })
    }
}

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the record {why}"))
}

fn fields<'a>(bytes: &'a [u8], mut field: impl FnMut(&[u8], &'a [u8])) -> Result<()> {
    let unreadable = || corrupt("is not a MessagePack map");
    let mut reader = Reader::new(bytes);
    for _ in 0..reader.map().ok_or_else(unreadable)? {
        // Old versions of Python tooz wrote the names as bytes.
        let name = reader.value().ok_or_else(unreadable)?;
        let value = reader.value().ok_or_else(unreadable)?;
        if let Some(name) = Reader::new(name).text() {
            field(name, value);
        }
    }
    if reader.is_done() { Ok(()) } else { Err(corrupt("goes on after its end")) }
}

/// A datetime as oslo.serialization packs it.
fn datetime(time: SystemTime) -> Vec<u8> {
    let micros = micros(time);
    let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut out = Writer::map(7);
    for (name, value) in [
        ("day", day),
        ("month", month),
        ("year", year),
        ("hour", second / 3_600),
        ("minute", second / 60 % 60),
        ("second", second % 60),
        ("microsecond", rest),
    ] {
        out.str(name).uint(value);
    }
    out.finish()
}

/// Year, month and day of a day since 1970 (H. Hinnant, *chrono-Compatible Low-Level Date Algorithms*, 2013).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use tooz_core::driver::SessionId;
    use tooz_local::process::Process;

    use super::*;

    #[test]
    fn dates() {
        for (days, date) in
            [(0, (1970, 1, 1)), (59, (1970, 3, 1)), (11_016, (2000, 2, 29)), (20_779, (2026, 11, 22))]
        {
            assert_eq!(civil(days), date);
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let process = Process { pid: 7, started: Some(8), pid_namespace: Some(9) };
        let owner = Owner { session: SessionId(1), inode: 2, process, boot: 3 };
        let at = time(1_790_000_000_123_456);
        let capabilities = Capabilities::new(&("gpu", 2)).unwrap();
        let record = MemberRecord::new(MemberId::new("m\0/\u{e9}").unwrap(), capabilities, 77).at(at, at);
        let written = Member { record: record.clone(), owner: Some(owner.clone()) }.write();
        let read = Member::read(&written).unwrap();
        assert_eq!((read.record, read.owner), (record, Some(owner)));
        for length in 0..written.len() {
            assert_eq!(Member::read(&written[..length]).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let group = GroupId::new(b"\xff\0").unwrap();
        assert_eq!(read_group(&write_group(&group)).unwrap(), group);
    }

    #[test]
    fn a_record_of_pythons() {
        let mut out = Writer::map(4);
        out.str("capabilities").bin(b"");
        out.str("joined_on").ext(DATETIME, &datetime(UNIX_EPOCH));
        out.str("member_id").bin(b"p").str("encoded").bool(true);
        let first = Member::read(&out.finish()).unwrap();
        assert!(first.owner.is_none() && first.record.capabilities.raw() == Some(b""));
        let mut out = Writer::map(2);
        out.str("joined_on").ext(DATETIME, &datetime(UNIX_EPOCH + Duration::from_secs(1)));
        out.bin(b"member_id").str("p");
        let second = Member::read(&out.finish()).unwrap();
        assert_eq!(first.record.member, second.record.member);
        assert_ne!(first.record.incarnation, second.record.incarnation, "another join");
    }
}
