//! The whole layout; nothing else builds a name.
//!
//! ```text
//! <dir>/.driver_lock                 Python: held around every change of a group
//! <dir>/groups/<sha1 group>/.metadata
//! <dir>/groups/<sha1 group>/<sha1 member>.raw
//! <dir>/<lock name>                  Python: the lock's file, for names that it can have
//! <dir>/.tooz-rs/                    this driver's; for another namespace <dir>/.tooz-rs/ns/<sha256 namespace>/
//!   backend  epoch  driver-pid       which locks are used; the stamp of the data; the process that has .driver_lock
//!   reaped                           when dead sessions were last cleared away: the file's time
//!   fence                            the fencing counter, one for the directory
//!   sessions/<session>               locked as long as the session lives
//!   claims/<sha256 member>           which session a member id belongs to
//!   locks/<00..3f>/.mutex            held for a moment around each change of these locks:
//!   locks/<00..3f>/<sha256 key>.h<token>.<mode>.<attempt>.<owner>    a holder
//!   locks/<00..3f>/<sha256 key>.w<number>.<mode>.<attempt>.<owner>   a waiter
//!   locks/<00..3f>/<sha256 key>.m<how>                               the holder that it names ended uncleanly
//!   breaks/<session>.<attempt>       a request to break a lock
//!   broken/<attempt>                 the request that broke it, for an hour
//!   tmp/                             files that are not in place yet
//!   tmp/left.<group>.<incarnation>   the file of a member that left, for a minute: watches look for it
//! ```
//!
//! Records of holders and waiters are empty files: creating, renaming and unlinking one is atomic, and a process that
//! is killed leaves none half written.

use std::fmt::{self, Write as _};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use tooz_core::driver::{AttemptId, LockKey, Previous, SessionId};
use tooz_core::{GroupId, MemberId};

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
    let written = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let byte = |at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    written.then(|| (0..digits.len()).step_by(2).map(byte).collect()).flatten()
}

/// A number in hexadecimal digits without any but the needed ones: each number has one form.
pub(crate) fn number(digits: &str) -> Option<u64> {
    let needed = digits == "0" || !digits.starts_with(['0', '+']);
    let lower = !digits.bytes().any(|digit| digit.is_ascii_uppercase());
    (needed && lower).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

fn sha256(prefix: &str, name: &[u8]) -> String {
    hex(&Sha256::new_with_prefix(prefix).chain_update(name).finalize())
}

/// The directory of a group; Python's name for it, which any id can have.
pub(crate) fn group(id: &GroupId) -> String {
    hex(&Sha1::digest(id.as_bytes()))
}

/// The file of a member in its group; Python's name for it.
pub(crate) fn member(id: &MemberId) -> String {
    hex(&Sha1::digest(id.as_bytes())) + ".raw"
}

/// The file of a member that left.
pub(crate) fn left(id: &GroupId, incarnation: u128) -> String {
    format!("{}{incarnation:032x}", all_left(id))
}

/// What the files of a group's members that left begin with.
pub(crate) fn all_left(id: &GroupId) -> String {
    format!("left.{}.", group(id))
}

pub(crate) fn is_member(name: &str) -> bool {
    name.strip_suffix(".raw").is_some()
}

pub(crate) fn namespace(name: &str) -> String {
    sha256("", name.as_bytes())
}

pub(crate) fn claim(member: &MemberId) -> String {
    sha256("", member.as_bytes())
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

/// A lock's name in its records, injective over everything that can be locked.
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
            LockKey::Named(name) => Self(sha256("lock:", name.as_bytes())),
            LockKey::Leader(group) => Self(sha256("leader:", group.as_bytes())),
            // Whatever the core adds: its Display names it.
            other => Self(sha256("other:", other.to_string().as_bytes())),
        }
    }

    pub(crate) fn stripe(&self) -> usize {
        // 64 hexadecimal digits by construction.
        usize::from_str_radix(self.0.get(..2).unwrap_or("0"), 16).unwrap_or(0) % STRIPES
    }

    /// The key with which the name of a record begins.
    pub(crate) fn of_record(name: &str) -> Option<Self> {
        let (hash, _) = name.split_once('.')?;
        (hash.len() == 64).then(|| Self(hash.to_owned()))
    }

    /// What follows this key in the name of one of its files.
    pub(crate) fn strip<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(&self.0)?.strip_prefix('.')
    }

    /// The name of the mark that says how the last holder ended.
    pub(crate) fn mark(&self, how: Previous) -> Option<String> {
        match how {
            Previous::Expired => Some(format!("{}.mexpired", self.0)),
            Previous::Broken => Some(format!("{}.mbroken", self.0)),
            _ => None,
        }
    }
}

/// Whether the name is that of a waiter's record. A new one is of no interest to those who wait already.
pub(crate) fn is_waiter(name: &str) -> bool {
    name.split_once('.').is_some_and(|(_, rest)| rest.starts_with('w'))
}

/// The components of the path at which Python keeps the file of this lock, if it can have it and the file is no
/// other object's.
///
/// Python takes the name as a path below the directory and simplifies it: `a//b`, `a/./b` and `a/b` are one file,
/// so only the simplest of them is shared. What is not shared is excluded by the records alone.
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

    fn named(name: impl AsRef<[u8]>) -> LockKey {
        LockKey::Named(LockName::new(name).unwrap())
    }

    #[test]
    fn python_gets_the_names_that_it_can_have() {
        for name in ["a", "a/b", "a b", "\u{e9}", "x/groups", "...", "a\nb", "%2e", "groups2"] {
            assert_eq!(python_path(&named(name)).unwrap().join("/"), name);
        }
        let paths = ".. . /etc/passwd a/../b ../x a//b a/ ./a groups groups/x tmp tmp/x";
        let files = ".driver_lock .driver_lock/x .tooz-rs .tooz-rs/fence";
        let names = paths.split(' ').chain(files.split(' ')).map(str::as_bytes);
        for name in names.chain([&b"\xff"[..], b"a\0b"]) {
            assert_eq!(python_path(&named(name)), None, "{name:?}");
        }
        assert_eq!(python_path(&LockKey::Leader(GroupId::new("g").unwrap())), None);
    }

    #[test]
    fn the_names_are_those_of_python() {
        assert_eq!(group(&GroupId::new("g").unwrap()), "54fd1711209fb1c0781092374132c66e79e2241b");
        assert_eq!(member(&MemberId::new("m").unwrap()), "6b0d31c0d563223024da45691584643ac78c96e8.raw");
    }
}
