//! `memcached://`: a server of its own for each case, and a proxy before it for each member.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tooz_memcached as _;

use crate::kit::{Call, Fate, Kit};
use crate::target::{Target, TestBackend, Wish};
use tooz_servers::memcached::{self, Memcached};
use tooz_servers::{Lent, Pool, Proxy, Way};

/// Twice the least that is allowed: what waits for an expiry waits little longer than it must, and a machine that is busy with
/// other cases may stand still for a second.
const TTL: &str = "ttl=2s";
/// Where nothing is to expire, nothing waits for it.
const PATIENT: &str = "ttl=15s";

/// Whoever watches looks more often than this.
const LOOKS: Duration = Duration::from_millis(1500);

/// One server.
pub fn target() -> Target {
    let asked = AtomicBool::new(false);
    let fresh = move |wish: Wish| {
        // The first question, which every helper process asks, too, is only what the URL claims.
        if !asked.swap(true, Ordering::SeqCst) {
            return Ok(TestBackend::new(url(SocketAddr::from((Ipv4Addr::LOCALHOST, 11_211)), TTL)));
        }
        Ok(place(Arc::new(Stage::set()?), if wish.lasting { TTL } else { PATIENT }))
    };
    Target::new("memcached", fresh)
        .missing_because(memcached::program().err())
        .ttl()
        .kit(|place| Box::new(Backend { stage: stage_of(place.url()) }))
}

static SERVERS: LazyLock<Pool<Memcached>> = LazyLock::new(|| Pool::new(Memcached::start, Memcached::clean));

/// The stages that stand now, by their URL, for the kit.
static STAGES: Mutex<BTreeMap<String, Weak<Stage>>> = Mutex::new(BTreeMap::new());

/// Which keys which member has looked at without an end in mind.
type Looks = Mutex<BTreeSet<(Vec<u8>, Vec<u8>)>>;

/// A server and the ways to it.
struct Stage {
    memcached: Lent<Memcached>,
    proxies: Mutex<BTreeMap<Vec<u8>, Arc<Proxy>>>,
    looks: Arc<Looks>,
    slow: Mutex<Duration>,
    /// While the server stands still: whose sessions are to be ended as soon as it goes on.
    standing: Mutex<Option<Vec<(String, String)>>>,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("memcached", &*self.memcached).finish_non_exhaustive()
    }
}

