//! L1 to L5, L11 to L14: locks, as one coordinator beside another sees them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(lock_is_exclusive, "L1", "L2"),
    case!(lock_is_not_reentrant, "L11", "L1"),
    case!(lock_is_exclusive_under_contention, "L1", "L3"),
    case!(try_acquire_answers_at_once, "L2").exact(),
    case!(try_acquire_leaves_no_place, "L2", "L6"),
    case!(acquire_within_ends_in_time, "L2").exact(),
    case!(acquire_within_leaves_no_place, "L2", "L6"),
    case!(acquire_within_no_time_is_honest, "L2"),
    case!(acquire_within_takes_what_is_released, "L2"),
    case!(acquire_waits, "L2"),
    case!(tokens_grow_with_every_grant, "L3"),
    case!(tokens_grow_across_sessions, "L3"),
    case!(tokens_grow_across_ends_of_any_kind, "L3").kit(),
    case!(tokens_grow_across_a_break, "L3", "L10"),
    case!(tokens_grow_across_reopening, "L3").needs(Characteristics::DURABLE_FENCING).real(),
    case!(release_says_what_it_found, "L4", "L10"),
    case!(release_twice_leaves_the_next_holder_alone, "L4"),
    case!(release_of_another_session_is_refused, "L4", "L14"),
    case!(drop_releases, "L5"),
    case!(drop_during_unwinding_releases, "L5"),
    case!(drop_after_close_is_harmless, "L5"),
    case!(close_waits_for_dropped_guards, "L5", "S3"),
    case!(run_gives_the_result, "L13"),
    case!(run_ends_at_the_loss, "L13", "L7"),
    case!(guards_are_send_and_sync, "L13"),
    case!(a_dead_waiter_is_never_granted, "L14", "L8"),
    case!(an_earlier_sessions_grant_is_not_ours, "L14"),
];

/// L1, L2: whoever comes second gets nothing, until the first has released.
async fn lock_is_exclusive(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    ensure(guard.is_held() && guard.mode() == LockMode::Exclusive, "granted, and not held")?;
    ensure(guard.name().as_bytes() == b"x", "another name")?;
    held_by_another(&b, "x").await?;
    ensure(b.lock("x")?.acquire_within(h.limit(millis(20))).await?.is_none(), "granted beside its holder")?;
    h.waiters("x", 0).await?; // whoever gave up leaves nothing behind after one more round trip
    ensure(guard.release().await? == Released::Released, "the holder's release found nothing")?;
    taken(&b, "x").await.map(|_| ())
}

/// L11, L1: a second handle of the same coordinator contends like anybody else.
async fn lock_is_not_reentrant(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    held_by_another(&a, "x").await?;
    ensure(
        a.clone().lock("x")?.acquire_within(h.limit(millis(20))).await?.is_none(),
        "granted to its holder again",
    )?;
    ensure(guard.is_held(), "lost by asking again")?;
    h.waiters("x", 0).await?; // whoever gave up leaves nothing behind after one more round trip
    guard.release().await?;
    taken(&a, "x").await.map(|_| ())
}

/// L1, L3: many tasks of several coordinators; nobody is ever inside beside another, tokens only grow.
async fn lock_is_exclusive_under_contention(h: Harness) -> Outcome {
    let inside = Arc::new(AtomicUsize::new(0));
    let last = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for n in 0..4 {
        let c = h.coordinator(format!("c{n}")).await?;
        for _ in 0..4 {
            let (c, inside, last) = (c.clone(), Arc::clone(&inside), Arc::clone(&last));
            tasks.push(h.spawn(async move {
                for _ in 0..12 {
                    let guard = c.lock("x")?.acquire().await?;
                    let alone = inside.fetch_add(1, Ordering::SeqCst) == 0;
                    let token = usize::try_from(guard.token().get()).unwrap_or(usize::MAX);
                    let newer = last.swap(token, Ordering::SeqCst) < token;
                    linger().await;
                    let valid = guard.is_held();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    if !alone || !newer || !valid {
                        return fine((alone, newer, valid));
                    }
                    guard.release().await?;
                }
                fine((true, true, true))
            }));
        }
    }
    for task in tasks {
        let (alone, newer, valid) = task.await??;
        ensure(alone, "two holders at once")?;
        ensure(newer, "a token is not larger than the one before it")?;
        ensure(valid, "lost without a reason")?;
    }
    Ok(())
}

