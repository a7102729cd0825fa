//! Several processes, and what happens when they die, stop, fork or meet a reboot.

#![allow(clippy::disallowed_methods)] // real time passes here

use std::time::{Duration, Instant};

use crate::common::*;
use nix::sys::signal::Signal;
use tooz_core::driver::{Acquired, BreakRequest, End, LockKey, LockMode, Notice, Previous, Turn};
use tooz_core::{ErrorKind, FencingToken, LossReason};

#[tokio::test]
async fn processes_exclude_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let counter = directory.path().join("counter");
    std::fs::write(&counter, "0").unwrap();
    let mut actors: Vec<_> =
        ["a", "b", "c"].iter().map(|name| Actor::start("member", &[&url, name]).0).collect();
    for actor in &mut actors {
        actor.tell(&format!("counter {} x 100", counter.display()));
    }
    for actor in &actors {
        assert_eq!(actor.hear(), "counted");
    }
    assert_eq!(std::fs::read_to_string(&counter).unwrap(), "300");
}

/// Each round they make a database together, and none takes it for another program's meanwhile.
#[test]
fn many_processes_start_at_once_on_a_new_database() {
    for _ in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), "");
        let starts: Vec<_> = (0..8)
            .map(|name| {
                let url = url.clone();
                std::thread::spawn(move || Actor::start("member", &[&url, &name.to_string()]))
            })
            .collect();
        for start in starts {
            let (mut actor, _) = start.join().unwrap();
            actor.tell("acquire x");
            let word = actor.hear();
            let token = if word == "queued" { actor.hear() } else { word };
            token.parse::<u64>().unwrap(); // those before it were killed when they were dropped
        }
    }
}

#[tokio::test]
async fn a_release_wakes_the_waiter_of_another_process_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (mut one, _) = Actor::start("member", &[&url, "one"]);
    let (mut two, _) = Actor::start("member", &[&url, "two"]);
    one.tell("acquire x");
    let first: u64 = one.hear().parse().unwrap();
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let place = queued(&us, &ask("x", Exclusive)).await;
    two.tell("acquire x");
    assert_eq!(two.hear(), "queued");
    one.tell("release x");
    assert_eq!(one.hear(), "Released");
    let grant = turn(&us, &place).await;
    assert!(grant.token.get() > first);
    us.locks().release(&grant, End::Clean).await.unwrap();
    assert!(two.hear().parse::<u64>().unwrap() > grant.token.get());
}

/// The median of the times from the kill to the waiter holding the lock.
#[tokio::test]
async fn a_killed_holder_is_noticed_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let mut times = Vec::new();
    for _ in 0..7 {
        let (mut holder, _) = Actor::start("member", &[&url, "holder"]);
        holder.tell("acquire x");
        holder.hear();
        let place = queued(&us, &ask("x", Exclusive)).await;
        let start = Instant::now();
        holder.kill();
        let grant = turn(&us, &place).await;
        times.push(start.elapsed());
        assert_eq!(grant.previous, Previous::Expired);
        us.locks().release(&grant, End::Clean).await.unwrap();
    }
    times.sort();
    println!("from kill -9 to the next holder: {times:?}");
    // By the event, not by the look every second.
    assert!(times[3] < Duration::from_millis(400), "{times:?}");
}

/// L15: a dead waiter refuses no permit of another limit, also where a living waiter stands before it.
#[tokio::test]
async fn a_killed_waiters_limit_refuses_no_request() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let permit = |limit: u32| LockMode::Permit { limit: limit.try_into().unwrap() };
    granted(&us, &ask("x", Exclusive)).await;
    queued(&us, &ask("x", Exclusive)).await;
    let mut dead: Vec<_> = ["a", "b"].iter().map(|name| Actor::start("member", &[&url, name]).0).collect();
    for (actor, limit) in dead.iter_mut().zip(["3", "4"]) {
        actor.tell(&format!("queue x {limit}"));
        assert_eq!(actor.hear(), if limit == "3" { "queued" } else { "Invalid" });
    }
    dead[0].crash();
    dead[1].tell("queue x 4");
    assert_eq!(dead[1].hear(), "queued");
    dead[1].crash();
    queued(&us, &ask("x", permit(2))).await;
    let error = us.locks().request(&ask("x", permit(3))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "the one before it lives");
}

