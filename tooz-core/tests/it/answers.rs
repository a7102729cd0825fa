//! What the core makes of the answers of drivers that say more than the in-process one does.
#![allow(clippy::disallowed_methods)] // tasks run on the paused clock of the test

use std::num::NonZeroU64;
use std::time::Duration;

use crate::common::*;
use crate::scripted::*;
use tooz_core::{Error, ErrorKind, FencingToken, Lock, LockGuard, LossReason};
use tooz_memory::{Cut, Operation};

const SECOND: Duration = Duration::from_secs(1);

type Waiting = tokio::task::JoinHandle<tooz_core::Result<LockGuard>>;

fn wait(lock: Lock) -> Waiting {
    tokio::spawn(async move { lock.acquire().await })
}

/// L8: a wait that is interrupted keeps its place.
#[tokio::test(start_paused = true)]
async fn a_wait_that_failed_goes_on_at_the_same_place() {
    let (script, kit, [a, b, c]) = scripted("answers-wait", "ttl=15s", ["a", "b", "c"]).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    for _ in 0..3 {
        script.next_wait(Wait::Fails(Error::new(ErrorKind::Unavailable, "the connection broke")));
    }
    let first = wait(b.lock("x").unwrap());
    tokio::time::sleep(SECOND).await;
    let second = wait(c.lock("x").unwrap());
    eventually("both wait", || kit.queued() == 2).await;
    assert_eq!((kit.calls(Operation::Request), kit.calls(Operation::Withdraw)), (3, 0));
    guard.release().await.unwrap();
    let first = soon(first).await.unwrap().unwrap();
    assert!(first.is_held() && !second.is_finished());
    drop(first);
    assert!(soon(second).await.unwrap().unwrap().is_held());
}

/// L2: a failing backend is not asked again and again without a pause.
#[tokio::test(start_paused = true)]
async fn a_wait_that_fails_is_not_repeated_in_a_hot_loop() {
    let (_, kit, [a, b]) = scripted("answers-hot", "ttl=1h", ["a", "b"]).await;
    let _guard = a.lock("x").unwrap().acquire().await.unwrap();
    let waiting = wait(b.lock("x").unwrap());
    eventually("it waits", || kit.queued() == 1).await;
    kit.cut_off("b", Cut::Fail);
    tokio::time::sleep(60 * SECOND).await;
    assert!(kit.all_calls() < 200, "{} calls in a minute", kit.all_calls());
    assert!(!waiting.is_finished());
    waiting.abort();
}

/// X1: what trying again would not mend is told, and leaves no place behind.
#[tokio::test(start_paused = true)]
async fn a_wait_that_is_refused_ends_and_leaves_no_place() {
    let (script, kit, [a, b]) = scripted("answers-refused", "ttl=15s", ["a", "b"]).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    script.next_wait(Wait::Fails(Error::new(ErrorKind::Corrupt, "the queue cannot be read").indeterminate()));
    let error = soon(b.lock("x").unwrap().acquire()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    eventually("nobody waits", || kit.queued() == 0).await;
    assert!(guard.is_held());
}

/// S7, L2: a driver that says so before the session's own end is noticed.
#[tokio::test(start_paused = true)]
async fn a_wait_that_is_told_of_a_lost_session_asks_again() {
    let (script, kit, [a, b]) = scripted("answers-lost", "ttl=15s", ["a", "b"]).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    script.next_wait(Wait::Fails(Error::new(ErrorKind::SessionLost, "the lease is gone")));
    let waiting = wait(b.lock("x").unwrap());
    eventually("it asked again", || kit.calls(Operation::Request) == 3).await;
    drop(guard);
    assert!(soon(waiting).await.unwrap().unwrap().is_held());
}

/// S7: whoever is told that the session is gone makes the keeper look at once.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_told_of_a_lost_session_makes_the_heart_beat_at_once() {
    let (script, kit, [a]) = scripted("answers-suspect", "ttl=15s", ["a"]).await;
    let beats = || kit.calls(Operation::Renew);
    tokio::time::sleep(6 * SECOND).await; // one beat lies behind, the next is far
    let before = beats();
    script.next_ask(Ask::Fails(Error::new(ErrorKind::SessionLost, "the lease is gone")));
    let guard = soon(a.lock("x").unwrap().acquire()).await.unwrap();
    assert!(guard.is_held());
    assert_eq!(beats(), before + 1);
    // Any other failure is no reason to beat.
    script.next_ask(Ask::Fails(Error::new(ErrorKind::Unavailable, "the connection broke")));
    assert!(a.lock("y").unwrap().acquire().await.is_err());
    tokio::time::sleep(SECOND).await;
    assert_eq!(beats(), before + 1);
}

/// X1, L6: an error that is final, and may have taken effect all the same, is cleaned up after.
#[tokio::test(start_paused = true)]
async fn a_request_that_may_have_taken_effect_is_withdrawn_whatever_its_error() {
    let (script, kit, [a]) = scripted("answers-hidden", "ttl=15s", ["a"]).await;
    let lock = a.lock("x").unwrap();
    for error in [
        Error::new(ErrorKind::Backend, "garbled").indeterminate(),
        Error::new(ErrorKind::Unavailable, "the connection broke").indeterminate(),
    ] {
        let kind = error.kind();
        script.next_ask(Ask::Hides(error));
        assert_eq!(lock.acquire().await.unwrap_err().kind(), kind);
        eventually("nothing is held", || kit.held() == 0).await;
    }
}

/// L2: only the backend's own answer, or its answer to those before us, is a `None`.
#[tokio::test(start_paused = true)]
async fn a_beat_that_misses_a_place_makes_the_waiter_ask_again() {
    let (script, kit, [a, b]) = scripted("answers-unqueued", "ttl=15s", ["a", "b"]).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    // This driver does not hear by itself that the queue was wiped.
    script.next_wait(Wait::Never);
    let waiting = wait(b.lock("x").unwrap());
    eventually("it waits", || kit.queued() == 1).await;
    kit.forget_lock("x");
    assert_eq!(soon(guard.lost()).await, LossReason::Vanished);
    assert!(soon(waiting).await.unwrap().unwrap().is_held());
    drop(guard);
}

fn token(number: u64) -> FencingToken {
    FencingToken::new(NonZeroU64::new(number).unwrap().get()).unwrap()
}

/// L3: a backend that lost its counter is refused, and what it gave is given back.
#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_larger_is_refused() {
    let (script, kit, [a]) = scripted("answers-tokens", "ttl=15s", ["a"]).await;
    let lock = a.lock("x").unwrap();
    let next = |number| script.next_grant(move |grant| grant.token = token(number));
    next(10);
    drop(lock.acquire().await.unwrap());
    for number in [10, 9] {
        next(number);
        let error = lock.acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(&format!("token {number} after token 10")), "{error}");
        eventually("it is given back", || kit.held() == 0).await;
    }
    next(11);
    drop(lock.acquire().await.unwrap());
    // Readers are unordered among themselves, and later than every writer before them.
    for (number, fits) in [(11, false), (14, true), (13, true), (12, true)] {
        next(number);
        assert_eq!(lock.shared().acquire().await.is_ok(), fits, "reader {number}");
    }
    // A writer is later than all of them.
    for (number, fits) in [(13, false), (14, false), (15, true)] {
        next(number);
        assert_eq!(lock.acquire().await.is_ok(), fits, "writer {number}");
    }
    // Another name counts for itself.
    next(1);
    assert!(a.lock("y").unwrap().acquire().await.is_ok());
}
