//! L6: futures that are dropped at any await point.

use super::prelude::*;
use crate::tools::dropped_after;

pub(super) const CASES: &[Case] = &[
    case!(an_acquire_dropped_while_free_leaves_nothing, "L6"),
    case!(an_acquire_dropped_while_held_leaves_nothing, "L6"),
    case!(an_acquire_dropped_at_the_hand_over_leaves_nothing, "L6"),
    case!(a_limited_acquire_dropped_leaves_nothing, "L6", "L2"),
    case!(a_shared_acquire_dropped_leaves_nothing, "L6", "L9").needs(Characteristics::SHARED_LOCKS),
    case!(a_campaign_dropped_leaves_nothing, "L6", "E2"),
    case!(a_set_dropped_leaves_nothing, "L6", "L16").budget(60),
    case!(a_release_dropped_is_done, "L6", "L5"),
    case!(an_acquire_dropped_while_the_backend_is_down_leaves_nothing, "L6").kit(),
    case!(a_join_dropped_is_done_or_not, "L6", "G2"),
    case!(a_wait_for_the_next_change_dropped_loses_none, "L6", "W1"),
];

/// Further than any future of ours gets before it has to wait for somebody.
const POINTS: usize = 20;

async fn free(h: &Harness, c: &Coordinator, name: &str) -> Outcome {
    // A withdrawal is one round trip, but behind whatever else the machine has to do.
    eventually("the lock is free and nobody waits", h.limit(millis(500)), async || {
        let Some(guard) = c.lock(name)?.try_acquire().await? else { return Ok(false) };
        let nobody = c.lock(name)?.holders().await?.waiters.is_none_or(|n| n == 0);
        guard.release().await?;
        Ok::<_, Error>(nobody)
    })
    .await
}

/// L6: on a free lock, dropped after each number of polls, at once or with the request still on its way.
async fn an_acquire_dropped_while_free_leaves_nothing(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for point in 0..POINTS {
        let guard = dropped_after(point, millis(5), a.lock("x")?.acquire()).await;
        drop(guard.transpose()?);
        free(&h, &b, "x").await.map_err(|error| format!("dropped after {point} polls: {error}"))?;
    }
    Ok(())
}

/// L6: in the queue behind a holder.
async fn an_acquire_dropped_while_held_leaves_nothing(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for point in 0..POINTS {
        let guard = taken(&b, "x").await?;
        let none = dropped_after(point, millis(5), a.lock("x")?.acquire()).await.transpose()?;
        ensure(none.is_none(), "granted beside its holder")?;
        guard.release().await?;
        free(&h, &b, "x").await.map_err(|error| format!("dropped after {point} polls: {error}"))?;
    }
    Ok(())
}

/// L6: dropped while the lock is being handed to it.
async fn an_acquire_dropped_at_the_hand_over_leaves_nothing(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for point in 0..POINTS {
        let guard = taken(&b, "x").await?;
        let lock = a.lock("x")?;
        let waiting = h.spawn(async move { dropped_after(2 + point, secs(1), lock.acquire()).await });
        h.soon_true("it waits, or was dropped before it did", async || {
            let waiters = b.lock("x")?.holders().await?.waiters;
            Ok::<_, Error>(waiting.is_finished() || waiters.is_none_or(|n| n == 1))
        })
        .await?;
        guard.release().await?;
        if point % 2 == 0 {
            waiting.abort();
        }
        if let Ok(Some(guard)) = waiting.await {
            drop(guard?);
        }
        free(&h, &b, "x").await.map_err(|error| format!("dropped after {point} polls: {error}"))?;
    }
    Ok(())
}

/// L6, L2: the same with a limit.
async fn a_limited_acquire_dropped_leaves_nothing(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for point in 0..POINTS {
        let guard = taken(&b, "x").await?;
        // A limit that a loaded machine does not keep is an error, and leaves nothing either.
        let guard_or_none = dropped_after(point, millis(5), a.lock("x")?.acquire_within(millis(3))).await;
        ensure(!matches!(guard_or_none, Some(Ok(Some(_)))), "granted beside its holder")?;
        guard.release().await?;
        free(&h, &b, "x").await.map_err(|error| format!("dropped after {point} polls: {error}"))?;
    }
    Ok(())
}

