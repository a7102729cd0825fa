//! The machine was suspended: the clock has moved, and no timer and no task has noticed yet (S6, L7).
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

mod common;
mod scripted;

use std::time::Duration;

use common::*;
use scripted::*;
use tooz_core::Liveness;
use tooz_core::driver::Released;

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
    assert!(cancelled_at(0, guard.loss().wait()).await.is_some());
    assert!(cancelled_at(0, guard.run(async { panic!("without the lock") })).await.unwrap().is_err());
    assert!(cancelled_at(0, set.lost()).await.is_some());
    assert!(cancelled_at(0, set.run(async { panic!("without the locks") })).await.unwrap().is_err());
    assert!(!guard.is_held() && guard.loss().is_lost() && !set.is_held());
    assert!(matches!(a.liveness(), Liveness::Lost { .. }) && a.session_id().is_none());
    assert_eq!(guard.release().await.unwrap(), Released::WasNotHolder);
    drop(set);
    eventually("all is given back", || kit.held() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn work_that_began_before_is_not_polled_afterwards() {
    let (script, _, [a]) = scripted("suspend-run", "ttl=15s", ["a"]).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let set = a.lock_all(["y", "z"]).unwrap().acquire().await.unwrap();
    for suspended in [false, true] {
        let work = || async {
            tokio::task::yield_now().await;
            assert!(!suspended, "it is polled without the lock");
        };
        let (one, all) = (guard.run(work()), set.run(work()));
        let (mut one, mut all) = (std::pin::pin!(one), std::pin::pin!(all));
        let once = async { tokio::join!(one.as_mut(), all.as_mut()) };
        assert!(cancelled_at(0, once).await.is_none());
        if suspended {
            script.clock().simulate_suspend(15 * SECOND);
        }
        let (one, all) = tokio::join!(one, all);
        assert_eq!((one.is_err(), all.is_err()), (suspended, suspended));
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_beat_that_was_under_way_revives_nothing() {
    let (script, kit, [a]) = scripted("suspend-beat", "ttl=15s", ["a"]).await;
    let session = a.session_id().unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    tokio::time::sleep(4900 * Duration::from_millis(1)).await;
    kit.delay_answers(SECOND);
    tokio::time::sleep(SECOND / 2).await; // the beat of the fifth second is under way
    kit.delay_answers(Duration::ZERO);
    // Beyond the deadline that was told, and not beyond the one that the answer would prove.
    script.clock().simulate_suspend(Duration::from_millis(9_500));
    eventually("a new session stands", || a.session_id().is_some_and(|id| id != session)).await;
    assert!(!guard.is_held());
}
