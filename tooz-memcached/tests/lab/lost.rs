//! What a server and a network lose: all data at a restart, single items, answers, connections, time.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tooz_core::driver::{Acquire, Acquired, AttemptId, End, Grant, LockKey, LockMode, Previous, Released};
use tooz_core::{Capabilities, Coordinator, Event, GroupEvent, GroupId, Liveness, LockGuard, LossReason};
use tooz_servers::lab::Case;
use tooz_servers::memcached::Memcached;
use tooz_servers::{Proxy, cases};

use crate::stage::{Client, GRAIN, PATIENT, SOON, connect, eventually, gate, is_of, within};

pub(crate) const CASES: &[(&str, Case)] = cases![
    a_holder_of_before_a_restart_spares_the_one_after_it,
    a_restart_is_told_to_every_guard,
    a_lost_answer_leaves_nothing_behind,
    answers_that_are_lost_again_and_again_are_indeterminate,
    a_lost_answer_to_a_beat_costs_nothing,
    a_lost_answer_to_a_slow_beat_costs_nothing,
    an_old_mark_gives_nobody_another_s_leadership,
    a_leadership_is_given_back_across_a_beat,
    of_two_candidates_with_one_id_one_leads,
    an_evicted_leader_s_record_makes_no_second_leader,
    an_evicted_group_comes_back,
    cuts_under_way_lose_nothing,
    a_short_standstill_costs_nothing,
    a_long_standstill_costs_every_guard_at_its_deadline,
];

/// What stands there when nothing does: the list of groups, the stamp of the data, and what says that sessions lived, which goes
/// by itself.
const REST: [&str; 3] = ["_TOOZ_GROUP_LIST", "_TOOZ_RS:epoch", "_TOOZ_RS:lives"];

/// What else stands on the server, except what is kept of members that left.
fn left_behind(server: &Memcached) -> Vec<String> {
    let mut keys: Vec<_> = server.keys().unwrap().iter().map(|key| key.escape_ascii().to_string()).collect();
    keys.retain(|key| !key.starts_with("_TOOZ_RS:q:") && !REST.contains(&key.as_str()));
    keys
}

/// A server that is started again numbers its items as it did before: the same number is another holder's.
async fn a_holder_of_before_a_restart_spares_the_one_after_it() {
    let server = Memcached::start().unwrap();
    let one = Client::open(server.address(), PATIENT, "one").await;
    let first = one.take("x").await;
    one.beat(&[&first]).await.unwrap();
    let before = server.item(&gate("x")).unwrap().unwrap();
    server.server().kill();
    server.server().start_again().unwrap();
    let two = Client::open(server.address(), PATIENT, "two").await;
    let second = two.take("x").await;
    two.beat(&[&second]).await.unwrap();
    let after = server.item(&gate("x")).unwrap().unwrap();
    assert_eq!((before.cas, after.value == before.value), (after.cas, false));
    assert!(second.token > first.token, "{} after {}", second.token, first.token);
    // Over a new connection.
    let beaten = one.beat(&[&first]).await.unwrap();
    assert_eq!(beaten.lost, Some(LossReason::Vanished));
    let released = one.session.locks().release(&first, End::Unclean).await;
    assert!(!matches!(released, Ok(Released::Released)), "{released:?}");
    one.session.close(End::Unclean).await.unwrap();
    assert_eq!(server.item(&gate("x")).unwrap(), Some(after));
    let beaten = two.beat(&[&second]).await.unwrap();
    assert!(beaten.lost.is_none() && beaten.gone.is_empty(), "{beaten:?}");
}

async fn a_restart_is_told_to_every_guard() {
    const TTL: Duration = Duration::from_secs(4);
    let server = Memcached::start().unwrap();
    let a = connect(server.address(), "4s", "a").await;
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    let mut events = a.events();
    let mut guards = Vec::new();
    for n in 0..20 {
        guards.push(a.lock(format!("x{n}")).unwrap().acquire().await.unwrap());
    }
    server.server().kill();
    server.server().start_again().unwrap();
    let restarted = Instant::now();
    // Somebody takes them at once.
    let b = connect(server.address(), PATIENT, "b").await;
    let mut next = Vec::new();
    for n in 0..20 {
        next.push(b.lock(format!("x{n}")).unwrap().acquire().await.unwrap());
    }
    for (guard, next) in guards.iter().zip(&next) {
        within("the loss", SOON, guard.lost()).await;
        assert!(next.token() > guard.token(), "{} after {}", next.token(), guard.token());
    }
    let took = restarted.elapsed();
    assert!(took < TTL + GRAIN, "{took:?}");
    let rejoined = async { while !matches!(events.next().await, Some(Event::Rejoined(_))) {} };
    within("a new session", SOON, rejoined).await;
    assert_eq!(a.group("g").unwrap().members().await.unwrap().len(), 1);
    assert!(next.iter().all(LockGuard::is_held));
    assert!(matches!(b.liveness(), Liveness::Alive { .. }));
}