/// L2: no waiting for the holder.
async fn try_acquire_answers_at_once(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let _guard = taken(&a, "x").await?;
    let watch = h.stopwatch();
    held_by_another(&b, "x").await?;
    ensure(watch.elapsed() < millis(10), format!("it took {:?}", watch.elapsed()))
}

/// L2, L6: whoever tried is not in the queue.
async fn try_acquire_leaves_no_place(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for _ in 0..5 {
        let guard = taken(&a, "x").await?;
        held_by_another(&b, "x").await?;
        held_by_another(&a, "x").await?;
        ensure(a.lock("x")?.holders().await?.waiters.is_none_or(|n| n == 0), "somebody waits")?;
        guard.release().await?;
    }
    Ok(())
}

/// L2: never later than the limit and 100 ms, never earlier than the limit.
async fn acquire_within_ends_in_time(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let _guard = taken(&a, "x").await?;
    for limit in [Duration::ZERO, millis(1), millis(250), secs(3), secs(60)] {
        let watch = h.stopwatch();
        ensure(b.lock("x")?.acquire_within(limit).await?.is_none(), "granted beside its holder")?;
        let took = watch.elapsed();
        ensure(took >= limit && took <= limit + millis(100), format!("{limit:?} took {took:?}"))?;
    }
    Ok(())
}

/// L2, L6: whoever gave up is in nobody's way.
async fn acquire_within_leaves_no_place(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    for c in [&a, &b] {
        ensure(
            c.lock("x")?.acquire_within(h.limit(millis(20))).await?.is_none(),
            "granted beside its holder",
        )?;
    }
    h.waiters("x", 0).await?;
    guard.release().await?;
    taken(&h.coordinator("c").await?, "x").await.map(|_| ())
}

/// L2: a limit of nothing may be too short for an answer; "somebody holds it" is none where nobody does.
async fn acquire_within_no_time_is_honest(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    match a.lock("x")?.acquire_within(Duration::ZERO).await {
        Ok(guard) => ensure(guard.ok_or("nobody holds it, and it was not granted")?.is_held(), "not held")?,
        Err(error) => {
            ensure(error.kind() == ErrorKind::Unavailable && error.is_indeterminate(), format!("{error}"))?;
        }
    }
    h.soon_true("the lock is free", async || Ok::<_, Error>(b.lock("x")?.try_acquire().await?.is_some()))
        .await
}

/// L2: a release inside the limit is enough.
async fn acquire_within_takes_what_is_released(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire_within(secs(60)).await });
    h.waiters("x", 1).await?;
    guard.release().await?;
    let next = h.soon_done("the hand-over", waiting).await???;
    ensure(next.is_some_and(|guard| guard.is_held()), "not granted though it was free")
}

/// L2: acquire has no limit of its own.
async fn acquire_waits(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    let long = if h.is_virtual() { secs(60) } else { secs(2) }; // longer than any operation's own time limit
    h.pass(long).await;
    ensure(!waiting.is_finished(), "it did not wait")?;
    guard.release().await?;
    let next = h.soon_done("the hand-over", waiting).await???;
    ensure(next.is_held(), "granted, and not held")
}

/// L3: every grant, whoever the holder is and however he gave it back.
async fn tokens_grow_with_every_grant(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut last = 0;
    for n in 0..20 {
        let c = if n % 3 == 0 { &b } else { &a };
        let guard = within("the lock", h.soon(), c.lock("x")?.acquire()).await??;
        ensure(guard.token().get() > last, format!("{} after {last}", guard.token()))?;
        last = guard.token().get();
        if n % 2 == 0 {
            guard.release().await?;
        }
    }
    Ok(())
}

/// L3: closing and connecting again starts nothing anew.
async fn tokens_grow_across_sessions(h: Harness) -> Outcome {
    let _keeps_the_backend = h.coordinator("keeper").await?;
    let mut last = 0;
    for _ in 0..5 {
        let a = h.coordinator("a").await?;
        let guard = taken(&a, "x").await?;
        ensure(guard.token().get() > last, format!("{} after {last}", guard.token()))?;
        last = guard.token().get();
        a.close().await?;
    }
    Ok(())
}

