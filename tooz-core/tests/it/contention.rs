//! Tasks of one coordinator that want the same lock, and what they are told while the backend is slow or away.
#![allow(clippy::disallowed_methods)] // the paused clock is read as it is

use std::time::Duration;

use crate::common::*;
use crate::scripted::*;
use tooz_core::{Error, ErrorKind};
use tooz_memory::{Cut, Kit, Operation, Outcome};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

/// L2: a limit shorter than a round trip is no reason to know nothing.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_on_its_way_at_the_limit_counts() {
    let url = "memory://contention-last-word";
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    kit.delay_answers(40 * MILLI);
    let guard = a.lock("x").unwrap().acquire_within(10 * MILLI).await.unwrap().expect("nobody holds it");
    assert!(guard.is_held());
    assert!(b.lock("x").unwrap().acquire_within(10 * MILLI).await.unwrap().is_none());
}

/// L2, L4: who tries asks once, and who gives back says so once.
#[tokio::test(start_paused = true)]
async fn a_try_and_a_release_are_one_round_trip_each() {
    let url = "memory://contention-try";
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    kit.reset_calls();
    assert!(b.lock("x").unwrap().try_acquire().await.unwrap().is_none());
    tokio::time::sleep(SECOND).await;
    assert_eq!((kit.calls(Operation::Request), kit.all_calls()), (1, 1));
    kit.reset_calls();
    guard.release().await.unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!((kit.calls(Operation::Release), kit.all_calls()), (1, 1));
}

/// L2: what the backend says to one task is an answer to the ones behind it, as soon as it is said.
#[tokio::test(start_paused = true)]
async fn a_try_behind_a_sibling_is_answered_when_the_sibling_is() {
    let url = "memory://contention-sibling?ttl=1h";
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    let guard = b.lock("x").unwrap().acquire().await.unwrap();
    let lock = a.lock("x").unwrap();
    kit.delay_answers(SECOND);
    let first = {
        let lock = lock.clone();
        tokio::spawn(async move { lock.acquire().await.unwrap() })
    };
    tokio::task::yield_now().await;
    let began = tokio::time::Instant::now();
    assert!(lock.try_acquire().await.unwrap().is_none());
    assert!(began.elapsed() <= SECOND + 100 * MILLI, "{:?}", began.elapsed());
    assert_eq!(kit.calls(Operation::Request), 2);
    kit.delay_answers(Duration::ZERO);
    drop(guard);
    assert!(soon(first).await.unwrap().is_held());
}

/// L2: `None` is the backend's word, not that of a sibling who is still asking.
#[tokio::test(start_paused = true)]
async fn a_limit_is_no_none_while_the_sibling_in_front_has_no_answer() {
    let url = "memory://contention-none?ttl=1h";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let lock = c.lock("x").unwrap();
    kit.pause();
    let (first, second) = tokio::join!(lock.acquire_within(SECOND), lock.acquire_within(SECOND));
    for answer in [first, second] {
        let error = answer.expect_err("nobody said that it is held");
        assert!(error.kind() == ErrorKind::Unavailable && error.is_indeterminate(), "{error}");
    }
}

/// L2: and a sibling that holds it with others says nothing about the next one's chances.
#[tokio::test(start_paused = true)]
async fn a_limit_is_no_none_for_a_reader_who_has_no_answer_beside_one_who_holds() {
    let url = "memory://contention-reader?ttl=1h";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let lock = c.lock("x").unwrap().shared();
    let guard = lock.acquire().await.unwrap();
    kit.pause();
    let error = lock.acquire_within(SECOND).await.expect_err("nobody said that it cannot be had");
    assert!(error.kind() == ErrorKind::Unavailable && error.is_indeterminate(), "{error}");
    assert!(guard.is_held());
}

/// L2: a limit counts for the whole wait, also where the backend is away for longer than an operation may take.
#[tokio::test(start_paused = true)]
async fn whoever_has_a_limit_waits_for_the_backend_within_it() {
    let url = "memory://contention-within?ttl=1h&operation_timeout=5s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let lock = c.lock("x").unwrap();
    for how in [Cut::Hang, Cut::Fail] {
        kit.cut_off("a", how);
        kit.reset_calls();
        let (answer, ()) = tokio::join!(lock.acquire_within(60 * SECOND), async {
            tokio::time::sleep(30 * SECOND).await;
            kit.heal("a");
        });
        let guard = answer.unwrap().expect("nobody else holds it");
        assert!(guard.is_held());
        assert!(kit.calls(Operation::Request) < 100, "{} tries", kit.calls(Operation::Request));
    }
}