/// L6, L9: readers that give up are in no writer's way.
async fn a_shared_acquire_dropped_leaves_nothing(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for point in 0..POINTS {
        drop(dropped_after(point, millis(5), a.lock("x")?.shared().acquire()).await.transpose()?);
        free(&h, &b, "x").await.map_err(|error| format!("dropped after {point} polls: {error}"))?;
    }
    Ok(())
}

/// L6, E2: candidates, too.
async fn a_campaign_dropped_leaves_nothing(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for point in 0..POINTS {
        drop(dropped_after(point, millis(5), a.election("g")?.campaign()).await.transpose()?);
        // As for a lock: a request that is still on its way may be carried out before it is withdrawn.
        eventually("nobody leads, and nobody is a candidate", h.limit(millis(500)), async || {
            let Some(led) = b.election("g")?.try_campaign().await? else { return Ok(false) };
            led.resign().await?;
            Ok::<_, Error>(b.election("g")?.leader().await?.is_none())
        })
        .await
        .map_err(|error| format!("dropped after {point} polls: {error}"))?;
    }
    Ok(())
}

/// L6, L16: a set of which some are held already.
async fn a_set_dropped_leaves_nothing(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for point in 0..POINTS {
        let guard = taken(&b, "z").await?;
        let set = a.lock_all(["x", "y", "z"])?;
        ensure(dropped_after(point, millis(5), set.acquire()).await.is_none(), "granted beside a holder")?;
        guard.release().await?;
        for name in ["x", "y", "z"] {
            free(&h, &b, name).await.map_err(|error| format!("dropped after {point} polls: {error}"))?;
        }
    }
    Ok(())
}

/// L6, L5: a release that nobody waits for goes on.
async fn a_release_dropped_is_done(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for point in 0..POINTS {
        let guard = taken(&a, "x").await?;
        dropped_after(point, millis(5), guard.release()).await.transpose()?;
        free(&h, &b, "x").await.map_err(|error| format!("dropped after {point} polls: {error}"))?;
    }
    Ok(())
}

/// L6: the request hangs, its caller leaves, the backend comes back.
async fn an_acquire_dropped_while_the_backend_is_down_leaves_nothing(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for point in 1..4 {
        h.kit()?.pause();
        let none = dropped_after(point, millis(20), a.lock("x")?.acquire()).await;
        ensure(none.is_none(), "granted by a backend that does not answer")?;
        h.kit()?.resume();
        free(&h, &b, "x").await.map_err(|error| format!("dropped after {point} polls: {error}"))?;
    }
    Ok(())
}

/// L6, G2: a member that nobody waits for is there or not, and can leave or join accordingly.
async fn a_join_dropped_is_done_or_not(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let group = a.group("g")?;
    group.create().await?;
    for point in 0..POINTS {
        dropped_after(point, millis(5), group.join(Capabilities::none())).await.transpose()?;
        match group.leave().await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::MemberNotFound => {}
            Err(error) => return Err(format!("dropped after {point} polls: {error}").into()),
        }
        ensure(ids(&b, "g").await?.is_empty(), format!("dropped after {point} polls: still a member"))?;
    }
    Ok(())
}

/// L6, W1: waiting for a change again and again misses none.
async fn a_wait_for_the_next_change_dropped_loses_none(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    let mut watch = a.group("g")?.watch().await?;
    let mut view = super::watch::View::default();
    for round in 0..POINTS {
        if let Some(Some(event)) = dropped_after(round, millis(1), watch.next()).await {
            view.apply(event?)?;
        }
        b.group("g")?.join(Capabilities::new(&round)?).await?;
        if let Some(Some(event)) = dropped_after(1, millis(1), watch.next()).await {
            view.apply(event?)?;
        }
        b.group("g")?.leave().await?;
    }
    b.group("g")?.join(caps("last")?).await?;
    within("the last change", h.soon(), async {
        while view.capabilities("b") != Some(caps("last")?) {
            view.apply(watch.next().await.ok_or("the watch ended")??)?;
        }
        Outcome::Ok(())
    })
    .await?
}
