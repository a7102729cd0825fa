//! Holders that were not told, and locks that came back from lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::prelude::*;
use super::steps::{Store, alive, asks, free};
use crate::kit::{Call, Fate};

pub(super) const CASES: &[Case] = &[
    case!(incident_etcd_10811, "L3", "L1", "L7"),
    case!(incident_etcd_6127, "L7"),
    case!(incident_kazoo_2, "L13", "L7", "L1").ttl().kit(),
    case!(incident_curator_727, "S5", "L7").ttl().kit(),
    case!(incident_redlock_net_92, "L7", "S6").ttl().kit(),
    case!(incident_redlock_net_48, "L7", "L1").ttl().kit(),
    case!(incident_redisson_775, "S5", "S2").ttl().kit().budget(60),
    case!(incident_redis_semaphore_24, "S6", "L13").ttl().exact(),
    case!(incident_node_redlock_309, "L4", "L7").ttl().kit(),
    case!(incident_node_redlock_369, "L14", "L2").ttl().kit().budget(60),
    case!(incident_curator_549, "S8", "L7").ttl(),
    case!(incident_amazon_dynamodb_lock_client_6, "L7").ttl().kit(),
    case!(incident_dynamodb_lock_client_1, "L4", "L1").lasting(),
    case!(incident_spring_integration_1888, "L7", "L8"),
    case!(incident_omicron_9428, "S4", "S5").ttl().kit().exact(),
];

/// L3, L1, L7: a holder that lost its lock writes on beside the next one; only the written side can tell them apart.
async fn incident_etcd_10811(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let store = Store::default();
    let old = taken(&a, "x").await?;
    ensure(store.write(old.token()), "the holder's write was refused")?;
    b.lock("x")?.break_lock("its holder is cut off").await?;
    let new = taken(&b, "x").await?;
    ensure(store.write(new.token()), "the next holder's write was refused")?;
    for _ in 0..5 {
        // It has not looked; its writes were on their way.
        ensure(!store.write(old.token()), "a late write came through")?;
        ensure(store.write(new.token()), "the next holder's write was refused")?;
    }
    within("the old holder to be told", h.some_ttl() + h.soon(), old.lost()).await?;
    ensure(!old.is_held() && new.is_held(), "the wrong one was told")
}

/// L7: nobody can find out that the lock is gone; here by asking, by waiting, and from another task.
async fn incident_etcd_6127(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let signal = guard.loss_signal();
    let elsewhere = h.spawn({
        let signal = signal.clone();
        async move { signal.wait().await }
    });
    ensure(guard.is_held() && signal.reason().is_none(), "lost before it was")?;
    b.lock("x")?.break_lock("enough").await?;
    let limit = h.some_ttl() + h.soon();
    let waited = within("the loss", limit, guard.lost()).await?;
    let told = within("the other task to be told", limit, elsewhere).await??;
    ensure(waited == told && signal.reason() == Some(told), "told different things")?;
    ensure(!guard.is_held() && signal.is_lost(), "held after it was reported lost")
}

/// L13, L7, L1: the session fails while its holder works: the work has ended before anybody else holds the lock.
async fn incident_kazoo_2(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let steps = Arc::new(AtomicUsize::new(0));
    let working = h.spawn({
        let (h, steps) = (h.clone(), Arc::clone(&steps));
        async move {
            let work = async {
                while steps.fetch_add(1, Ordering::SeqCst) < usize::MAX {
                    h.pass(millis(50)).await;
                }
            };
            guard.run(work).await
        }
    });
    h.pass(millis(500)).await;
    h.kit()?.cut(h.namespace(), "a");
    let next = within("the next holder", h.gone(), b.lock("x")?.acquire()).await??;
    let done = steps.load(Ordering::SeqCst);
    ensure(done > 1, "it did not work at all")?;
    h.pass(h.some_ttl()).await;
    ensure(steps.load(Ordering::SeqCst) == done, "it works on beside the next holder")?;
    let why = h.soon_done("the end of the work", working).await??.err().map(|lost| lost.reason);
    ensure(matches!(why, Some(LossReason::Unreachable | LossReason::Expired)), format!("{why:?}"))?;
    ensure(next.is_held(), "granted, and not held")
}

/// S5, L7: a disconnected holder is told twice: that it may lose its lock, while it still holds it, and that it has.
async fn incident_curator_727(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut events = a.events();
    let guard = taken(&a, "x").await?;
    h.kit()?.cut(h.namespace(), "a");
    let relevant = |event: &Event| matches!(event, Event::Suspended | Event::Lost(_));
    let first = event(&mut events, h.some_ttl(), "Suspended", relevant).await?;
    ensure(matches!(first, Event::Suspended), format!("{first:?} without a warning"))?;
    ensure(guard.is_held() && matches!(a.liveness(), Liveness::Suspended { .. }), "suspended means lost")?;
    let second = event(&mut events, h.gone(), "Lost", |event| matches!(event, Event::Lost(_))).await?;
    ensure(!guard.is_held(), format!("held after {second:?}"))
}

