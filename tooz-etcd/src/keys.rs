//! The whole layout; nothing else builds a key.
//!
//! ```text
//! <namespace>/groups/<group>/            Python: the group; its value is the key itself
//! <namespace>/groups/<group>/<member>    Python: the member's capabilities, on its session's lease
//! /<namespace>/locks<name>               Python: the lock is taken (a "gate": ours say by whom)
//! %tooz/<namespace>/                     ours, which Python never reads:
//!   epoch                                the stamp of the data
//!   fence/<number>                       tokens after it are that much larger than create revisions
//!   session/<session>                    a session, on its lease
//!   session/<session>/broken/<attempt>   who broke its grant and why, kept for an hour or ten ttls
//!   claim/<member>                       which session a member id belongs to, on its lease
//!   group/<group>/                       a group whose id contains a slash; else a member there has left, on its lease
//!   group/<group>/<member>               a member of such a group, or one whose own id contains a slash
//!   lock/<kind><name>/h/<attempt>        a holder, on its session's lease; its create revision makes the token
//!   lock/<kind><name>/m/<attempt>        a mark that this grant was not given back
//!   lock/<kind><name>/q/x/<attempt>      a waiter that wants it alone or as a permit
//!   lock/<kind><name>/q/s/<attempt>      a waiter that shares it
//! ```
//!
//! Names below `%tooz/` are percent-encoded, so a slash always ends a name. `%to` is no percent-encoding, so no namespace
//! begins like that. Groups with a slash in their id cannot be told from members in Python's keys, so their keys are ours.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};
use tooz_core::driver::{AttemptId, LockKey, SessionId};
use tooz_core::{FencingToken, GroupId, MemberId};

use crate::config::DEFAULT_NAMESPACE;
use crate::shared_with_python;

/// What an empty namespace is called; no encoding ends in a percent sign and letters that are no digits.
const EMPTY: &[u8] = b"%none";

/// Unreserved characters stand for themselves, everything else as `%XX`: one spelling for each name.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

fn encode(name: &[u8]) -> Vec<u8> {
    percent_encode(name, RESERVED).to_string().into_bytes()
}

fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let name: Vec<u8> = percent_decode(text).collect();
    // A name in another spelling was not written by this library.
    (encode(&name) == text).then_some(name)
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// The first key after all those that begin with `prefix`.
pub(crate) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // Every prefix of ours ends with a character; this is "all keys".
    vec![0]
}

/// Keys from the first one to before the second.
pub(crate) type Range = (Vec<u8>, Vec<u8>);

/// The range of one key alone.
pub(crate) fn only(key: &[u8]) -> Range {
    (key.to_vec(), [key, b"\0"].concat())
}

/// The range of everything that begins with `prefix`.
pub(crate) fn below(prefix: &[u8]) -> Range {
    (prefix.to_vec(), end_of(prefix))
}

/// The keys of one namespace.
#[derive(Debug)]
pub(crate) struct Keys {
    groups: Vec<u8>,
    locks: Vec<u8>,
    root: Vec<u8>,
    pub(crate) fence: Fence,
    /// Whether it is Python's namespace. In others nothing is shared with Python, and no warning is needed.
    pythons: bool,
    /// Whether a warning named an id that is not shared with Python, by kind.
    warned_of_group: AtomicBool,
    warned_of_member: AtomicBool,
}

impl Keys {
    pub(crate) fn new(namespace: &str) -> Self {
        let space = if namespace.is_empty() { EMPTY.to_vec() } else { encode(namespace.as_bytes()) };
        let root = join(&[b"%tooz/", &space, b"/"]);
        Self {
            groups: join(&[&space, b"/groups/"]),
            locks: join(&[b"/", &space, b"/locks"]),
            fence: Fence(join(&[&root, b"fence/"]).into()),
            root,
            pythons: namespace == DEFAULT_NAMESPACE,
            warned_of_group: AtomicBool::new(false),
            warned_of_member: AtomicBool::new(false),
        }
    }