/// L2: where only the request fails, too, tries have pauses between them.
#[tokio::test(start_paused = true)]
async fn a_request_that_fails_is_not_repeated_in_a_hot_loop() {
    let url = "memory://contention-pauses?ttl=1h";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    kit.next_of("a", Operation::Request, u64::MAX, Outcome::Fail);
    let error = c.lock("x").unwrap().acquire_within(300 * SECOND).await.expect_err("every request fails");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let tries = kit.calls(Operation::Request);
    assert!((15..400).contains(&tries), "{tries} tries in five minutes");
}

/// L2: a sibling that gave up waiting, and whose place is being withdrawn, says nothing about a try.
#[tokio::test(start_paused = true)]
async fn a_try_waits_for_what_is_being_withdrawn() {
    let url = "memory://contention-leaving?ttl=1h";
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    let lock = a.lock("x").unwrap();
    let next = b.lock("x").unwrap().acquire().await.unwrap();
    let _ = tokio::join!(lock.acquire_within(SECOND), async {
        tokio::time::sleep(SECOND / 2).await;
        kit.delay_answers(SECOND);
        tokio::time::sleep(SECOND * 6 / 10).await; // it gave up, and is being withdrawn
        let release = next.release();
        let tried = lock.try_acquire();
        let (released, tried) = tokio::join!(release, tried);
        released.unwrap();
        assert!(tried.unwrap().is_some(), "nobody holds it, and nobody is before us");
    });
}

/// X1: until the backend has answered once, `acquire` is an operation like any other.
#[tokio::test(start_paused = true)]
async fn the_first_request_of_an_acquire_has_a_time_limit() {
    let url = "memory://contention-first?ttl=1h&operation_timeout=5s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    kit.cut_off("a", Cut::Hang);
    let began = tokio::time::Instant::now();
    let error = soon(c.lock("x").unwrap().acquire()).await.expect_err("the backend does not answer");
    assert_eq!((error.kind(), error.is_indeterminate()), (ErrorKind::Timeout, true));
    assert_eq!(began.elapsed().as_secs(), 5);
}

/// L9: readers that waited in one coordinator hold together, too.
#[tokio::test(start_paused = true)]
async fn readers_of_one_coordinator_that_waited_hold_together() {
    let url = "memory://contention-readers?ttl=15s";
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    let writer = b.lock("x").unwrap().acquire().await.unwrap();
    let lock = a.lock("x").unwrap().shared();
    let mut readers = Vec::new();
    for _ in 0..20 {
        let lock = lock.clone();
        readers.push(tokio::spawn(async move { lock.acquire().await.unwrap() }));
    }
    eventually("they wait", || kit.queued() > 0).await;
    tokio::time::sleep(SECOND).await;
    // However many they are, on the backend they are one contender.
    assert_eq!(kit.queued(), 1);
    drop(writer);
    let mut guards = Vec::new();
    for reader in readers {
        guards.push(soon(reader).await.unwrap());
    }
    assert!(guards.iter().all(tooz_core::LockGuard::is_held));
    assert_eq!(kit.held(), 20);
}

/// L15: also where those of the other limit wait themselves.
#[tokio::test(start_paused = true)]
async fn permits_of_another_limit_than_that_of_waiting_siblings_are_refused() {
    let url = "memory://contention-permits?ttl=15s";
    let a = connect(url, "a").await;
    let lock = a.lock("x").unwrap();
    let writer = lock.acquire().await.unwrap();
    let (first, second) = (lock.permits(2).unwrap(), lock.permits(2).unwrap());
    let (first, second) = (
        tokio::spawn(async move { first.acquire().await.unwrap() }),
        tokio::spawn(async move { second.acquire().await.unwrap() }),
    );
    tokio::task::yield_now().await;
    let error = lock.permits(3).unwrap().acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("limit 2") && error.to_string().contains("limit 3"), "{error}");
    drop(writer);
    let guards = (soon(first).await.unwrap(), soon(second).await.unwrap());
    assert!(guards.0.is_held() && guards.1.is_held());
}

