//! Waiters: dead ones, late ones, ones that gave up, and a thousand of one program.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tooz_core::driver::Turn;

use super::super::prelude::*;
use super::steps::{asks, free, take_turns};
use crate::kit::{Call, Fate};

pub(super) const CASES: &[Case] = &[
    case!(incident_etcd_9921, "L14", "L8").lasting(),
    case!(incident_etcd_11456, "L14", "S6").ttl().kit(),
    case!(incident_etcd_19597, "L2", "S3"),
    case!(incident_etcd_19598, "L2", "S3").ttl().kit(),
    case!(incident_etcd_10756, "L1", "L11").budget(60),
    case!(incident_kazoo_429, "L8", "L6"),
    case!(incident_zk_49, "L6", "L2"),
    case!(incident_kazoo_760, "L6", "L2").kit(),
    case!(incident_kazoo_61, "L2", "L4"),
    case!(incident_kazoo_315, "L2"),
    case!(incident_kazoo_649, "L9", "L6").needs(Characteristics::SHARED_LOCKS),
    case!(incident_kazoo_291, "L11", "L1"),
    case!(incident_opencti_17341, "L8").budget(60),
];

/// L14, L8: a waiter whose own session ended is granted nothing, and is in nobody's way.
async fn incident_etcd_9921(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let (holder, dead) = (h.session(&driver, "holder").await?, h.session(&driver, "dead").await?);
    let grant = granted(&holder, "x", false).await?;
    let place = queued(&dead, "x", false).await?;
    dead.close(End::Clean).await?;
    holder.locks().release(&grant, End::Clean).await?;
    // It asks on, as a client does that has not heard of its own end.
    let turn = within("an answer to the dead", h.gone(), dead.locks().turn(&place)).await?;
    ensure(!matches!(turn, Ok(Turn::Granted(_))), "granted to a session that has ended")?;
    let holders = driver.locks().holders(&grant.key).await?;
    ensure(holders.holders.is_empty(), format!("held by the dead: {holders:?}"))?;
    let next = h.session(&driver, "next").await?;
    let next = granted(&next, "x", false).await?;
    ensure(next.token > grant.token, "an older token")
}

/// L14, S6: granted while its client was cut off, the grant is over before the client hears of it.
async fn incident_etcd_11456(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let c = h.coordinator("c").await?;
    let guard = taken(&a, "x").await?;
    let late = asks(&h, b.lock("x")?).await;
    h.waiters("x", 1).await?;
    let behind = asks(&h, c.lock("x")?).await;
    h.waiters("x", 2).await?;
    h.kit()?.cut(h.namespace(), "b");
    guard.release().await?;
    let next = within("the lock that was granted to nobody", h.gone(), behind).await???;
    h.kit()?.heal(h.namespace(), "b");
    h.pass(h.some_ttl() * 2).await;
    ensure(next.is_held() && !late.is_finished(), "granted late, beside the holder")?;
    next.release().await?;
    let next = within("its turn after all", h.gone(), late).await???;
    ensure(next.is_held(), "granted with nothing left")
}

/// L2, S3: a waiter is not kept by whoever holds the lock when its own coordinator ends.
async fn incident_etcd_19597(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let waiting = asks(&h, b.lock("x")?).await;
    let lead = a.election("g")?.campaign().await?;
    let election = b.election("g")?;
    let campaign = h.started(async move { election.campaign().await }).await;
    h.waiters("x", 1).await?;
    b.close().await?;
    refused(h.soon_done("the end of the wait", waiting).await??, ErrorKind::Closed)?;
    refused(h.soon_done("the end of the campaign", campaign).await??, ErrorKind::Closed)?;
    ensure(guard.is_held() && lead.is_held(), "lost to a waiter that left")?;
    h.waiters("x", 0).await
}

/// L2, S3: the same for a waiter that the backend cannot tell: its wait ends although its question is never answered.
async fn incident_etcd_19598(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let waiting = asks(&h, b.lock("x")?).await;
    h.waiters("x", 1).await?;
    let mut events = b.events();
    h.kit()?.cut(h.namespace(), "b");
    event(&mut events, h.gone(), "Lost", |event| matches!(event, Event::Lost(_))).await?;
    h.outlive().await;
    h.waiters("x", 0).await?; // its place went with its session
    ensure(!waiting.is_finished(), "it gave up, and has no limit")?;
    drop(b.close().await); // the backend does not answer that either
    refused(h.soon_done("the end of the wait", waiting).await??, ErrorKind::Closed)?;
    ensure(guard.is_held(), "lost to a waiter that is away")
}

/// L1, L11: a thousand tasks of one session try at once, and one of them gets it.
async fn incident_etcd_10756(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = Vec::new();
    for n in 0..1_000 {
        let (c, inside, most) = (a.clone(), Arc::clone(&inside), Arc::clone(&most));
        tasks.push(h.spawn(async move {
            let lock = c.lock("x")?;
            // One in fifty waits for its turn, the others only try.
            let guard = if n % 50 == 0 { Some(lock.acquire().await?) } else { lock.try_acquire().await? };
            let Some(guard) = guard else { return fine(0) };
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            linger().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            guard.release().await?;
            fine(1)
        }));
    }
    let mut granted = 0;
    for task in tasks {
        granted += task.await??;
    }
    let most = most.load(Ordering::SeqCst);
    ensure(most == 1, format!("{most} tasks held the lock at once"))?;
    ensure(granted >= 20, format!("{granted} grants, and twenty tasks waited for theirs"))
}

