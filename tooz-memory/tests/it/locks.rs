//! Exclusion, order, readers and permits, withdrawing, releasing, breaking.

use std::time::{Duration, UNIX_EPOCH};

use crate::common::*;
use tooz_core::driver::{
    Acquired, AttemptId, BreakRequest, Clock, End, LockKey, Notice, Previous, Released, Turn,
};
use tooz_core::{ErrorKind, LossReason};
use tooz_memory::Kit;

#[tokio::test(start_paused = true)]
async fn one_holder_at_a_time_in_the_order_of_asking() {
    let url = "memory://order";
    let (_da, a) = member(url, "a").await;
    let (_db, b) = member(url, "b").await;
    let first = granted(&a, 1, Exclusive).await;
    let second = queued(&b, 2, Exclusive).await;
    let third = queued(&a, 3, Exclusive).await; // not reentrant: its own coordinator contends, too
    assert!(matches!(b.locks().request(&ask(4, "x", Exclusive).wait(false)).await.unwrap(), Acquired::Held));
    assert!(still_waits(&b, &second).await);

    assert_eq!(a.locks().release(&first, End::Clean).await.unwrap(), Released::Released);
    let second = turn(&b, &second).await;
    assert!(still_waits(&a, &third).await);
    assert!(second.token > first.token);
    assert_eq!(second.previous, Previous::Clean);

    assert_eq!(b.locks().release(&second, End::Clean).await.unwrap(), Released::Released);
    let third = turn(&a, &third).await;
    assert!(third.token > second.token);
    // Twice, and by somebody else: the present holder is untouched.
    assert_eq!(b.locks().release(&second, End::Clean).await.unwrap(), Released::WasNotHolder);
    assert_eq!(b.locks().release(&third, End::Clean).await.unwrap(), Released::WasNotHolder);
    assert_eq!(Kit::of(url).unwrap().held(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_sent_again_answers_what_stands() {
    let (_d, a) = member("memory://again", "a").await;
    let grant = granted(&a, 1, Exclusive).await;
    let place = queued(&a, 2, Exclusive).await;
    assert_eq!(granted(&a, 1, Exclusive).await.token, grant.token);
    assert_eq!(queued(&a, 2, Exclusive).await.attempt, place.attempt);
    assert_eq!(Kit::of("memory://again").unwrap().queued(), 1);
    assert_eq!(kind(a.locks().request(&ask(1, "y", Exclusive)).await), ErrorKind::Invalid);
    a.locks().release(&grant, End::Clean).await.unwrap();
    // The attempt is over: a late copy of the request must not take the lock again.
    assert_eq!(kind(a.locks().request(&ask(1, "x", Exclusive)).await), ErrorKind::Invalid);
    turn(&a, &place).await;
}

/// Tokens of all backends look alike: a new one begins with the microseconds since 1970, above those of an earlier one.
#[tokio::test(start_paused = true)]
async fn the_first_token_is_the_time() {
    let first = async |seconds| {
        let mut context = context();
        context.clock = Clock::tokio(UNIX_EPOCH + Duration::from_secs(seconds));
        let driver = connect_in("memory://first", context).await;
        let session = driver.open_session(&opening("a")).await.unwrap();
        let one = granted(&session, 1, Exclusive).await;
        session.locks().release(&one, End::Clean).await.unwrap();
        (one.token.get(), granted(&session, 2, Exclusive).await.token.get())
    };
    assert_eq!(first(1_700_000_000).await, (1_700_000_000_000_001, 1_700_000_000_000_002));
    assert_eq!(first(1_700_000_001).await.0, 1_700_000_001_000_001);
}

#[tokio::test(start_paused = true)]
async fn readers_together_and_never_past_a_waiting_writer() {
    let (_d, a) = member("memory://readers", "a").await;
    let one = granted(&a, 1, Shared).await;
    let two = granted(&a, 2, Shared).await;
    let writer = queued(&a, 3, Exclusive).await;
    let four = queued(&a, 4, Shared).await;
    let five = queued(&a, 5, Shared).await;
    let last = queued(&a, 6, Exclusive).await;
    a.locks().release(&one, End::Clean).await.unwrap();
    assert!(still_waits(&a, &writer).await);
    a.locks().release(&two, End::Clean).await.unwrap();
    let writer = turn(&a, &writer).await;
    assert!(still_waits(&a, &four).await);
    a.locks().release(&writer, End::Clean).await.unwrap();
    // One release admits all readers up to the next writer.
    let (four, five) = (turn(&a, &four).await, turn(&a, &five).await);
    assert!(four.token > writer.token && five.token > writer.token);
    assert!(still_waits(&a, &last).await);
    a.locks().release(&four, End::Clean).await.unwrap();
    a.locks().release(&five, End::Clean).await.unwrap();
    assert!(turn(&a, &last).await.token > five.token);
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_gives_up_lets_the_readers_behind_it_in() {
    let (_d, a) = member("memory://gives-up", "a").await;
    granted(&a, 1, Shared).await;
    let writer = queued(&a, 2, Exclusive).await;
    let reader = queued(&a, 3, Shared).await;
    a.locks().withdraw(&writer.key, writer.attempt).await.unwrap();
    turn(&a, &reader).await;
    assert!(matches!(a.locks().turn(&writer).await.unwrap(), Turn::Gone));
}

#[tokio::test(start_paused = true)]
async fn permits_are_counted_and_two_limits_do_not_mix() {
    let (_d, a) = member("memory://permits", "a").await;
    let two = permit(2);
    let three = permit(3);
    let one = granted(&a, 1, two).await;
    assert!(granted(&a, 2, two).await.token > one.token);
    let third = queued(&a, 3, two).await;
    let error = a.locks().request(&ask(4, "x", three)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("limit 3") && error.to_string().contains("limit 2"), "{error}");
    a.locks().release(&one, End::Clean).await.unwrap();
    turn(&a, &third).await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_compared_with_the_waiters_too() {
    let (_d, a) = member("memory://permit-queue", "a").await;
    granted(&a, 1, Exclusive).await;
    queued(&a, 2, permit(2)).await;
    assert_eq!(kind(a.locks().request(&ask(3, "x", permit(9))).await), ErrorKind::Invalid);
    assert_eq!(Kit::of("memory://permit-queue").unwrap().queued(), 1);
}

#[tokio::test(start_paused = true)]
async fn withdrawing_ends_an_attempt_for_good() {
    let url = "memory://withdraw";
    let (_d, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    // Before it arrives, while it waits, and when it holds; each twice.
    for round in 0..3_u128 {
        let holder = granted(&a, 100 + round, Exclusive).await;
        let attempt = AttemptId(round);
        let mut place = None;
        if round > 0 {
            place = Some(queued(&a, round, Exclusive).await);
        }
        if round == 2 {
            a.locks().release(&holder, End::Clean).await.unwrap();
            turn(&a, &place.unwrap()).await;
        }
        a.locks().withdraw(&key("x"), attempt).await.unwrap();
        a.locks().withdraw(&key("x"), attempt).await.unwrap();
        assert_eq!(kind(a.locks().request(&ask(round, "x", Exclusive)).await), ErrorKind::Invalid);
        a.locks().release(&holder, End::Clean).await.unwrap();
        assert_eq!((kit.held(), kit.queued()), (0, 0), "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_while_it_is_withdrawn_fails() {
    let url = "memory://late";
    let (_d, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    kit.pause();
    let late = {
        let a = a.clone();
        async move { a.locks().request(&ask(1, "x", Exclusive)).await }
    };
    let withdraw = async {
        while kit.hanging() == 0 {
            tokio::task::yield_now().await;
        }
        kit.delay(std::time::Duration::from_secs(1)); // only the withdrawal's begin is delayed, so it is later
        kit.resume();
        a.locks().withdraw(&key("x"), AttemptId(1)).await
    };
    let (granted, withdrawn) = tokio::join!(late, withdraw);
    assert!(granted.is_ok());
    withdrawn.unwrap();
    assert_eq!((kit.held(), kit.hanging()), (0, 0));

    // And the other way round: the withdrawal overtakes.
    kit.delay(std::time::Duration::from_secs(1));
    let late = a.locks();
    let request = ask(2, "x", Exclusive);
    let late = late.request(&request);
    let overtaking = async {
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        kit.delay(std::time::Duration::ZERO);
        a.locks().withdraw(&key("x"), AttemptId(2)).await
    };
    let (late, withdrawn) = tokio::join!(late, overtaking);
    withdrawn.unwrap();
    assert_eq!(kind(late), ErrorKind::Invalid);
    assert_eq!(kit.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_turn_leaves_the_place_and_the_grant() {
    let (_d, a) = member("memory://dropped-turn", "a").await;
    let first = granted(&a, 1, Exclusive).await;
    let place = queued(&a, 2, Exclusive).await;
    for _ in 0..3 {
        assert!(still_waits(&a, &place).await); // each of them was dropped while it waited
    }
    {
        // Dropped after it was woken and before it could say so.
        let mut woken = std::pin::pin!(a.locks().turn(&place));
        assert!(tokio::time::timeout(std::time::Duration::from_secs(1), woken.as_mut()).await.is_err());
        a.locks().release(&first, End::Clean).await.unwrap();
    }
    let grant = turn(&a, &place).await;
    assert_eq!(turn(&a, &place).await.token, grant.token); // asked again, it is still there
}

#[tokio::test(start_paused = true)]
async fn breaking_frees_tells_the_victim_and_marks_the_next_grant() {
    let url = "memory://break";
    let (da, a) = member(url, "a").await;
    let (_db, b) = member(url, "b").await;
    let grant = granted(&a, 1, Exclusive).await;
    let place = queued(&b, 2, Exclusive).await;
    let request = BreakRequest::new(key("x"), id("operator"), "stuck");
    let other = tooz_core::FencingToken::new(grant.token.get() + 7).unwrap();
    assert!(
        da.locks()
            .break_lock(&request.clone().only(tooz_core::driver::Meant::Token(other)))
            .await
            .unwrap()
            .is_empty()
    );

    let victims = da.locks().break_lock(&request).await.unwrap();
    assert_eq!((victims[0].member.clone(), victims[0].token), (Some(id("a")), Some(grant.token)));
    let next = turn(&b, &place).await;
    assert_eq!(next.previous, Previous::Broken);
    let why = LossReason::Broken { by: Some(id("operator")), why: "stuck".into() };
    match soon(a.notice()).await {
        Notice::GrantLost(attempt, reason) => assert_eq!((attempt, &reason), (grant.attempt, &why)),
        other => panic!("{other:?}"),
    }
    assert!(never(a.notice()).await); // told once
    assert_eq!(a.renew(&held(&[&grant], &[], &[])).await.unwrap().gone, [(grant.attempt, why)]);
    assert_eq!(a.locks().release(&grant, End::Clean).await.unwrap(), Released::WasNotHolder);

    // The mark is used up by the next grant.
    b.locks().release(&next, End::Clean).await.unwrap();
    let last = granted(&a, 3, Exclusive).await;
    assert_eq!(last.previous, Previous::Clean);
    a.locks().release(&last, End::Clean).await.unwrap();
    assert!(da.locks().break_lock(&request).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn holders_are_listed_and_followed() {
    let url = "memory://holders";
    let (d, a) = member(url, "a").await;
    let leader = LockKey::Leader(group("x")); // another key than the lock of that name
    let mut named = d.locks().watch(&key("x")).await.unwrap();
    let mut led = d.locks().watch(&leader).await.unwrap();
    assert!(next(&mut named).await.unwrap().holders.is_empty());
    assert!(next(&mut led).await.unwrap().holders.is_empty());

    let one = granted(&a, 1, Shared).await;
    let two = granted(&a, 2, Shared).await;
    queued(&a, 3, Exclusive).await;
    let present = next(&mut named).await.unwrap();
    assert_eq!(present, d.locks().holders(&key("x")).await.unwrap());
    let tokens: Vec<_> = present.holders.iter().map(|holder| holder.token.unwrap()).collect();
    assert_eq!(tokens, [one.token, two.token]);
    assert_eq!((present.waiters, present.holders[0].mode), (Some(1), Shared));
    assert!(present.holders[0].since.is_some());
    assert!(quiet(&mut named).await && quiet(&mut led).await);

    a.close(End::Clean).await.unwrap();
    assert!(next(&mut named).await.unwrap().holders.is_empty());
    assert_eq!(Kit::of(url).unwrap().watchers(), 2);
    drop((named, led));
    assert_eq!(Kit::of(url).unwrap().watchers(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_two_holders_in_parallel_on_the_real_clock() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let url = "memory://parallel";
    let inside = std::sync::Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8_u128 {
        let inside = inside.clone();
        tasks.spawn(async move {
            let (_d, session) = member(url, &format!("m{task}")).await;
            let mut last = None;
            for round in 0..100_u128 {
                let grant = match request(&session, task * 1_000 + round, Exclusive).await {
                    Acquired::Granted(grant) => grant,
                    Acquired::Queued(place) => turn(&session, &place).await,
                    other => panic!("{other:?}"),
                };
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                assert!(Some(grant.token) > last);
                last = Some(grant.token);
                inside.fetch_sub(1, Ordering::SeqCst);
                session.locks().release(&grant, End::Clean).await.unwrap();
            }
        });
    }
    let ended = tasks.join_all().await;
    assert_eq!(ended.len(), 8);
}