async fn a_lost_answer_leaves_nothing_behind() {
    let server = Memcached::start().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let a = connect(proxy.address(), PATIENT, "a").await;
    let b = connect(server.address(), PATIENT, "b").await;
    let lose = |call: &'static str| {
        proxy.lose_replies(1, move |bytes| is_of(bytes, call), |_| true);
        proxy.connections()
    };
    let lock = a.lock("x").unwrap();
    // What was done the first time is found the second time.
    let connections = lose("acquire");
    let guard = lock.acquire().await.unwrap();
    assert!(proxy.connections() > connections, "no answer was lost");
    let holders = b.lock("x").unwrap().holders().await.unwrap().holders;
    assert!(holders.len() == 1 && holders[0].token == Some(guard.token()), "{holders:?}");
    assert!(b.lock("x").unwrap().try_acquire().await.unwrap().is_none());
    // Nobody can tell a release from a loss.
    let connections = lose("release");
    let error = guard.release().await.unwrap_err();
    assert!(error.is_indeterminate(), "{error:?}");
    assert!(proxy.connections() > connections);
    let next = within("the lock", SOON, b.lock("x").unwrap().acquire()).await.unwrap();
    next.release().await.unwrap();
    let connections = lose("join");
    let group = a.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    assert!(proxy.connections() > connections);
    assert_eq!(group.members().await.unwrap().len(), 1);
    let connections = lose("leave");
    let left = group.leave().await;
    assert!(left.is_err_and(|error| error.is_indeterminate()) && proxy.connections() > connections);
    eventually("nobody is in it", async || b.group("g").unwrap().members().await.unwrap().is_empty()).await;
    b.group("g").unwrap().delete().await.unwrap();
    a.close().await.unwrap();
    b.close().await.unwrap();
    assert_eq!(left_behind(&server), Vec::<String>::new());
}

async fn answers_that_are_lost_again_and_again_are_indeterminate() {
    let server = Memcached::start().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let a = connect(proxy.address(), "3s", "a").await;
    let b = connect(server.address(), PATIENT, "b").await;
    a.group("g").unwrap().create().await.unwrap();
    let held = a.lock("held").unwrap().acquire().await.unwrap();
    let any = |bytes: &[u8]| ["acquire", "withdraw", "release"].iter().any(|call| is_of(bytes, call));
    proxy.lose_replies(u64::MAX, any, |_| true);
    let error = a.lock("x").unwrap().try_acquire().await.unwrap_err();
    assert!(error.is_indeterminate(), "{error:?}");
    let error = held.release().await.unwrap_err();
    assert!(error.is_indeterminate(), "{error:?}");
    a.group("g").unwrap().join(Capabilities::none()).await.unwrap();
    // It cannot clear up, and its session ends.
    proxy.refuse();
    for lock in ["x", "held"] {
        let next = within("the lock", 6, b.lock(lock).unwrap().acquire()).await.unwrap();
        next.release().await.unwrap();
    }
    eventually("nobody is in it", async || b.group("g").unwrap().members().await.unwrap().is_empty()).await;
    proxy.heal();
    eventually("it is back", async || matches!(a.liveness(), Liveness::Alive { .. })).await;
    a.close().await.unwrap();
    b.group("g").unwrap().delete().await.unwrap();
    b.close().await.unwrap();
    assert_eq!(left_behind(&server), Vec::<String>::new());
}

async fn a_lost_answer_to_a_beat_costs_nothing() {
    beat_without_answer("6s").await;
}

/// More than two seconds lie between two beats: what the lost one has stored is no sign of a clock that stands behind.
async fn a_lost_answer_to_a_slow_beat_costs_nothing() {
    beat_without_answer(PATIENT).await;
}