    fn warn_once(&self, warned: &AtomicBool, shared: bool, kind: &str, id: &dyn Display) {
        if self.pythons && !shared && !warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(%id, "this {kind} id contains a slash, so processes of Python tooz do not see it; others like it will not be reported");
        }
    }

    fn ours(&self, parts: &[&[u8]]) -> Vec<u8> {
        join(&[&self.root, &parts.concat()])
    }

    pub(crate) fn epoch(&self) -> Vec<u8> {
        self.ours(&[b"epoch"])
    }

    /// A session's key; also the prefix of the records for it.
    pub(crate) fn session(&self, id: SessionId) -> Vec<u8> {
        self.ours(&[b"session/", id.to_string().as_bytes()])
    }

    /// The range of all sessions, and of the records for them.
    pub(crate) fn sessions(&self) -> Range {
        below(&self.ours(&[b"session/"]))
    }

    /// Whether this is the key of a session, and not of a record for one.
    pub(crate) fn is_session(&self, key: &[u8]) -> bool {
        let id = key.strip_prefix(self.sessions().0.as_slice()).and_then(|id| std::str::from_utf8(id).ok());
        id.and_then(SessionId::parse).is_some()
    }

    pub(crate) fn broken(&self, session: SessionId, attempt: AttemptId) -> Vec<u8> {
        join(&[&self.session(session), b"/broken/", attempt.to_string().as_bytes()])
    }

    /// A key that never exists.
    pub(crate) fn nothing(&self, session: SessionId) -> Vec<u8> {
        join(&[&self.session(session), b"/nothing"])
    }

    /// The attempt whose end a record for `session` tells.
    pub(crate) fn parse_broken(&self, session: SessionId, key: &[u8]) -> Option<AttemptId> {
        let rest = key.strip_prefix(self.session(session).as_slice())?.strip_prefix(b"/broken/")?;
        AttemptId::parse(std::str::from_utf8(rest).ok()?)
    }

    pub(crate) fn claim(&self, member: &MemberId) -> Vec<u8> {
        self.warn_once(&self.warned_of_member, shared_with_python::member(member), "member", member);
        self.ours(&[b"claim/", &encode(member.as_bytes())])
    }

    pub(crate) fn lock(&self, key: &LockKey) -> LockKeys {
        let (kind, name, gate) = match key {
            LockKey::Named(name) => {
                (b"n", encode(name.as_bytes()), Some(join(&[&self.locks, name.as_bytes()])))
            }
            LockKey::Leader(group) => (b"l", encode(group.as_bytes()), None),
            // For a kind that the core adds later: its Display names the lock.
            other => (b"o", encode(other.to_string().as_bytes()), None),
        };
        let prefix = self.ours(&[b"lock/", kind, &name, b"/"]);
        LockKeys { prefix, gate, fence: self.fence.clone() }
    }

    pub(crate) fn group(&self, group: &GroupId) -> GroupKeys {
        let own = self.ours(&[b"group/", &encode(group.as_bytes()), b"/"]);
        let shared = shared_with_python::group(group);
        self.warn_once(&self.warned_of_group, shared, "group", group);
        let python = shared.then(|| join(&[&self.groups, group.as_bytes(), b"/"]));
        GroupKeys { own, python }
    }

    /// Python's prefix of all groups, and ours.
    pub(crate) fn all_groups(&self) -> [Vec<u8>; 2] {
        [self.groups.clone(), self.ours(&[b"group/"])]
    }

    /// The group that a key is the key of.
    pub(crate) fn parse_group(&self, key: &[u8]) -> Option<GroupId> {
        let inner = |rest: &[u8]| {
            let id = rest.strip_suffix(b"/")?;
            (!id.contains(&b'/')).then(|| id.to_vec())
        };
        if let Some(rest) = key.strip_prefix(self.groups.as_slice()) {
            return GroupId::new(inner(rest)?).ok();
        }
        let id = decode(&inner(key.strip_prefix(self.ours(&[b"group/"]).as_slice())?)?)?;
        // A group without a slash has Python's key; here it would be listed twice.
        id.contains(&b'/').then(|| GroupId::new(id).ok())?
    }
}

