//! Locks at the driver's level, among tasks and among processes.

#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use crate::common::{
    Exclusive, Helper, QUIET, Shared, ask, connect, eventually, granted, group, held, holding, id, key, kind,
    member, next, permit, queued, request, soon, still_waits, turn, url,
};
use nix::sys::signal::Signal;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, BreakRequest, End, LockKey, Meant, Notice, Previous, Released, Turn,
};
use tooz_core::{ErrorKind, GroupId, LossReason};

/// Both kinds of operating-system locks, in a directory each.
const FLAVORS: [&str; 2] = ["", "?backend=portable"];

#[tokio::test]
async fn one_holder_among_sessions_of_one_process() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (_d1, one) = member(&url, "one").await;
        let (_d2, other) = member(&url, "other").await;
        let first = granted(&one, 1, "x", Exclusive).await;
        assert!(held(&one, "x", Exclusive).await && held(&other, "x", Shared).await);
        let place = queued(&other, 2, "x", Exclusive).await;
        assert!(still_waits(&other, &place).await);
        assert_eq!(one.locks().release(&first, End::Clean).await.unwrap(), Released::Released);
        let second = turn(&other, &place).await;
        assert!(second.token > first.token);
        assert_eq!(second.previous, Previous::Clean);
        assert_eq!(one.locks().release(&first, End::Clean).await.unwrap(), Released::WasNotHolder);
        assert!(held(&one, "x", Exclusive).await, "a late release touches nobody");
        // Asked again, a turn that was lost is the same grant.
        assert_eq!(turn(&other, &place).await.token, second.token);
        other.locks().release(&second, End::Clean).await.unwrap();
        assert!(!held(&one, "x", Exclusive).await);
    }
}

#[tokio::test]
async fn processes_exclude_each_other() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let file = directory.path().join("tmp-number");
        std::fs::write(&file, "0").unwrap();
        let mut helpers: Vec<Helper> =
            (0..3).map(|number| Helper::start(&url, &format!("member-{number}"))).collect();
        for helper in &mut helpers {
            helper.tell(&format!("count 40 {}", file.display()));
        }
        for helper in &helpers {
            assert_eq!(helper.hear(), "counted");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "120", "{flavor}");
    }
}

#[tokio::test]
async fn a_killed_holder_frees_at_once_and_leaves_a_mark() {
    for (flavor, limit) in [("", Duration::from_millis(500)), ("?backend=portable", Duration::from_secs(2))] {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (_driver, session) = member(&url, "survivor").await;
        let mut times = Vec::new();
        for (round, lead) in (0..).zip([false, true, false, true]) {
            let mut helper = Helper::start(&url, "victim");
            let token: u64 = helper.does(if lead { "lead x" } else { "lock x" }).parse().unwrap();
            let wanted = if lead { LockKey::Leader(GroupId::new("x").unwrap()) } else { key("x") };
            let attempt = AttemptId(100 + round);
            let asked = session.locks().request(&Acquire::new(attempt, wanted, Exclusive)).await.unwrap();
            let Acquired::Queued(place) = asked else { panic!("{asked:?}") };
            assert!(still_waits(&session, &place).await);
            let waiting = tokio::spawn({
                let (session, place) = (session.clone(), place.clone());
                async move { turn(&session, &place).await }
            });
            tokio::task::yield_now().await;
            let begun = std::time::Instant::now();
            helper.kill();
            let grant = soon(waiting).await.unwrap();
            times.push(begun.elapsed());
            assert!(grant.token.get() > token);
            assert_eq!(grant.previous, Previous::Expired);
            session.locks().release(&grant, End::Clean).await.unwrap();
        }
        // A loaded machine says nothing about the mechanism: the best of some.
        assert!(times.iter().any(|time| *time < limit), "{times:?}");
        assert_eq!(granted(&session, 9, "x", Exclusive).await.previous, Previous::Clean);
    }
}

/// L12: what a holder was told goes with its clean end, also where that is the end of its session.
#[tokio::test]
async fn a_clean_close_forgets_how_the_holder_before_it_ended() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (_d1, one) = member(&url, "one").await;
    let (_d2, other) = member(&url, "other").await;
    let cut_off = granted(&one, 1, "x", Exclusive).await;
    one.locks().release(&cut_off, End::Unclean).await.unwrap();
    assert_eq!(granted(&other, 2, "x", Exclusive).await.previous, Previous::Expired);
    other.close(End::Clean).await.unwrap();
    assert_eq!(granted(&one, 3, "x", Exclusive).await.previous, Previous::Clean);
}

