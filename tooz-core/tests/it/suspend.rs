//! The machine was suspended: the clock has moved, and no timer and no task has noticed yet (S6, L7).

use std::time::Duration;

use crate::common::*;
use crate::scripted::*;
use tooz_core::driver::Released;
use tooz_core::{Capabilities, ErrorKind, Liveness, LockGuard, LossReason};
use tooz_memory::Kit;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn whoever_asks_afterwards_is_told_without_waiting_for_anybody() {
    let (script, kit, [a]) = scripted("suspend-ask", "ttl=15s", ["a"]).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let set = a.lock_all(["y", "z"]).unwrap().acquire().await.unwrap();
    script.clock().simulate_suspend(14 * SECOND);
    assert!(guard.is_held() && set.is_held(), "lost before its deadline");
    script.clock().simulate_suspend(SECOND);
    // Each is polled once: nothing else runs meanwhile.
    assert!(cancelled_at(0, guard.lost()).await.is_some());
    assert!(cancelled_at(0, guard.loss_signal().wait()).await.is_some());
    assert!(cancelled_at(0, guard.run(async { panic!("without the lock") })).await.unwrap().is_err());
    assert!(cancelled_at(0, set.lost()).await.is_some());
    assert!(cancelled_at(0, set.run(async { panic!("without the locks") })).await.unwrap().is_err());
    assert!(!guard.is_held() && guard.loss_signal().is_lost() && !set.is_held());
    assert!(matches!(a.liveness(), Liveness::Lost { .. }) && a.session_id().is_none());
    let signal = guard.loss_signal();
    assert_eq!(guard.release().await.unwrap(), Released::WasNotHolder);
    assert_eq!(signal.reason(), Some(LossReason::Expired), "giving it back is not why it was lost");
    drop(set);
    eventually("all is given back", || kit.held() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn work_that_began_before_is_not_polled_afterwards() {
    for suspended in [false, true] {
        for set in [false, true] {
            // Each with a coordinator of its own: whoever notices a loss tells the others.
            let name = format!("suspend-run-{suspended}-{set}");
            let (script, _, [a]) = scripted(&name, "ttl=15s", ["a"]).await;
            let guard = a.lock("x").unwrap().acquire().await.unwrap();
            let guards = a.lock_all(["y", "z"]).unwrap().acquire().await.unwrap();
            let work = async {
                tokio::task::yield_now().await;
                assert!(!suspended, "it is polled without the lock");
            };
            let run = async { if set { guards.run(work).await } else { guard.run(work).await } };
            let mut run = std::pin::pin!(run);
            assert!(cancelled_at(0, run.as_mut()).await.is_none());
            if suspended {
                script.clock().simulate_suspend(15 * SECOND);
            }
            assert_eq!(run.await.is_err(), suspended);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn work_during_whose_last_poll_the_lock_was_lost_is_not_reported_as_done_under_it() {
    for set in [false, true] {
        for waits in [false, true] {
            let name = format!("suspend-last-poll-{set}-{waits}");
            let (script, _, [a]) = scripted(&name, "ttl=15s", ["a"]).await;
            let guard = a.lock("x").unwrap().acquire().await.unwrap();
            let guards = a.lock_all(["y", "z"]).unwrap().acquire().await.unwrap();
            let work = async {
                script.clock().simulate_suspend(15 * SECOND);
                if waits {
                    std::future::pending::<()>().await;
                }
                7
            };
            // One poll: no timer and no other task tells it.
            let run = async { if set { guards.run(work).await } else { guard.run(work).await } };
            let lost = cancelled_at(0, run).await.unwrap().unwrap_err();
            assert!(matches!(lost.reason, LossReason::Expired | LossReason::Unreachable), "{lost:?}");
            assert_eq!(lost.output, (!waits).then_some(7), "what it returned is handed over");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_loss_converts_into_the_error_of_the_crate() {
    async fn work(guard: &LockGuard) -> tooz_core::Result<u32> {
        Ok(guard.run(async { 7 }).await?)
    }
    let (script, _, [a]) = scripted("suspend-convert", "ttl=15s", ["a"]).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    assert_eq!(work(&guard).await.unwrap(), 7);
    script.clock().simulate_suspend(15 * SECOND);
    let error = work(&guard).await.unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::SessionLost, "run"));
    assert!(error.is_retryable() && error.is_indeterminate());
    assert!(error.to_string().contains("not renewed in time"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_begun_afterwards_is_begun_in_the_next_session() {
    let (script, kit, [a]) = scripted("suspend-next", "ttl=15s", ["a"]).await;
    let session = a.session_id();
    script.clock().simulate_suspend(20 * SECOND);
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    assert!(a.session_id().is_some() && a.session_id() != session);
    assert!(a.lock("x").unwrap().acquire().await.unwrap().is_held());
    assert_eq!((kit.sessions(), a.group("g").unwrap().members().await.unwrap().len()), (1, 1));
}

/// A beat that comes within the tenth of a second after this was sent, and is answered before any timer notices.
async fn beat_under_way(kit: &Kit, millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    kit.delay_answers(Duration::from_millis(50));
    tokio::time::sleep(Duration::from_millis(110)).await;
    kit.delay_answers(Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_beat_that_was_under_way_revives_nothing() {
    let (script, kit, [a]) = scripted("suspend-beat", "ttl=15s", ["a"]).await;
    let session = a.session_id().unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    beat_under_way(&kit, 4900).await;
    // Beyond the deadline that was told, and not beyond the one that the answer would prove.
    script.clock().simulate_suspend(Duration::from_millis(9_500));
    tokio::time::sleep(SECOND / 10).await; // nobody asks before the answer has come
    assert!(!guard.is_held());
    eventually("a new session stands", || a.session_id().is_some_and(|id| id != session)).await;
}

#[tokio::test(start_paused = true)]
async fn nor_does_it_revive_a_grant_whose_own_deadline_has_passed() {
    let (script, kit, [a]) = scripted("suspend-own", "ttl=15s", ["a"]).await;
    let opened = script.now();
    tokio::time::sleep(6 * SECOND).await; // the session was proved since
    script.next_grant(move |grant| grant.proved_at = Some(opened));
    let (guard, other) = (a.lock("x").unwrap().acquire().await.unwrap(), a.lock("y").unwrap());
    let other = other.acquire().await.unwrap();
    beat_under_way(&kit, 3900).await; // it lists the grant
    script.clock().simulate_suspend(5 * SECOND);
    tokio::time::sleep(SECOND).await;
    assert!(!guard.is_held() && other.is_held());
}
