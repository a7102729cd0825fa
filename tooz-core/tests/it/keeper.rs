//! The keeper: cut off and healed, expired and opened again, answers that come late or never.
#![allow(clippy::disallowed_methods)] // the paused clock is read as it is
#![allow(clippy::large_futures)] // stacks of tests are large

use std::time::Duration;

use crate::common::*;
use tooz_core::{Capabilities, ErrorKind, Event, Liveness, LossReason};
use tooz_memory::{Cut, Kit, Operation, Outcome};

const SECOND: Duration = Duration::from_secs(1);

fn lost(event: &Event) -> Option<LossReason> {
    if let Event::Lost(reason) = event { Some(reason.clone()) } else { None }
}

fn rejoined(event: &Event) -> Option<Vec<String>> {
    if let Event::Rejoined(groups) = event {
        let mut names: Vec<_> = groups.iter().map(ToString::to_string).collect();
        names.sort();
        Some(names)
    } else {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn cut_off_and_healed_in_time_loses_nothing() {
    let url = "memory://keeper-heal?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    let guard = c.lock("x").unwrap().acquire().await.unwrap();
    kit.cut_off("a", Cut::Fail);
    event(&mut events, |event| matches!(event, Event::Suspended).then_some(())).await;
    assert!(guard.is_held() && matches!(c.liveness(), Liveness::Suspended { .. }));
    kit.heal("a");
    event(&mut events, |event| matches!(event, Event::Recovered).then_some(())).await;
    assert!(guard.is_held() && matches!(c.liveness(), Liveness::Alive { .. }));
}

#[tokio::test(start_paused = true)]
async fn cut_off_until_the_deadline_loses_everything_and_comes_back_with_its_groups() {
    for how in [Cut::Fail, Cut::Hang] {
        let url = &format!("memory://keeper-cut-{how:?}?ttl=15s");
        let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
        let mut events = c.events();
        c.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
        let guard = c.lock("x").unwrap().acquire().await.unwrap();
        kit.cut_off("a", how);
        assert_eq!(soon(guard.lost()).await, LossReason::Unreachable);
        assert_eq!(event(&mut events, lost).await, LossReason::Unreachable);
        tokio::time::sleep(60 * SECOND).await;
        assert!(kit.all_calls() < 2_000, "it is busy while the backend is away: {}", kit.all_calls());
        kit.heal("a");
        assert_eq!(event(&mut events, rejoined).await, ["g"]);
        assert!(!guard.is_held());
        assert_eq!(kit.sessions(), 1);
        drop(guard);
        let again = soon(c.lock("x").unwrap().acquire()).await.unwrap();
        assert!(again.is_held());
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejoin_whose_answer_was_lost_ends() {
    let url = "memory://keeper-rejoin-lost?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    c.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    kit.next_of("a", Operation::Join, 1, Outcome::Indeterminate);
    kit.expire("a");
    assert_eq!(event(&mut events, rejoined).await, ["g"]);
}

#[tokio::test(start_paused = true)]
async fn a_rejoin_that_takes_two_tries_names_every_group() {
    let url = "memory://keeper-rejoin-twice?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    for name in ["g", "h"] {
        c.group(name).unwrap().join_or_create(Capabilities::none()).await.unwrap();
    }
    // The first of the two fails, the second one is joined at the first try.
    kit.next_of("a", Operation::Join, 1, Outcome::Fail);
    kit.expire("a");
    assert_eq!(event(&mut events, rejoined).await, ["g", "h"]);
}

#[tokio::test(start_paused = true)]
async fn groups_are_created_again_also_when_the_first_session_after_a_loss_of_data_is_lost_too() {
    let url = "memory://keeper-data?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    c.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    kit.next_of("a", Operation::Join, 1, Outcome::Fail);
    kit.lose_data();
    event(&mut events, lost).await;
    eventually("a session stands", || c.session_id().is_some()).await;
    kit.expire("a");
    event(&mut events, lost).await;
    assert_eq!(event(&mut events, rejoined).await, ["g"]);
    assert_eq!(c.group("g").unwrap().members().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn sessions_that_die_at_once_are_not_opened_in_a_hot_loop() {
    let url = "memory://keeper-flap?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let clock = tokio::time::Instant::now();
    kit.reset_calls();
    while clock.elapsed() < 10 * SECOND {
        kit.expire("a");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(kit.calls(Operation::Open) < 150, "{} sessions in ten seconds", kit.calls(Operation::Open));
    eventually("it lives", || c.session_id().is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_outlives_a_standstill_and_answers_slower_than_an_operation_may_be() {
    let url = "memory://keeper-waiter?ttl=60s&operation_timeout=10s";
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    let guard = b.lock("x").unwrap().acquire().await.unwrap();
    let lock = a.lock("x").unwrap();
    let waiting = async { lock.acquire().await.map(|guard| guard.is_held()) };
    let standstill = async {
        eventually("it waits", || kit.queued() == 1).await;
        kit.pause();
        tokio::time::sleep(30 * SECOND).await;
        kit.resume();
        // It has waited already, so asking again in a new session is a part of waiting.
        kit.delay(12 * SECOND);
        kit.expire("a");
        tokio::time::sleep(120 * SECOND).await;
        kit.delay(Duration::ZERO);
        drop(guard);
    };
    let (held, ()) = soon(async { tokio::join!(waiting, standstill) }).await;
    assert!(held.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_returns_blocks_the_name_no_longer_than_its_session_lives() {
    let url = "memory://keeper-stuck?ttl=15s";
    let (kit, a) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let lock = a.lock("x").unwrap();
    kit.delay(LONG); // every call that begins now
    let stuck = lock.acquire_within(SECOND).await.unwrap_err();
    assert_eq!(stuck.kind(), ErrorKind::Unavailable);
    assert!(stuck.is_indeterminate());
    kit.delay(Duration::ZERO);
    kit.expire("a");
    let guard = tokio::time::timeout(60 * SECOND, lock.acquire()).await.expect("the name is blocked");
    assert!(guard.unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn a_join_that_never_returns_blocks_memberships_no_longer_than_its_session_lives() {
    let url = "memory://keeper-stuck-join?ttl=15s";
    let (kit, a) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = a.events();
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    kit.delay(LONG);
    let error = a.group("h").unwrap().join_or_create(Capabilities::none()).await.unwrap_err();
    assert_eq!((error.kind(), error.is_indeterminate()), (ErrorKind::Timeout, true));
    kit.delay(Duration::ZERO);
    kit.expire("a");
    let came = tokio::time::timeout(60 * SECOND, event(&mut events, rejoined)).await;
    assert_eq!(came.expect("the rejoin waits for ever"), ["g"]);
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_was_dropped_is_not_in_the_way_of_its_own_coordinator() {
    let url = "memory://keeper-drop-try?ttl=15s";
    let c = connect(url, "a").await;
    let lock = c.lock("x").unwrap();
    drop(lock.acquire().await.unwrap());
    assert!(lock.try_acquire().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn none_is_the_backends_word_and_not_that_of_a_sibling_who_is_still_asking() {
    let url = "memory://keeper-none?ttl=1h";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let lock = c.lock("x").unwrap();
    kit.pause();
    let (first, second) = tokio::join!(lock.try_acquire(), lock.try_acquire());
    for answer in [first, second] {
        let error = answer.expect_err("nobody said that it is held");
        assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leave_that_could_not_be_sent_goes_on_in_the_background() {
    let url = "memory://keeper-leave?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let group = c.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    kit.next_of("a", Operation::Leave, 4, Outcome::Fail);
    assert_eq!(group.leave().await.unwrap_err().kind(), ErrorKind::Unavailable);
    soon(group.join(Capabilities::none())).await.unwrap();
    assert_eq!(group.members().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn operations_end_within_their_time_limit_whatever_they_wait_for() {
    let url = "memory://keeper-limits?ttl=15s&operation_timeout=10s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    kit.cut_off("a", Cut::Hang);
    eventually("it is lost", || c.session_id().is_none()).await;
    let (lock, other) = (c.lock("x").unwrap(), c.lock("y").unwrap());
    let group = c.group("g").unwrap();
    let limit = Duration::from_millis(10_100);
    let tries = tokio::join!(
        tokio::time::timeout(limit, lock.try_acquire()),
        tokio::time::timeout(limit, other.acquire()),
        tokio::time::timeout(limit, group.join(Capabilities::none())),
        tokio::time::timeout(limit, group.leave()),
        tokio::time::timeout(limit, group.members()),
        async {
            // Healed just long enough to open a session: what is left of the limit counts for the call.
            tokio::time::sleep(8 * SECOND).await;
            kit.heal("a");
            eventually("it is back", || c.session_id().is_some()).await;
            kit.cut_off("a", Cut::Hang);
        },
    );
    assert!(tries.0.is_ok() && tries.1.is_ok() && tries.2.is_ok() && tries.3.is_ok() && tries.4.is_ok());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_behind_a_run_of_watchers_for_longer_than_an_operation_may_take() {
    let url = "memory://keeper-hooks?ttl=15s";
    let c = connect(url, "a").await;
    c.group("g").unwrap().create().await.unwrap();
    c.hooks().watch_join_group("g", |_| Ok(())).await.unwrap();
    let (_, registered) =
        tokio::join!(tokio::time::timeout(600 * SECOND, c.hooks().run_watchers(LONG)), async {
            tokio::time::sleep(SECOND).await;
            tokio::time::timeout(11 * SECOND, c.hooks().watch_leave_group("g", |_| Ok(()))).await
        });
    assert!(registered.is_ok(), "it hangs");
}

#[tokio::test(start_paused = true)]
async fn the_events_end_when_the_coordinator_is_closed() {
    let url = "memory://keeper-events?ttl=15s";
    let c = connect(url, "a").await;
    let mut events = c.events();
    c.close().await.unwrap();
    assert!(soon(events.next()).await.is_none());
    assert!(soon(c.events().next()).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn close_ends_in_time_while_the_backend_stands_still_and_wakes_everybody() {
    for down in [false, true] {
        let url = &format!("memory://keeper-close-{down}?ttl=15s");
        let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
        let held = b.lock("x").unwrap().acquire().await.unwrap();
        let lock = a.lock("x").unwrap();
        let guard = a.lock("y").unwrap().acquire().await.unwrap();
        let closing = async {
            eventually("it waits", || kit.queued() == 1).await;
            kit.pause();
            if down {
                eventually("it is lost", || a.session_id().is_none()).await;
            }
            let clock = tokio::time::Instant::now();
            let closed = a.close().await;
            assert!(clock.elapsed() <= Duration::from_millis(5_100), "{:?}", clock.elapsed());
            assert_eq!(closed.unwrap_err().kind(), ErrorKind::Unavailable);
            assert!(a.close().await.is_err());
            assert!(!guard.is_held());
        };
        let (waited, ()) = soon(async { tokio::join!(lock.acquire(), closing) }).await;
        assert_eq!(waited.unwrap_err().kind(), ErrorKind::Closed);
        kit.resume();
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_what_was_dropped_just_before() {
    let url = "memory://keeper-close-drops";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    c.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    let guards = c.lock_all(["x", "y"]).unwrap().acquire().await.unwrap();
    let leadership = c.election("g").unwrap().campaign().await.unwrap();
    drop(guards);
    c.close().await.unwrap();
    drop(leadership);
    assert_eq!((kit.held(), kit.queued(), kit.sessions()), (0, 0, 0));
    c.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn by_hand_a_lost_session_comes_back_with_the_next_heartbeat_and_not_before() {
    let url = "memory://keeper-manual?ttl=15s";
    let kit = Kit::of(url).unwrap();
    let c = builder(url, "a").manual_heart().connect().await.unwrap();
    assert!(c.heartbeat().await.unwrap().is_some_and(|left| left <= 5 * SECOND && left > 4 * SECOND));
    let guard = c.lock("x").unwrap().acquire().await.unwrap();
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(kit.calls(Operation::Open), 1);
    let error = c.lock("x").unwrap().acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionLost);
    c.heartbeat().await.unwrap();
    assert!(c.lock("x").unwrap().try_acquire().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_answer_after_the_deadline_revives_nothing() {
    let url = "memory://keeper-late?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let first = c.session_id().unwrap();
    let guard = c.lock("x").unwrap().acquire().await.unwrap();
    // On the backend each beat comes in time to keep the session; its answer comes after our deadline.
    kit.delay(20 * SECOND);
    let reason = soon(guard.lost()).await;
    assert!(matches!(reason, LossReason::Unreachable | LossReason::Expired), "{reason:?}");
    kit.delay(Duration::ZERO);
    tokio::time::sleep(60 * SECOND).await;
    assert!(!guard.is_held());
    assert_ne!(c.session_id().expect("a new session stands"), first);
    assert_eq!((kit.sessions(), kit.held()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_names_and_cancelled_waits_leave_the_backend_and_the_queues_empty() {
    let url = "memory://keeper-names";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    for index in 0..1_000 {
        let lock = c.lock(format!("name-{index}")).unwrap();
        let guard = lock.acquire().await.unwrap();
        assert!(lock.acquire_within(Duration::from_millis(1)).await.unwrap().is_none());
        drop(guard);
    }
    eventually("everything is given back", || kit.held() + kit.queued() == 0).await;
    assert_eq!(kit.sessions(), 1);
}

#[tokio::test(start_paused = true)]
async fn capabilities_that_change_before_the_rejoin_are_what_it_publishes() {
    let url = "memory://keeper-update?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    let (group, newest) = (c.group("g").unwrap(), Capabilities::new("newest").unwrap());
    group.join_or_create(Capabilities::none()).await.unwrap();
    kit.next_of("a", Operation::Join, 3, Outcome::Fail);
    kit.expire("a");
    event(&mut events, lost).await;
    group.update_capabilities(newest.clone()).await.unwrap();
    assert_eq!(event(&mut events, rejoined).await, ["g"]);
    assert_eq!(group.member_capabilities("a").await.unwrap(), newest);
}

#[tokio::test(start_paused = true)]
async fn hooks_that_hold_the_coordinator_end_with_it() {
    let url = "memory://keeper-cycle?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    c.group("g").unwrap().create().await.unwrap();
    let held = c.clone();
    c.hooks().watch_join_group("g", move |_| held.group("g").map(drop).map_err(Into::into)).await.unwrap();
    c.hooks().run_watchers(Duration::from_millis(1)).await.unwrap(); // a run that waits opens the watches
    assert_eq!(kit.watchers(), 1);
    c.close().await.unwrap();
    eventually("its watch is gone", || kit.watchers() == 0).await;
}