/// L7, S6: every extension is refused, more often than fit into a ttl: the holder is told, and nothing else breaks.
async fn incident_redlock_net_92(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    h.kit()?.next("a", Call::Renew, 40, Fate::Fails);
    within("the loss", h.gone(), guard.lost()).await?;
    ensure(!guard.is_held(), "held after it was reported lost")?;
    // A loss is a value: the program that had it goes on.
    let again = within("the lock, once beats are answered", h.gone() * 5, async {
        loop {
            if let Ok(guard) = a.lock("x")?.acquire().await {
                return Outcome::Ok(guard);
            }
        }
    })
    .await??;
    ensure(again.token() > guard.token(), "the new grant has the old token")?;
    held_by_another(&b, "x").await
}

/// L7, L1: the record is gone for a while; a renewal afterwards must not win it back.
async fn incident_redlock_net_48(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    h.kit()?.vanish(h.namespace(), "x");
    within("the loss", h.some_ttl(), guard.lost()).await?;
    for _ in 0..10 {
        h.pass(h.some_ttl() / 3).await; // a beat of a healthy session
        ensure(!guard.is_held(), "a guard came back from lost")?;
        ensure(b.lock("x")?.holders().await?.holders.is_empty(), "a renewal has won the lock back")?;
    }
    let next = taken(&b, "x").await?;
    h.pass(h.some_ttl()).await;
    ensure(guard.release().await? == Released::WasNotHolder, "the lost guard released something")?;
    ensure(next.is_held(), "the next holder lost it")
}

/// S5, S2: after one renewal that failed, and after two, renewals go on as before.
async fn incident_redisson_775(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    for failures in 1..=2 {
        h.kit()?.next("a", Call::Renew, failures, Fate::Fails);
        for _ in 0..20 {
            h.pass(h.some_ttl() / 2).await;
            ensure(guard.is_held(), format!("lost after {failures} failed renewals"))?;
            held_by_another(&b, "x").await?;
        }
        ensure(matches!(a.liveness(), Liveness::Alive { .. }), "still suspended")?;
    }
    Ok(())
}

/// S6, L13: a laptop wakes up; its first look at the clock must tell it, before anything else has run.
async fn incident_redis_semaphore_24(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    a.simulate_suspend(h.some_ttl() / 2);
    ensure(guard.is_held(), "lost by a short sleep")?;
    h.pass(h.some_ttl()).await; // beats again
    ensure(guard.is_held(), "lost after a short sleep")?;
    a.simulate_suspend(h.some_ttl() * 2);
    ensure(!guard.is_held(), "two holders: the one that slept does not know")?;
    ensure(matches!(a.liveness(), Liveness::Lost { .. }), "alive after it slept through its ttl")?;
    ensure(guard.run(async {}).await.is_err(), "work is run under a lock that was slept through")?;
    let next = within("the next holder", h.gone(), b.lock("x")?.acquire()).await??;
    ensure(next.is_held() && !guard.is_held(), "two holders")
}

/// L4, L7: after a loss there is nothing to wait for: the release answers although the backend does not, also if the holder
/// saw the clock before anybody else did.
async fn incident_node_redlock_309(h: Harness) -> Outcome {
    for (name, jumps) in [("a", false), ("b", true)] {
        let c = h.coordinator(name).await?;
        let guard = taken(&c, name).await?;
        let lead = c.election(name)?.campaign().await?;
        h.kit()?.cut(h.namespace(), name);
        if jumps {
            c.simulate_suspend(h.some_ttl());
        }
        within("the loss", h.gone(), guard.lost()).await?;
        let answer = h.soon_done("the release of a lost lock", guard.release()).await??;
        ensure(answer == Released::WasNotHolder, format!("{answer:?}"))?;
        let answer = h.soon_done("the resignation of a lost leadership", lead.resign()).await??;
        ensure(answer == Released::WasNotHolder, format!("{answer:?}"))?;
    }
    Ok(())
}

/// L14, L2: whatever the backend's answers take, a lock that is returned has time left.
async fn incident_node_redlock_369(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let ttl = h.some_ttl();
    let mut granted = 0;
    for slow in [Duration::ZERO, ttl / 12, ttl / 3, ttl, ttl * 2] {
        h.kit()?.slow(slow);
        if let Ok(Some(guard)) = a.lock("x")?.acquire_within(ttl * 3).await {
            let left = guard.deadline().ok_or("a guard of a session with a ttl has no deadline")?.remaining();
            ensure(guard.is_held() && !left.is_zero(), format!("granted with nothing left, at {slow:?}"))?;
            granted += 1;
        }
        h.kit()?.slow(Duration::ZERO);
        h.pass(ttl * 3).await; // what was slow has arrived
        free(&h, &b, "x").await?;
    }
    ensure(granted > 0, "nothing was granted")
}

