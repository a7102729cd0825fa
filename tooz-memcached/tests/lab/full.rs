//! Servers with no room: an item is full, the memory is, or there is no connection left.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tooz_core::{Capabilities, Coordinator, ErrorKind, Liveness, LockGuard};
use tooz_servers::cases;
use tooz_servers::lab::Case;
use tooz_servers::memcached::Memcached;

use crate::flood::Flood;
use crate::stage::{PATIENT, SOON, connect, eventually, gate, mark, url, within};

pub(crate) const CASES: &[(&str, Case)] = cases![
    a_full_group_names_the_limit,
    a_small_item_size_is_kept_to,
    a_full_server_takes_nothing_from_anybody,
    what_is_evicted_is_told_at_the_next_beat,
    no_connection_is_left,
];

/// Capabilities that take so many bytes.
fn bytes(length: usize) -> Capabilities {
    Capabilities::from_msgpack(
        &[&b"\xc6"[..], &u32::try_from(length - 5).unwrap().to_be_bytes(), &vec![7; length - 5]].concat(),
    )
    .unwrap()
}

/// The two numbers of a refusal: how much was wanted, and how much there is.
fn wanted_and_most(why: &str) -> (usize, usize) {
    let words: Vec<_> = why.split(' ').collect();
    let after = |word: &str| {
        let at = words.iter().position(|known| *known == word);
        at.and_then(|at| words.get(at + 1)?.parse().ok()).unwrap_or_else(|| panic!("{why}"))
    };
    let most = words
        .windows(3)
        .find(|three| three[0] == "of" && three[1] == "the" && three[2].parse::<usize>().is_ok());
    (after("take"), most.unwrap_or_else(|| panic!("{why}"))[2].parse().unwrap())
}

