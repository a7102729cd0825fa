//! Futures and guards that were dropped: half-way, anywhere, by anybody.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::prelude::*;
use super::super::runtimes::{on_a_thread, one_worker};
use super::steps::{asks, free, take_turns};
use crate::kit::{Call, Fate};
use crate::tools::{block_on, dropped_after};

pub(super) const CASES: &[Case] = &[
    case!(incident_rslock_30, "L5").real(),
    case!(incident_redis_py_3847, "L6", "L5"),
    case!(incident_redis_py_3900, "L6", "L5").kit(),
    case!(incident_curator_1006, "L4", "L5").kit(),
    case!(incident_rustfs_2633, "L5", "S12").real(),
    case!(incident_gears_rust_3593, "L5", "X2"),
    case!(incident_redis_py_656, "L13", "L4").real(),
    case!(incident_etcd_client_50, "L6", "L8"),
    case!(incident_sqlx_3932, "L6"),
    case!(incident_zookeeper_client_rust_44, "L5", "S12").lasting().real(),
];

/// L5: a guard dropped inside a program's only worker, which then asks for the same lock.
async fn incident_rslock_30(h: Harness) -> Outcome {
    let builder = h.builder("a");
    on_a_thread(move || {
        one_worker()?
            .block_on(async {
                let a = builder.connect().await?;
                for _ in 0..10 {
                    let guard = a.lock("x")?.acquire().await?;
                    drop(guard);
                }
                drop(a.lock("x")?.acquire().await?);
                a.close().await
            })
            .map_err(|error| error.to_string())
    })
    .await
}

/// L6, L5: a release that was cancelled at any point is done all the same, and its program can take the lock again.
async fn incident_redis_py_3847(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lock = a.lock("x")?;
    for point in 0..8 {
        let guard = within("the lock", h.soon(), lock.acquire()).await??;
        dropped_after(point, millis(5), guard.release()).await.transpose()?;
        let again = within("the lock after a cancelled release", h.soon(), lock.acquire()).await;
        let again = again.map_err(|error| format!("cancelled after {point} polls: {error}"))??;
        ensure(again.is_held(), "granted, and not held")?;
        dropped_after(point, millis(5), again.release()).await.transpose()?;
        within("the lock for somebody else", h.soon(), b.lock("x")?.acquire()).await??.release().await?;
    }
    Ok(())
}

/// L6, L5: the same while the backend does not answer: nobody knows whether it was released, and in the end it was.
async fn incident_redis_py_3900(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let other = taken(&a, "y").await?;
    for point in 1..4 {
        let guard = within("the lock", h.soon(), a.lock("x")?.acquire()).await??;
        h.kit()?.pause();
        let answer = dropped_after(point, millis(20), guard.release()).await;
        ensure(answer.is_none(), "answered by a backend that does not")?;
        h.kit()?.resume();
        let next = within("the lock", h.soon(), b.lock("x")?.acquire()).await??;
        next.release().await?;
        ensure(other.is_held(), "a cancelled release cost another lock")?;
    }
    Ok(())
}

/// L4, L5: a release that failed is neither forgotten nor undone: it is repeated, and the session goes on.
async fn incident_curator_1006(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let other = taken(&a, "y").await?;
    let guard = taken(&a, "x").await?;
    let signal = guard.loss_signal();
    h.kit()?.next("a", Call::Release, 2, Fate::Fails);
    h.kit()?.next("a", Call::Withdraw, 2, Fate::Fails);
    // The error says that it goes on; an answer would be a release.
    drop(guard.release().await);
    ensure(signal.is_lost(), "held by a guard that is gone")?;
    free(&h, &b, "x").await?;
    let again = taken(&a, "x").await?;
    ensure(other.is_held() && again.is_held(), "a failed release cost another lock")
}

/// L5, S12: guards that are dropped on a thread without a runtime, while the runtime that took them is gone and their
/// coordinator is still used.
async fn incident_rustfs_2633(h: Harness) -> Outcome {
    let b = h.coordinator("b").await?;
    let builder = h.builder("a");
    let a = on_a_thread(move || {
        let (a, guards) = one_worker()?
            .block_on(async {
                let a = builder.connect().await?;
                let mut guards = Vec::new();
                for n in 0..10 {
                    guards.push(a.lock(format!("x{n}"))?.acquire().await?);
                }
                fine((a, guards))
            })
            .map_err(|error| error.to_string())?;
        drop(guards);
        Ok(a)
    })
    .await?;
    let mut next = Vec::new();
    for n in 0..10 {
        next.push(within("a dropped lock", h.soon(), b.lock(format!("x{n}"))?.acquire()).await??);
    }
    a.heartbeat().await?;
    a.close().await?; // whatever was to come late
    ensure(next.iter().all(LockGuard::is_held), "a late clean-up took what others hold")?;
    for n in 0..10 {
        held_by_another(&h.coordinator(format!("c{n}")).await?, &format!("x{n}")).await?;
    }
    Ok(())
}

