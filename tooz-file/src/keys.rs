//! The whole layout; nothing else builds a name.
//!
//! ```text
//! <dir>/.driver_lock                 Python: held around every change of a group
//! <dir>/groups/<sha1 group>/.metadata
//! <dir>/groups/<sha1 group>/<sha1 member>.raw
//! <dir>/<lock name>                  Python: the lock's file, for names that it can have
//! <dir>/.tooz-rs/                    ours; for another namespace <dir>/.tooz-rs/ns/<sha256 namespace>/
//!   backend  epoch  driver-pid       which locks are used; the stamp of the data; who has .driver_lock
//!   reaped                           when somebody last cleared the dead away: the file's time
//!   fence                            the fencing counter, one for the directory
//!   sessions/<session>               locked as long as the session lives
//!   claims/<sha256 member>           which session a member id belongs to
//!   locks/<00..3f>/.mutex            held for a moment around each change of these locks:
//!   locks/<00..3f>/<sha256 key>.h<token>.<mode>.<attempt>.<owner>    a holder
//!   locks/<00..3f>/<sha256 key>.w<place>.<mode>.<attempt>.<owner>    a waiter
//!   locks/<00..3f>/<sha256 key>.m<how>                               the holder that it names ended uncleanly
//!   breaks/<session>.<attempt>       a request to break a lock
//!   broken/<attempt>                 who broke it and why, kept for an hour
//!   tmp/                             files that are not in place yet
//! ```
//!
//! Records of holders and waiters are empty files: creating, renaming and unlinking one is atomic, and a process that is killed
//! leaves none half written.

use std::fmt::{self, Write as _};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use tooz_core::driver::{AttemptId, LockKey, LockMode, Previous, SessionId};
use tooz_core::{GroupId, MemberId};

use crate::tree::owner::Owner;

pub(crate) const OURS: &str = ".tooz-rs";
pub(crate) const NAMESPACES: &str = "ns";
pub(crate) const DRIVER_LOCK: &str = ".driver_lock";
pub(crate) const GROUPS: &str = "groups";
/// Python's own directory for files that are not in place yet.
const PYTHON_TMP: &str = "tmp";
pub(crate) const METADATA: &str = ".metadata";
pub(crate) const MUTEX: &str = ".mutex";
pub(crate) const FENCE: &str = "fence";
pub(crate) const BACKEND: &str = "backend";
pub(crate) const EPOCH: &str = "epoch";
pub(crate) const DRIVER_PID: &str = "driver-pid";
pub(crate) const REAPED: &str = "reaped";

/// Locks are spread over so many directories: each change lists one of them, and each has its own mutex.
pub(crate) const STRIPES: usize = 64;

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a string cannot fail
        text
    })
}

/// The bytes of hexadecimal digits, as [`hex`] writes them.
pub(crate) fn unhex(digits: &str) -> Option<Vec<u8>> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let pair = |pair: &[u8]| match *pair {
        [high, low] => Some(value(high)? << 4 | value(low)?),
        _ => None,
    };
    digits.as_bytes().chunks(2).map(pair).collect()
}

/// A number in hexadecimal digits without any but the needed ones: each number has one form.
pub(crate) fn number(digits: &str) -> Option<u64> {
    let needed = digits == "0" || !digits.starts_with(['0', '+']);
    let lower = !digits.bytes().any(|digit| digit.is_ascii_uppercase());
    (needed && lower).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// As [`number`], in as many digits as the largest one has.
fn padded(digits: &str) -> Option<u64> {
    let whole = digits.len() == 16 && digits.bytes().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f'));
    whole.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

fn sha256(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part);
    }
    hex(&digest.finalize())
}

/// The directory of a group; Python's name for it, which any id can have.
pub(crate) fn group(id: &GroupId) -> String {
    hex(&Sha1::digest(id.as_bytes()))
}

/// The file of a member in its group; Python's name for it.
pub(crate) fn member(id: &MemberId) -> String {
    hex(&Sha1::digest(id.as_bytes())) + ".raw"
}

