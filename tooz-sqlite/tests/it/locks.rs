//! Locks of sessions in one process.

use crate::common::*;
use tooz_core::driver::{Acquired, BreakRequest, End, LockKey, Meant, Notice, Previous, Released, Turn};
use tooz_core::{ErrorKind, LossReason};

#[tokio::test]
async fn two_drivers_exclude_each_other_and_the_release_hands_on() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (connect(&url(directory.path(), "")).await, connect(&url(directory.path(), "")).await);
    let (a, b) = (session(&one, "a").await, session(&two, "b").await);
    let first = granted(&a, &ask("x", Exclusive)).await;
    assert!(matches!(b.locks().request(&ask("x", Exclusive).wait(false)).await.unwrap(), Acquired::Held));
    let request = ask("x", Exclusive);
    let place = queued(&b, &request).await;
    assert!(matches!(b.locks().request(&request).await.unwrap(), Acquired::Queued(_)), "idempotent");
    let holders = one.locks().holders(&key("x")).await.unwrap();
    assert_eq!((holders.holders.len(), holders.waiters), (1, Some(1)));
    assert_eq!(holders.holders[0].member, Some(id("a")));
    assert_eq!(holders.holders[0].token, Some(first.token));
    assert_eq!(a.locks().release(&first, End::Clean).await.unwrap(), Released::Released);
    let second = turn(&b, &place).await;
    assert!(second.token > first.token);
    assert_eq!(second.previous, Previous::Clean);
    assert_eq!(a.locks().release(&first, End::Clean).await.unwrap(), Released::WasNotHolder);
    assert!(
        matches!(b.locks().request(&request).await.unwrap(), Acquired::Granted(grant) if grant.token == second.token)
    );
    assert_eq!(b.locks().release(&second, End::Clean).await.unwrap(), Released::Released);
    assert!(one.locks().holders(&key("x")).await.unwrap().holders.is_empty());
}

#[tokio::test]
async fn names_kinds_and_namespaces_never_meet() {
    let directory = tempfile::tempdir().unwrap();
    let one = connect(&url(directory.path(), "namespace=one")).await;
    let two = connect(&url(directory.path(), "namespace=two")).await;
    let (a, b) = (session(&one, "a").await, session(&two, "b").await);
    granted(&a, &ask("x", Exclusive)).await;
    granted(&b, &ask("x", Exclusive)).await;
    let mut leader = ask("x", Exclusive);
    leader.key = LockKey::Leader(group("x"));
    granted(&a, &leader).await;
    for name in ["x\0", "X", "../x", "x/y", "\u{fffd}"] {
        granted(&a, &ask(name, Exclusive)).await;
    }
}

#[tokio::test]
async fn first_come_first_served_and_readers_do_not_starve_a_writer() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let a = session(&driver, "a").await;
    let (r1, r2) = (granted(&a, &ask("x", Shared)).await, granted(&a, &ask("x", Shared)).await);
    let writer = queued(&a, &ask("x", Exclusive)).await;
    let r3 = queued(&a, &ask("x", Shared)).await;
    let r4 = queued(&a, &ask("x", Shared)).await;
    let last = queued(&a, &ask("x", Exclusive)).await;
    a.locks().release(&r1, End::Clean).await.unwrap();
    a.locks().release(&r2, End::Clean).await.unwrap();
    let w = turn(&a, &writer).await;
    assert!(w.token > r1.token && w.token > r2.token);
    a.locks().release(&w, End::Clean).await.unwrap();
    let (r3, r4) = (turn(&a, &r3).await, turn(&a, &r4).await);
    assert!(r3.token > w.token && r4.token > w.token);
    a.locks().release(&r3, End::Clean).await.unwrap();
    assert_eq!(driver.locks().holders(&key("x")).await.unwrap().waiters, Some(1));
    a.locks().release(&r4, End::Clean).await.unwrap();
    assert!(turn(&a, &last).await.token > r4.token);
}

