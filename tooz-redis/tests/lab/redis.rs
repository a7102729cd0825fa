//! What only Redis can do to a coordinator: restarts and late requests; lost data and permissions below.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

/// A server; that none is installed is a failure which says so.
macro_rules! server {
    ($($more:expr),*) => {
        Redis::start_with(&[$($more),*]).unwrap()
    };
}

#[cfg(feature = "tls")]
mod certificates;
mod lost;
mod permissions;

use std::sync::Arc;
use std::time::Duration;

use tooz_core::{
    Capabilities, Coordinator, Error, ErrorKind, Event, FencingToken, GroupEvent, GroupWatch, Liveness,
    MemberRecord,
};
use tooz_servers::lab::Case;
use tooz_servers::redis::{Redis, command, list, text};
use tooz_servers::{Proxy, cases};

use crate::within;

use lost::{
    a_deleted_stamp_is_not_replaced_beside_another_layout, a_full_server_keeps_what_it_has,
    a_lost_message_delays_a_hand_over_and_no_more, a_wiped_queue_is_queued_in_again,
    forgotten_scripts_are_told_again, lost_data_is_noticed_and_tokens_grow,
};
use permissions::{
    a_full_server_can_be_looked_at, a_user_who_may_only_read_looks, the_server_lowers_what_is_promised,
    users_and_permissions,
};

pub(crate) const CASES: &[(&str, Case)] = cases![
    a_restart_is_survived,
    a_raise_is_kept_across_a_kill,
    forgotten_scripts_are_told_again,
    a_lost_message_delays_a_hand_over_and_no_more,
    a_wiped_queue_is_queued_in_again,
    a_deleted_stamp_is_not_replaced_beside_another_layout,
    lost_data_is_noticed_and_tokens_grow,
    a_full_server_keeps_what_it_has,
    a_late_request_comes_to_nothing,
    cut_off_while_it_waits,
    a_short_standstill_costs_nothing,
    a_reader_of_an_earlier_time_stays_lost,
    readers_of_unlike_ttls,
    tokens_a_microsecond_apart,
    foreign_keys_are_corrupt,
    a_foreign_holder_is_polled,
    a_busy_group_is_read_once_a_second,
    one_round_trip_each,
    users_and_permissions,
    a_user_who_may_only_read_looks,
    a_full_server_can_be_looked_at,
    the_server_lowers_what_is_promised,
    a_unix_socket_and_a_database,
    nothing_is_left_behind,
    a_break_of_a_python_holder_spares_the_next_one,
];
#[cfg(feature = "tls")]
pub(crate) const TLS: &[(&str, Case)] =
    cases![certificates::certificates_are_verified, certificates::a_fault_names_what_to_correct];

/// For sessions that are not to end: a machine may stand still for seconds.
const PATIENT: &str = "15s";

/// What nobody has to wait for comes within so many seconds, on any machine.
const SOON: u64 = 15;

fn url(redis: &Redis, ttl: &str) -> String {
    format!("redis://{}?ttl={ttl}", redis.address())
}

async fn connect(redis: &Redis, ttl: &str, member: &str) -> Coordinator {
    Coordinator::builder(url(redis, ttl), member).connect().await.unwrap()
}

async fn eventually(what: &str, check: impl AsyncFnMut() -> bool) {
    tooz_servers::until(what, Duration::from_secs(20), check).await;
}

/// Waits for a lock in a task of its own, and until it stands in the queue.
async fn wait_for(c: &Coordinator, name: &str, before: u64) -> tokio::task::JoinHandle<tooz_core::LockGuard> {
    let lock = c.lock(name).unwrap();
    let asked = lock.clone();
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    eventually("it waits", async || asked.holders().await.unwrap().waiters == Some(before + 1)).await;
    waiting
}

fn keys(redis: &Redis, pattern: &str) -> Vec<String> {
    list(&redis.command(&[b"KEYS", pattern.as_bytes()]).unwrap())
}

