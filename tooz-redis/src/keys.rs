//! The whole layout: nothing else makes a key.
//!
//! Groups, members, beats and locks stand where Python tooz 9.1 puts them, under `<namespace>_…`. What Python does not
//! have stands under `<namespace>_rs:…`, which never ends in `_lock` and is therefore no lock of Python's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tooz_core::driver::{LockKey, SessionId};
use tooz_core::{GroupId, MemberId};

use crate::shared_with_python;

/// The keys of one namespace in one database.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    namespace: Arc<str>,
    /// What the names of channels end in: a server's databases have keys of their own and share the channels.
    database: String,
    /// Whether it was said that a lock is not shared with Python.
    said: Arc<AtomicBool>,
}

/// Where a lock stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockPlace {
    /// The key that Python takes, too.
    pub(crate) key: Vec<u8>,
    /// What our own keys and the channel of this lock begin with.
    pub(crate) base: Vec<u8>,
    /// Where a change of holders is announced.
    pub(crate) channel: Vec<u8>,
}

/// Where a group stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupPlace {
    /// Python's hash.
    pub(crate) key: Vec<u8>,
    /// What our own key and the channel of this group begin with.
    pub(crate) base: Vec<u8>,
    /// Where changes are announced.
    pub(crate) channel: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(namespace: &str, database: i64) -> Self {
        let database = if database == 0 { String::new() } else { format!("@{database}") };
        Self { namespace: namespace.into(), database, said: Arc::default() }
    }

    /// The namespace as it stands in keys.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    fn channel(&self, name: &[u8]) -> Vec<u8> {
        [name, self.database.as_bytes()].concat()
    }

    fn python(&self, parts: &[&[u8]]) -> Vec<u8> {
        let mut key = self.namespace.as_bytes().to_vec();
        key.push(b'_');
        for part in parts {
            key.extend_from_slice(part);
        }
        key
    }

    fn own(&self, parts: &[&[u8]]) -> Vec<u8> {
        let mut key = self.python(&[b"rs:"]);
        for part in parts {
            key.extend_from_slice(part);
        }
        key
    }

    /// The set of all groups.
    pub(crate) fn groups(&self) -> Vec<u8> {
        self.python(&[b"groups"])
    }

    pub(crate) fn group(&self, group: &GroupId) -> GroupPlace {
        let base = self.own(&[b"group:", &encoded(group.as_bytes()), b":"]);
        let channel = self.channel(&with(&base, b"c"));
        GroupPlace { key: self.python(&[b"group:", group.as_bytes()]), base, channel }
    }

    /// That a member lives, for Python; and whose it is.
    pub(crate) fn beat(&self, member: &MemberId) -> Vec<u8> {
        self.python(&[b"beats:", member.as_bytes()])
    }

    pub(crate) fn lock(&self, lock: &LockKey) -> LockPlace {
        let (kind, name, key): (&[u8], _, _) = match lock {
            LockKey::Named(name) => {
                let shared = shared_with_python::lock(name);
                if !shared && !self.said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        %name,
                        "processes of Python tooz are not excluded from a lock of this name, for its key is something else \
                         to them; others like it will not be reported"
                    );
                }
                let name = name.as_bytes();
                let key = if shared {
                    self.python(&[name, b"_lock"])
                } else {
                    self.own(&[b"lock:", &encoded(name), b":k"])
                };
                (b"lock:", name, key)
            }
            LockKey::Leader(group) => {
                let group = group.as_bytes();
                (b"leader:", group, self.python(&[b"leader_of_", group, b"_lock"]))
            }
            // No other kind exists; one that is added later gets a place that nothing else has.
            other => {
                let name = encoded(other.to_string().as_bytes());
                let key = self.own(&[b"other:", &name, b":k"]);
                return self.lock_at(key, self.own(&[b"other:", &name, b":"]));
            }
        };
        self.lock_at(key, self.own(&[kind, &encoded(name), b":"]))
    }

    fn lock_at(&self, key: Vec<u8>, base: Vec<u8>) -> LockPlace {
        let channel = self.channel(&with(&base, b"c"));
        LockPlace { key, base, channel }
    }

    pub(crate) fn session(&self, session: SessionId) -> Vec<u8> {
        self.own(&[b"s:", session.to_string().as_bytes()])
    }

    /// The channel on which a session is spoken to.
    pub(crate) fn inbox(&self, session: SessionId) -> Vec<u8> {
        self.channel(&self.own(&[b"i:", session.to_string().as_bytes()]))
    }

    /// The id of the data.
    pub(crate) fn epoch(&self) -> Vec<u8> {
        self.own(&[b"epoch"])
    }

    /// That sessions live; gone a ttl after the last of them.
    pub(crate) fn lives(&self) -> Vec<u8> {
        self.own(&[b"lives"])
    }

    /// Where a new epoch is announced.
    pub(crate) fn epochs(&self) -> Vec<u8> {
        self.channel(&self.epoch())
    }

    /// The end of channels' names.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// The counter of fencing tokens.
    pub(crate) fn fence(&self) -> Vec<u8> {
        self.own(&[b"fence"])
    }
}