#[tokio::test]
async fn permits_are_counted_and_two_limits_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let a = session(&driver, "a").await;
    let two = permit(2);
    let first = granted(&a, &ask("x", two)).await;
    granted(&a, &ask("x", two)).await;
    let third = queued(&a, &ask("x", two)).await;
    let error = a.locks().request(&ask("x", permit(3))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    a.locks().release(&first, End::Clean).await.unwrap();
    turn(&a, &third).await;
    // Only in the queue.
    granted(&a, &ask("z", Exclusive)).await;
    queued(&a, &ask("z", two)).await;
    let error = a.locks().request(&ask("z", permit(5))).await.unwrap_err();
    assert!(error.to_string().contains("limit 5") && error.to_string().contains("limit 2"), "{error}");
}

#[tokio::test]
async fn what_was_withdrawn_neither_holds_nor_waits_nor_ever_will() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let a = session(&driver, "a").await;
    let first = ask("x", Exclusive);
    granted(&a, &first).await;
    let second = ask("x", Exclusive);
    let place = queued(&a, &second).await;
    let third = queued(&a, &ask("x", Exclusive)).await;
    a.locks().withdraw(&second.key, second.attempt).await.unwrap();
    assert!(matches!(soon(a.locks().turn(&place)).await.unwrap(), Turn::Gone));
    a.locks().withdraw(&first.key, first.attempt).await.unwrap();
    a.locks().withdraw(&first.key, first.attempt).await.unwrap();
    turn(&a, &third).await;
    for late in [&first, &second] {
        assert_eq!(a.locks().request(late).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    let unsent = ask("y", Exclusive);
    let request = a.locks().request(&unsent); // made, not polled
    a.locks().withdraw(&unsent.key, unsent.attempt).await.unwrap();
    assert_eq!(request.await.unwrap_err().kind(), ErrorKind::Invalid);
    granted(&a, &ask("y", Exclusive)).await;
}

#[tokio::test]
async fn a_turn_that_is_dropped_leaves_the_place_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let a = session(&driver, "a").await;
    let first = granted(&a, &ask("x", Exclusive)).await;
    let place = queued(&a, &ask("x", Exclusive)).await;
    {
        let waiting = a.locks().turn(&place);
        tokio::pin!(waiting);
        let once = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::future::Future::poll(waiting.as_mut(), cx).is_pending())
        });
        assert!(once.await);
    }
    a.locks().release(&first, End::Clean).await.unwrap();
    let second = turn(&a, &place).await;
    assert_eq!(turn(&a, &place).await.token, second.token, "asked again, it answers the same");
}

#[tokio::test]
async fn a_break_frees_the_lock_and_tells_the_victim() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let (a, b) = (session(&driver, "a").await, session(&driver, "b").await);
    let victim = granted(&a, &ask("x", Exclusive)).await;
    let other = BreakRequest::new(key("x"), id("op"), "stuck").only(Meant::Token(victim.token));
    let broken = driver.locks().break_lock(&other).await.unwrap();
    assert_eq!(broken.len(), 1);
    assert_eq!(broken[0].member, Some(id("a")));
    let next = granted(&b, &ask("x", Exclusive)).await;
    assert_eq!(next.previous, Previous::Broken);
    match soon(a.notice()).await {
        Notice::GrantLost(attempt, LossReason::Broken { by, why }) => {
            assert_eq!((attempt, by, why.as_str()), (victim.attempt, Some(id("op")), "stuck"));
        }
        other => panic!("{other:?}"),
    }
    let renewal = a.renew(&held(&[&victim], &[], &[])).await.unwrap();
    assert!(
        matches!(&renewal.gone[..], [(attempt, LossReason::Broken { .. })] if *attempt == victim.attempt)
    );
    assert_eq!(a.locks().release(&victim, End::Clean).await.unwrap(), Released::WasNotHolder);
    assert!(driver.locks().break_lock(&other).await.unwrap().is_empty(), "the token is another now");
    b.locks().release(&next, End::Clean).await.unwrap();
    assert_eq!(granted(&a, &ask("x", Exclusive)).await.previous, Previous::Clean);
}

