//! S2, S11, S12, L5: programs whose runtime is blocked, ends, or is not there.

use tooz_core::Runtime;

use super::prelude::*;
use crate::harness::block_thread;
use crate::tools::block_on;

pub(super) const CASES: &[Case] = &[
    case!(a_blocked_runtime_does_not_delay_the_heart, "S2", "S6").lasting().real(),
    case!(without_a_runtime_everything_works, "S12").real(),
    case!(the_current_runtime_has_to_exist, "S12").real(),
    case!(characteristics_need_no_runtime, "S12").real(),
    case!(a_runtime_of_the_caller_works, "S12", "S11").real(),
    case!(a_guard_outlives_the_runtime_that_took_it, "L5", "S11").lasting().real(),
    case!(a_session_ends_with_its_runtime, "S11", "L7").lasting().real(),
    case!(a_guard_dropped_outside_a_runtime_releases, "L5").real(),
    case!(threads_exclude_each_other, "L1").needs(Characteristics::DISTRIBUTED_ACROSS_THREADS).real(),
];

/// Runs `work` on a thread of its own and hands back what it says.
pub(super) async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Outcome<T> {
    Ok(tokio::task::spawn_blocking(move || std::thread::spawn(work).join())
        .await?
        .map_err(|panic| crate::tools::panic_text(&*panic))??)
}

pub(super) fn one_worker() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())
}

/// S2, S6: the program's only worker is blocked for three ttls, and nothing is lost.
async fn a_blocked_runtime_does_not_delay_the_heart(h: Harness) -> Outcome {
    let b = h.coordinator("b").await?;
    let (builder, time) = (h.builder("a"), h.some_ttl() * 3);
    let (locked, was_locked) = tokio::sync::oneshot::channel();
    let blocked = h.spawn(on_a_thread_static(move || {
        one_worker()?.block_on(async {
            let a = builder.connect().await.map_err(|error| error.to_string())?;
            let lock = a.lock("x").map_err(|error| error.to_string())?;
            let guard = lock.acquire().await.map_err(|error| error.to_string())?;
            let lead = async {
                a.group("g")?.join_or_create(Capabilities::none()).await?;
                a.election("g")?.campaign().await
            };
            let lead = lead.await.map_err(|error| error.to_string())?;
            let before = (a.session_id(), guard.token(), lead.term());
            let _ = locked.send(());
            block_thread(time);
            let held = guard.is_held() && lead.is_held() && matches!(a.liveness(), Liveness::Alive { .. });
            let same = before == (a.session_id(), guard.token(), lead.term());
            Ok((held && same, guard, lead))
        })
    }));
    was_locked.await?;
    let mut looks = 0;
    while !blocked.is_finished() {
        held_by_another(&b, "x").await?;
        let members = b.group("g")?.members().await?;
        ensure(members.len() == 1, "its membership was lost while it was blocked")?;
        looks += 1;
        h.pass(millis(20)).await;
    }
    ensure(looks > 0, "nobody looked while it was blocked")?;
    let (held, guard, lead) = blocked.await??;
    ensure(held && guard.is_held() && lead.is_held(), "not held after the block")
}

async fn on_a_thread_static<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    on_a_thread(work).await.map_err(|error| error.to_string())
}

/// S12: every operation of a coordinator on the library's thread can be driven by anything.
async fn without_a_runtime_everything_works(h: Harness) -> Outcome {
    let builder = h.builder("a");
    on_a_thread(move || {
        let work = async {
            let a = builder.connect().await?;
            a.group("g")?.join_or_create(Capabilities::none()).await?;
            let mut watch = a.group("g")?.watch().await?;
            let snapshot = watch.next().await;
            let guard = a.lock("x")?.acquire().await?;
            let none = a.lock("x")?.acquire_within(millis(50)).await?;
            let lead = a.election("g")?.campaign().await?;
            let well = none.is_none() && guard.is_held() && lead.is_held();
            let well = well && matches!(snapshot, Some(Ok(GroupEvent::Snapshot(_))));
            lead.resign().await?;
            guard.release().await?;
            a.close().await?;
            fine(well)
        };
        let well = block_on(work).map_err(|error| error.to_string())?;
        well.then_some(()).ok_or_else(|| "something was not as it should be".into())
    })
    .await
}