/// L5, X2: however a guard has ended, dropping it does not panic.
async fn incident_gears_rust_3593(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let quietly = |guard: LockGuard, what: &str| {
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(guard)));
        ensure(dropped.is_ok(), format!("dropping a guard {what} panics"))
    };
    quietly(taken(&a, "held").await?, "that is held")?;
    let broken = taken(&a, "broken").await?;
    b.lock("broken")?.break_lock("enough").await?;
    quietly(broken, "that is broken")?;
    let lost = taken(&a, "lost").await?;
    b.lock("lost")?.break_lock("enough").await?;
    within("the loss", h.some_ttl() + h.soon(), lost.lost()).await?;
    quietly(lost, "that is known to be lost")?;
    let unwound = taken(&a, "unwound").await?;
    let panicking = h.spawn(async move {
        let _guard = unwound;
        std::panic::resume_unwind(Box::new("a task panics, as this case wants it"));
    });
    ensure(panicking.await.is_err_and(|error| error.is_panic()), "a second panic ended the program")?;
    free(&h, &b, "unwound").await?;
    let closed = taken(&a, "closed").await?;
    a.close().await?;
    quietly(closed, "of a closed coordinator")
}

/// L13, L4: taken in one task, given back by a thread that has no runtime.
async fn incident_redis_py_656(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let answer = on_a_thread(move || {
        let held = guard.is_held();
        let released = block_on(guard.release()).map_err(|error| error.to_string())?;
        Ok((held, released))
    })
    .await?;
    ensure(answer == (true, Released::Released), format!("{answer:?}"))?;
    taken(&b, "x").await.map(|_| ())
}

/// L6, L8: waiters whose clients cancel them, in the middle of a queue that moves.
async fn incident_etcd_client_50(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let more = [h.coordinator("c").await?, h.coordinator("d").await?];
    for round in 0..6 {
        let guard = within("the lock", h.soon(), a.lock("x")?.acquire()).await??;
        let mut waiting = Vec::new();
        for (n, one) in [&b, &more[0], &more[1]].into_iter().enumerate() {
            waiting.push(asks(&h, one.lock("x")?).await);
            h.waiters("x", n as u64 + 1).await?;
        }
        let cancelled = waiting.remove(round % 3);
        if round < 3 {
            cancelled.abort();
            guard.release().await?;
        } else {
            guard.release().await?;
            cancelled.abort(); // it may have been granted already
        }
        drop(cancelled.await);
        take_turns(&h, "the turn of those who stayed", h.gone(), waiting).await?;
        free(&h, &a, "x").await?;
    }
    Ok(())
}

/// L6: the effect had happened, and there was no guard yet to undo it.
async fn incident_sqlx_3932(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for point in 0..8 {
        drop(dropped_after(point, Duration::ZERO, a.lock("x")?.acquire()).await.transpose()?);
        drop(dropped_after(point, Duration::ZERO, a.election("x")?.campaign()).await.transpose()?);
        free(&h, &b, "x").await.map_err(|error| format!("dropped after {point} polls: {error}"))?;
        let lead = within("the election", h.soon(), b.election("x")?.campaign()).await;
        lead.map_err(|error| format!("dropped after {point} polls: {error}"))??.resign().await?;
    }
    Ok(())
}

/// L5, S12: dropped when the program's runtime is gone: no task can be started there, and none is needed.
async fn incident_zookeeper_client_rust_44(h: Harness) -> Outcome {
    let b = h.coordinator("b").await?;
    let builder = h.builder("a").runtime(tooz_core::Runtime::Current);
    let guard = on_a_thread(move || {
        let runtime = one_worker()?;
        let guard = runtime.block_on(async { builder.connect().await?.lock("x")?.acquire().await });
        drop(runtime);
        guard.map_err(|error| error.to_string())
    })
    .await?;
    ensure(!guard.is_held(), "held although its runtime is gone")?;
    on_a_thread(move || {
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(guard)));
        dropped.map_err(|panic| crate::tools::panic_text(&*panic))
    })
    .await?;
    let next = within("the next holder", h.gone(), b.lock("x")?.acquire()).await??;
    ensure(next.is_held(), "granted, and not held")
}