async fn beat_without_answer(ttl: &str) {
    let server = Memcached::start().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let a = connect(proxy.address(), ttl, "a").await;
    let mut events = a.events();
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    let mut guards = Vec::new();
    for n in 0..5 {
        guards.push(a.lock(format!("x{n}")).unwrap().acquire().await.unwrap());
    }
    let session = a.session_id();
    // The first one confirms its grants, the second one only writes.
    for _ in 0..2 {
        proxy.lose_replies(1, |bytes| is_of(bytes, "renew"), |_| true);
        let recovered = async {
            let mut suspended = false;
            loop {
                match events.next().await.unwrap() {
                    Event::Suspended => suspended = true,
                    Event::Recovered => return suspended,
                    other => panic!("{other:?}"),
                }
            }
        };
        assert!(within("the next beat", SOON, recovered).await);
    }
    assert!(guards.iter().all(LockGuard::is_held) && a.session_id() == session);
    assert_eq!(a.group("g").unwrap().members().await.unwrap().len(), 1);
}

/// Without it the leader is unknown to others, and leads on; if it cannot read its record, it is told so.
async fn an_evicted_leader_s_record_makes_no_second_leader() {
    const RECORD: &[u8] = b"_TOOZ_RS:r:g";
    let server = Memcached::start().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let a = connect(proxy.address(), "3s", "a").await;
    let b = connect(server.address(), "3s", "b").await;
    for (cut, ended) in [(false, false), (true, false), (false, true)] {
        let leads = within("the election", SOON, a.election("g").unwrap().campaign()).await.unwrap();
        let beats = a.heart().beats();
        eventually("it is confirmed", async || a.heart().beats() > beats + 1).await;
        let election = b.election("g").unwrap();
        let campaign = tokio::spawn(async move { election.campaign().await.unwrap() });
        assert!(server.delete(RECORD).unwrap());
        if cut {
            proxy.cut();
        }
        let beats = a.heart().beats();
        eventually("it beats on", async || a.heart().beats() > beats + 1).await;
        assert!(!(leads.is_held() && campaign.is_finished()), "two lead");
        if ended {
            assert!(leads.is_held());
            a.close().await.unwrap();
        } else if leads.is_held() {
            leads.resign().await.unwrap();
        }
        // The rest of a ttl, a second for Python, and the grain.
        let next = within("the next one", 3 + 1 + 2, campaign).await.unwrap();
        assert!(next.is_held());
        let seen = b.election("g").unwrap().leader().await.unwrap();
        assert!(seen.is_some_and(|leader| leader.member.as_ref() == Some(b.member())));
        next.resign().await.unwrap();
    }
}

const LEADER: &[u8] = b"__TOOZ_LOCK__TOOZ_GROUP_LEADER_g";

async fn lead(client: &Client, attempt: u128) -> Option<Grant> {
    let key = LockKey::Leader(GroupId::new("g").unwrap());
    let request = Acquire::new(AttemptId(attempt), key, LockMode::Exclusive).wait(false);
    match client.session.locks().request(&request).await.unwrap() {
        Acquired::Granted(grant) => Some(grant),
        Acquired::Held => None,
        other => panic!("{other:?}"),
    }
}

/// The mark of a leader that died stays, and its member id may lead again: as a process of Python's, for example.
async fn an_old_mark_gives_nobody_another_s_leadership() {
    let server = Memcached::start().unwrap();
    let (a, b) = (
        Client::open(server.address(), PATIENT, "host1").await,
        Client::open(server.address(), PATIENT, "b").await,
    );
    let grant = lead(&a, 1).await.unwrap();
    a.beat(&[&grant]).await.unwrap();
    let session = format!("_TOOZ_RS:s:{}", a.session.id());
    assert!(server.delete(session.as_bytes()).unwrap() && server.delete(LEADER).unwrap());
    let python = [b"set ", LEADER, b" 1 30 5\r\nhost1\r\n"].concat();
    assert_eq!(server.command(&python).unwrap(), b"STORED\r\n");
    let look = || server.command(&[b"mg ", LEADER, b" v c\r\n"].concat()).unwrap();
    let before = look();
    for attempt in 2..10 {
        assert!(lead(&b, attempt).await.is_none(), "two lead");
    }
    assert_eq!(look(), before, "Python's leader lost its key");
    assert!(server.delete(LEADER).unwrap());
    let next = lead(&b, 10).await.unwrap();
    assert_eq!(next.previous, Previous::Expired);
}