/// A server that comes back within the ttl takes nothing from anybody; one that stays away longer takes everything once.
async fn a_restart_is_survived() {
    let redis = server!();
    let (a, b) = (connect(&redis, "8s", "a").await, connect(&redis, "8s", "b").await);
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let waiting = wait_for(&b, "x", 0).await;
    redis.server().kill();
    redis.server().start_again().unwrap();
    eventually("a beat after the restart", async || matches!(a.liveness(), Liveness::Alive { .. })).await;
    assert!(guard.is_held() && !waiting.is_finished());
    assert_eq!(a.group("g").unwrap().members().await.unwrap().len(), 1);
    let token = guard.token();
    guard.release().await.unwrap();
    let next = within("the hand-over", SOON, waiting).await.unwrap();
    assert!(next.token() > token && next.is_held());

    let mut events = b.events();
    redis.server().kill();
    within("the loss", 20, next.lost()).await;
    redis.server().start_again().unwrap();
    let rejoined = async { while !matches!(events.next().await, Some(Event::Rejoined(_))) {} };
    within("a new session", SOON, rejoined).await;
    let again = within("the lock", SOON, b.lock("x").unwrap().acquire()).await.unwrap();
    assert!(again.token() > next.token());
    eventually("the member is back", async || {
        a.group("g").unwrap().members().await.is_ok_and(|m| m.len() == 1)
    })
    .await;
}

/// Python's holder has no token: what its key holds is compared.
async fn a_break_of_a_python_holder_spares_the_next_one() {
    let redis = server!();
    let c = connect(&redis, PATIENT, "c").await;
    let lock = c.lock("x").unwrap();
    let guard = lock.acquire().await.unwrap();
    let key = keys(&redis, "*x_lock").pop().unwrap();
    guard.release().await.unwrap();
    let python_has_it = |word: &str| drop(redis.command(&[b"SET", key.as_bytes(), word.as_bytes()]).unwrap());
    python_has_it("first");
    let shown = lock.holders().await.unwrap().holders;
    assert_eq!((shown.len(), shown[0].foreign.as_deref()), (1, Some(&b"first"[..])));
    python_has_it("second");
    assert_eq!(lock.break_holder(&shown[0], "late").await.unwrap(), []);
    let now = lock.holders().await.unwrap().holders;
    assert_eq!((now.len(), now[0].foreign.as_deref()), (1, Some(&b"second"[..])));
    assert_eq!(lock.break_holder(&now[0], "now").await.unwrap().len(), 1);
    assert!(lock.holders().await.unwrap().holders.is_empty());
    assert!(lock.try_acquire().await.unwrap().is_some());
}

/// A server that is killed right after it was told of a raise.
async fn a_raise_is_kept_across_a_kill() {
    let redis = server!();
    let a = connect(&redis, PATIENT, "a").await;
    let before = a.lock("x").unwrap().acquire().await.unwrap();
    let n = before.token().get() + 1_000_000_000_000;
    a.raise_tokens(n).await.unwrap();
    redis.server().kill();
    redis.server().start_again().unwrap();
    let b = connect(&redis, PATIENT, "b").await;
    let after = within("the lock", SOON, b.lock("y").unwrap().acquire()).await.unwrap();
    assert!(after.token().get() >= n, "{} after the tokens were raised to {n}", after.token());
}

/// A request that arrives over a connection older than one that was heard since is not done, whenever it arrives.
async fn a_late_request_comes_to_nothing() {
    let redis = server!();
    let proxy = Proxy::start(redis.address()).unwrap();
    let a =
        Coordinator::builder(format!("redis://{}?ttl=15s", proxy.address()), "a").connect().await.unwrap();
    let session = format!("_tooz_rs:s:{}", a.session_id().unwrap());
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    a.group("g").unwrap().leave().await.unwrap();
    proxy.cut();
    // Over the next connection.
    drop(a.lock("other").unwrap().acquire().await.unwrap());
    let newest = text(&redis.command(&[b"HGET", session.as_bytes(), b"e"]).unwrap());
    assert_ne!(newest, "1");
    let id = a.session_id().unwrap().to_string();
    let keys = [
        "_tooz_x_lock",
        "_tooz_rs:lock:x:h",
        "_tooz_rs:lock:x:q",
        "_tooz_rs:lock:x:w",
        &session,
        "_tooz_rs:fence",
    ];
    let mut ghost = vec!["EVALSHA", tooz_redis::script_hash("request").unwrap(), "6"];
    ghost.extend(keys);
    let attempt = "0123456789abcdef0123456789abcdef";
    ghost.extend(["_tooz", "1", attempt, &id, "x", "0", "15000", "3600000", "wait", "_tooz_rs:lock:x:", "a"]);
    let late = |ghost: &[&str]| {
        let words: Vec<_> = ghost.iter().map(|word| word.as_bytes()).collect();
        redis.command(&words).unwrap()
    };
    assert_eq!(late(&ghost), b"*1\r\n$4\r\nlate\r\n");
    assert!(a.lock("x").unwrap().holders().await.unwrap().holders.is_empty());
    // The same words over the connection of now are done, so it was not their form.
    ghost[10] = &newest;
    assert!(late(&ghost).starts_with(b"*4\r\n$7\r\ngranted"));
    // Nor does a join come back to life.
    let mut join =
        vec!["EVALSHA", tooz_redis::script_hash("join").unwrap(), "5", "_tooz_group:g", "_tooz_groups"];
    join.extend(["_tooz_rs:group:g:m", &session, "_tooz_beats:a", "_tooz", "1", &id, "a", "\u{0}", "0"]);
    join.extend([attempt, attempt, "15000", "g", "_tooz_rs:group:g:", ""]);
    assert_eq!(late(&join), b"*1\r\n$4\r\nlate\r\n");
    assert!(a.group("g").unwrap().members().await.unwrap().is_empty());
}