/// L3: an expiry, a vanished record, lost data: the next token is larger.
async fn tokens_grow_across_ends_of_any_kind(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut last = 0;
    for end in 0..3 {
        let guard = within("the lock", h.gone(), a.lock("x")?.acquire()).await??;
        ensure(guard.token().get() > last, format!("{} after {last}", guard.token()))?;
        match end {
            0 => h.kit()?.expire(h.namespace(), "a"),
            1 => h.kit()?.vanish(h.namespace(), "x"),
            _ => h.kit()?.lose_data(),
        }
        let next = within("the lock", h.gone(), b.lock("x")?.acquire()).await??;
        ensure(next.token() > guard.token(), format!("{} after {}", next.token(), guard.token()))?;
        last = next.token().get();
        next.release().await?;
    }
    Ok(())
}

/// L3, L10: a broken grant's token is older than the next one.
async fn tokens_grow_across_a_break(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    b.lock("x")?.break_lock("the holder hangs").await?;
    let next = taken(&b, "x").await?;
    ensure(next.token() > guard.token(), format!("{} after {}", next.token(), guard.token()))
}

/// L3: nobody is connected any more, and the counter stands all the same.
async fn tokens_grow_across_reopening(h: Harness) -> Outcome {
    let mut last = 0;
    for _ in 0..5 {
        let a = h.builder("a").connect().await?;
        let guard = taken(&a, "x").await?;
        ensure(guard.token().get() > last, format!("{} after {last}", guard.token()))?;
        last = guard.token().get();
        guard.release().await?;
        a.close().await?;
    }
    Ok(())
}

/// L4, L10: what was broken is not there to release, and the next holder keeps it.
async fn release_says_what_it_found(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    b.lock("x")?.break_lock("the holder hangs").await?;
    let next = taken(&b, "x").await?;
    ensure(guard.release().await? == Released::WasNotHolder, "a broken grant was released")?;
    ensure(next.is_held(), "the next holder lost it")?;
    held_by_another(&a, "x").await?;
    ensure(next.release().await? == Released::Released, "the holder's release found nothing")
}

/// L4: at the driver's level a grant is released once.
async fn release_twice_leaves_the_next_holder_alone(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let (a, b) = (h.session(&driver, "a").await?, h.session(&driver, "b").await?);
    let first = granted(&a, "x", false).await?;
    ensure(
        a.locks().release(&first, End::Clean).await? == Released::Released,
        "the holder's release found nothing",
    )?;
    ensure(a.locks().release(&first, End::Clean).await? == Released::WasNotHolder, "released twice")?;
    let next = granted(&b, "x", false).await?;
    ensure(
        a.locks().release(&first, End::Clean).await? == Released::WasNotHolder,
        "released after the next grant",
    )?;
    let holders = driver.locks().holders(&next.key).await?.holders;
    ensure(holders.len() == 1 && holders[0].token == Some(next.token), "the next holder lost it")?;
    ensure(
        b.locks().release(&next, End::Clean).await? == Released::Released,
        "the holder's release found nothing",
    )
}

/// L4, L14: one session cannot release what another one holds.
async fn release_of_another_session_is_refused(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let (a, b) = (h.session(&driver, "a").await?, h.session(&driver, "b").await?);
    let grant = granted(&a, "x", false).await?;
    // Refused with an error or with "not the holder": what counts is that nothing was released.
    ensure(
        b.locks().release(&grant, End::Clean).await.ok() != Some(Released::Released),
        "released by another session",
    )?;
    let holders = driver.locks().holders(&grant.key).await?.holders;
    ensure(holders.len() == 1 && holders[0].token == Some(grant.token), "the holder lost it")
}

/// L5: dropping is releasing.
async fn drop_releases(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    drop(taken(&a, "x").await?);
    h.soon_true("the lock is free", async || Ok::<_, Error>(b.lock("x")?.try_acquire().await?.is_some()))
        .await
}

/// L5: also when a task panics.
async fn drop_during_unwinding_releases(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let panicking = h.spawn(async move {
        let _guard = guard;
        std::panic::resume_unwind(Box::new("a task panics, as this case wants it"));
    });
    ensure(panicking.await.is_err_and(|error| error.is_panic()), "the task did not panic")?;
    h.soon_true("the lock is free", async || Ok::<_, Error>(b.lock("x")?.try_acquire().await?.is_some()))
        .await
}