/// L8, L6: a waiter that gave up after its limit must not stand before those behind it.
async fn incident_kazoo_429(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let c = h.coordinator("c").await?;
    let guard = taken(&a, "x").await?;
    let lock = b.lock("x")?;
    let gives_up = h.spawn(async move { lock.acquire_within(millis(500)).await });
    h.waiters("x", 1).await?;
    let behind = asks(&h, c.lock("x")?).await;
    // A limit that a loaded machine does not keep is an error, and leaves nothing either.
    let none = within("the limit", millis(500) + h.soon(), gives_up).await??;
    ensure(!matches!(none, Ok(Some(_))), "granted beside its holder")?;
    h.waiters("x", 1).await?;
    guard.release().await?;
    let next = h.soon_done("the turn of whoever stands behind", behind).await???;
    ensure(next.is_held(), "granted, and not held")
}

/// L6, L2: again and again, and by tasks of one coordinator, too.
async fn incident_zk_49(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    for limit in [0, 1, 5, 20] {
        let mut tasks = Vec::new();
        for c in [&a, &b, &b, &b] {
            let lock = c.lock("x")?;
            tasks.push(h.spawn(async move { lock.acquire_within(millis(limit)).await }));
        }
        for task in tasks {
            let none = task.await?;
            ensure(!matches!(none, Ok(Some(_))), "granted beside its holder")?;
        }
        h.waiters("x", 0).await?;
    }
    guard.release().await?;
    taken(&h.coordinator("c").await?, "x").await.map(|_| ())
}

/// L6, L2: a try that failed cleans up after itself, although its first attempts at that fail.
async fn incident_kazoo_760(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let b = h.builder("b").option("initial_reconnect_backoff", "5ms").option("max_reconnect_backoff", "20ms");
    let b = h.keep(b).await?;
    let guard = taken(&a, "x").await?;
    for fate in [Fate::AnswerLost, Fate::RequestLost, Fate::Fails] {
        h.kit()?.next("b", Call::Request, 1, fate);
        h.kit()?.next("b", Call::Withdraw, 3, Fate::Fails);
        let none = b.lock("x")?.try_acquire().await;
        ensure(!matches!(none, Ok(Some(_))), "granted beside its holder")?;
    }
    guard.release().await?;
    // Nobody wants it: what is left of the tries must not become a holder in their place.
    free(&h, &a, "x").await?;
    h.pass(h.some_ttl()).await;
    taken(&a, "x").await.map(|_| ())
}

/// L2, L4: whoever has released gets it again at the next try, every time.
async fn incident_kazoo_61(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lock = a.lock("x")?;
    for n in 0..25 {
        let guard = lock.try_acquire().await?.ok_or_else(|| format!("not free at try {n}"))?;
        if n % 5 == 0 {
            held_by_another(&b, "x").await?;
        }
        ensure(guard.release().await? == Released::Released, "the holder's release found nothing")?;
    }
    Ok(())
}

/// L2: a try answers at once, also behind others that wait, and of the holder's own coordinator.
async fn incident_kazoo_315(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let c = h.coordinator("c").await?;
    let guard = taken(&a, "x").await?;
    let waiting = [asks(&h, b.lock("x")?).await, asks(&h, a.lock("x")?).await];
    h.waiters("x", 1).await?;
    for one in [&a, &b, &c] {
        h.soon_done("the answer to a try", Box::pin(held_by_another(one, "x"))).await??;
    }
    guard.release().await?;
    take_turns(&h, "the hand-over", h.soon(), waiting).await
}

/// L9, L6: a writer that gives up lets in the readers that stood behind it.
async fn incident_kazoo_649(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let c = h.coordinator("c").await?;
    let reader = a.lock("x")?.shared().acquire().await?;
    for _ in 0..5 {
        let writer = asks(&h, b.lock("x")?).await;
        h.waiters("x", 1).await?;
        let behind = asks(&h, c.lock("x")?.shared()).await;
        writer.abort();
        let other = within("the reader behind a writer that gave up", h.gone(), behind).await???;
        ensure(reader.is_held() && other.is_held(), "readers are not together")?;
        other.release().await?;
        h.waiters("x", 0).await?;
    }
    reader.release().await?;
    taken(&b, "x").await.map(|_| ())
}

/// L11, L1: whoever asks for what it holds gets nothing, and giving that up gives up nothing.
async fn incident_kazoo_291(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let inner = asks(&h, a.lock("x")?).await;
    held_by_another(&a, "x").await?;
    ensure(!inner.is_finished(), "granted to its holder again")?;
    inner.abort();
    ensure(inner.await.is_err_and(|error| error.is_cancelled()), "granted to its holder again")?;
    for _ in 0..3 {
        linger().await;
        ensure(guard.is_held(), "lost with an inner acquire")?;
        held_by_another(&b, "x").await?;
    }
    ensure(guard.release().await? == Released::Released, "the holder's release found nothing")?;
    taken(&b, "x").await.map(|_| ())
}

/// L8: many writers on one lock, and all of them get their turns; how many wait is no secret.
async fn incident_opencti_17341(h: Harness) -> Outcome {
    let keeper = h.coordinator("keeper").await?;
    let guard = taken(&keeper, "x").await?;
    let mut writers = Vec::new();
    for n in 0..12_u64 {
        let c = h.coordinator(format!("w{n}")).await?;
        writers.push(h.spawn(async move {
            for _ in 0..4 {
                c.lock("x")?.acquire().await?.release().await?;
            }
            fine(())
        }));
        h.waiters("x", n + 1).await?;
    }
    guard.release().await?;
    within("every writer's turns", h.limit(secs(2)), async {
        for writer in writers {
            writer.await??;
        }
        Outcome::Ok(())
    })
    .await??;
    h.waiters("x", 0).await
}