async fn a_full_group_names_the_limit() {
    let server = Memcached::start().unwrap();
    let mut members = Vec::new();
    for n in 0..16 {
        members.push(connect(server.address(), PATIENT, &format!("m{n:02}")).await);
    }
    let largest = 64 * 1024;
    for member in &members[..15] {
        member.group("g").unwrap().join_or_create(bytes(largest)).await.unwrap();
    }
    let group = members[15].group("g").unwrap();
    let error = group.join(bytes(largest)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && !error.is_indeterminate(), "{error}");
    assert!(error.to_string().contains("-I") && error.to_string().contains("16 members"), "{error}");
    assert_eq!(members[0].group("g").unwrap().members().await.unwrap().len(), 15);
    // The last byte that is offered can be had.
    let (wanted, most) = wanted_and_most(&error.to_string());
    let fits = largest - (wanted - most);
    let error = group.join(bytes(fits + 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    group.join(bytes(fits)).await.unwrap();
    let error = group.update_capabilities(bytes(fits + 1)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && !error.is_indeterminate(), "{error}");
    let records = group.members().await.unwrap();
    assert_eq!((records.len(), &records[15].capabilities), (16, &bytes(fits)));
    members[3].group("g").unwrap().leave().await.unwrap();
    group.update_capabilities(bytes(largest)).await.unwrap();
}

async fn a_small_item_size_is_kept_to() {
    let server = Memcached::start_with(&["-I", "16k", "-o", "slab_chunk_max=8192"]).unwrap();
    let (a, b) =
        (connect(server.address(), PATIENT, "a").await, connect(server.address(), PATIENT, "b").await);
    let (ours, theirs) = (a.group("g").unwrap(), b.group("g").unwrap());
    let error = ours.join_or_create(bytes(20_000)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("-I"), "{error}");
    let (wanted, most) = wanted_and_most(&error.to_string());
    assert!(most <= 16 * 1024, "{error}");
    let fits = 20_000 - (wanted - most);
    ours.join(bytes(fits)).await.unwrap();
    let error = theirs.join(Capabilities::none()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("-I"), "{error}");
    assert_eq!(ours.members().await.unwrap().len(), 1);
    ours.update_capabilities(bytes(fits - 1_000)).await.unwrap();
    theirs.join(Capabilities::none()).await.unwrap();
    assert_eq!(ours.members().await.unwrap().len(), 2);
}

async fn a_full_server_takes_nothing_from_anybody() {
    let server = Memcached::start_with(&["-M", "-m", "2"]).unwrap();
    let a = connect(server.address(), PATIENT, "a").await;
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let leads = a.election("g").unwrap().campaign().await.unwrap();
    Flood::new(server.address()).fill();
    let stands = |key: &[u8]| server.item(key).unwrap().map(|item| (item.cas, item.value));
    let session = format!("_TOOZ_RS:s:{}", a.session_id().unwrap()).into_bytes();
    let keys = [
        gate("x"),
        mark("x"),
        gate("_TOOZ_GROUP_LEADER_g"),
        b"_TOOZ_GROUP_g".to_vec(),
        session,
        b"_TOOZ_MEMBER_a".to_vec(),
    ];
    let before: Vec<_> = keys.iter().map(|key| stands(key)).collect();
    assert!(before.iter().all(Option::is_some), "{before:?}");
    let refused = |error: tooz_core::Error| {
        assert!(error.kind() == ErrorKind::Unavailable && !error.is_indeterminate(), "{error:?}");
        assert!(error.to_string().contains("out of memory") && error.to_string().contains("-m"), "{error}");
    };
    refused(Coordinator::builder(url(server.address(), PATIENT), "b").connect().await.unwrap_err());
    refused(a.lock("y").unwrap().try_acquire().await.unwrap_err());
    refused(a.group("g").unwrap().update_capabilities(bytes(1_000)).await.unwrap_err());
    assert!(a.heartbeat().await.is_err());
    let after: Vec<_> = keys.iter().map(|key| stands(key)).collect();
    assert_eq!(before, after);
    // What was refused can be looked at, and what is held given back.
    let viewer = Coordinator::builder(url(server.address(), PATIENT), "eye").view().await.unwrap();
    assert_eq!(viewer.members("g").await.unwrap().len(), 1);
    assert!(viewer.holders("x").await.unwrap().holders[0].token == Some(guard.token()));
    assert!(guard.is_held() && leads.is_held() && matches!(a.liveness(), Liveness::Suspended { .. }));
    guard.release().await.unwrap();
    leads.resign().await.unwrap();
    assert!(server.item(&gate("x")).unwrap().is_none());
}

/// Whatever is evicted is told at the next beat: until then, at the latest until its deadline, a guard may be valid beside a
/// newer one.
async fn what_is_evicted_is_told_at_the_next_beat() {
    let server = Memcached::start_with(&["-m", "2"]).unwrap();
    let a = connect(server.address(), "3s", "a").await;
    let b = connect(server.address(), "3s", "b").await;
    // Of the size of a gate, so that gates go first.
    let probe = a.lock("x00").unwrap().acquire().await.unwrap();
    let size = server.item(&gate("x00")).unwrap().unwrap().value.len();
    probe.release().await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let (stop, address) = (Arc::clone(&done), server.address());
    let flood = std::thread::spawn(move || {
        let mut flood = Flood::new(address);
        while !stop.load(Ordering::Relaxed) {
            flood.store(500, size);
            flood.store(10, 80);
        }
    });
    let mut beside = 0;
    within("locks that were evicted", 60, async {
        while beside < 5 {
            let mut guards = Vec::new();
            for n in 0..50 {
                guards.extend(a.lock(format!("x{n:02}")).unwrap().try_acquire().await.ok().flatten());
            }
            while beside < 5 && !guards.is_empty() {
                for guard in &guards {
                    // The server does not count this as a use, as it would a request for the lock.
                    let debug = [b"me ", &gate(&guard.name().to_string())[..], b"\r\n"].concat();
                    let is_gone = server.command(&debug).unwrap() == b"EN\r\n";
                    beside += u32::from(is_gone && is_another_s(&a, &b, guard).await);
                }
                guards.retain(LockGuard::is_held);
            }
        }
    })
    .await;
    done.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    assert!(server.statistic("evictions").unwrap() > 0);
}

/// Whether the lock is another's although `a` has it; then `a` is told.
async fn is_another_s(a: &Coordinator, b: &Coordinator, guard: &LockGuard) -> bool {
    let asked = b.lock(guard.name()).unwrap().try_acquire().await;
    let Some(next) = asked.ok().flatten() else { return false };
    let (deadline, beats) = (guard.deadline(), a.heart().beats());
    let Some(deadline) = deadline.filter(|_| guard.is_held() && next.is_held()) else { return false };
    assert!(next.token() > guard.token());
    let is_over = async || !guard.is_held() || deadline.has_passed() || a.heart().beats() > beats + 1;
    eventually("the next beat", is_over).await;
    assert!(!guard.is_held(), "it is believed to be held still");
    true
}

async fn no_connection_is_left() {
    let server = Memcached::start_with(&["-c", "40"]).unwrap();
    let a = connect(server.address(), PATIENT, "a").await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let mut all = Vec::new();
    let full = loop {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(SOON))).unwrap();
        stream.write_all(b"version\r\n").unwrap();
        let mut answer = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut answer).unwrap();
        if !answer.starts_with("VERSION") {
            break answer;
        }
        all.push(stream);
    };
    assert!(full.contains("Too many open connections"), "{full}");
    let error = Coordinator::builder(url(server.address(), PATIENT), "b").connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("no connection left") && error.to_string().contains("-c"), "{error}");
    assert!(guard.is_held());
    drop(all);
    eventually("there is one again", async || {
        Coordinator::builder(url(server.address(), PATIENT), "b").connect().await.is_ok()
    })
    .await;
}