pub(crate) fn is_member(name: &str) -> bool {
    name.strip_suffix(".raw").is_some()
}

pub(crate) fn namespace(name: &str) -> String {
    sha256(&[name.as_bytes()])
}

pub(crate) fn claim(member: &MemberId) -> String {
    sha256(&[member.as_bytes()])
}

pub(crate) fn stripe(number: usize) -> String {
    format!("{number:02x}")
}

pub(crate) fn broken(attempt: AttemptId) -> String {
    attempt.to_string()
}

pub(crate) fn break_request(session: SessionId, attempt: AttemptId) -> String {
    format!("{session}.{attempt}")
}

/// The session and the attempt that a request to break is about.
pub(crate) fn parse_break_request(name: &str) -> Option<(SessionId, AttemptId)> {
    let (session, attempt) = name.split_once('.')?;
    Some((SessionId::parse(session)?, AttemptId::parse(attempt)?))
}

/// A lock's name in our own records, injective over everything that can be locked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyHash(String);

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl KeyHash {
    pub(crate) fn new(key: &LockKey) -> Self {
        match key {
            LockKey::Named(name) => Self(sha256(&[b"lock:", name.as_bytes()])),
            LockKey::Leader(group) => Self(sha256(&[b"leader:", group.as_bytes()])),
            // Whatever the core adds: its Display names it.
            other => Self(sha256(&[b"other:", other.to_string().as_bytes()])),
        }
    }

    pub(crate) fn stripe(&self) -> usize {
        // 64 hexadecimal digits by construction.
        usize::from_str_radix(self.0.get(..2).unwrap_or("0"), 16).unwrap_or(0) % STRIPES
    }

    /// The key that the name of a record begins with.
    pub(crate) fn of_record(name: &str) -> Option<Self> {
        let (hash, _) = name.split_once('.')?;
        (hash.len() == 64).then(|| Self(hash.to_owned()))
    }

    pub(crate) fn mark(&self, how: Previous) -> Option<String> {
        match how {
            Previous::Expired => Some(format!("{}.mexpired", self.0)),
            Previous::Broken => Some(format!("{}.mbroken", self.0)),
            _ => None,
        }
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// With its token.
    Holder(u64),
    /// With its place in the queue.
    Waiter(u64),
}

/// A record of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) role: Role,
    pub(crate) mode: LockMode,
    pub(crate) attempt: AttemptId,
    pub(crate) owner: Owner,
}

/// What stands under a name in a directory of locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Record(Record),
    Mark(Previous),
    /// Of another version, or written by hand. It may stand for a holder, so nobody may go past it.
    Unknown,
}

impl Record {
    /// Its name; `None` for a mode that this version does not know.
    pub(crate) fn name(&self, key: &KeyHash) -> Option<String> {
        let role = match self.role {
            Role::Holder(token) => format!("h{token:016x}"),
            Role::Waiter(place) => format!("w{place:016x}"),
        };
        let mode = match self.mode {
            LockMode::Exclusive => "x".to_owned(),
            LockMode::Shared => "s".to_owned(),
            LockMode::Permit { limit } => format!("p{limit:x}"),
            _ => return None,
        };
        Some(format!("{}.{role}.{mode}.{}.{}", key.0, self.attempt, self.owner))
    }
}

/// Reads the name of a record of `key`; `None` if it is of another lock.
pub(crate) fn parse(key: &KeyHash, name: &str) -> Option<Named> {
    let rest = name.strip_prefix(&key.0)?.strip_prefix('.')?;
    Some(match rest {
        "mexpired" => Named::Mark(Previous::Expired),
        "mbroken" => Named::Mark(Previous::Broken),
        _ => parse_record(rest).map_or(Named::Unknown, Named::Record),
    })
}