async fn a_leadership_is_given_back_across_a_beat() {
    let server = Memcached::start().unwrap();
    let a = Client::open(server.address(), PATIENT, "a").await;
    for attempt in 1..3 {
        let grant = lead(&a, attempt).await.unwrap();
        a.beat(&[&grant]).await.unwrap();
        // As the next beat does, whose answer has not come yet.
        let beat = [b"set ", LEADER, b" 1 16 1\r\na\r\n"].concat();
        assert_eq!(server.command(&beat).unwrap(), b"STORED\r\n");
        let released = a.session.locks().release(&grant, End::Clean).await.unwrap();
        assert_eq!(released, Released::Released);
        assert!(!server.delete(LEADER).unwrap(), "its key stays");
    }
}

/// The gate of an election says the member id alone. Two processes may have the same one, as while one replaces the other.
async fn of_two_candidates_with_one_id_one_leads() {
    let server = Memcached::start().unwrap();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Client::open(server.address(), PATIENT, "a").await);
    }
    let mut led = 0;
    for round in 0..200_u128 {
        // What the last leader left, so that no mark can be added.
        server.command(b"set _TOOZ_RS:r:g 1 0 4\r\nx e\n\r\n").unwrap();
        let tries = clients.iter().zip(0..).map(|(client, n)| {
            let client = client.clone();
            tokio::spawn(
                async move { lead(&client, 1_000 + round * 10 + n).await.map(|grant| (client, grant)) },
            )
        });
        let tries: Vec<_> = tries.collect();
        let mut leaders = Vec::new();
        for one in tries {
            leaders.extend(one.await.unwrap());
        }
        assert!(leaders.len() < 2, "{} lead in round {round}", leaders.len());
        for (client, grant) in leaders {
            led += 1;
            let released = client.session.locks().release(&grant, End::Clean).await.unwrap();
            assert_eq!(released, Released::Released);
        }
    }
    assert!(led > 100, "only {led} rounds had a leader");
}