/// S12: without a runtime where one is needed: an error that says so, and no panic.
async fn the_current_runtime_has_to_exist(h: Harness) -> Outcome {
    let builder = h.builder("a").runtime(Runtime::Current);
    let kind = on_a_thread(move || match block_on(builder.connect()) {
        Ok(_) => Err("it connected without a runtime".into()),
        Err(error) => Ok(error.kind()),
    })
    .await?;
    ensure(kind == ErrorKind::NoRuntime, format!("{kind:?}"))
}

/// S12: characteristics are answered anywhere.
async fn characteristics_need_no_runtime(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let claimed = on_a_thread(move || Ok(a.characteristics())).await?;
    ensure(claimed == h.claimed(), format!("{claimed}"))
}

/// S12, S11: a coordinator that lives on the caller's runtime keeps the same promises.
async fn a_runtime_of_the_caller_works(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").runtime(Runtime::Current)).await?;
    let b = h.coordinator("b").await?;
    let guard = taken(&a, "x").await?;
    held_by_another(&b, "x").await?;
    guard.release().await?;
    taken(&b, "x").await.map(|_| ())
}

/// L5, S11: a guard of a coordinator on the library's thread does not mind that its runtime ended.
async fn a_guard_outlives_the_runtime_that_took_it(h: Harness) -> Outcome {
    let b = h.coordinator("b").await?;
    let builder = h.builder("a");
    let guard = on_a_thread(move || {
        one_worker()?
            .block_on(async { builder.connect().await?.lock("x")?.acquire().await })
            .map_err(|error| error.to_string())
    })
    .await?;
    h.pass(h.some_ttl() * 2).await;
    ensure(guard.is_held(), "lost with the runtime that took it")?;
    held_by_another(&b, "x").await?;
    drop(guard);
    h.soon_true("the lock is free", async || Ok::<_, Error>(b.lock("x")?.try_acquire().await?.is_some()))
        .await
}

/// S11, L7: with `Runtime::Current` the session ends with the runtime, and guards know it at once.
async fn a_session_ends_with_its_runtime(h: Harness) -> Outcome {
    let b = h.coordinator("b").await?;
    let builder = h.builder("a").runtime(Runtime::Current);
    let guard = on_a_thread(move || {
        let runtime = one_worker()?;
        let guard = runtime.block_on(async { builder.connect().await?.lock("x")?.acquire().await });
        drop(runtime);
        guard.map_err(|error| error.to_string())
    })
    .await?;
    ensure(!guard.is_held(), "held although its runtime is gone")?;
    let why = h.soon_done("the reason of the loss", guard.lost()).await?;
    ensure(why == LossReason::SessionClosed, format!("{why:?}"))?;
    let next = within("the next holder", h.gone(), b.lock("x")?.acquire()).await??;
    drop(guard);
    h.pass(millis(20)).await;
    ensure(next.is_held(), "the guard of an ended runtime released somebody else's lock")
}

/// L5: dropped on a thread without any runtime.
async fn a_guard_dropped_outside_a_runtime_releases(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    on_a_thread(move || {
        drop(guard);
        Ok(())
    })
    .await?;
    h.soon_true("the lock is free", async || Ok::<_, Error>(b.lock("x")?.try_acquire().await?.is_some()))
        .await
}

/// L1: threads with runtimes and coordinators of their own.
async fn threads_exclude_each_other(h: Harness) -> Outcome {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let inside = Arc::new(AtomicBool::new(false));
    let _keeps_the_backend = h.coordinator("keeper").await?;
    let mut threads = Vec::new();
    for n in 0..4 {
        let (builder, inside) = (h.builder(format!("thread-{n}")), Arc::clone(&inside));
        threads.push(h.spawn(on_a_thread_static(move || {
            one_worker()?.block_on(async move {
                let work = async {
                    let c = builder.connect().await?;
                    let mut alone = true;
                    for _ in 0..25 {
                        let guard = c.lock("x")?.acquire().await?;
                        alone &= !inside.swap(true, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        inside.store(false, Ordering::SeqCst);
                        guard.release().await?;
                    }
                    c.close().await?;
                    fine(alone)
                };
                work.await.map_err(|error| error.to_string())
            })
        })));
    }
    for thread in threads {
        ensure(thread.await??, "two threads held the lock at once")?;
    }
    Ok(())
}
