//! What has to hold of any bytes and names in the directory: one function for each parser. The property tests below
//! call it with what proptest generates, the targets in `fuzz/` with what the fuzzer finds. No part of the interface.

use sha2::{Digest, Sha256};
use tooz_core::driver::LockKey;
use tooz_core::driver::support::msgpack::{self, Reader};
use tooz_core::{ErrorKind, GroupId, LockName, MemberId};

use crate::keys::{self, KeyHash};
use crate::tree::fence::{Counter, LENGTH};
use crate::tree::liveness;
use crate::tree::lock_records::{self, Named};
use crate::tree::member_record::{self, Member};
use crate::tree::owner::Owner;

/// The longest name of a file.
const NAME_MAX: usize = 255;

/// Any bytes are a member's record or corrupt, and what was understood is written so that it is understood alike.
pub fn member(bytes: &[u8]) {
    let read = match Member::read(bytes) {
        Ok(read) => read,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
    };
    let again = read_again(&read);
    let (record, other) = (&read.record, &again.record);
    assert_eq!((&record.member, &record.capabilities), (&other.member, &other.capabilities));
    assert_eq!(read.owner, again.owner);
    if read.owner.is_some() {
        assert_eq!(record.incarnation, other.incarnation);
        assert_eq!(read_again(&again).record, *other);
    }
    msgpack::python_can_read(record.capabilities.as_msgpack());
}

fn read_again(member: &Member) -> Member {
    Member::read(&member.write()).expect("what we write can be read")
}