/// The same with a long queue of processes (`TOOZ_STRESS` says how long), of which three that wait die first: whoever
/// stood behind them listens for those before them then.
#[test]
fn a_death_is_noticed_at_once_however_many_wait() {
    let size: usize = std::env::var("TOOZ_STRESS").map_or(24, |text| text.parse().expect("a number"));
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (mut holder, _) = Actor::start("member", &[&url, "holder"]);
    holder.tell("acquire x");
    holder.hear();
    let mut queue = std::collections::VecDeque::new();
    for place in 0..size.max(12) {
        let (mut waiter, _) = Actor::start("member", &[&url, &place.to_string()]);
        waiter.tell("acquire x");
        assert_eq!(waiter.hear(), "queued");
        queue.push_back(waiter);
    }
    for place in [2, 1, 0] {
        queue.remove(place).unwrap().kill();
    }
    let mut times = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        holder.kill();
        holder = queue.pop_front().unwrap();
        holder.hear().parse::<u64>().unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    println!("with {size} in the queue, from kill -9 to the next holder: {times:?}");
    assert!(times[3] < Duration::from_millis(400), "{times:?}");
}

#[tokio::test]
async fn a_dead_waiter_is_passed_over_and_a_dead_member_has_left() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let first = granted(&us, &ask("x", Exclusive)).await;
    let (mut dead, _) = Actor::start("member", &[&url, "dead"]);
    dead.tell("join g");
    assert_eq!(dead.hear(), "joined");
    let mut watch = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut watch).await), "[dead]");
    dead.tell("acquire x");
    assert_eq!(dead.hear(), "queued");
    let second = queued(&us, &ask("x", Exclusive)).await;
    dead.kill();
    us.locks().release(&first, End::Clean).await.unwrap();
    turn(&us, &second).await;
    assert_eq!(short(next(&mut watch).await), "-dead");
    assert!(driver.groups().members(&group("g")).await.unwrap().is_empty());
    driver.groups().delete(&group("g")).await.unwrap();
}

#[tokio::test]
async fn a_child_that_inherited_the_session_does_not_keep_the_dead_alive() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let (mut holder, _) = Actor::start("member", &[&url, "holder"]);
    holder.tell("inherit");
    let sleeper: i32 = holder.hear().parse().unwrap();
    holder.tell("acquire x");
    holder.hear();
    let place = queued(&us, &ask("x", Exclusive)).await;
    holder.kill(); // and stays a zombie, since nobody waits for it yet
    let grant = turn(&us, &place).await;
    assert_eq!(grant.previous, Previous::Expired);
    // The child lives on, with the descriptor.
    let kept = std::fs::read_dir(format!("/proc/{sleeper}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .any(|target| target.to_string_lossy().contains("tooz.db-sessions/"));
    assert!(kept);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_stopped_holder_keeps_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let (mut holder, _) = Actor::start("member", &[&url, "holder"]);
    holder.tell("join g");
    holder.hear();
    holder.tell("acquire x");
    holder.hear();
    holder.stop();
    let place = queued(&us, &ask("x", Exclusive)).await;
    // Longer than the look every second, and than anything that is believed for a while.
    let waited = tokio::time::timeout(Duration::from_millis(2_500), us.locks().turn(&place)).await;
    assert!(waited.is_err(), "{waited:?}");
    assert_eq!(driver.groups().members(&group("g")).await.unwrap().len(), 1);
    holder.signal(Signal::SIGCONT);
    holder.tell("release x");
    assert_eq!(holder.hear(), "Released");
    turn(&us, &place).await;
}

#[tokio::test]
async fn a_process_stopped_in_a_write_transaction_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tooz.db");
    let url = url(directory.path(), "operation_timeout=400ms&close_timeout=300ms");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let grant = granted(&us, &ask("x", Exclusive)).await;
    let (writer, pid) = Actor::start("stopped-writer", &[&path.display().to_string()]);
    let start = Instant::now();
    let error = us.locks().request(&ask("y", Exclusive)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&format!("process {pid} ")), "{error}");
    assert!(!error.is_indeterminate(), "it was not done");
    assert!(start.elapsed() >= Duration::from_millis(400), "it gave up early");
    // Reads go on.
    assert!(us.renew(&held(&[&grant], &[], &[])).await.unwrap().gone.is_empty());
    assert_eq!(driver.locks().holders(&key("x")).await.unwrap().holders.len(), 1);
    // Closing ends in time, and what it held is free once the other goes on.
    let start = Instant::now();
    assert_eq!(us.close(End::Clean).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(5));
    writer.signal(Signal::SIGCONT);
    assert_eq!(writer.hear(), "committed");
    let other = session(&driver, "other").await;
    eventually(|| async {
        matches!(other.locks().request(&ask("x", Exclusive).wait(false)).await.unwrap(), Acquired::Granted(_))
    })
    .await;
}