#[tokio::test]
async fn a_stopped_holder_keeps_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (driver, session) = member(&url, "other").await;
    let mut helper = Helper::start(&url, "stopped");
    helper.does("lock x");
    helper.stop();
    let place = queued(&session, 1, "x", Exclusive).await;
    assert!(still_waits(&session, &place).await);
    // Nobody can take an operating-system lock from a process (L10).
    let error = driver.locks().break_lock(&BreakRequest::new(key("x"), id("op"), "stuck")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HolderUnresponsive);
    assert!(error.to_string().contains(&helper.pid().to_string()), "{error}");
    assert_eq!(driver.locks().holders(&key("x")).await.unwrap().holders.len(), 1, "nothing was changed");
    helper.signal(Signal::SIGCONT);
    assert_eq!(helper.does("unlock"), "Released", "the request was withdrawn");
    turn(&session, &place).await;
}

#[tokio::test]
async fn breaking_asks_the_holder_and_tells_it() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (_d1, victim) = member(&url, "victim").await;
        let (operator, other) = member(&url, "other").await;
        let first = granted(&victim, 1, "x", Exclusive).await;
        let stale = BreakRequest::new(key("x"), id("op"), "w")
            .only(Meant::Token(tooz_core::FencingToken::new(1).unwrap()));
        assert!(operator.locks().break_lock(&stale).await.unwrap().is_empty());
        let broken =
            operator.locks().break_lock(&BreakRequest::new(key("x"), id("op"), "it hangs")).await.unwrap();
        assert_eq!(broken.len(), 1);
        assert_eq!((broken[0].member.clone(), broken[0].token), (Some(id("victim")), Some(first.token)));
        let reason = LossReason::Broken { by: Some(id("op")), why: "it hangs".into() };
        match soon(victim.notice()).await {
            Notice::GrantLost(attempt, why) => assert_eq!((attempt, why), (AttemptId(1), reason.clone())),
            notice => panic!("{notice:?}"),
        }
        let renewal = victim.renew(&holding(&[&first], &[], &[])).await.unwrap();
        assert_eq!(renewal.gone, [(AttemptId(1), reason)]);
        assert_eq!(victim.locks().release(&first, End::Clean).await.unwrap(), Released::WasNotHolder);
        let second = granted(&other, 2, "x", Exclusive).await;
        assert_eq!(second.previous, Previous::Broken);
        assert!(second.token > first.token);
        assert!(directory.path().join(".tooz-rs/broken").join(AttemptId(1).to_string()).exists());
        assert!(
            operator.locks().break_lock(&BreakRequest::new(key("y"), id("op"), "")).await.unwrap().is_empty()
        );
    }
}

#[tokio::test]
async fn readers_together_and_no_reader_past_a_writer() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (driver, one) = member(&url, "one").await;
        let (_d2, two) = member(&url, "two").await;
        let first = granted(&one, 1, "x", Shared).await;
        let second = granted(&two, 2, "x", Shared).await;
        let writer = queued(&one, 3, "x", Exclusive).await;
        let late = queued(&two, 4, "x", Shared).await;
        let later = queued(&two, 5, "x", Shared).await;
        assert_eq!(driver.locks().holders(&key("x")).await.unwrap().waiters, Some(3));
        one.locks().release(&first, End::Clean).await.unwrap();
        assert!(still_waits(&one, &writer).await && still_waits(&two, &late).await);
        two.locks().release(&second, End::Clean).await.unwrap();
        let written = turn(&one, &writer).await;
        assert!(still_waits(&two, &late).await);
        one.locks().release(&written, End::Clean).await.unwrap();
        let read = turn(&two, &late).await;
        let also = turn(&two, &later).await;
        assert!(written.token > first.token.max(second.token) && read.token.min(also.token) > written.token);
    }
}

#[tokio::test]
async fn a_dead_waiter_blocks_nobody() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (driver, one) = member(&url, "one").await;
        let (_d2, two) = member(&url, "two").await;
        let first = granted(&one, 1, "x", Shared).await;
        let mut helper = Helper::start(&url, "writer");
        helper.tell("lock x");
        eventually("the helper waits", async || {
            driver.locks().holders(&key("x")).await.unwrap().waiters == Some(1)
        })
        .await;
        let place = queued(&two, 2, "x", Shared).await;
        assert!(still_waits(&two, &place).await);
        helper.kill();
        turn(&two, &place).await;
        one.locks().release(&first, End::Clean).await.unwrap();
    }
}

