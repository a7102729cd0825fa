//! The whole layout: nothing else makes a key.
//!
//! Groups, members and locks have the keys that Python tooz 9.1 gives them. What Python does not have, and what it could not
//! name, is under `_TOOZ_RS:`, which is the beginning of no key of Python's. Another namespace than the default one stands
//! before each key, encoded without `_`, so that no key of it is one of Python's.

use std::sync::atomic::{AtomicBool, Ordering};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sha2::{Digest, Sha256};
use tooz_core::driver::{AttemptId, LockKey, SessionId};
use tooz_core::{GroupId, MemberId};

use crate::shared_with_python::{self, GROUP, LEADER, LOCK, LONGEST, MEMBER};

/// The namespace of Python's keys.
pub(crate) const DEFAULT: &str = "_TOOZ";
/// The longest namespace that is written out in keys.
const LONGEST_NAMESPACE: usize = 64;

/// The keys of one namespace.
#[derive(Debug)]
pub(crate) struct Keys {
    namespace: String,
    /// What each key begins with.
    prefix: Vec<u8>,
    /// Whether the warning that a lock is not shared with Python was logged.
    warned: AtomicBool,
}

/// The keys of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockKeys {
    /// The key that Python takes, too.
    pub(crate) gate: Vec<u8>,
    /// How the last holder ended; for an election the leader's whole record.
    pub(crate) mark: Vec<u8>,
}

/// The keys of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupKeys {
    /// Python's map of members.
    pub(crate) members: Vec<u8>,
    /// The identity of the group: another group of the same name has another one.
    pub(crate) identity: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(namespace: &str) -> Self {
        let prefix = if namespace == DEFAULT {
            Vec::new()
        } else {
            const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.');
            let encoded = percent_encode(namespace.as_bytes(), RESERVED).to_string();
            let short = encoded.len() <= LONGEST_NAMESPACE;
            let name = if short { encoded } else { hashed(namespace.as_bytes()) };
            format!("{name}:").into_bytes()
        };
        Self { namespace: namespace.to_owned(), prefix, warned: AtomicBool::new(false) }
    }

    fn key(&self, kind: &str, name: &[u8]) -> Vec<u8> {
        [&self.prefix, kind.as_bytes(), name].concat()
    }

    /// A key that Python does not have.
    fn own(&self, kind: &str, name: &[u8]) -> Vec<u8> {
        const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
        let encoded = percent_encode(name, RESERVED).to_string();
        let key = self.key(kind, encoded.as_bytes());
        if key.len() <= LONGEST { key } else { self.key(kind, hashed(name).as_bytes()) }
    }

    /// Python's key where it can have one, another one elsewhere.
    fn shared(&self, shared: bool, python: &str, kind: &str, name: &[u8]) -> Vec<u8> {
        let key = self.key(python, name);
        if shared && key.len() <= LONGEST { key } else { self.own(kind, name) }
    }

    /// The namespace, for messages.
    pub(crate) fn shown(&self) -> String {
        format!("namespace \"{}\"", self.namespace)
    }

    /// Whether Python's processes use this namespace, too.
    pub(crate) fn is_default(&self) -> bool {
        self.prefix.is_empty()
    }

    /// The list of all groups.
    pub(crate) fn groups(&self) -> Vec<u8> {
        self.key(GROUP, b"LIST")
    }

    pub(crate) fn group(&self, group: &GroupId) -> GroupKeys {
        GroupKeys {
            members: self.shared(shared_with_python::group(group), GROUP, "_TOOZ_RS:g:", group.as_bytes()),
            identity: self.own("_TOOZ_RS:i:", group.as_bytes()),
        }
    }

    /// The item that exists while a member lives, for Python; ours says which session's member it is.
    pub(crate) fn member(&self, member: &MemberId) -> Vec<u8> {
        self.shared(shared_with_python::member(member), MEMBER, "_TOOZ_RS:m:", member.as_bytes())
    }

    pub(crate) fn lock(&self, lock: &LockKey) -> LockKeys {
        match lock {
            LockKey::Named(name) => {
                let shared = shared_with_python::lock(name);
                if !shared && self.is_default() && !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        %name,
                        "processes of Python tooz are not excluded from a lock of this name, for memcached has no key for it \
                         in Python; others like it will not be reported"
                    );
                }
                let name = name.as_bytes();
                LockKeys {
                    gate: self.shared(shared, LOCK, "_TOOZ_RS:l:", name),
                    mark: self.own("_TOOZ_RS:k:", name),
                }
            }
            LockKey::Leader(group) => {
                let shared = shared_with_python::election(group);
                let group = group.as_bytes();
                LockKeys {
                    gate: self.shared(shared, LEADER, "_TOOZ_RS:e:", group),
                    mark: self.own("_TOOZ_RS:r:", group),
                }
            }
            // No other kind exists; one that is added later gets keys that nothing else has.
            other => {
                let name = other.to_string().into_bytes();
                LockKeys { gate: self.own("_TOOZ_RS:o:", &name), mark: self.own("_TOOZ_RS:p:", &name) }
            }
        }
    }

    /// The item that exists while a session lives.
    pub(crate) fn session(&self, session: SessionId) -> Vec<u8> {
        self.key("_TOOZ_RS:s:", session.to_string().as_bytes())
    }

    /// Who broke an attempt's grant, and why.
    pub(crate) fn broken(&self, attempt: AttemptId) -> Vec<u8> {
        self.key("_TOOZ_RS:b:", attempt.to_string().as_bytes())
    }

    /// A member that left by itself, by the incarnation that it had in the group.
    pub(crate) fn left(&self, incarnation: u128) -> Vec<u8> {
        self.key("_TOOZ_RS:q:", format!("{incarnation:032x}").as_bytes())
    }

    /// Which data it is, and where the tokens begin.
    pub(crate) fn epoch(&self) -> Vec<u8> {
        self.key("_TOOZ_RS:epoch", b"")
    }

    /// The item that exists while sessions live; it expires a ttl after the last of them.
    pub(crate) fn lives(&self) -> Vec<u8> {
        self.key("_TOOZ_RS:lives", b"")
    }
}