/// The keys of one lock.
#[derive(Clone, Debug)]
pub(crate) struct LockKeys {
    pub(crate) prefix: Vec<u8>,
    /// Python's key; elections have none there.
    pub(crate) gate: Option<Vec<u8>>,
    pub(crate) fence: Fence,
}

/// The keys of the raises of tokens, those of the whole namespace.
#[derive(Clone, Debug)]
pub(crate) struct Fence(Arc<[u8]>);

impl Fence {
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.0
    }

    /// The raise by so much.
    pub(crate) fn raise(&self, by: i64) -> Vec<u8> {
        join(&[&self.0, by.to_string().as_bytes()])
    }

    /// By how much a key raises.
    pub(crate) fn parse(&self, key: &[u8]) -> Option<i64> {
        let digits = std::str::from_utf8(key.strip_prefix(&*self.0)?).ok()?;
        let most = FencingToken::RAISE_LIMIT.cast_signed();
        digits.parse().ok().filter(|by: &i64| (0..=most).contains(by) && by.to_string() == digits)
    }
}

/// What a key below a lock's prefix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockPart {
    Holder(AttemptId),
    Mark(AttemptId),
    Waiter(AttemptId),
}

impl LockKeys {
    fn part(&self, part: &[u8], attempt: AttemptId) -> Vec<u8> {
        join(&[&self.prefix, part, attempt.to_string().as_bytes()])
    }

    pub(crate) fn holders(&self) -> Vec<u8> {
        join(&[&self.prefix, b"h/"])
    }

    pub(crate) fn marks(&self) -> Vec<u8> {
        join(&[&self.prefix, b"m/"])
    }

    /// All waiters, or only those that do not share.
    pub(crate) fn queue(&self, all: bool) -> Vec<u8> {
        join(&[&self.prefix, if all { b"q/" } else { b"q/x/" }])
    }

    pub(crate) fn holder(&self, attempt: AttemptId) -> Vec<u8> {
        self.part(b"h/", attempt)
    }

    pub(crate) fn mark(&self, attempt: AttemptId) -> Vec<u8> {
        self.part(b"m/", attempt)
    }

    pub(crate) fn waiter(&self, attempt: AttemptId, shares: bool) -> Vec<u8> {
        self.part(if shares { b"q/s/" } else { b"q/x/" }, attempt)
    }

    pub(crate) fn parse(&self, key: &[u8]) -> Option<LockPart> {
        let rest = std::str::from_utf8(key.strip_prefix(self.prefix.as_slice())?).ok()?;
        let (part, attempt) = rest.rsplit_once('/')?;
        let attempt = AttemptId::parse(attempt)?;
        match part {
            "h" => Some(LockPart::Holder(attempt)),
            "m" => Some(LockPart::Mark(attempt)),
            "q/x" | "q/s" => Some(LockPart::Waiter(attempt)),
            _ => None,
        }
    }
}

/// The keys of one group.
#[derive(Clone, Debug)]
pub(crate) struct GroupKeys {
    /// Our prefix, for members and groups that Python cannot have.
    own: Vec<u8>,
    /// Python's prefix, which is also the key of the group.
    python: Option<Vec<u8>>,
}

impl GroupKeys {
    /// The key that says that the group exists.
    pub(crate) fn group(&self) -> &[u8] {
        self.python.as_deref().unwrap_or(&self.own)
    }

    /// The ranges in which its members stand, `from` to `end`, both without the group's own key.
    pub(crate) fn members(&self) -> Vec<Range> {
        let prefixes = self.python.iter().chain([&self.own]);
        prefixes.map(|prefix| (join(&[prefix, b"\0"]), end_of(prefix))).collect()
    }

    /// The first key of the range in which the member stands, before all members. Writing it says that a member of the range
    /// leaves in the same transaction: a watch tells the changes of one range in order.
    pub(crate) fn head(&self, member: &MemberId) -> &[u8] {
        match &self.python {
            Some(prefix) if shared_with_python::member(member) => prefix,
            _ => &self.own,
        }
    }

    /// The heads of its ranges, one of which is the group's own key.
    pub(crate) fn heads(&self) -> impl Iterator<Item = &[u8]> {
        self.python.iter().chain([&self.own]).map(Vec::as_slice)
    }