#[tokio::test]
async fn permits_are_counted_and_limits_compared() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (_d1, one) = member(&url, "one").await;
        let (_d2, two) = member(&url, "two").await;
        let two_of = permit(2);
        let first = granted(&one, 1, "x", two_of).await;
        let second = granted(&two, 2, "x", two_of).await;
        assert!(second.token > first.token);
        let place = queued(&one, 3, "x", two_of).await;
        assert!(still_waits(&one, &place).await);
        let error = two.locks().request(&ask(4, "x", permit(3))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("limit 2") && error.to_string().contains("limit 3"), "{error}");
        assert!(held(&two, "x", Shared).await && held(&two, "x", Exclusive).await);
        two.locks().release(&second, End::Clean).await.unwrap();
        turn(&one, &place).await;
    }
}

#[tokio::test]
async fn a_withdrawn_attempt_leaves_nothing_and_comes_never() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (driver, one) = member(&url, "one").await;
    let first = granted(&one, 1, "x", Exclusive).await;
    let place = queued(&one, 2, "x", Exclusive).await;
    assert_eq!(queued(&one, 2, "x", Exclusive).await.attempt, place.attempt, "asked again: what stands");
    for _ in 0..2 {
        one.locks().withdraw(&key("x"), AttemptId(2)).await.unwrap();
    }
    assert_eq!(kind(one.locks().request(&ask(2, "x", Exclusive)).await), ErrorKind::Invalid);
    assert!(matches!(one.locks().turn(&place).await.unwrap(), Turn::Gone));
    assert_eq!(driver.locks().holders(&key("x")).await.unwrap().waiters, Some(0));
    one.locks().withdraw(&key("x"), AttemptId(1)).await.unwrap();
    assert!(!held(&one, "x", Exclusive).await);
    assert_eq!(one.locks().release(&first, End::Clean).await.unwrap(), Released::WasNotHolder);
    one.locks().withdraw(&key("x"), AttemptId(3)).await.unwrap();
    assert_eq!(
        kind(one.locks().request(&ask(3, "x", Exclusive)).await),
        ErrorKind::Invalid,
        "withdrawn before"
    );
}

#[tokio::test]
async fn a_deleted_lock_file_splits_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (_d1, one) = member(&url, "one").await;
    let (_d2, two) = member(&url, "two").await;
    let first = granted(&one, 1, "x", Exclusive).await;
    let place = queued(&two, 2, "x", Exclusive).await;
    std::fs::remove_file(directory.path().join("x")).unwrap();
    assert!(held(&two, "x", Exclusive).await);
    assert!(still_waits(&two, &place).await);
    // The holder makes the file anew and locks it, so that Python stays out too.
    eventually("the lock file is there again", async || directory.path().join("x").exists()).await;
    assert!(one.renew(&holding(&[&first], &[], &[])).await.unwrap().gone.is_empty());
    one.locks().release(&first, End::Clean).await.unwrap();
    assert!(turn(&two, &place).await.token > first.token);
}

#[tokio::test]
async fn records_removed_by_hand_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (_driver, one) = member(&url, "one").await;
    let first = granted(&one, 1, "x", Exclusive).await;
    let place = queued(&one, 2, "x", Exclusive).await;
    for stripe in std::fs::read_dir(directory.path().join(".tooz-rs/locks")).unwrap() {
        for record in std::fs::read_dir(stripe.unwrap().path()).unwrap() {
            std::fs::remove_file(record.unwrap().path()).unwrap();
        }
    }
    assert!(matches!(soon(one.locks().turn(&place)).await.unwrap(), Turn::Gone));
    let renewal = one.renew(&holding(&[&first], &[&place], &[])).await.unwrap();
    assert_eq!(renewal.gone, [(AttemptId(1), LossReason::Vanished)]);
    assert_eq!(renewal.unqueued, [AttemptId(2)]);
    assert!(matches!(request(&one, 2, "x", Exclusive).await, Acquired::Granted(_)));
}

#[tokio::test]
async fn tokens_survive_processes_reboots_and_a_lost_counter() {
    let directory = tempfile::tempdir().unwrap();
    let mut last = 0;
    for (round, boot) in ["one", "one", "two", "three"].into_iter().enumerate() {
        let url = url(directory.path(), &format!("?boot_id={boot}"));
        let (driver, session) = member(&url, "m").await;
        for attempt in 1..=3 {
            let grant = granted(&session, attempt, "x", Exclusive).await;
            assert!(grant.token.get() > last);
            last = grant.token.get();
            session.locks().release(&grant, End::Clean).await.unwrap();
        }
        session.close(End::Clean).await.unwrap();
        driver.close().await.unwrap();
        drop((driver, session));
        if round == 0 {
            std::fs::remove_file(directory.path().join(".tooz-rs/fence")).unwrap();
        }
    }
}