/// Any bytes are a group's record or corrupt.
pub fn group(bytes: &[u8]) {
    match member_record::read_group(bytes) {
        Ok(group) => {
            let written = member_record::write_group(&group);
            assert_eq!(member_record::read_group(&written).ok(), Some(group));
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
    }
}

/// Any bytes are one value and what follows it, or none.
pub fn value(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    if let Some(value) = reader.value() {
        assert!(!value.is_empty() && bytes.starts_with(value));
        assert_eq!(reader.is_done(), value.len() == bytes.len());
    }
    msgpack::python_can_read(bytes);
}

/// Any name in a directory of locks is a record of exactly one lock, in exactly one form, or unknown, which blocks
/// that lock.
pub fn lock_record(name: &str) {
    let _ = keys::is_waiter(name);
    if let Some((session, attempt)) = keys::parse_break_request(name) {
        assert_eq!(keys::break_request(session, attempt), name);
    }
    let of = |name: &[u8]| LockName::new(name).map(|name| KeyHash::new(&LockKey::Named(name)));
    let (Ok(key), Ok(other)) = (of(b"x"), of(b"y")) else { return };
    for name in [name.to_owned(), format!("{key}.{name}")] {
        match lock_records::parse(&key, &name) {
            Some(Named::Record(record)) => assert_eq!(record.name(&key), Some(name.clone())),
            Some(Named::Mark(how)) => assert_eq!(key.mark(how), Some(name.clone())),
            Some(Named::Unknown) => assert!(name.starts_with(&format!("{key}."))),
            None => assert!(!name.starts_with(&format!("{key}."))),
        }
        assert!(lock_records::parse(&key, &name).is_none() || lock_records::parse(&other, &name).is_none());
        if lock_records::parse(&key, &name).is_some() {
            assert_eq!(KeyHash::of_record(&name), Some(key.clone()));
        }
    }
}

/// Any text is an owner in exactly one form, or none; any content is a session's file that says so, or not.
pub fn owner(text: &str) {
    if let Some(owner) = Owner::parse(text) {
        assert_eq!(owner.to_string(), text);
        let member = MemberId::new(Sha256::digest(text)).expect("it is short enough");
        let content = liveness::write_session(&member, &owner, 1);
        assert_eq!(liveness::read_field(&content, "owner").as_deref(), Some(text));
        let hex = liveness::read_field(&content, "member").expect("it is written there");
        assert_eq!(keys::unhex(&hex).as_deref(), Some(member.as_bytes()));
    }
    for field in ["owner", "member", ""] {
        let _ = liveness::read_field(text.as_bytes(), field);
    }
    if let Some(bytes) = keys::unhex(text) {
        assert_eq!(keys::hex(&bytes), text);
    }
}

/// Any bytes are a counter that gives out numbers below its ceiling, or corrupt.
pub fn fence(bytes: &[u8]) {
    let Some(Ok(bytes)) = bytes.get(..LENGTH).map(<[u8; LENGTH]>::try_from) else { return };
    if let Some(counter) = Counter::decode(&bytes) {
        assert!(counter.next > 0 && counter.next <= counter.ceiling);
        let written = counter.encode().try_into().expect("it has one length");
        assert_eq!(Counter::decode(&written), Some(counter));
    }
}

/// Two different names never meet in one file, on file systems that tell upper case from lower and on those that do
/// not, and no name leads out of the directory or to a file with another purpose.
pub fn names(one: &[u8], other: &[u8]) {
    let (Ok(one), Ok(other)) = (LockName::new(one), LockName::new(other)) else { return };
    let files = |name: &LockName| {
        let (group, member) = (GroupId::new(name), MemberId::new(name));
        let (group, member) = (group.expect("as long as the name"), member.expect("as long as the name"));
        let (lock, leader) = (LockKey::Named(name.clone()), LockKey::Leader(group.clone()));
        assert_eq!(keys::python_path(&leader), None);
        [
            keys::group(&group),
            keys::member(&member),
            keys::claim(&member),
            KeyHash::new(&lock).to_string(),
            KeyHash::new(&leader).to_string(),
        ]
    };
    let (ours, theirs) = (files(&one), files(&other));
    assert_ne!(ours[3], theirs[4]);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(one == other, ours == theirs);
        // Digits alone, so upper and lower case do not matter.
        let digits = ours.strip_suffix(".raw").unwrap_or(ours);
        assert!(
            digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) && ours.len() <= NAME_MAX
        );
    }
    let (one, other) = (LockKey::Named(one), LockKey::Named(other));
    if let Some(path) = keys::python_path(&one) {
        let escapes = |part: &&str| {
            matches!(*part, "" | "." | "..") || part.contains(['/', '\0']) || part.len() > NAME_MAX
        };
        assert!(!path.iter().any(escapes), "{path:?}");
        assert!(![keys::OURS, keys::DRIVER_LOCK, keys::GROUPS, "tmp"].contains(&path[0]), "{path:?}");
        assert_eq!(one == other, Some(path) == keys::python_path(&other));
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use tooz_core::Capabilities;
    use tooz_core::driver::{AttemptId, LockMode, MemberRecord, SessionId};
    use tooz_local::process::Process;

    use super::*;
    use crate::tree::lock_records::{Record, Role};
    use crate::tree::owner::known;

    /// The same cases on every run, unless `TOOZ_PROPTEST_SEED` names another seed or says `random`;
    /// `TOOZ_PROPTEST_CASES` says how many.
    fn config() -> ProptestConfig {
        let set = |name| std::env::var(name).ok();
        let rng_seed = match set("TOOZ_PROPTEST_SEED").as_deref() {
            None => RngSeed::Fixed(0x7072_6f70),
            Some("random") => RngSeed::Random,
            Some(number) => {
                RngSeed::Fixed(number.parse().expect("TOOZ_PROPTEST_SEED is a number or \"random\""))
            }
        };
        let cases =
            set("TOOZ_PROPTEST_CASES").map_or(256, |number| number.parse().expect("a number of cases"));
        ProptestConfig { rng_seed, cases, ..ProptestConfig::default() }
    }

    fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..most)
    }

    fn owners() -> impl Strategy<Value = Owner> {
        (any::<u128>(), any::<(u64, u32, u64, u64, u32)>()).prop_map(
            |(session, (inode, pid, started, namespace, boot))| Owner {
                session: SessionId(session),
                inode,
                process: Process { pid, started: known(started), pid_namespace: known(namespace) },
                boot,
            },
        )
    }

    fn members() -> impl Strategy<Value = Vec<u8>> {
        let parts =
            (prop::collection::vec(any::<u8>(), 1..256), bytes(300), any::<u128>(), owners(), any::<u32>());
        (parts, proptest::bool::ANY).prop_map(|((id, raw, incarnation, owner, seconds), ours)| {
            let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds.into()));
            let record = MemberRecord::new(
                MemberId::new(id).unwrap(),
                Capabilities::from_raw(raw).unwrap(),
                incarnation,
            )
            .at(at, at);
            Member { record, owner: ours.then_some(owner) }.write()
        })
    }

    fn damaged(mut bytes: Vec<u8>, at: prop::sample::Index, with: u8) -> Vec<u8> {
        let at = at.index(bytes.len());
        bytes[at] = with;
        bytes
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn any_bytes_are_records_or_corrupt(bytes in bytes(200)) {
            member(&bytes);
            group(&bytes);
            value(&bytes);
            fence(&bytes);
        }

        #[test]
        fn damaged_records_are_corrupt_or_other_records(
            whole in members(),
            id in prop::collection::vec(any::<u8>(), 1..256),
            at in any::<prop::sample::Index>(),
            with in any::<u8>(),
        ) {
            member(&whole);
            member(&damaged(whole.clone(), at, with));
            prop_assert!(Member::read(&whole[..at.index(whole.len())]).is_err(), "a part is no record");
            let whole = member_record::write_group(&GroupId::new(id).unwrap());
            group(&whole);
            group(&damaged(whole.clone(), at, with));
            prop_assert!(member_record::read_group(&whole[..at.index(whole.len())]).is_err(), "a part is no record");
        }

        #[test]
        fn a_lock_record_is_read_as_it_was_written(
            owner in owners(),
            attempt in any::<u128>(),
            number in any::<u64>(),
            holds in any::<bool>(),
            mode in prop_oneof![
                Just(LockMode::Exclusive),
                Just(LockMode::Shared),
                any::<NonZeroU32>().prop_map(|limit| LockMode::Permit { limit }),
            ],
            at in any::<prop::sample::Index>(),
            with in "[0-9a-zA-Z.+]",
        ) {
            let role = if holds { Role::Holder(number) } else { Role::Waiter(number) };
            let key = KeyHash::new(&LockKey::Named(LockName::new("x").unwrap()));
            let written = Record { role, mode, attempt: AttemptId(attempt), owner };
            let name = written.name(&key).unwrap();
            prop_assert!(name.len() <= NAME_MAX);
            let owner = written.owner.to_string();
            prop_assert_eq!(lock_records::parse(&key, &name), Some(Named::Record(written)));
            let mut other = name.clone();
            let at = at.index(other.len());
            other.replace_range(at..=at, &with);
            lock_record(&other);
            lock_record(&other[65..]);
            super::owner(&owner);
        }

        #[test]
        fn any_name_is_a_record_or_stops_everybody(name in "\\PC{0,80}", like in "[hwmx][0-9a-f]{14,18}[.][xsp][0-9a-f]{0,9}[.]") {
            lock_record(&name);
            lock_record(&format!("{like}{:032x}.{name}", 7));
            owner(&name);
        }

        #[test]
        fn any_text_is_an_owner_in_one_form(parts in prop::collection::vec("[+0-9a-fA-F]{0,17}", 4..7), id in any::<u128>()) {
            owner(&format!("{id:032x}.{}", parts.join(".")));
            owner(&parts.join(""));
        }

        #[test]
        fn any_counter_keeps_below_its_ceiling(next in any::<u64>(), ceiling in any::<u64>(), boot in bytes(41)) {
            let content = [&b"toozfnc1"[..], &next.to_be_bytes(), &ceiling.to_be_bytes(), &boot, &[0; 40]].concat();
            fence(&content);
        }

        #[test]
        fn two_names_never_meet(
            one in prop::collection::vec(any::<u8>(), 1..256),
            other in prop::collection::vec(prop::sample::select(b"ab/.\0\xffA".to_vec()), 1..6),
            path in "(\\.tooz-rs|groups|tmp|\\.driver_lock|\\.\\.|\\.|a|)(/(\\.\\.|\\.|a||fence)){0,3}",
        ) {
            names(&one, &other);
            names(&other, &one);
            names(path.as_bytes(), &other);
            names(path.as_bytes(), path.to_uppercase().as_bytes());
        }
    }
}