    pub(crate) fn is_head(&self, key: &[u8]) -> bool {
        self.heads().any(|head| head == key)
    }

    /// As [`GroupKeys::members`], with their heads, one of which is the group's own key.
    pub(crate) fn watched(&self) -> Vec<Range> {
        let prefixes = self.python.iter().chain([&self.own]);
        prefixes.map(|prefix| (prefix.clone(), end_of(prefix))).collect()
    }

    pub(crate) fn member(&self, member: &MemberId) -> Vec<u8> {
        match &self.python {
            Some(prefix) if shared_with_python::member(member) => join(&[prefix, member.as_bytes()]),
            _ => join(&[&self.own, &encode(member.as_bytes())]),
        }
    }

    /// The member that a key is the key of; `None` for a key that is nested deeper in Python's range.
    pub(crate) fn parse_member(&self, key: &[u8]) -> Option<MemberId> {
        let id = match self.python.as_ref().and_then(|prefix| key.strip_prefix(prefix.as_slice())) {
            Some(rest) => rest.to_vec(),
            None => decode(key.strip_prefix(self.own.as_slice())?)?,
        };
        let member = MemberId::new(id).ok()?;
        (self.member(&member) == key).then_some(member)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tooz_core::LockName;

    use super::*;

    fn lock(name: &[u8]) -> LockKey {
        LockKey::Named(LockName::new(name).unwrap())
    }

    fn text(key: &[u8]) -> String {
        String::from_utf8_lossy(key).into_owned()
    }

    #[test]
    fn python_finds_its_own() {
        let keys = Keys::new("tooz");
        let group = keys.group(&GroupId::new("g").unwrap());
        assert_eq!(text(group.group()), "tooz/groups/g/");
        assert_eq!(text(&group.member(&MemberId::new("m").unwrap())), "tooz/groups/g/m");
        assert_eq!(text(&keys.lock(&lock(b"x/y")).gate.unwrap()), "/tooz/locksx/y");
    }

    #[test]
    fn what_python_cannot_have_is_ours() {
        let keys = Keys::new("tooz");
        let group = keys.group(&GroupId::new("a/b").unwrap());
        assert_eq!(text(group.group()), "%tooz/tooz/group/a%2Fb/");
        let group = keys.group(&GroupId::new("g").unwrap());
        assert_eq!(text(&group.member(&MemberId::new("a/b").unwrap())), "%tooz/tooz/group/g/a%2Fb");
        assert_eq!(keys.lock(&LockKey::Leader(GroupId::new("g").unwrap())).gate, None);
        assert_eq!(group.parse_member(b"tooz/groups/g/a/b"), None);
        assert_eq!(keys.parse_group(b"tooz/groups/g/m"), None);
        assert_eq!(keys.parse_group(b"%tooz/tooz/group/g/"), None);
    }

    #[test]
    fn what_is_said_to_be_shared_stands_where_python_looks() {
        for id in [&b"a"[..], b"a/b", b"/", b"\xff", b"leader"] {
            let keys = Keys::new("tooz");
            let (group, member) = (GroupId::new(id).unwrap(), MemberId::new(id).unwrap());
            let pythons = |key: &[u8]| key.starts_with(b"tooz/groups/");
            assert_eq!(shared_with_python::group(&group), pythons(keys.group(&group).group()));
            let of_python = keys.group(&GroupId::new("g").unwrap());
            assert_eq!(shared_with_python::member(&member), pythons(&of_python.member(&member)));
            let LockKey::Named(name) = lock(id) else { unreachable!("it has a name") };
            assert_eq!(shared_with_python::lock(&name), keys.lock(&lock(id)).gate.is_some());
            let election = keys.lock(&LockKey::Leader(group.clone()));
            assert_eq!(shared_with_python::election(&group), election.gate.is_some());
            // A warning says so once.
            keys.claim(&member);
            let warned =
                [&keys.warned_of_group, &keys.warned_of_member].map(|warned| warned.load(Ordering::Relaxed));
            assert_eq!(warned, [!shared_with_python::group(&group), !shared_with_python::member(&member)]);
        }
        let ours = Keys::new("ours");
        ours.group(&GroupId::new("a/b").unwrap());
        assert!(!ours.warned_of_group.into_inner(), "nothing is shared there, so no warning is due");
    }

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(end_of(b"a/"), b"a0");
        assert_eq!(end_of(b"a\xff"), b"b");
        assert_eq!(end_of(b"\xff"), b"\0");
    }