#[tokio::test]
async fn any_name_is_a_lock_of_its_own_inside_the_directory() {
    let outside = tempfile::tempdir().unwrap();
    let directory = outside.path().join("inside");
    let url = url(&directory, "");
    let (_d1, one) = member(&url, "one").await;
    let (_d2, two) = member(&url, "two").await;
    let long = [7_u8; 255];
    let names: &[&[u8]] = &[
        b"a",
        b"a/b",
        b"a//b",
        b"a/./b",
        b"./a",
        b"..",
        b"../evil",
        b"/etc/evil",
        b"groups",
        b"groups/x",
        b"tmp",
        b".driver_lock",
        b".tooz-rs",
        b".tooz-rs/fence",
        b"a\0b",
        b"\xff\xfe",
        b"\n",
        b"A",
        &long,
        b"%61",
    ];
    for (number, name) in names.iter().enumerate() {
        let lock = LockKey::Named(tooz_core::LockName::new(name).unwrap());
        let attempt = AttemptId(u128::try_from(number).unwrap());
        let asked = one.locks().request(&Acquire::new(attempt, lock.clone(), Exclusive)).await.unwrap();
        assert!(matches!(asked, Acquired::Granted(_)), "{lock} meets another name");
        let other = Acquire::new(attempt, lock.clone(), Exclusive).wait(false);
        assert!(matches!(two.locks().request(&other).await.unwrap(), Acquired::Held), "{lock}");
    }
    let beside: Vec<_> =
        std::fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["inside"]);
    assert_eq!(std::fs::metadata(directory.join("A")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(directory.join(".tooz-rs")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn symlinks_are_not_followed() {
    let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_driver, session) = member(&url(directory.path(), ""), "m").await;
    symlink(outside.path(), directory.path().join("sub")).unwrap();
    symlink(outside.path().join("victim"), directory.path().join("x")).unwrap();
    for name in ["sub/y", "x"] {
        let error = session.locks().request(&ask(1, name, Exclusive)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{name}: {error}");
        assert!(error.to_string().contains("symlink"), "{error}");
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    let trap = tempfile::tempdir().unwrap();
    symlink(outside.path(), trap.path().join(".tooz-rs")).unwrap();
    assert_eq!(kind(connect(&url(trap.path(), "")).await), ErrorKind::Denied);
}

#[tokio::test]
async fn modes_are_as_told() {
    let directory = tempfile::tempdir().unwrap();
    let (_driver, session) = member(&url(directory.path(), "?mode=660"), "m").await;
    granted(&session, 1, "sub/x", Exclusive).await;
    let mode =
        |path: &str| std::fs::metadata(directory.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("sub/x"), mode("sub"), mode(".tooz-rs/fence")), (0o660, 0o770, 0o660));
}

#[tokio::test]
async fn a_directory_is_used_with_one_kind_of_lock() {
    let directory = tempfile::tempdir().unwrap();
    connect(&url(directory.path(), "")).await.unwrap();
    let error = connect(&url(directory.path(), "?backend=portable")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
}

#[tokio::test]
async fn namespaces_never_meet() {
    let directory = tempfile::tempdir().unwrap();
    let (_d1, one) = member(&url(directory.path(), ""), "m").await;
    let (_d2, two) = member(&url(directory.path(), "?namespace=other"), "m").await;
    granted(&one, 1, "x", Exclusive).await;
    granted(&two, 1, "x", Exclusive).await;
}

/// What a look would make belongs to whoever looks, perhaps to root, and would be in the way of everybody else.
#[tokio::test]
async fn looking_makes_nothing() {
    for query in ["", "?namespace=other", "?backend=portable"] {
        let directory = tempfile::tempdir().unwrap();
        let driver = connect(&url(directory.path(), query)).await.unwrap();
        let all = || {
            let mut found = Vec::new();
            let mut left = vec![directory.path().to_owned()];
            while let Some(directory) = left.pop() {
                for entry in std::fs::read_dir(directory).unwrap() {
                    let path = entry.unwrap().path();
                    found.push(path.clone());
                    left.extend(path.is_dir().then_some(path));
                }
            }
            found.sort();
            found
        };
        let before = all();
        for number in 0..100 {
            let key = key(&format!("deep/{number}"));
            assert!(driver.locks().holders(&key).await.unwrap().holders.is_empty());
            assert!(driver.locks().watch(&key).await.is_ok());
            let broken = driver.locks().break_lock(&BreakRequest::new(key, id("op"), "stuck")).await.unwrap();
            assert!(broken.is_empty());
        }
        assert!(driver.groups().list().await.unwrap().is_empty());
        assert_eq!(kind(driver.groups().members(&group("g")).await), ErrorKind::GroupNotFound);
        assert_eq!(kind(driver.groups().member(&group("g"), &id("m")).await), ErrorKind::GroupNotFound);
        assert!(driver.groups().watch(&group("g")).await.is_err());
        let looking = tooz_core::Coordinator::builder(url(directory.path(), query), "m").examine();
        looking.await.unwrap();
        assert_eq!(all(), before);
    }
}

/// Whoever follows a lock that nobody ever took hears of the first grant at once.
#[tokio::test]
async fn the_first_grant_of_a_lock_is_told_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await.unwrap();
    let mut times = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        let mut stream = driver.locks().watch(&key(name)).await.unwrap();
        assert!(next(&mut stream).await.unwrap().holders.is_empty());
        let mut helper = Helper::start(&url, name);
        helper.tell(&format!("lock {name}"));
        let start = std::time::Instant::now();
        assert_eq!(next(&mut stream).await.unwrap().holders.len(), 1);
        times.push(start.elapsed());
    }
    times.sort();
    // By the event, not by the look every second.
    assert!(times[2] < Duration::from_millis(400), "{times:?}");
}

#[tokio::test]
async fn the_holders_of_a_leadership_are_followed() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (driver, _session) = member(&url, "watcher").await;
        let leader = LockKey::Leader(GroupId::new("g").unwrap());
        let mut stream = driver.locks().watch(&leader).await.unwrap();
        assert!(next(&mut stream).await.unwrap().holders.is_empty());
        let mut helper = Helper::start(&url, "leader");
        let token: u64 = helper.does("lead g").parse().unwrap();
        let now = next(&mut stream).await.unwrap().holders;
        assert_eq!(now.len(), 1);
        assert_eq!((now[0].member.clone(), now[0].token.unwrap().get()), (Some(id("leader")), token));
        assert!(now[0].since.is_some());
        helper.kill();
        assert!(next(&mut stream).await.unwrap().holders.is_empty());
        driver.close().await.unwrap();
        assert!(next(&mut stream).await.is_none());
    }
}