fn with(base: &[u8], end: &[u8]) -> Vec<u8> {
    [base, end].concat()
}

impl LockPlace {
    /// All keys of a lock, in the order in which scripts take them.
    pub(crate) fn keys(&self) -> [Vec<u8>; 4] {
        [self.key.clone(), with(&self.base, b"h"), with(&self.base, b"q"), with(&self.base, b"w")]
    }
}

impl GroupPlace {
    /// Our own hash.
    pub(crate) fn own(&self) -> Vec<u8> {
        with(&self.base, b"m")
    }
}

/// Percent-encoded with one spelling only, so without the `:` that ends it.
fn encoded(name: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = Vec::with_capacity(name.len());
    for &byte in name {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            text.push(byte);
        } else {
            text.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tooz_core::LockName;

    use super::*;

    fn every_key(name: &[u8]) -> Vec<(String, Vec<u8>)> {
        let keys = Keys::new("_tooz", 0);
        let text = name.escape_ascii().to_string();
        let group = keys.group(&GroupId::new(name).unwrap());
        let mut all = vec![
            (format!("group {text}"), group.key.clone()),
            (format!("group's own {text}"), group.own()),
            (format!("group's channel {text}"), group.channel.clone()),
            (format!("beat {text}"), keys.beat(&MemberId::new(name).unwrap())),
            ("groups".into(), keys.groups()),
            ("epoch".into(), keys.epoch()),
            ("lives".into(), keys.lives()),
            ("fence".into(), keys.fence()),
            ("session".into(), keys.session(SessionId(1))),
            ("inbox".into(), keys.inbox(SessionId(1))),
        ];
        let locks = [
            ("lock", LockKey::Named(LockName::new(name).unwrap())),
            ("leader", LockKey::Leader(GroupId::new(name).unwrap())),
        ];
        for (kind, lock) in locks {
            let place = keys.lock(&lock);
            all.push((format!("{kind}'s channel {text}"), place.channel.clone()));
            for (n, key) in place.keys().into_iter().enumerate() {
                all.push((format!("{kind} {n} {text}"), key));
            }
        }
        all
    }

    fn distinct(names: &[Vec<u8>]) {
        let mut owners: BTreeMap<Vec<u8>, String> = BTreeMap::new();
        for name in names {
            for (what, key) in every_key(name) {
                let shown = key.escape_ascii().to_string();
                if let Some(other) = owners.insert(key, what.clone()) {
                    assert_eq!(other, what, "both stand at {shown}");
                }
            }
        }
    }

    #[test]
    fn names_made_to_meet_do_not() {
        let mut names: Vec<Vec<u8>> =
            ["a", "a_lock", "group:a", "group:a_lock", "beats:a", "leader_of_a", "groups", "rs:a"]
                .map(|name| name.as_bytes().to_vec())
                .to_vec();
        names.extend(
            ["rs:s:x", "rs:lock:a:h", "rs:group:a:m", "rs:epoch", "%3A", ":", "a:", "__created__"]
                .map(Vec::from),
        );
        distinct(&names);
    }

    proptest! {
        #[test]
        fn no_two_things_share_a_key(names in prop::collection::vec("(group:|beats:|leader_of_|rs:|_)?[ab:%_]{1,4}(_lock|:h|:m)?", 1..12)) {
            distinct(&names.into_iter().map(String::into_bytes).collect::<Vec<_>>());
        }
    }

    #[test]
    fn python_finds_them() {
        let keys = Keys::new("_tooz", 0);
        let lock = keys.lock(&LockKey::Named(LockName::new("a/b").unwrap()));
        assert_eq!(lock.key, b"_tooz_a/b_lock");
        let lead = keys.lock(&LockKey::Leader(GroupId::new("g").unwrap()));
        assert_eq!(lead.key, b"_tooz_leader_of_g_lock");
        assert_eq!(keys.group(&GroupId::new("g").unwrap()).key, b"_tooz_group:g");
        assert_eq!(keys.beat(&MemberId::new("m").unwrap()), b"_tooz_beats:m");
        let shared = |name| shared_with_python::lock(&tooz_core::LockName::new(name).unwrap());
        assert!(!shared("leader_of_g") && shared("leader"));
    }
}