#[tokio::test]
async fn a_break_reaches_another_process() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (mut victim, _) = Actor::start("member", &[&url, "victim"]);
    victim.tell("acquire x");
    let token = victim.hear();
    let driver = connect(&url).await;
    victim.tell("notice");
    let broken = driver.locks().break_lock(&BreakRequest::new(key("x"), id("op"), "stuck")).await.unwrap();
    assert_eq!(broken[0].token.unwrap().to_string(), token);
    let notice = victim.hear();
    assert!(
        notice.starts_with("GrantLost") && notice.contains("Broken") && notice.contains("stuck"),
        "{notice}"
    );
    victim.tell("release x");
    assert_eq!(victim.hear(), "WasNotHolder");
}

#[tokio::test]
async fn a_member_id_belongs_to_one_living_session() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await;
    let (mut first, _) = Actor::start("member", &[&url, "same"]);
    first.tell("join g");
    assert_eq!(first.hear(), "joined");
    let second = session(&driver, "same").await;
    driver.groups().create(&group("other")).await.unwrap();
    for name in ["g", "other"] {
        assert_eq!(second.groups().join(&join(name)).await.unwrap_err().kind(), ErrorKind::MemberExists);
    }
    first.tell("leave g");
    assert_eq!(first.hear(), "left");
    assert_eq!(second.groups().join(&join("g")).await.unwrap_err().kind(), ErrorKind::MemberExists);
    first.kill();
    eventually(|| async { second.groups().join(&join("other")).await.is_ok() }).await;
}

#[tokio::test]
async fn after_a_reboot_tokens_go_on_above_the_ceiling_and_old_sessions_are_dead() {
    let directory = tempfile::tempdir().unwrap();
    let before = url(directory.path(), "boot_id=before");
    let (mut old, _) = Actor::start("member", &[&before, "m"]);
    old.tell("join g");
    old.hear();
    old.tell("acquire x");
    let token: u64 = old.hear().parse().unwrap();
    // The process of the boot before even lives: only the id of the boot says that it does not.
    let driver = connect(&url(directory.path(), "boot_id=after")).await;
    assert!(driver.groups().members(&group("g")).await.unwrap().is_empty());
    let us = session(&driver, "m").await;
    us.groups().join(&join("g")).await.unwrap();
    let grant = granted(&us, &ask("x", Exclusive)).await;
    assert_eq!(grant.previous, Previous::Expired);
    assert!(grant.token.get() >= token + 99_000, "{} after {token}", grant.token);
    let next = granted(&us, &ask("y", Exclusive)).await;
    assert_eq!(next.token.get(), grant.token.get() + 1);
    drop(old);
    us.close(End::Clean).await.unwrap();
    driver.close().await.unwrap();
    let again = connect(&url(directory.path(), "boot_id=after")).await;
    let us = session(&again, "m").await;
    assert_eq!(granted(&us, &ask("x", Exclusive)).await.token.get(), next.token.get() + 1);
}

/// L3: the ceiling rises with the counter, so the next boot goes on above it.
#[tokio::test]
async fn after_a_reboot_raised_tokens_go_on_above_the_raise() {
    let directory = tempfile::tempdir().unwrap();
    let before = connect(&url(directory.path(), "boot_id=before")).await;
    let us = session(&before, "m").await;
    let least = granted(&us, &ask("x", Exclusive)).await.token.get() + 1_000_000_000;
    let raise = async |least| before.locks().raise_tokens(FencingToken::new(least).unwrap()).await.unwrap();
    raise(least).await;
    raise(1).await;
    assert_eq!(granted(&us, &ask("y", Exclusive)).await.token.get(), least);
    us.close(End::Clean).await.unwrap();
    before.close().await.unwrap();
    let after = connect(&url(directory.path(), "boot_id=after")).await;
    let us = session(&after, "m").await;
    let token = granted(&us, &ask("x", Exclusive)).await.token.get();
    assert!(token > least, "{token} after {least}");
}

