//! The whole layout: nothing else makes a key.
//!
//! Groups, members, beats and locks have the keys that Python tooz 9.1 gives them, `<namespace>_…`. What Python does not have
//! is under `<namespace>_rs:…`, which never ends in `_lock` and is therefore no lock of Python's.

use std::sync::atomic::{AtomicBool, Ordering};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tooz_core::driver::{LockKey, SessionId, Stamp};
use tooz_core::{Error, ErrorKind, GroupId, MemberId, Result};

use crate::shared_with_python;

/// The keys of one namespace in one database.
pub(crate) struct Keys {
    /// As written in keys.
    pub(crate) namespace: String,
    /// The end of channels' names: a server's databases have keys of their own and share the channels.
    pub(crate) database: String,
    /// Whether the warning that a lock is not shared with Python was logged.
    warned: AtomicBool,
}

/// The keys and the channel of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockKeys {
    /// The key that Python takes, too.
    pub(crate) key: Vec<u8>,
    /// What our own keys and the channel of this lock begin with.
    pub(crate) base: Vec<u8>,
    /// The channel on which changes of holders are announced.
    pub(crate) channel: Vec<u8>,
}

/// The keys and the channel of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupKeys {
    /// Python's hash.
    pub(crate) key: Vec<u8>,
    /// Our own hash.
    pub(crate) own: Vec<u8>,
    /// What our own key and the channel of this group begin with.
    pub(crate) base: Vec<u8>,
    /// The channel on which changes are announced.
    pub(crate) channel: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(namespace: &str, database: i64) -> Self {
        let database = if database == 0 { String::new() } else { format!("@{database}") };
        Self { namespace: namespace.to_owned(), database, warned: AtomicBool::new(false) }
    }

    fn channel(&self, name: &[u8]) -> Vec<u8> {
        [name, self.database.as_bytes()].concat()
    }

    fn python(&self, parts: &[&[u8]]) -> Vec<u8> {
        [self.namespace.as_bytes(), b"_", &parts.concat()].concat()
    }

    fn own(&self, parts: &[&[u8]]) -> Vec<u8> {
        self.python(&[b"rs:", &parts.concat()])
    }

    /// The set of all groups.
    pub(crate) fn groups(&self) -> Vec<u8> {
        self.python(&[b"groups"])
    }

    pub(crate) fn group(&self, group: &GroupId) -> GroupKeys {
        let base = self.own(&[b"group:", &encoded(group.as_bytes()), b":"]);
        let (own, channel) = (with(&base, b"m"), self.channel(&with(&base, b"c")));
        GroupKeys { key: self.python(&[b"group:", group.as_bytes()]), own, base, channel }
    }

    /// The key that exists while a member lives, for Python; ours says which session's member it is.
    pub(crate) fn beat(&self, member: &MemberId) -> Vec<u8> {
        self.python(&[b"beats:", member.as_bytes()])
    }

    pub(crate) fn lock(&self, lock: &LockKey) -> LockKeys {
        let (kind, name, python): (&[u8], _, _) = match lock {
            LockKey::Named(name) => {
                let shared = shared_with_python::lock(name);
                if !shared && !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        %name,
                        "processes of Python tooz are not excluded from a lock of this name, for its key is something else \
                         to them; others like it will not be reported"
                    );
                }
                let name = name.as_bytes();
                (b"lock:", encoded(name), shared.then(|| self.python(&[name, b"_lock"])))
            }
            LockKey::Leader(group) => {
                let group = group.as_bytes();
                (b"leader:", encoded(group), Some(self.python(&[b"leader_of_", group, b"_lock"])))
            }
            // No other kind exists; one that is added later gets keys that nothing else has.
            other => (b"other:", encoded(other.to_string().as_bytes()), None),
        };
        let base = self.own(&[kind, &name, b":"]);
        let key = python.unwrap_or_else(|| with(&base, b"k"));
        let channel = self.channel(&with(&base, b"c"));
        LockKeys { key, base, channel }
    }

    pub(crate) fn session(&self, session: SessionId) -> Vec<u8> {
        self.own(&[b"s:", session.to_string().as_bytes()])
    }

    /// The channel for messages to a session.
    pub(crate) fn inbox(&self, session: SessionId) -> Vec<u8> {
        self.channel(&self.own(&[b"i:", session.to_string().as_bytes()]))
    }

    /// The id of the data.
    pub(crate) fn epoch(&self) -> Vec<u8> {
        self.own(&[b"epoch"])
    }

    /// The stamp that the server has at [`epoch`](Self::epoch).
    pub(crate) fn read_stamp(&self, text: &[u8]) -> Result<Stamp> {
        Stamp::parse(text).ok_or_else(|| {
            let key = String::from_utf8_lossy(&self.epoch()).into_owned();
            Error::new(
                ErrorKind::Corrupt,
                format!("the key {key} holds no stamp; end all programs that use it, then delete it"),
            )
        })
    }

    /// The namespace, for messages.
    pub(crate) fn shown(&self) -> String {
        format!("namespace \"{}\"", self.namespace)
    }

    /// The key that exists while sessions live; it expires a ttl after the last of them.
    pub(crate) fn lives(&self) -> Vec<u8> {
        self.own(&[b"lives"])
    }

    /// The channel on which a new epoch is announced.
    pub(crate) fn epochs(&self) -> Vec<u8> {
        self.channel(&self.epoch())
    }

    /// The counter of fencing tokens.
    pub(crate) fn fence(&self) -> Vec<u8> {
        self.own(&[b"fence"])
    }
}

fn with(base: &[u8], end: &[u8]) -> Vec<u8> {
    [base, end].concat()
}

impl LockKeys {
    /// All keys of a lock, in the order in which scripts take them.
    pub(crate) fn keys(&self) -> [Vec<u8>; 4] {
        [self.key.clone(), with(&self.base, b"h"), with(&self.base, b"q"), with(&self.base, b"w")]
    }
}

/// Percent-encoded with one spelling only, so without the `:` that ends it.
fn encoded(name: &[u8]) -> Vec<u8> {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    percent_encode(name, RESERVED).to_string().into_bytes()
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
            (format!("group's own {text}"), group.own.clone()),
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
            let lock_keys = keys.lock(&lock);
            all.push((format!("{kind}'s channel {text}"), lock_keys.channel.clone()));
            for (n, key) in lock_keys.keys().into_iter().enumerate() {
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