#[tokio::test]
async fn closing_hands_on_cleanly_and_dropping_as_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let c = session(&driver, "c").await;
    for (crash, expected) in [(false, Previous::Clean), (true, Previous::Expired)] {
        let a = session(&driver, "a").await;
        granted(&a, &ask("x", Exclusive)).await;
        let place = queued(&c, &ask("x", Exclusive)).await;
        if crash {
            drop(a);
        } else {
            a.close(End::Clean).await.unwrap();
            a.close(End::Clean).await.unwrap();
            assert_eq!(a.locks().request(&ask("x", Exclusive)).await.unwrap_err().kind(), ErrorKind::Closed);
        }
        let grant = turn(&c, &place).await;
        assert_eq!(grant.previous, expected);
        // A grant that nobody used does not hide how the holder before it ended.
        c.locks().withdraw(&key("x"), grant.attempt).await.unwrap();
        let again = granted(&c, &ask("x", Exclusive)).await;
        assert_eq!(again.previous, expected);
        c.locks().release(&again, End::Clean).await.unwrap();
    }
    let count = |name: &str| std::fs::read_dir(directory.path().join(name)).unwrap().count();
    assert_eq!(count("tooz.db-sessions"), 3, "one session, the epoch and the directory of bells are left");
    assert_eq!(count("tooz.db-sessions/.bells"), 1, "this process's");
}

#[tokio::test]
async fn a_beat_tells_what_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let a = session(&driver, "a").await;
    driver.groups().create(&group("g")).await.unwrap();
    a.groups().join(&join("g")).await.unwrap();
    let grant = granted(&a, &ask("x", Exclusive)).await;
    let place = queued(&a, &ask("x", Exclusive)).await;
    let all = held(&[&grant], &[&place], &["g"]);
    let renewal = a.renew(&all).await.unwrap();
    assert!(renewal.lost.is_none() && renewal.gone.is_empty());
    assert!(renewal.unqueued.is_empty() && renewal.evicted.is_empty());
    // Somebody with the sqlite3 shell, in a process of its own: in ours it would drop SQLite's locks.
    let (_shell, _) = Actor::start(
        "sql",
        &[
            &directory.path().join("tooz.db").display().to_string(),
            "DELETE FROM holders; DELETE FROM waiters; DELETE FROM members",
        ],
    );
    let renewal = a.renew(&all).await.unwrap();
    assert!(renewal.lost.is_none());
    assert_eq!(renewal.gone, [(grant.attempt, LossReason::Vanished)]);
    assert_eq!(renewal.unqueued, [place.attempt]);
    assert_eq!(renewal.evicted, [group("g")]);
    assert!(matches!(soon(a.locks().turn(&place)).await.unwrap(), Turn::Gone));
}

#[tokio::test]
async fn who_follows_a_lock_sees_its_holders() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let a = session(&driver, "a").await;
    let mut leader = ask("g", Exclusive);
    leader.key = LockKey::Leader(group("g"));
    for request in [leader, ask("n", Exclusive)] {
        let mut stream = driver.locks().watch(&request.key).await.unwrap();
        assert!(next(&mut stream).await.unwrap().unwrap().holders.is_empty());
        let grant = granted(&a, &request).await;
        let holders = next(&mut stream).await.unwrap().unwrap().holders;
        assert_eq!((holders.len(), holders[0].token), (1, Some(grant.token)));
        a.locks().release(&grant, End::Clean).await.unwrap();
        assert!(next(&mut stream).await.unwrap().unwrap().holders.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_grow_and_nobody_overlaps_under_many_tasks() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let inside = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let tokens = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for member in 0..16 {
        let session = session(&driver, &format!("m{member}")).await;
        let (inside, tokens) = (inside.clone(), tokens.clone());
        tasks.spawn(async move {
            for _ in 0..25 {
                let request = ask("x", Exclusive);
                let grant = match session.locks().request(&request).await.unwrap() {
                    Acquired::Queued(place) => turn(&session, &place).await,
                    Acquired::Granted(grant) => grant,
                    other => panic!("{other:?}"),
                };
                assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                tokens.lock().unwrap().push(grant.token);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                session.locks().release(&grant, End::Clean).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let tokens = tokens.lock().unwrap();
    assert_eq!(tokens.len(), 16 * 25);
    assert!(tokens.is_sorted_by(|one, other| one < other));
}