/// L3: grants and raises that share a transaction; whoever asks after a raise has returned gets no smaller token.
#[tokio::test]
async fn raises_and_grants_in_one_transaction() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let us = session(&driver, "m").await;
    let first = granted(&us, &ask("first", Exclusive)).await.token.get();
    for round in 0..20_u64 {
        let least = first + (round + 1) * 1_000;
        let names: Vec<String> = (0..10).map(|n| format!("{round}-{n}")).collect();
        let asks: Vec<_> = names.iter().map(|name| ask(name, Exclusive)).collect();
        let (one, two, raised, three, four) = tokio::join!(
            us.locks().request(&asks[0]),
            us.locks().request(&asks[1]),
            driver.locks().raise_tokens(FencingToken::new(least).unwrap()),
            us.locks().request(&asks[2]),
            us.locks().request(&asks[3]),
        );
        raised.unwrap();
        let mut tokens = Vec::new();
        for answer in [one, two, three, four] {
            let Acquired::Granted(grant) = answer.unwrap() else { panic!("not granted") };
            tokens.push(grant.token.get());
        }
        let after = granted(&us, &asks[4]).await.token.get();
        assert!(after >= least && tokens.iter().all(|token| *token < after), "{after} after {tokens:?}");
        let unique: std::collections::BTreeSet<_> = tokens.iter().collect();
        assert_eq!(unique.len(), 4, "{tokens:?}");
    }
}

fn hear_one_of<'a>(one: &'a mut Actor, two: &'a mut Actor) -> (&'a mut Actor, String) {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < LONG, "nobody says anything");
        if let Some(word) = one.try_hear() {
            return (one, word);
        }
        if let Some(word) = two.try_hear() {
            return (two, word);
        }
    }
}

#[tokio::test]
async fn two_reapers_and_a_newcomer_make_one_holder() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (mut one, _) = Actor::start("member", &[&url, "one"]);
    let (mut two, _) = Actor::start("member", &[&url, "two"]);
    for round in 0..5 {
        let (mut dead, id) = Actor::start("member", &[&url, "dead"]);
        dead.tell("acquire x");
        dead.hear();
        one.tell("acquire x");
        two.tell("acquire x");
        assert_eq!((one.hear(), two.hear()), ("queued".into(), "queued".into()));
        dead.kill();
        let (mut newcomer, _) = Actor::start("member", &[&url, "dead"]);
        newcomer.tell("acquire x");
        // One of the two has it, then the other; the order of their asking is not known here.
        let mut tokens = Vec::new();
        for _ in 0..2 {
            let (actor, token) = hear_one_of(&mut one, &mut two);
            tokens.push(token.parse::<u64>().unwrap());
            actor.tell("release x");
            assert_eq!(actor.hear(), "Released");
        }
        let word = newcomer.hear();
        let word = if word == "queued" { newcomer.hear() } else { word };
        tokens.push(word.parse().unwrap());
        assert!(tokens.is_sorted_by(|one, other| one < other), "round {round}: {tokens:?}");
        newcomer.tell("release x");
        assert_eq!(newcomer.hear(), "Released");
        assert!(!directory.path().join("tooz.db-sessions").join(&id).exists(), "the dead one's file is gone");
    }
}

#[tokio::test]
async fn a_coordinator_takes_over_from_its_own_earlier_session() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    driver.groups().create(&group("g")).await.unwrap();
    let opening = opening("m");
    let first = driver.open_session(&opening).await.unwrap();
    first.groups().join(&join("g")).await.unwrap();
    granted(&first, &ask("x", Exclusive)).await;
    let mut watch = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut watch).await), "[m]");
    let second = driver.open_session(&opening.clone().after(Some(first.id()))).await.unwrap();
    assert_ne!(first.id(), second.id());
    second.groups().join(&join("g")).await.unwrap();
    assert_eq!(granted(&second, &ask("x", Exclusive)).await.previous, Previous::Expired);
    assert_eq!(short(next(&mut watch).await), "-m");
    assert_eq!(short(next(&mut watch).await), "+m");
    assert!(matches!(soon(first.notice()).await, Notice::SessionLost(LossReason::Vanished)));
    let lost = first.renew(&held(&[], &[], &[])).await.unwrap().lost;
    assert_eq!(lost, Some(LossReason::Vanished));
    // Somebody else's session is not ours to end.
    let stranger = driver.open_session(&crate::common::opening("m").after(Some(second.id()))).await.unwrap();
    assert_eq!(stranger.groups().join(&join("g")).await.unwrap_err().kind(), ErrorKind::MemberExists);
    let leader = LockKey::Leader(group("g"));
    let mut request = ask("g", Exclusive);
    request.key = leader;
    granted(&second, &request).await;
    let place = queued(&stranger, &{
        let mut r = ask("g", Exclusive);
        r.key = request.key.clone();
        r
    })
    .await;
    second.close(End::Clean).await.unwrap();
    assert!(matches!(soon(stranger.locks().turn(&place)).await.unwrap(), Turn::Granted(_)));
}