    /// Every key that one name in one namespace makes, by what it stands for.
    fn everything(namespace: &str, name: &[u8], other: &[u8]) -> Vec<(String, Vec<u8>)> {
        let keys = Keys::new(namespace);
        let (group, member) = (GroupId::new(name).unwrap(), MemberId::new(other).unwrap());
        let mut all = vec![
            (format!("{namespace:?} claim {other:?}"), keys.claim(&member)),
            (format!("{namespace:?} epoch"), keys.epoch()),
            (format!("{namespace:?} raise"), keys.fence.raise(7)),
            (format!("{namespace:?} group {name:?}"), keys.group(&group).group().to_vec()),
            (format!("{namespace:?} member {name:?} {other:?}"), keys.group(&group).member(&member)),
        ];
        for (what, key) in [("lock", lock(name)), ("leader", LockKey::Leader(group))] {
            let keys = keys.lock(&key);
            let attempt = AttemptId(7);
            all.push((format!("{namespace:?} {what} holder {name:?}"), keys.holder(attempt)));
            all.push((format!("{namespace:?} {what} mark {name:?}"), keys.mark(attempt)));
            all.push((format!("{namespace:?} {what} waiter {name:?}"), keys.waiter(attempt, true)));
            all.extend(keys.gate.map(|gate| (format!("{namespace:?} {what} gate {name:?}"), gate)));
        }
        all
    }

    proptest! {
        #[test]
        fn two_things_never_meet(
            names in prop::collection::vec(prop::collection::vec(
                prop::sample::select(b"ab/%\0\xff.0".to_vec()), 1..6), 3),
            spaces in prop::collection::vec("[ab/%]{0,3}|tooz|%tooz|groups|locks|a/groups", 2),
        ) {
            let mut seen: BTreeMap<Vec<u8>, String> = BTreeMap::new();
            for namespace in &spaces {
                for name in &names {
                    for other in &names {
                        for (what, key) in everything(namespace, name, other) {
                            if let Some(before) = seen.insert(key, what.clone()) {
                                prop_assert_eq!(before, what);
                            }
                        }
                    }
                }
            }
        }

        #[test]
        fn keys_are_read_back(
            name in prop::collection::vec(any::<u8>(), 1..12),
            member in prop::collection::vec(any::<u8>(), 1..12),
        ) {
            let keys = Keys::new("n/m");
            let (group, member) = (GroupId::new(&name).unwrap(), MemberId::new(&member).unwrap());
            let of_group = keys.group(&group);
            prop_assert_eq!(keys.parse_group(of_group.group()), Some(group));
            let key = of_group.member(&member);
            prop_assert!(of_group.members().iter().any(|(from, end)| *from <= key && key < *end));
            let group = of_group.group();
            let inside = of_group.members().iter().any(|(from, end)| from.as_slice() <= group && group < end.as_slice());
            prop_assert!(!inside);
            prop_assert_eq!(of_group.parse_member(&key), Some(member));
        }

        #[test]
        fn foreign_keys_are_read_without_panic(key in prop::collection::vec(any::<u8>(), 0..40)) {
            let keys = Keys::new("n");
            let group = keys.group(&GroupId::new("g").unwrap());
            let lock = keys.lock(&lock(b"x"));
            for prefix in [&b""[..], &lock.prefix, &keys.all_groups()[0], &keys.all_groups()[1]] {
                let key = [prefix, &key].concat();
                let _ = (keys.parse_group(&key), group.parse_member(&key), lock.parse(&key));
                let _ = (keys.parse_broken(SessionId(1), &key), keys.fence.parse(&key), keys.is_session(&key));
            }
        }
    }
}