async fn an_evicted_group_comes_back() {
    let server = Memcached::start().unwrap();
    let (a, b) = (connect(server.address(), "3s", "a").await, connect(server.address(), "3s", "b").await);
    for c in [&a, &b] {
        c.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    }
    let mut watch = b.group("g").unwrap().watch().await.unwrap();
    let first = within("a snapshot", SOON, watch.next()).await.unwrap().unwrap();
    assert!(matches!(first, GroupEvent::Snapshot(all) if all.len() == 2));
    let mut events = a.events();
    assert!(server.delete(b"_TOOZ_GROUP_g").unwrap());
    let evicted = async { while !matches!(events.next().await, Some(Event::Evicted(_))) {} };
    within("the loss of the membership", SOON, evicted).await;
    eventually("both are back", async || a.group("g").unwrap().members().await.unwrap().len() == 2).await;
    let (mut members, mut told) = (2, false);
    within("what the watch says", SOON, async {
        while !told || members != 2 {
            match watch.next().await.unwrap().unwrap() {
                GroupEvent::Resync(all) => (members, told) = (all.len(), true),
                GroupEvent::Joined(_) => members += 1,
                GroupEvent::Left(..) => members -= 1,
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    // It is the same group: nobody can create it.
    assert!(b.group("g").unwrap().create().await.is_err());
}

/// Connections that end while many requests are under way: each is done once, or not at all.
async fn cuts_under_way_lose_nothing() {
    let server = Memcached::start().unwrap();
    let proxy = Arc::new(Proxy::start(server.address()).unwrap());
    let a = connect(proxy.address(), PATIENT, "a").await;
    let b = connect(server.address(), PATIENT, "b").await;
    let (session, done) = (a.session_id(), Arc::new(AtomicBool::new(false)));
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..10 {
        let (a, b, done) = (a.clone(), b.clone(), Arc::clone(&done));
        workers.spawn(async move {
            let name = format!("x{n}");
            let (mut last, mut rounds, mut doubts) = (None, 0, 0);
            while !done.load(Ordering::Relaxed) {
                let guard = match a.lock(&name).unwrap().acquire_within(Duration::from_secs(10)).await {
                    Ok(guard) => guard.expect("somebody else holds it"),
                    Err(error) => {
                        assert!(error.is_retryable() || error.is_indeterminate(), "{error}");
                        doubts += 1;
                        continue;
                    }
                };
                assert!(last.is_none_or(|last| last < guard.token()));
                last = Some(guard.token());
                assert!(b.lock(&name).unwrap().try_acquire().await.unwrap().is_none(), "held twice");
                if let Err(error) = guard.release().await {
                    assert!(error.is_indeterminate(), "{error}");
                    doubts += 1;
                }
                rounds += 1;
            }
            (rounds, doubts)
        });
    }
    for _ in 0..40 {
        let connections = proxy.connections();
        proxy.cut();
        eventually("the next connection", async || proxy.connections() > connections).await;
    }
    done.store(true, Ordering::Relaxed);
    let (mut rounds, mut doubts) = (0, 0);
    while let Some(ended) = within("the rounds", 60, workers.join_next()).await {
        let ended = ended.unwrap();
        (rounds, doubts) = (rounds + ended.0, doubts + ended.1);
    }
    assert!(rounds > 20 && doubts > 0, "{rounds} rounds, of which {doubts} were in doubt");
    assert_eq!(a.session_id(), session);
    for n in 0..10 {
        let guard = within("the lock", SOON, b.lock(format!("x{n}")).unwrap().acquire()).await.unwrap();
        guard.release().await.unwrap();
    }
    a.close().await.unwrap();
    b.close().await.unwrap();
    assert_eq!(left_behind(&server), Vec::<String>::new());
}

async fn a_short_standstill_costs_nothing() {
    let server = Memcached::start().unwrap();
    let (a, b) = (connect(server.address(), "9s", "a").await, connect(server.address(), "9s", "b").await);
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let leads = a.election("g").unwrap().campaign().await.unwrap();
    let lock = b.lock("x").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    let session = a.session_id();
    let mut events = a.events();
    server.server().stop();
    let suspended = async { while !matches!(events.next().await, Some(Event::Suspended)) {} };
    within("a beat without an answer", SOON, suspended).await;
    server.server().resume();
    let recovered = async { while !matches!(events.next().await, Some(Event::Recovered)) {} };
    within("a beat afterwards", SOON, recovered).await;
    assert!(guard.is_held() && leads.is_held() && !waiting.is_finished() && a.session_id() == session);
    assert_eq!(a.group("g").unwrap().members().await.unwrap().len(), 1);
    guard.release().await.unwrap();
    assert!(within("the hand-over", SOON, waiting).await.unwrap().is_held());
}

async fn a_long_standstill_costs_every_guard_at_its_deadline() {
    let server = Memcached::start().unwrap();
    let mut members = Vec::new();
    for n in 0..3 {
        members.push(connect(server.address(), "2s", &format!("m{n}")).await);
    }
    let mut guards = Vec::new();
    for n in 0..6 {
        guards.push(members[n % 3].lock(format!("x{n}")).unwrap().acquire().await.unwrap());
    }
    let mut events = members.iter().map(Coordinator::events).collect::<Vec<_>>();
    server.server().stop();
    for events in &mut events {
        let suspended = async { while !matches!(events.next().await, Some(Event::Suspended)) {} };
        within("a beat without an answer", SOON, suspended).await;
    }
    // From now on none grows; there is none where it is lost already.
    let deadlines: Vec<_> = guards.iter().map(LockGuard::deadline).collect();
    for (guard, deadline) in guards.iter().zip(deadlines) {
        let left = deadline.map_or(Duration::ZERO, |deadline| deadline.remaining());
        tooz_servers::in_time("the loss", left + GRAIN, guard.lost()).await;
    }
    server.server().resume();
    // Everybody asks for each; one gets it.
    for guard in &guards {
        let name = guard.name();
        let mut contending = tokio::task::JoinSet::new();
        for c in &members {
            let lock = c.lock(name).unwrap();
            contending.spawn(async move { lock.acquire_within(Duration::from_secs(20)).await });
        }
        let mut last = guard.token();
        for _ in 0..3 {
            let next = within("the lock", 30, contending.join_next()).await.unwrap().unwrap();
            let next = next.unwrap().expect("nobody gets it");
            assert!(next.is_held() && next.token() > last);
            last = next.token();
            let holders = members[0].lock(name).unwrap().holders().await.unwrap().holders;
            assert!(holders.len() == 1 && holders[0].token == Some(last), "{holders:?}");
            next.release().await.unwrap();
        }
    }
}