/// Cut off while it waits, and healed within the ttl and beyond it: granted once, or not at all.
async fn cut_off_while_it_waits() {
    let redis = server!();
    let proxy = Proxy::start(redis.address()).unwrap();
    let a = connect(&redis, "4s", "a").await;
    let b = Coordinator::builder(format!("redis://{}?ttl=4s", proxy.address()), "b").connect().await.unwrap();
    for away in [200, 7000] {
        let guard = a.lock("x").unwrap().acquire().await.unwrap();
        let waiting = wait_for(&b, "x", 0).await;
        proxy.hold_both();
        let token = guard.token();
        guard.release().await.unwrap(); // hands over to one who does not hear it
        tokio::time::sleep(Duration::from_millis(away)).await;
        if away > 4000 {
            // The one that was cut off is dead for the server, and the lock free for others.
            within("the lock", SOON, a.lock("x").unwrap().acquire()).await.unwrap().release().await.unwrap();
        }
        proxy.heal();
        let next = within("the lock", SOON, waiting).await.unwrap();
        assert!(next.is_held() && next.token() > token);
        next.release().await.unwrap();
    }
}

/// A server that stands still for less than a ttl takes nothing from anybody; nobody even asks for a new session.
async fn a_short_standstill_costs_nothing() {
    let redis = server!();
    let (a, b) = (connect(&redis, "9s", "a").await, connect(&redis, "9s", "b").await);
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let waiting = wait_for(&b, "x", 0).await;
    let session = a.session_id();
    redis.server().stop();
    tokio::time::sleep(Duration::from_secs(3)).await;
    redis.server().resume();
    eventually("a beat afterwards", async || matches!(a.liveness(), Liveness::Alive { .. })).await;
    assert!(guard.is_held() && !waiting.is_finished() && a.session_id() == session);
    assert_eq!(a.group("g").unwrap().members().await.unwrap().len(), 1);
    guard.release().await.unwrap();
    assert!(within("the hand-over", SOON, waiting).await.unwrap().is_held());
}

/// A reader that was away while the lock was somebody else's does not come back to life with the readers after that.
async fn a_reader_of_an_earlier_time_stays_lost() {
    let redis = server!();
    let proxy = Proxy::start(redis.address()).unwrap();
    let url = format!("redis://{}?ttl=2s", proxy.address());
    let old = Coordinator::builder(url, "old").connect().await.unwrap();
    let new = connect(&redis, PATIENT, "new").await;
    let first = old.lock("x").unwrap().shared().acquire().await.unwrap();
    proxy.hold_both(); // with whatever beat is on its way
    eventually("it is free for Python", async || {
        redis.command(&[b"SET", b"_tooz_x_lock", b"python", b"NX", b"PX", b"60000"]).unwrap() == b"+OK\r\n"
    })
    .await;
    assert!(!first.is_held(), "a reader beside Python's writer");
    redis.command(&[b"DEL", b"_tooz_x_lock"]).unwrap();
    let second = within("the lock", SOON, new.lock("x").unwrap().shared().acquire()).await.unwrap();
    proxy.heal();
    eventually("it is back", async || matches!(old.liveness(), Liveness::Alive { .. })).await;
    assert!(!first.is_held() && second.is_held());
    assert_eq!(new.lock("x").unwrap().holders().await.unwrap().holders.len(), 1, "the old one holds again");
    assert!(second.token() > first.token());
}