/// L6, L8: a request that nobody waits for is driven to its end, then withdrawn, and only then a sibling asks.
#[tokio::test(start_paused = true)]
async fn a_sibling_asks_when_what_a_dropped_request_left_is_gone() {
    let (script, kit, [a]) = scripted("contention-dropped", "ttl=15s", ["a"]).await;
    let lock = a.lock("x").unwrap();
    script.next_ask(Ask::Slow(SECOND));
    assert!(cancelled_at(0, lock.acquire()).await.is_none());
    let next = soon(lock.acquire()).await.unwrap();
    assert_eq!(script.log(), ["ask", "asked", "withdraw", "withdrawn", "ask", "asked"]);
    drop(next);
    // The same where the caller's limit is over: what is being cleared up says nothing about a sibling's chances.
    script.next_ask(Ask::Slow(2 * SECOND));
    let (gave_up, tried) = tokio::join!(lock.acquire_within(SECOND), async {
        tokio::time::sleep(SECOND + 80 * MILLI).await;
        lock.try_acquire().await
    });
    assert!(gave_up.unwrap_err().is_indeterminate());
    assert!(tried.unwrap().is_some());
    eventually("nothing is held", || kit.held() == 0).await;
}

/// L5, L8: so is a release.
#[tokio::test(start_paused = true)]
async fn a_sibling_asks_when_a_dropped_release_has_ended() {
    let (script, kit, [a]) = scripted("contention-release", "ttl=15s", ["a"]).await;
    let lock = a.lock("x").unwrap();
    let guard = lock.acquire().await.unwrap();
    kit.delay_answers(SECOND);
    assert!(cancelled_at(0, guard.release()).await.is_none());
    let next = soon(lock.acquire()).await.unwrap();
    assert_eq!(script.log()[2..], ["release", "released", "ask", "asked"]);
    assert!(next.is_held());
}

/// L1, L2: a grant whose answer came after the loss of its session is no grant.
#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_after_the_loss_of_its_session_is_asked_for_again() {
    let url = "memory://contention-after-loss?ttl=15s&operation_timeout=60s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let first = c.session_id().unwrap();
    let lock = c.lock("x").unwrap();
    kit.delay_answers(20 * SECOND);
    let asking = tokio::spawn(async move { lock.acquire().await.unwrap() });
    tokio::time::sleep(SECOND).await;
    kit.delay_answers(Duration::ZERO);
    kit.cut_off("a", Cut::Hang);
    eventually("it is lost", || c.session_id().is_none()).await;
    kit.heal("a");
    let guard = soon(asking).await.unwrap();
    assert!(guard.is_held() && c.session_id().unwrap() != first);
    assert_eq!(kit.held(), 1);
}

/// S4: a beat lists what is held as held, what waits as waiting, and nothing that is over.
#[tokio::test(start_paused = true)]
async fn a_beat_lists_what_there_is() {
    let (script, kit, [a, b]) = scripted("contention-listed", "ttl=15s", ["a", "b"]).await;
    let held = b.lock("x").unwrap().acquire().await.unwrap();
    let lock = a.lock("x").unwrap();
    let listed = async || {
        // `b` beats by itself as well, and lists nothing that `a` has.
        a.heartbeat().await.unwrap();
        let listed = script.listed();
        (listed.grants.len(), listed.waiting.len())
    };
    assert_eq!(listed().await, (0, 0));
    assert!(cancelled_at(20, tokio::time::timeout(SECOND, lock.acquire())).await.is_none_or(|r| r.is_err()));
    assert_eq!(listed().await, (0, 0));
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    eventually("it waits", || kit.queued() == 1).await;
    tokio::time::sleep(10 * MILLI).await;
    assert_eq!(listed().await, (0, 1));
    drop(held);
    let guard = soon(waiting).await.unwrap();
    assert_eq!(listed().await, (1, 0));
    guard.release().await.unwrap();
    assert_eq!(listed().await, (0, 0));
}

/// L6, L8: a definite refusal while waiting leaves no place either.
#[tokio::test(start_paused = true)]
async fn a_wait_that_is_refused_for_good_leaves_no_place() {
    let (script, kit, [a, b]) = scripted("contention-refused", "ttl=15s", ["a", "b"]).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    script.next_wait(Wait::Fails(Error::new(ErrorKind::Denied, "the credentials were revoked")));
    let error = soon(b.lock("x").unwrap().acquire()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    eventually("nobody waits", || kit.queued() == 0).await;
    assert!(guard.is_held());
}

/// L6: cleaning up goes on while the backend is away, and not in a hot loop.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_withdrawn_is_tried_again_with_pauses() {
    let url = "memory://contention-withdraw";
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    let guard = b.lock("x").unwrap().acquire().await.unwrap();
    assert!(a.lock("x").unwrap().acquire_within(MILLI).await.unwrap().is_none());
    kit.reset_calls();
    kit.cut_off("a", Cut::Fail);
    tokio::time::sleep(300 * SECOND).await;
    let tries = kit.calls(Operation::Withdraw);
    assert!((15..400).contains(&tries), "{tries} tries in five minutes");
    kit.heal("a");
    eventually("nobody waits", || kit.queued() == 0).await;
    assert!(guard.is_held());
}