/// What stands in the place of a name that is too long. No encoded name begins with `#`.
fn hashed(name: &[u8]) -> String {
    Sha256::digest(name).iter().fold("#".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tooz_core::LockName;

    use super::*;

    fn every_key(namespace: &str, name: &[u8]) -> Vec<(String, Vec<u8>)> {
        let keys = Keys::new(namespace);
        let text = format!("{namespace} {}", name.escape_ascii());
        let group = keys.group(&GroupId::new(name).unwrap());
        let named = keys.lock(&LockKey::Named(LockName::new(name).unwrap()));
        let leader = keys.lock(&LockKey::Leader(GroupId::new(name).unwrap()));
        [
            (format!("group {text}"), group.members),
            (format!("identity {text}"), group.identity),
            (format!("member {text}"), keys.member(&MemberId::new(name).unwrap())),
            (format!("lock {text}"), named.gate),
            (format!("lock's mark {text}"), named.mark),
            (format!("leader {text}"), leader.gate),
            (format!("leader's mark {text}"), leader.mark),
            (format!("groups {namespace}"), keys.groups()),
            (format!("epoch {namespace}"), keys.epoch()),
            (format!("lives {namespace}"), keys.lives()),
            (format!("session {namespace}"), keys.session(SessionId(1))),
            (format!("broken {namespace}"), keys.broken(AttemptId(1))),
            (format!("left {namespace}"), keys.left(1)),
        ]
        .into()
    }

    fn distinct(namespaces: &[&str], names: &[Vec<u8>]) {
        let mut owners: BTreeMap<Vec<u8>, String> = BTreeMap::new();
        for namespace in namespaces {
            for name in names {
                for (what, key) in every_key(namespace, name) {
                    assert!(key.len() <= LONGEST, "{what} is too long");
                    assert!(
                        !key.iter().any(|byte| matches!(byte, 0 | 9..=13 | b' ')),
                        "{}",
                        key.escape_ascii()
                    );
                    let shown = key.escape_ascii().to_string();
                    if let Some(other) = owners.insert(key, what.clone()) {
                        assert_eq!(other, what, "both stand at {shown}");
                    }
                }
            }
        }
    }

    #[test]
    fn python_finds_its_keys() {
        let keys = Keys::new(DEFAULT);
        let odd = LockName::new(b"\xc3\xa9\x01\x7f").unwrap();
        assert_eq!(keys.lock(&LockKey::Named(odd)).gate, b"__TOOZ_LOCK_\xc3\xa9\x01\x7f");
        assert_eq!(keys.groups(), b"_TOOZ_GROUP_LIST");
        assert_eq!(keys.group(&GroupId::new("g").unwrap()).members, b"_TOOZ_GROUP_g");
        assert_eq!(keys.member(&MemberId::new("m").unwrap()), b"_TOOZ_MEMBER_m");
        assert_eq!(keys.lock(&LockKey::Named(LockName::new("n").unwrap())).gate, b"__TOOZ_LOCK_n");
        let leader = keys.lock(&LockKey::Leader(GroupId::new("g").unwrap()));
        assert_eq!(leader.gate, b"__TOOZ_LOCK__TOOZ_GROUP_LEADER_g");
    }

    #[test]
    fn confusing_names_have_keys_of_their_own() {
        let long = |length| vec![b'x'; length];
        let names: Vec<Vec<u8>> = [
            "LIST",
            "LEADER_g",
            "_TOOZ_GROUP_LEADER_g",
            "g",
            "a b",
            "a%20b",
            "é",
            "_TOOZ_RS:epoch",
            "_",
            "n:_TOOZ_GROUP_g",
            "#00",
            "%23",
            "..",
            "a/b",
        ]
        .into_iter()
        .map(|name| name.as_bytes().to_vec())
        .chain([long(200), long(240), long(250), long(255), vec![0], vec![255; 255]])
        .collect();
        let long_namespace = "n".repeat(100);
        distinct(&[DEFAULT, "n", "n:", "_TOOZ_GROUP_n", "%5FTOOZ", "", &long_namespace, "é"], &names);
    }

    proptest! {
        #[test]
        fn no_two_things_have_one_key(
            names in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..=255), 1..8),
            namespaces in proptest::collection::vec("[_:%a-cT]{0,6}", 1..4),
        ) {
            let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).collect();
            distinct(&namespaces, &names);
        }
    }
}