/// Whose sessions live longer than those of others read beside them: the key for Python does not go between two of their
/// beats, whoever came first.
async fn readers_of_unlike_ttls() {
    let redis = server!();
    let long = connect(&redis, "60s", "long").await;
    for n in 0..2 {
        let short =
            Coordinator::builder(url(&redis, "3s"), format!("short-{n}")).manual_heart().rejoin(false);
        let short = short.connect().await.unwrap();
        let readers = [&short, &long];
        let first = readers[n].lock("x").unwrap().shared().acquire().await.unwrap();
        let second = readers[1 - n].lock("x").unwrap().shared().acquire().await.unwrap();
        // The one's session is over long before the other's next beat.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let (dead, alive) = if n == 0 { (first, second) } else { (second, first) };
        assert!(!dead.is_held() && alive.is_held());
        assert_eq!(keys(&redis, "_tooz_x_lock").len(), 1, "Python would be let in");
        alive.release().await.unwrap();
        assert!(keys(&redis, "_tooz_x_lock").is_empty(), "nobody reads any more");
    }
}

/// Tokens that differ in their last digit alone differ.
async fn tokens_a_microsecond_apart() {
    let redis = server!();
    let a = connect(&redis, PATIENT, "a").await;
    // Ahead of the server's clock, so that each is the next number; sixteen digits, which Lua would round as a text.
    let last: u64 = 2_790_000_000_123_456;
    redis.command(&[b"SET", b"_tooz_rs:fence", last.to_string().as_bytes()]).unwrap();
    for n in 1..=20 {
        let guard = a.lock("x").unwrap().acquire().await.unwrap();
        assert_eq!(guard.token().get(), last + n);
        guard.release().await.unwrap();
    }
}

/// Keys of ours that hold something else are named, and nothing panics or deletes them.
async fn foreign_keys_are_corrupt() {
    let redis = server!();
    let a = connect(&redis, PATIENT, "a").await;
    let is_corrupt = |error: Error| assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    redis.command(&[b"RPUSH", b"_tooz_x_lock", b"1"]).unwrap();
    is_corrupt(a.lock("x").unwrap().try_acquire().await.unwrap_err());
    redis.command(&[b"SET", b"_tooz_group:g", b"1"]).unwrap();
    is_corrupt(a.group("g").unwrap().members().await.unwrap_err());
    for hostile in [&b"x"[..], b"99999999999999999999", b"nan"] {
        redis.command(&[b"SET", b"_tooz_rs:fence", hostile]).unwrap();
        is_corrupt(a.lock("y").unwrap().try_acquire().await.unwrap_err());
        is_corrupt(a.raise_tokens(1).await.unwrap_err());
    }
    redis.command(&[b"DEL", b"_tooz_rs:fence"]).unwrap();
    // Records that cannot be read are nobody's, and messages nobody understands are ignored.
    redis.command(&[b"HSET", b"_tooz_rs:lock:y:h", b"0123456789abcdef0123456789abcdef", b"\xff"]).unwrap();
    for inbox in list(&redis.command(&[b"PUBSUB", b"CHANNELS", b"*"]).unwrap()) {
        for message in
            [&b""[..], b"G", b"G x", b"B 1", b"X \xff", b"b 99999999999999999999999", b"\xff\xff\xff"]
        {
            redis.command(&[b"PUBLISH", inbox.as_bytes(), message]).unwrap();
        }
    }
    let guard = a.lock("y").unwrap().try_acquire().await;
    eventually("a session", async || matches!(a.liveness(), Liveness::Alive { .. })).await;
    drop(guard);
    assert_eq!(keys(&redis, "_tooz_x_lock").len(), 1, "deleted unasked");
    let group = a.group("h").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    redis.command(&[b"HSET", b"_tooz_group:h", b"python", b"\xc1"]).unwrap();
    redis.command(&[b"SET", b"_tooz_beats:python", b"Not dead!"]).unwrap();
    assert_eq!(group.members().await.unwrap().len(), 1, "one that cannot be read is left out");
}

/// A lock that somebody else holds without saying a word is waited for by asking.
async fn a_foreign_holder_is_polled() {
    let redis = server!();
    let a = connect(&redis, PATIENT, "a").await;
    redis.command(&[b"SET", b"_tooz_x_lock", b"somebody", b"PX", b"20000"]).unwrap();
    let waiting = wait_for(&a, "x", 0).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    redis.command(&[b"PEXPIRE", b"_tooz_x_lock", b"20000"]).unwrap(); // it renews
    assert!(!waiting.is_finished());
    redis.command(&[b"DEL", b"_tooz_x_lock"]).unwrap();
    assert!(within("the lock", SOON, waiting).await.unwrap().is_held());
}