fn url(address: SocketAddr, options: &str) -> String {
    format!("memcached://{address}?{options}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(stage: Arc<Stage>, options: &'static str) -> TestBackend {
    let route = Arc::clone(&stage);
    let url_here = url(stage.memcached.address(), options);
    lock(&STAGES).insert(url_here.clone(), Arc::downgrade(&stage));
    TestBackend::new(url_here)
        .route(move |member| match route.proxy(member) {
            Ok(proxy) => url(proxy.address(), options),
            Err(why) => format!("memcached://no-proxy?{why}"),
        })
        .keep(stage)
}

fn stage_of(url: &str) -> Arc<Stage> {
    let stage = lock(&STAGES).get(url).and_then(Weak::upgrade);
    stage.unwrap_or_else(|| panic!("the place of {url} is gone"))
}

impl Stage {
    fn set() -> Result<Self, String> {
        Ok(Self {
            memcached: SERVERS.lend()?,
            proxies: Mutex::default(),
            looks: Arc::default(),
            slow: Mutex::default(),
            standing: Mutex::default(),
        })
    }

    fn proxy(&self, member: &[u8]) -> Result<Arc<Proxy>, String> {
        let mut proxies = lock(&self.proxies);
        if let Some(proxy) = proxies.get(member) {
            return Ok(Arc::clone(proxy));
        }
        let proxy = Arc::new(Proxy::start(self.memcached.address())?);
        let (looks, who) = (Arc::clone(&self.looks), member.to_vec());
        proxy.count_only(move |way, bytes| {
            if way == Way::Up && !CALLS.iter().any(|call| has_word(bytes, call)) {
                lock(&looks).extend(looked_at(bytes).map(|key| (who.clone(), key.to_vec())));
            }
            true
        });
        proxy.delay(*lock(&self.slow));
        proxies.insert(member.to_vec(), Arc::clone(&proxy));
        Ok(proxy)
    }

    fn each<T>(&self, act: impl FnMut(&Arc<Proxy>) -> T) -> Vec<T> {
        lock(&self.proxies).values().map(act).collect()
    }
}

/// The words by which the driver marks the requests in which a call takes effect.
const CALLS: &[&str] = &[
    "Oacquire",
    "Obreak",
    "Oclose",
    "Ocreate",
    "Ojoin",
    "Oleave",
    "Oopen",
    "Orelease",
    "Orenew",
    "Oupdate",
    "Owithdraw",
];

/// Whether a line of these commands has this word, behind others.
fn has_word(bytes: &[u8], word: &str) -> bool {
    let ends = |byte: u8| matches!(byte, b' ' | b'\r');
    bytes.windows(word.len() + 2).any(|window| {
        window[0] == b' ' && &window[1..=word.len()] == word.as_bytes() && ends(window[word.len() + 1])
    })
}

/// The keys that these commands look at.
fn looked_at(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter_map(|line| line.strip_prefix(b"mg ")?.split(|byte| *byte == b' ').next())
}

#[derive(Debug)]
struct Backend {
    stage: Arc<Stage>,
}

/// A key of this namespace. The names in the suite are such as Python can have.
fn key(namespace: &str, of: &str, name: &str) -> Vec<u8> {
    format!("{}{of}{name}", prefix(namespace)).into_bytes()
}

/// What every key of a namespace begins with.
fn prefix(namespace: &str) -> String {
    if namespace == "_TOOZ" {
        return String::new();
    }
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let encoded = namespace
        .bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") });
    encoded.chain([":".to_owned()]).collect()
}

impl Backend {
    fn of(&self, member: &str) -> Arc<Proxy> {
        match self.stage.proxy(member.as_bytes()) {
            Ok(proxy) => proxy,
            Err(why) => panic!("{why}"),
        }
    }

    fn ask<T>(&self, question: impl FnOnce(&Memcached) -> Result<T, String>) -> T {
        question(&self.stage.memcached).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Ends the sessions of a member; says how many there were.
    fn end_sessions(&self, namespace: &str, member: &str) -> usize {
        let sessions = key(namespace, "_TOOZ_RS:s:", "");
        let named = format!("{} {member}", member.len());
        let alive = key(namespace, "_TOOZ_MEMBER_", member);
        let claimed = self.ask(|server| server.item(&alive)).map(|item| item.value);
        let mut expired = 0;
        for session in self.ask(Memcached::keys) {
            let Some(id) = session.strip_prefix(&sessions[..]) else { continue };
            let item = self.ask(|server| server.item(&session));
            if !item.is_some_and(|item| item.value.starts_with(named.as_bytes())) {
                continue;
            }
            expired += usize::from(self.ask(|server| server.delete(&session)));
            if claimed.as_ref().is_some_and(|claimed| *claimed == [b"tooz-rs ", id].concat()) {
                self.ask(|server| server.delete(&alive));
            }
        }
        expired
    }
}

impl Kit for Backend {
    fn expire(&self, namespace: &str, member: &str) {
        if let Some(later) = &mut *lock(&self.stage.standing) {
            return later.push((namespace.to_owned(), member.to_owned()));
        }
        assert!(self.end_sessions(namespace, member) > 0, "{member} has no session to expire");
    }

    fn cut(&self, _: &str, member: &str) {
        self.of(member).hold_both();
    }

    fn heal(&self, _: &str, member: &str) {
        self.of(member).heal();
    }

    fn pause(&self) {
        lock(&self.stage.standing).get_or_insert_default();
        self.stage.memcached.server().stop();
    }

    fn resume(&self) {
        self.stage.memcached.server().resume();
        let later = lock(&self.stage.standing).take();
        for (namespace, member) in later.into_iter().flatten() {
            // It may have ended by itself meanwhile.
            self.end_sessions(&namespace, &member);
        }
    }

    fn next(&self, member: &str, call: Call, times: u64, fate: Fate) {
        let word = match call {
            Call::Request => "Oacquire",
            Call::Withdraw => "Owithdraw",
            Call::Release => "Orelease",
            Call::Join => "Ojoin",
            Call::Create => "Ocreate",
            Call::Renew => "Orenew",
        };
        let proxy = self.of(member);
        let asked = move |bytes: &[u8]| has_word(bytes, word);
        match fate {
            Fate::Fails => proxy.replace_requests(times, asked, memcached::unknown),
            // The server repeats the word: an answer to what was asked before is another one.
            Fate::AnswerLost => proxy.lose_replies(times, asked, asked),
            Fate::RequestLost => proxy.lose_requests(times, asked),
        }
    }

    fn slow(&self, by: Duration) {
        *lock(&self.stage.slow) = by / 2;
        self.stage.each(|proxy| proxy.delay(by / 2));
    }

    fn evict(&self, namespace: &str, group: &str, member: &str) {
        let group_key = key(namespace, "_TOOZ_GROUP_", group);
        // Another member may write at the same time.
        let evicted = (0..100).any(|_| {
            let Some(members) = self.ask(|server| server.item(&group_key)) else {
                panic!("there is no group {group}");
            };
            let Some(others) = msgpack::without(&members.value, member.as_bytes()) else {
                panic!("{member} has no record in {group}");
            };
            self.ask(|server| server.swap(&group_key, &members, &others))
        });
        assert!(evicted, "the group {group} changes again and again");
    }

    fn lose_data(&self) {
        assert!(self.stage.memcached.flush(), "the data cannot be deleted");
    }

    fn vanish(&self, namespace: &str, lock: &str) {
        let key = key(namespace, "__TOOZ_LOCK_", lock);
        assert!(self.ask(|server| server.delete(&key)), "nobody holds {lock}");
    }

    fn round_trips(&self) -> u64 {
        self.stage.each(|proxy| proxy.round_trips()).into_iter().sum()
    }

    /// The server knows of no watch: whoever watches looks again and again. This many keys are looked at, each by one member,
    /// in a time in which every watch looks.
    #[allow(clippy::disallowed_methods)] // a rate is counted, which takes time
    fn watches(&self) -> usize {
        lock(&self.stage.looks).clear();
        std::thread::sleep(LOOKS);
        lock(&self.stage.looks).len()
    }
}

/// As much of `MessagePack` as a group's map of members needs.
mod msgpack {
    /// A big-endian number of this many bytes, and what follows.
    fn number(bytes: &[u8], width: usize) -> Option<(usize, &[u8])> {
        let (digits, rest) = bytes.split_at_checked(width)?;
        Some((digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest))
    }

    /// What a value is made of: bytes of its own, and so many values behind them.
    struct Head<'a> {
        bytes: &'a [u8],
        values: usize,
        rest: &'a [u8],
    }

    fn head(value: &[u8]) -> Option<Head<'_>> {
        let (first, rest) = value.split_first()?;
        let low = |mask: u8| usize::from(first & mask);
        let counted = |width, each: usize| {
            let (count, rest) = number(rest, width)?;
            Some(Head { bytes: &[], values: count.checked_mul(each)?, rest })
        };
        let sized = |width, more: usize| {
            let (length, rest) = number(rest, width)?;
            let (bytes, rest) = rest.split_at_checked(length.checked_add(more)?)?;
            Some(Head { bytes, values: 0, rest })
        };
        let fixed = |length: usize| {
            let (bytes, rest) = rest.split_at_checked(length)?;
            Some(Head { bytes, values: 0, rest })
        };
        match first {
            0x80..=0x8f => Some(Head { bytes: &[], values: 2 * low(0x0f), rest }),
            0x90..=0x9f => Some(Head { bytes: &[], values: low(0x0f), rest }),
            0xa0..=0xbf => fixed(low(0x1f)),
            0xc4 | 0xd9 => sized(1, 0),
            0xc5 | 0xda => sized(2, 0),
            0xc6 | 0xdb => sized(4, 0),
            0xc7 => sized(1, 1),
            0xc8 => sized(2, 1),
            0xc9 => sized(4, 1),
            0xcc | 0xd0 => fixed(1),
            0xcd | 0xd1 | 0xd4 => fixed(2),
            0xd5 => fixed(3),
            0xca | 0xce | 0xd2 => fixed(4),
            0xd6 => fixed(5),
            0xcb | 0xcf | 0xd3 => fixed(8),
            0xd7 => fixed(9),
            0xd8 => fixed(17),
            0xdc => counted(2, 1),
            0xdd => counted(4, 1),
            0xde => counted(2, 2),
            0xdf => counted(4, 2),
            _ => fixed(0),
        }
    }

    /// What follows a whole value.
    fn after(value: &[u8]) -> Option<&[u8]> {
        let (mut rest, mut due) = (value, 1_usize);
        while due > 0 {
            let head = head(rest)?;
            due = due - 1 + head.values;
            rest = head.rest;
        }
        Some(rest)
    }

    /// A map without the entry of this key; `None`: it has none, or is no map.
    pub(super) fn without(map: &[u8], key: &[u8]) -> Option<Vec<u8>> {
        let whole = head(map).filter(|_| matches!(map[0], 0x80..=0x8f | 0xde | 0xdf))?;
        let (entries, mut rest, mut kept) = (whole.values / 2, whole.rest, Vec::new());
        let mut found = false;
        for _ in 0..entries {
            let end = after(after(rest)?)?;
            if head(rest)?.bytes == key {
                found = true;
            } else {
                kept.extend_from_slice(&rest[..rest.len() - end.len()]);
            }
            rest = end;
        }
        let left = u32::try_from(entries.checked_sub(1)?).ok().filter(|_| found)?;
        let mut map = match u8::try_from(left) {
            Ok(few @ ..=0x0f) => vec![0x80 | few],
            _ => [&[0xdf][..], &left.to_be_bytes()].concat(),
        };
        map.extend(kept);
        Some(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_encoded_as_the_driver_does_it() {
        assert_eq!(key("_TOOZ", "__TOOZ_LOCK_", "x"), b"__TOOZ_LOCK_x");
        assert_eq!(key("case-1f", "_TOOZ_GROUP_", "g"), b"case-1f:_TOOZ_GROUP_g");
        assert_eq!(key("a_é", "_TOOZ_RS:s:", ""), b"a%5F%C3%A9:_TOOZ_RS:s:");
    }

    #[test]
    fn calls_and_looks_are_told_apart() {
        let batch = b"add k 1 3 5\r\nvalue\r\nmg k v c t\r\nmg other Oacquire\r\n";
        assert!(has_word(batch, "Oacquire") && has_word(b"VA 1 Oacquire c1\r\nx\r\n", "Oacquire"));
        assert!(!has_word(batch, "Orelease") && !has_word(b"mg Oacquired\r\n", "Oacquire"));
        assert_eq!(looked_at(batch).collect::<Vec<_>>(), [&b"k"[..], b"other"]);
    }

    #[test]
    fn an_entry_is_taken_out_of_a_map() {
        let map = b"\x83\xc4\x01a\x81\xc4\x01c\xcd\x01\x02\xc4\x01b\x92\xc0\xd9\x01a\xa1d\xc4\x00";
        assert_eq!(msgpack::without(map, b"a").unwrap(), b"\x82\xc4\x01b\x92\xc0\xd9\x01a\xa1d\xc4\x00");
        assert_eq!(
            msgpack::without(map, b"b").unwrap(),
            b"\x82\xc4\x01a\x81\xc4\x01c\xcd\x01\x02\xa1d\xc4\x00"
        );
        assert_eq!(msgpack::without(b"\x81\xa1a\xcb\0\0\0\0\0\0\0\0", b"a").unwrap(), b"\x80");
        for (map, key) in [
            (&map[..], &b"c"[..]),
            (b"\x80", b"a"),
            (b"\x92\xa1a\xa1a", b"a"),
            (b"\x81\xa1a", b"a"),
            (b"", b"a"),
        ] {
            assert_eq!(msgpack::without(map, key), None, "{}", map.escape_ascii());
        }
    }

    #[test]
    fn a_large_map_stays_one() {
        let entry = |n: u8| [&b"\xc4\x01"[..], &[n], b"\xd6\x01\0\0\0\0"].concat();
        let entries: Vec<u8> = (0..40).flat_map(entry).collect();
        let map = [&b"\xde\x00\x28"[..], &entries].concat();
        let mut left = map;
        for n in 0..40 {
            left = msgpack::without(&left, &[n]).unwrap();
            assert_eq!(msgpack::without(&left, &[n]), None);
        }
        assert_eq!(left, b"\x80");
    }
}