fn parse_record(rest: &str) -> Option<Record> {
    let mut parts = rest.splitn(4, '.');
    let (role, mode) = (parts.next()?, parts.next()?);
    let number = padded(role.get(1..)?)?;
    let role = match role.get(..1)? {
        "h" => Role::Holder(number),
        "w" => Role::Waiter(number),
        _ => return None,
    };
    let mode = match (mode.get(..1)?, mode.get(1..)?) {
        ("x", "") => LockMode::Exclusive,
        ("s", "") => LockMode::Shared,
        ("p", limit) => LockMode::Permit { limit: self::number(limit)?.try_into().ok()? },
        _ => return None,
    };
    let attempt = AttemptId::parse(parts.next()?)?;
    Some(Record { role, mode, attempt, owner: Owner::parse(parts.next()?)? })
}

/// Whether the name is that of a waiter's record: its coming is of no interest to anybody who waits.
pub(crate) fn is_waiter(name: &str) -> bool {
    name.split_once('.').is_some_and(|(_, rest)| rest.starts_with('w'))
}

/// The components of the path at which Python keeps the file of this lock, if it can have it and the file is no
/// other object's.
///
/// Python takes the name as a path below the directory and simplifies it: `a//b`, `a/./b` and `a/b` are one file,
/// so only the simplest of them is shared. What is not shared is excluded by our own records alone.
pub(crate) fn python_path(key: &LockKey) -> Option<Vec<&str>> {
    let LockKey::Named(name) = key else { return None };
    let name = std::str::from_utf8(name.as_bytes()).ok().filter(|name| !name.contains('\0'))?;
    let parts: Vec<&str> = name.split('/').collect();
    let plain = parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
    let reserved = matches!(*parts.first()?, OURS | DRIVER_LOCK | GROUPS | PYTHON_TMP);
    (plain && !reserved).then_some(parts)
}

#[cfg(test)]
mod tests {
    use tooz_core::LockName;

    use super::*;
    use crate::host::process::Process;

    fn named(name: impl AsRef<[u8]>) -> LockKey {
        LockKey::Named(LockName::new(name).unwrap())
    }

    fn owner() -> Owner {
        let process = Process { pid: u32::MAX, started: u64::MAX, namespace: u64::MAX };
        Owner { session: SessionId(u128::MAX), inode: u64::MAX, process, boot: u32::MAX }
    }

    #[test]
    fn python_gets_the_names_that_it_can_have() {
        for name in ["a", "a/b", "a b", "\u{e9}", "x/groups", "...", "a\nb", "%2e", "groups2"] {
            assert_eq!(python_path(&named(name)).unwrap().join("/"), name);
        }
        for name in [
            &b".."[..],
            b".",
            b"/etc/passwd",
            b"a/../b",
            b"../x",
            b"a//b",
            b"a/",
            b"./a",
            b"groups",
            b"groups/x",
            b"tmp",
            b"tmp/x",
            b".driver_lock",
            b".driver_lock/x",
            b".tooz-rs",
            b".tooz-rs/fence",
            b"\xff",
            b"a\0b",
        ] {
            assert_eq!(python_path(&named(name)), None, "{name:?}");
        }
        assert_eq!(python_path(&LockKey::Leader(GroupId::new("g").unwrap())), None);
    }

    #[test]
    fn the_longest_record_fits_in_a_name() {
        let mode = LockMode::Permit { limit: u32::MAX };
        let record =
            Record { role: Role::Holder(u64::MAX), mode, attempt: AttemptId(u128::MAX), owner: owner() };
        let key = KeyHash::new(&named([255; 255]));
        let name = record.name(&key).unwrap();
        assert!(name.len() <= 255, "{}", name.len());
        assert_eq!(parse(&key, &name), Some(Named::Record(record)));
    }

    #[test]
    fn the_names_are_those_of_python() {
        assert_eq!(group(&GroupId::new("g").unwrap()), "54fd1711209fb1c0781092374132c66e79e2241b");
        assert_eq!(member(&MemberId::new("m").unwrap()), "6b0d31c0d563223024da45691584643ac78c96e8.raw");
    }
}