/// Reads until something happened to a member.
async fn told_of(watch: &mut GroupWatch, what: &str, wanted: impl Fn(GroupEvent) -> bool) {
    within(what, SOON, async { while !wanted(watch.next().await.unwrap().unwrap()) {} }).await;
}

/// However many watch a group that never stops changing, the server reads it once a second, and every watcher is told of the
/// members of Python that come and go.
async fn a_busy_group_is_read_once_a_second() {
    let redis = server!();
    let (busy, b) = (connect(&redis, PATIENT, "busy").await, connect(&redis, PATIENT, "b").await);
    let group = busy.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    let mut watches = Vec::new();
    for _ in 0..6 {
        let mut watch = b.group("g").unwrap().watch().await.unwrap();
        told_of(&mut watch, "a snapshot", |event| matches!(event, GroupEvent::Snapshot(_))).await;
        watches.push(watch);
    }
    let address = redis.address();
    let traffic = tokio::spawn(async move {
        // One more watches, and looks so often that the group is always read for it.
        let mut look = vec!["EVALSHA", tooz_redis::script_hash("tick").unwrap(), "3"];
        look.extend([
            "_tooz_group:g",
            "_tooz_rs:group:g:m",
            "_tooz_rs:epoch",
            "_tooz",
            "0",
            "_tooz_rs:group:g:",
            "0",
        ]);
        let look: Vec<_> = look.into_iter().map(str::as_bytes).collect();
        for n in 0..u64::MAX {
            group.update_capabilities(Capabilities::new(&n).unwrap()).await.unwrap();
            let ticked = command(address, &look).unwrap();
            assert!(list(&ticked).iter().any(|word| word == "ok"), "{}", ticked.escape_ascii());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    redis.command(&[b"SET", b"_tooz_beats:python", b"Not dead!"]).unwrap();
    redis.command(&[b"HSET", b"_tooz_group:g", b"python", b"\xc0"]).unwrap();
    let is_python = |record: &MemberRecord| record.member.as_bytes() == b"python";
    for watch in &mut watches {
        // A reader that fell behind is told by a view.
        let joined = |event| match event {
            GroupEvent::Joined(record) => is_python(&record),
            GroupEvent::Resync(members) => members.iter().any(is_python),
            _ => false,
        };
        told_of(watch, "Python's member", joined).await;
    }
    // The script reads two hashes, and nothing else here reads any.
    let reads = || {
        let stats = redis.command(&[b"INFO", b"commandstats"]).unwrap();
        let stats = String::from_utf8_lossy(&stats);
        let calls = stats.split_once("cmdstat_hgetall:calls=").and_then(|(_, rest)| rest.split(',').next());
        calls.unwrap().parse::<u32>().unwrap() / 2
    };
    let (before, start) = (reads(), std::time::Instant::now());
    tokio::time::sleep(Duration::from_secs(4)).await; // what time alone does
    let (read, seconds) = (reads() - before, start.elapsed().as_secs_f64());
    assert!(read > 0 && f64::from(read) < 3.0 * seconds, "{read} reads in {seconds} s for 7 watches");
    redis.command(&[b"DEL", b"_tooz_beats:python"]).unwrap();
    for watch in &mut watches {
        let left = |event| match event {
            GroupEvent::Left(record, _) => is_python(&record),
            GroupEvent::Resync(members) => !members.iter().any(is_python),
            _ => false,
        };
        told_of(watch, "its end", left).await;
    }
    assert!(!traffic.is_finished(), "the group became quiet");
    traffic.abort();
}

/// Each operation takes the round trips that the table in the design of the driver says.
async fn one_round_trip_each() {
    let redis = server!();
    let proxy = Arc::new(Proxy::start(redis.address()).unwrap());
    // So long a ttl that no beat comes between.
    let a =
        Coordinator::builder(format!("redis://{}?ttl=10m", proxy.address()), "a").connect().await.unwrap();
    let others: Vec<_> = futures(30, |n| {
        let url = url(&redis, "10m");
        async move {
            let c = Coordinator::builder(url, format!("m{n}")).connect().await.unwrap();
            c.group("g").unwrap().join_or_create(Capabilities::new(&n).unwrap()).await.unwrap();
            c
        }
    })
    .await;
    let group = a.group("g").unwrap();
    let count = |before: u64| proxy.round_trips() - before;
    let now = || proxy.round_trips();
    let start = now();
    let guard = a.lock("x").unwrap().try_acquire().await.unwrap().unwrap();
    assert_eq!(count(start), 1, "acquire");
    let start = now();
    guard.release().await.unwrap();
    assert_eq!(count(start), 1, "release");
    let start = now();
    group.join(Capabilities::none()).await.unwrap();
    assert_eq!(count(start), 1, "join");
    let start = now();
    assert_eq!(group.members().await.unwrap().len(), 31);
    assert_eq!(count(start), 1, "members");
    let guards =
        [a.lock("1").unwrap().acquire().await.unwrap(), a.lock("2").unwrap().acquire().await.unwrap()];
    let start = now();
    a.heartbeat().await.unwrap();
    assert_eq!(count(start), 1, "a beat");
    let start = now();
    group.leave().await.unwrap();
    assert_eq!(count(start), 1, "leave");
    // Handed over by a message: the waiter sends nothing between asking and having it.
    let holder = others[0].lock("y").unwrap().acquire().await.unwrap();
    let start = now();
    let lock = a.lock("y").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    let watcher = others[1].lock("y").unwrap();
    eventually("it waits", async || watcher.holders().await.unwrap().waiters == Some(1)).await;
    holder.release().await.unwrap();
    let next = within("the hand-over", SOON, waiting).await.unwrap();
    assert_eq!(count(start), 1, "waiting");
    drop((next, guards));
}

async fn futures<F: Future>(count: usize, make: impl Fn(usize) -> F) -> Vec<F::Output> {
    let mut done = Vec::new();
    for n in 0..count {
        done.push(make(n).await);
    }
    done
}

/// A unix socket and another database are other ways to the same.
async fn a_unix_socket_and_a_database() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("redis.sock");
    let redis = server!("--unixsocket", socket.to_str().unwrap());
    let a = Coordinator::builder(format!("redis+unix://{}", socket.display()), "a").connect().await.unwrap();
    let guard = a.lock("x").unwrap().try_acquire().await.unwrap().unwrap();
    assert!(connect(&redis, PATIENT, "b").await.lock("x").unwrap().try_acquire().await.unwrap().is_none());
    let other = format!("valkey://{}/1", redis.address());
    let elsewhere = Coordinator::builder(&other, "b").connect().await.unwrap();
    let third = Coordinator::builder(other, "c").connect().await.unwrap();
    let second = elsewhere.lock("x").unwrap().try_acquire().await.unwrap().unwrap();
    // Databases share their channels: what happens in one must not be heard in the other.
    let mut watches = Vec::new();
    for c in [&a, &elsewhere] {
        c.group("g").unwrap().create().await.unwrap();
        let mut watch = c.group("g").unwrap().watch().await.unwrap();
        assert!(watch.next().await.unwrap().is_ok());
        watches.push(watch);
    }
    elsewhere.group("g").unwrap().join(Capabilities::none()).await.unwrap();
    assert!(matches!(
        within("the join", SOON, watches[1].next()).await,
        Some(Ok(tooz_core::GroupEvent::Joined(_)))
    ));
    let waiting = wait_for(&third, "x", 0).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(1500), watches[0].next()).await.is_err(),
        "heard in another database"
    );
    second.release().await.unwrap();
    assert!(within("the hand-over", SOON, waiting).await.unwrap().is_held() && guard.is_held());
}