/// L3: a grant that has taken its token and not yet written its record is waited for, or it would come after the raise with
/// a smaller token.
#[tokio::test]
async fn a_raise_waits_for_grants_that_are_being_written() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (driver, session) = member(&url(directory.path(), ""), "m").await;
    let before = granted(&session, 1, "x", Exclusive).await.token.get();
    let stripe = std::fs::read_dir(directory.path().join(".tooz-rs/locks")).unwrap().next().unwrap().unwrap();
    let path = stripe.path().join(".mutex");
    let mut granting = Helper::start(&url(elsewhere.path(), ""), "other");
    granting.does(&format!("mutex {}", path.display()));
    let least = tooz_core::FencingToken::new(before + 1_000_000).unwrap();
    let mut raise = Box::pin(driver.locks().raise_tokens(least));
    assert!(tokio::time::timeout(QUIET, raise.as_mut()).await.is_err(), "it did not wait");
    granting.kill();
    soon(raise).await.unwrap();
    assert_eq!(granted(&session, 2, "y", Exclusive).await.token, least);
    let (impatient, _session) = member(&url(directory.path(), "?operation_timeout=300ms"), "n").await;
    let mut stopped = Helper::start(&url(elsewhere.path(), ""), "another");
    let pid = stopped.does(&format!("mutex {}", path.display()));
    let error = impatient.locks().raise_tokens(least).await.unwrap_err();
    stopped.kill();
    assert!(error.kind() == ErrorKind::Unavailable && error.is_indeterminate(), "{error}");
    assert!(error.to_string().contains(&pid), "{error} does not name {pid}");
}

#[tokio::test]
async fn a_process_stopped_under_the_mutex_is_named() {
    // The mutex of the lock's records, taken as another process would take it.
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_driver, session) = member(&url(directory.path(), "?operation_timeout=300ms"), "m").await;
    granted(&session, 1, "x", Exclusive).await;
    let stripe = std::fs::read_dir(directory.path().join(".tooz-rs/locks")).unwrap().next().unwrap().unwrap();
    let path = stripe.path().join(".mutex");
    let mut stopped = Helper::start(&url(elsewhere.path(), ""), "other");
    let pid = stopped.does(&format!("mutex {}", path.display()));
    let error = session.locks().request(&ask(2, "x", Exclusive)).await.unwrap_err();
    stopped.kill();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&pid), "{error} does not name {pid}");
}
