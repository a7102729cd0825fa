//! L15, L16: permits, and several locks taken together.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(permits_are_limited, "L15"),
    case!(permits_of_other_limits_are_refused, "L15"),
    case!(permits_exclude_other_modes, "L15"),
    case!(lock_all_takes_each_name_once, "L16"),
    case!(lock_all_never_deadlocks, "L16"),
    case!(lock_all_takes_all_or_nothing, "L16", "L2"),
    case!(lock_all_returns_nothing_that_was_lost, "L16", "L1").lasting(),
];

/// L15: as many as the limit says, each with a token of its own.
async fn permits_are_limited(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let one = a.lock("x")?.permits(3)?.try_acquire().await?.ok_or("no first permit")?;
    let two = a.lock("x")?.permits(3)?.try_acquire().await?.ok_or("no second permit")?;
    let three = b.lock("x")?.permits(3)?.try_acquire().await?.ok_or("no third permit")?;
    ensure(b.lock("x")?.permits(3)?.try_acquire().await?.is_none(), "a fourth permit of three")?;
    let tokens = std::collections::BTreeSet::from([one.token(), two.token(), three.token()]);
    ensure(tokens.len() == 3, "two permits with one token")?;
    ensure(matches!(three.mode(), LockMode::Permit { limit } if limit.get() == 3), "another mode")?;
    let lock = b.lock("x")?.permits(3)?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 1).await?;
    ensure(!waiting.is_finished(), "a fourth permit of three")?;
    two.release().await?;
    let next = h.soon_done("the permit that was given back", waiting).await???;
    ensure([&one, &three, &next].iter().all(|guard| guard.is_held()), "a permit was lost")
}

/// L15: all users of a name have to agree about its limit; both numbers are named.
async fn permits_of_other_limits_are_refused(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    refused(a.lock("x")?.permits(0), ErrorKind::Invalid)?;
    let _permit = a.lock("x")?.permits(3)?.acquire().await?;
    for c in [&a, &b] {
        let error = refused(c.lock("x")?.permits(7)?.try_acquire().await, ErrorKind::Invalid)?.to_string();
        ensure(error.contains('3') && error.contains('7'), format!("a limit is not named: {error}"))?;
    }
    let _another = b.lock("x")?.permits(3)?.try_acquire().await?.ok_or("the refused call left something")?;
    Ok(())
}

/// L15: permits stand beside neither a writer nor readers.
async fn permits_exclude_other_modes(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let permit = a.lock("x")?.permits(2)?.acquire().await?;
    held_by_another(&b, "x").await?;
    permit.release().await?;
    let _guard = taken(&b, "x").await?;
    ensure(a.lock("x")?.permits(2)?.try_acquire().await?.is_none(), "a permit beside a writer")
}

/// L16: sorted, and a name given twice is one lock.
async fn lock_all_takes_each_name_once(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let set = a.lock_all(["z", "a", "m", "a"])?;
    let names: Vec<_> = set.names().iter().map(ToString::to_string).collect();
    ensure(names == ["a", "m", "z"], format!("{names:?}"))?;
    let guards = set.acquire().await?;
    ensure(guards.is_held() && guards.guards().len() == 3, "not all are held")?;
    for name in ["a", "m", "z"] {
        held_by_another(&b, name).await?;
    }
    guards.release().await?;
    for name in ["a", "m", "z"] {
        drop(taken(&b, name).await?);
    }
    Ok(())
}

/// L16: callers that name the same locks in other orders.
async fn lock_all_never_deadlocks(h: Harness) -> Outcome {
    let mut tasks = Vec::new();
    for n in 0..4 {
        let c = h.coordinator(format!("c{n}")).await?;
        tasks.push(h.spawn(async move {
            let mut names = ["a", "b", "c"];
            for round in 0..10 {
                names.rotate_left((n + round) % 3);
                if n % 2 == 0 {
                    names.reverse();
                }
                c.lock_all(names)?.acquire().await?.release().await?;
            }
            fine(())
        }));
    }
    within("everybody's turns", h.limit(secs(3)), async {
        for task in tasks {
            task.await??;
        }
        Outcome::Ok(())
    })
    .await?
}

/// L16, L1: what was lost while the others were waited for is taken again.
async fn lock_all_returns_nothing_that_was_lost(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for limited in [false, true] {
        let last = taken(&b, "z").await?;
        let set = a.lock_all(["a", "z"])?;
        let waiting = h.spawn(async move {
            if limited { set.acquire_within(secs(60)).await } else { set.acquire().await.map(Some) }
        });
        h.waiters("z", 1).await?;
        let broken = b.lock("a")?.break_lock("enough").await?;
        ensure(broken.len() == 1, "the first one was not held while the last one was waited for")?;
        h.pass(h.some_ttl()).await; // it is told by push, or at its next beat
        last.release().await?;
        let set = h.soon_done("all of them", waiting).await???.ok_or("none within a minute")?;
        ensure(set.is_held(), "a set of which one was lost before it was returned")?;
        ensure(set.guards().iter().all(|guard| Some(guard.token()) > broken[0].token), "an old token")?;
        set.release().await?;
    }
    Ok(())
}

/// L16, L2: if one cannot be had, none is held.
async fn lock_all_takes_all_or_nothing(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let _middle = taken(&b, "m").await?;
    ensure(a.lock_all(["a", "m", "z"])?.try_acquire().await?.is_none(), "granted without the middle one")?;
    ensure(
        a.lock_all(["a", "m", "z"])?.acquire_within(h.limit(millis(50))).await?.is_none(),
        "granted without it",
    )?;
    for name in ["a", "z"] {
        h.soon_true("it is free", async || Ok::<_, Error>(b.lock(name)?.try_acquire().await?.is_some()))
            .await?;
    }
    Ok(())
}