/// Nothing is left behind by locks, groups and sessions that came to a clean end.
async fn nothing_is_left_behind() {
    let redis = server!();
    let (a, b) = (connect(&redis, PATIENT, "a").await, connect(&redis, PATIENT, "b").await);
    let mut last: Option<FencingToken> = None;
    for n in 0..50 {
        let name = format!("lock {n}");
        let guard = a.lock(&name).unwrap().acquire().await.unwrap();
        assert!(last.is_none_or(|last| guard.token() > last));
        last = Some(guard.token());
        let waiting = wait_for(&b, &name, 0).await;
        if n % 2 == 0 {
            waiting.abort();
            guard.release().await.unwrap();
        } else {
            guard.release().await.unwrap();
            waiting.await.unwrap().release().await.unwrap();
        }
    }
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    a.close().await.unwrap();
    b.group("g").unwrap().delete().await.unwrap();
    b.close().await.unwrap();
    let mut left = keys(&redis, "*");
    left.sort();
    // The last goes by itself.
    assert_eq!(left, ["_tooz_rs:epoch", "_tooz_rs:fence", "_tooz_rs:lives"]);
    let life = redis.command(&[b"PTTL", b"_tooz_rs:lives"]).unwrap();
    let life: i64 = String::from_utf8_lossy(&life).trim_start_matches(':').trim().parse().unwrap();
    assert!(life > 0, "it never goes");
}