/// S8, L7: a task that hangs keeps its lock for ever, since only its process is asked whether it lives; with beats by
/// hand it is the work that beats.
async fn incident_curator_549(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").manual_heart().rejoin(false)).await?;
    let b = h.coordinator("b").await?;
    let guard = taken(&a, "x").await?;
    for _ in 0..6 {
        a.heartbeat().await?; // a step of the work
        h.pass(h.some_ttl() / 3).await;
        ensure(guard.is_held(), "lost while the work made progress")?;
        held_by_another(&b, "x").await?;
    }
    let next = within("the lock of the task that hangs", h.gone(), b.lock("x")?.acquire()).await??;
    ensure(!guard.is_held() && next.is_held(), "held without progress")
}

/// L7: "lost" alone says nothing; each way of losing has its reason.
async fn incident_amazon_dynamodb_lock_client_6(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for round in 0..5 {
        let guard = within("the lock", h.gone(), a.lock("x")?.acquire()).await??;
        let expected = match round {
            0 => {
                b.lock("x")?.break_lock("the holder hangs").await?;
                LossReason::Broken { by: Some(b.member().clone()), why: "the holder hangs".into() }
            }
            1 => {
                h.kit()?.vanish(h.namespace(), "x");
                LossReason::Vanished
            }
            2 => {
                h.kit()?.expire(h.namespace(), "a");
                LossReason::Expired
            }
            3 => {
                h.kit()?.cut(h.namespace(), "a");
                LossReason::Unreachable
            }
            _ => {
                a.close().await?;
                LossReason::SessionClosed
            }
        };
        let why = within("the loss", h.gone(), guard.lost()).await?;
        ensure(why == expected, format!("{why:?} where {expected:?} was due"))?;
        drop(guard);
        h.kit()?.heal(h.namespace(), "a");
        if round < 4 {
            alive(&h, &a).await?;
        }
    }
    Ok(())
}

/// L4, L1: a heart that beats on after the release disturbs the next holder.
async fn incident_dynamodb_lock_client_1(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut next: Option<LockGuard> = None;
    for (c, other) in [(&a, &b), (&b, &a), (&a, &b)] {
        let released = next.take();
        if let Some(guard) = released {
            guard.release().await?;
        }
        let guard = taken(c, "x").await?;
        h.pass(h.some_ttl()).await; // beats of both
        other.heartbeat().await?;
        let holders = other.lock("x")?.holders().await?.holders;
        ensure(holders.len() == 1 && holders[0].token == Some(guard.token()), format!("{holders:?}"))?;
        ensure(guard.is_held(), "lost to the beats of whoever released it")?;
        next = Some(guard);
    }
    Ok(())
}

/// L7, L8: the lock was lost, and the guard still exists: that keeps no other task of the same program out.
async fn incident_spring_integration_1888(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lost = taken(&a, "x").await?;
    let waiting = asks(&h, a.lock("x")?).await;
    b.lock("x")?.break_lock("enough").await?;
    // The program keeps the guard: it has not noticed, or it does not care.
    let limit = h.some_ttl() + h.soon();
    let next = within("the turn of the task behind a lost guard", limit, waiting).await???;
    ensure(next.is_held() && !lost.is_held(), "two holders in one program")?;
    let third = asks(&h, b.lock("x")?).await;
    h.waiters("x", 1).await?;
    drop(lost);
    ensure(next.is_held() && !third.is_finished(), "dropping a lost guard released somebody else's lock")?;
    next.release().await?;
    ensure(h.soon_done("the hand-over", third).await???.is_held(), "granted, and not held")
}

/// S4, S5: a machine that slept makes up for no beat that it missed.
async fn incident_omicron_9428(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    h.pass(h.some_ttl() * 2).await;
    for (slept, most) in [(h.some_ttl() / 2, 1), (h.some_ttl() * 100, 6)] {
        let held = guard.is_held();
        a.simulate_suspend(slept);
        let before = h.kit()?.round_trips();
        h.pass(h.some_ttl() / 4).await; // less than the time between two beats
        let trips = h.kit()?.round_trips() - before;
        ensure(trips <= most, format!("{trips} round trips after {slept:?} of sleep"))?;
        ensure(guard.is_held() == (held && slept < h.some_ttl()), "its deadline is not where its ttl is")?;
    }
    Ok(())
}