/// S7: whoever cleans up and is told that the session is gone makes the keeper look at once.
#[tokio::test(start_paused = true)]
async fn a_withdrawal_that_is_told_of_a_lost_session_makes_the_heart_beat_at_once() {
    let (script, kit, [a]) = scripted("contention-suspect", "ttl=15s", ["a"]).await;
    tokio::time::sleep(6 * SECOND).await;
    let beats = kit.calls(Operation::Renew);
    script.next_withdrawal(Error::new(ErrorKind::SessionLost, "the lease is gone"));
    script.next_ask(Ask::Slow(10 * MILLI));
    assert!(cancelled_at(0, a.lock("x").unwrap().acquire()).await.is_none());
    tokio::time::sleep(SECOND).await;
    assert_eq!(kit.calls(Operation::Renew), beats + 1);
}

/// L6: what repeating does not mend is left to the session's end, and a name is not blocked by it.
#[tokio::test(start_paused = true)]
async fn a_withdrawal_that_is_refused_for_good_is_not_repeated() {
    let (script, _, [a]) = scripted("contention-denied", "ttl=15s", ["a"]).await;
    script.next_withdrawal(Error::new(ErrorKind::Denied, "the credentials were revoked"));
    script.next_ask(Ask::Slow(10 * MILLI));
    assert!(cancelled_at(0, a.lock("x").unwrap().acquire()).await.is_none());
    tokio::time::sleep(60 * SECOND).await;
    let withdrawals = script.log().iter().filter(|call| **call == "withdraw").count();
    assert_eq!(withdrawals, 1);
    // It is this coordinator's own, and an exclusive lock that the backend still has for it.
    assert!(a.lock("x").unwrap().try_acquire().await.unwrap().is_none());
}

/// L2, L16: the limit counts for all locks of a set together.
#[tokio::test(start_paused = true)]
async fn a_limit_counts_for_a_whole_set() {
    let url = "memory://contention-set";
    let (a, b) = (connect(url, "a").await, connect(url, "b").await);
    let (x, y) =
        (b.lock("x").unwrap().acquire().await.unwrap(), b.lock("y").unwrap().acquire().await.unwrap());
    let set = a.lock_all(["y", "x"]).unwrap();
    let began = tokio::time::Instant::now();
    let (taken, ()) = tokio::join!(set.acquire_within(SECOND), async {
        tokio::time::sleep(SECOND * 9 / 10).await;
        drop(x);
    });
    assert!(taken.unwrap().is_none());
    assert!(began.elapsed() <= SECOND + 100 * MILLI, "{:?}", began.elapsed());
    drop(y);
    let all = set.acquire_within(SECOND).await.unwrap().expect("nobody holds them");
    assert!(all.is_held() && all.guards().len() == 2);
}

/// L8, L11: also when more names were used than are remembered, a name in use keeps its queue.
#[tokio::test(start_paused = true)]
async fn a_name_in_use_keeps_its_queue_however_many_there_were() {
    let url = "memory://contention-many";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    for index in 0..4_200 {
        let guard = c.lock(format!("name-{index}")).unwrap().try_acquire().await.unwrap();
        guard.expect("nobody holds it").release().await.unwrap();
    }
    let lock = c.lock("x").unwrap();
    let guard = lock.acquire().await.unwrap();
    assert!(lock.acquire_within(MILLI).await.unwrap().is_none());
    kit.reset_calls();
    let waiting = lock.clone();
    let waiting = tokio::spawn(async move { waiting.acquire().await.unwrap() });
    tokio::time::sleep(SECOND).await;
    assert_eq!((kit.calls(Operation::Request), kit.queued()), (0, 0), "it asks beside its sibling");
    drop(guard);
    assert!(soon(waiting).await.unwrap().is_held());
}
