//! Backends with a ttl per lock: a grant has a deadline of its own, which only a beat that listed it moves (S6, L7).
#![allow(clippy::disallowed_methods)] // the paused clock is read as it is

use std::time::Duration;

use crate::common::*;
use crate::scripted::*;
use tooz_core::driver::Released;
use tooz_core::{LockGuard, LossReason};
use tooz_memory::Operation;

const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(15);
/// The ttl less a twentieth of it.
const BELIEVED: Duration = Duration::from_millis(14_250);

/// Longer ago than a beat comes.
const WHILE: Duration = Duration::from_secs(11);

/// The next grant was proved by a request that took a while.
async fn proved_a_while_ago(script: &Script) {
    let then = script.now();
    tokio::time::sleep(WHILE).await;
    script.next_grant(move |grant| grant.proved_at = Some(then));
}

fn left(guard: &LockGuard) -> Duration {
    guard.deadline().unwrap().remaining()
}

#[tokio::test(start_paused = true)]
async fn beats_that_list_it_move_its_deadline() {
    let (script, _, [a]) = scripted("own-beats", "ttl=15s", ["a"]).await;
    script.own_ttl();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    for _ in 0..20 {
        tokio::time::sleep(TTL / 2).await;
        assert!(guard.is_held() && left(&guard) > TTL / 2, "{:?}", left(&guard));
    }
}

#[tokio::test(start_paused = true)]
async fn its_deadline_is_the_earlier_one_and_the_session_lives_on() {
    let (script, _, [a]) = scripted("own-earlier", "ttl=15s", ["a"]).await;
    let session = a.session_id();
    script.own_ttl();
    proved_a_while_ago(&script).await;
    let (guard, other) = (a.lock("x").unwrap().acquire().await.unwrap(), a.lock("y").unwrap());
    let other = other.acquire().await.unwrap();
    let short = BELIEVED.saturating_sub(WHILE);
    assert!(left(&guard) <= short && left(&guard) + SECOND > short, "{:?}", left(&guard));
    let began = tokio::time::Instant::now();
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    assert!(began.elapsed() <= short, "reported {:?} after {short:?}", began.elapsed());
    assert!(!guard.is_held() && guard.loss_signal().is_lost() && other.is_held());
    // Not by a later beat either, although it would have listed it.
    tokio::time::sleep(2 * TTL).await;
    assert!(!guard.is_held() && other.is_held());
    assert_eq!((guard.lost().await, a.session_id()), (LossReason::Expired, session));
}

#[tokio::test(start_paused = true)]
async fn the_guard_itself_compares_the_clock() {
    let (script, kit, [a]) = scripted("own-clock", "ttl=15s", ["a"]).await;
    proved_a_while_ago(&script).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    // One poll lets the time pass, and nobody else runs between it and the question.
    tokio::time::advance(left(&guard).saturating_sub(Duration::from_millis(1))).await;
    assert!(guard.is_held());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(!guard.is_held());
    assert!(guard.run(async { panic!("it runs without the lock") }).await.is_err());
    // The backend may still have it: it is given back, and yet it was not held any more.
    assert_eq!(guard.release().await.unwrap(), Released::WasNotHolder);
    eventually("it is given back", || kit.held() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_beat_under_way_that_did_not_list_it_does_not_move_its_deadline() {
    let (script, kit, [a, b]) = scripted("own-unlisted", "ttl=15s", ["a", "b"]).await;
    script.own_ttl();
    let first = b.lock("x").unwrap().acquire().await.unwrap();
    let lock = a.lock("x").unwrap();
    script.next_wait(Wait::Late(2 * SECOND));
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    eventually("it waits", || kit.queued() == 1).await;
    // Granted a second before a beat, and heard of a second after it: that beat listed it as waiting.
    tokio::time::sleep(4 * SECOND).await;
    first.release().await.unwrap();
    let granted = script.now();
    kit.delay_answers(Duration::from_millis(1500));
    let guard = waiting.await.unwrap();
    kit.delay_answers(Duration::ZERO);
    let expected = BELIEVED.saturating_sub(script.now().saturating_since(granted));
    tokio::time::sleep(Duration::from_millis(800)).await;
    let now_left = left(&guard) + Duration::from_millis(800);
    assert!(now_left <= expected + Duration::from_millis(50), "{now_left:?} for {expected:?}");
    let tooz_core::Liveness::Alive { until: Some(until) } = a.liveness() else { panic!("it is not alive") };
    assert!(until.remaining() > left(&guard), "no beat came between");
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_after_its_deadline_is_withdrawn_and_asked_for_again() {
    let (script, kit, [a]) = scripted("own-late", "ttl=15s", ["a"]).await;
    let long_ago = script.now();
    tokio::time::sleep(2 * TTL).await;
    script.next_grant(move |grant| grant.proved_at = Some(long_ago));
    let guard = soon(a.lock("x").unwrap().acquire()).await.unwrap();
    assert!(guard.is_held());
    assert_eq!((kit.calls(Operation::Request), kit.calls(Operation::Withdraw), kit.held()), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_behind_it_is_next_when_it_has_expired() {
    let (script, kit, [a]) = scripted("own-next", "ttl=15s", ["a"]).await;
    proved_a_while_ago(&script).await;
    let lock = a.lock("x").unwrap();
    let guard = lock.acquire().await.unwrap();
    let next = tokio::spawn(async move { lock.acquire().await.unwrap() });
    soon(guard.lost()).await;
    // The backend ends it at the same time.
    kit.forget_lock("x");
    let next = soon(next).await.unwrap();
    assert!(next.is_held() && !guard.is_held());
    drop(guard);
    tokio::time::sleep(TTL).await;
    assert!(next.is_held(), "the older guard's end took the next one along");
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_by_it_does_not_stay_as_long_as_the_session() {
    let (script, kit, [a]) = scripted("own-given-back", "ttl=15s", ["a"]).await;
    script.own_ttl();
    proved_a_while_ago(&script).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    // Not at once: the work is to end in the time that the backend still gives.
    assert_eq!(kit.held(), 1);
    eventually("it is given back", || kit.held() == 0).await;
    assert!(script.log().contains(&"release uncleanly"), "{:?}", script.log());
    assert!(a.session_id().is_some());
    drop(guard);
}