/// L5: nothing is left to do, and nothing goes wrong.
async fn drop_after_close_is_harmless(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    a.close().await?;
    ensure(!guard.is_held(), "held after close")?;
    let next = taken(&b, "x").await?;
    drop(guard);
    h.pass(millis(20)).await;
    ensure(next.is_held(), "the next holder lost it")?;
    held_by_another(&h.coordinator("c").await?, "x").await
}

/// L5, S3: what was dropped before close is released when close returns.
async fn close_waits_for_dropped_guards(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut guards = Vec::new();
    for n in 0..50 {
        guards.push(taken(&a, &format!("x{n}")).await?);
    }
    drop(guards);
    a.close().await?;
    for n in 0..50 {
        drop(taken(&b, &format!("x{n}")).await?);
    }
    Ok(())
}

/// L13: run hands back what the work says, and the lock stays held.
async fn run_gives_the_result(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    let pass = h.pass(millis(20));
    let answer = guard
        .run(async {
            pass.await;
            42
        })
        .await
        .map_err(|why| why.to_string())?;
    ensure(answer == 42 && guard.is_held(), "run changed something")
}

/// L13, L7: run ends the work at the loss, and says why.
async fn run_ends_at_the_loss(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let running = h.started(async move { guard.run(std::future::pending::<()>()).await }).await;
    b.lock("x")?.break_lock("enough").await?;
    let limit = h.some_ttl() + h.soon();
    match within("the end of the work", limit, running).await?? {
        Err(Lost { reason: LossReason::Broken { .. }, output: None, .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// L13: guards go where the work goes.
async fn guards_are_send_and_sync(h: Harness) -> Outcome {
    fn shared_between_tasks<T: Send + Sync + 'static>(value: T) -> Arc<T> {
        Arc::new(value)
    }
    let a = h.coordinator("a").await?;
    let guard = shared_between_tasks(taken(&a, "x").await?);
    let elsewhere = Arc::clone(&guard);
    let held = h.spawn(async move { elsewhere.is_held() }).await?;
    let lead = shared_between_tasks(a.election("g")?.campaign().await?);
    let signal = shared_between_tasks(guard.loss_signal());
    ensure(held && lead.is_held() && !signal.is_lost(), "not held elsewhere")
}

/// L14, L8: a session that ended while it waited is passed over.
async fn a_dead_waiter_is_never_granted(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let (a, dead, b) =
        (h.session(&driver, "a").await?, h.session(&driver, "dead").await?, h.session(&driver, "b").await?);
    let grant = granted(&a, "x", false).await?;
    let _dead_place = queued(&dead, "x", false).await?;
    let place = queued(&b, "x", false).await?;
    dead.close(End::Clean).await?;
    a.locks().release(&grant, End::Clean).await?;
    let turn = h.soon_done("the turn of whoever lives", b.locks().turn(&place)).await??;
    ensure(matches!(turn, tooz_core::driver::Turn::Granted(_)), format!("{turn:?}"))
}

/// L14: the same wish in a new session is a new grant, whatever the old session had.
async fn an_earlier_sessions_grant_is_not_ours(h: Harness) -> Outcome {
    use tooz_core::driver::{End, InstanceId, OpenSession};
    let driver = h.driver().await?;
    let instance = InstanceId(crate::tools::random());
    let request = OpenSession::new(tooz_core::MemberId::new("a")?, instance);
    let old = driver.open_session(&request).await?;
    let grant = granted(&old, "x", false).await?;
    let new = driver.open_session(&request.clone().after(Some(old.id()))).await?;
    ensure(new.id() != old.id(), "two sessions of one id")?;
    ensure(
        new.locks().release(&grant, End::Clean).await.ok() != Some(Released::Released),
        "an old grant was released",
    )?;
    let renewal = old.renew(&tooz_core::driver::Held::default()).await;
    ensure(renewal.is_err() || renewal.is_ok_and(|r| r.lost.is_some()), "the earlier session lives on")?;
    let next = granted(&new, "x", false).await?;
    ensure(next.token > grant.token, "the new grant is the old one")
}
