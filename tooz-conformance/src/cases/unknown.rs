//! L2, L6, X1: answers that were lost, and backends that do not answer at all.

use super::prelude::*;
use crate::kit::{Call, Fate};

pub(super) const CASES: &[Case] = &[
    case!(a_lost_answer_to_a_try_is_no_none, "L2", "X1").kit(),
    case!(a_lost_answer_leaves_no_lock, "L2", "L6").kit(),
    case!(a_lost_request_leaves_no_lock, "L2", "L6").kit(),
    case!(a_limit_without_an_answer_is_no_none, "L2", "X1").kit(),
    case!(acquire_survives_a_backend_that_is_away, "L2").kit().no_ttl(),
    case!(a_lost_answer_to_a_release_is_repaired, "L4", "L5").kit(),
    case!(a_failed_release_is_repeated, "L5").kit(),
    case!(a_failed_withdrawal_is_repeated, "L6").kit(),
    case!(a_lost_answer_to_a_join_is_honest, "X1", "G2").kit(),
    case!(a_refused_join_is_definite, "X1", "G2").kit(),
    case!(every_operation_has_a_time_limit, "X1").kit().no_ttl(),
    case!(a_backend_that_stood_still_has_no_two_holders, "L1", "S6")
        .needs(Characteristics::STRICT_EXCLUSION)
        .kit(),
    case!(a_lost_beat_is_no_loss, "S5").ttl().kit(),
];

async fn free_in_the_end(h: &Harness, c: &Coordinator) -> Outcome {
    eventually("the lock is free and nobody waits", h.gone(), async || {
        let Some(guard) = c.lock("x")?.try_acquire().await? else { return Ok(false) };
        let nobody = c.lock("x")?.holders().await?.waiters.is_none_or(|n| n == 0);
        guard.release().await?;
        Ok::<_, Error>(nobody)
    })
    .await
}

/// L2, X1: whoever does not know says so, or finds out.
async fn a_lost_answer_to_a_try_is_no_none(h: Harness) -> Outcome {
    for fate in [Fate::AnswerLost, Fate::RequestLost] {
        let (a, b) = h.pair().await?;
        h.kit()?.next("a", Call::Request, 1, fate);
        match a.lock("x")?.try_acquire().await {
            Ok(Some(guard)) => {
                ensure(guard.is_held(), "granted, and not held")?;
                guard.release().await?;
            }
            Ok(None) => return Err("nobody holds it, and the answer is that somebody does".into()),
            Err(error) => {
                ensure(error.is_indeterminate() && error.is_retryable(), format!("{fate:?}: {error}"))?;
            }
        }
        free_in_the_end(&h, &b).await?;
        a.close().await?;
        b.close().await?;
    }
    Ok(())
}

/// L2, L6: the backend granted, and nobody heard it.
async fn a_lost_answer_leaves_no_lock(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    h.kit()?.next("a", Call::Request, 3, Fate::AnswerLost);
    drop(a.lock("x")?.acquire_within(millis(50)).await);
    free_in_the_end(&h, &b).await?;
    // The same behind a holder: the place that nobody knows of.
    let guard = taken(&b, "x").await?;
    h.kit()?.next("a", Call::Request, 3, Fate::AnswerLost);
    drop(a.lock("x")?.acquire_within(millis(50)).await);
    guard.release().await?;
    free_in_the_end(&h, &b).await
}

/// L2, L6: the request never arrived, and nobody knows.
async fn a_lost_request_leaves_no_lock(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    h.kit()?.next("a", Call::Request, 1, Fate::RequestLost);
    drop(a.lock("x")?.acquire().await);
    free_in_the_end(&h, &b).await
}

/// L2, X1: without the backend's last word there is no "somebody holds it".
async fn a_limit_without_an_answer_is_no_none(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    h.kit()?.cut(h.namespace(), "a");
    let watch = h.stopwatch();
    let answer = a.lock("x")?.acquire_within(millis(500)).await;
    let took = watch.elapsed();
    ensure(took <= millis(500) + h.soon(), format!("a limit of 500 ms took {took:?}"))?;
    let error = answer.err().ok_or("an answer from a backend that does not answer")?;
    ensure(error.kind() == ErrorKind::Unavailable, format!("{error}"))?;
    ensure(error.is_indeterminate(), format!("it claims to know: {error}"))?;
    h.kit()?.heal(h.namespace(), "a");
    free_in_the_end(&h, &b).await
}

/// L2: whoever waits without a limit waits for the backend, too.
async fn acquire_survives_a_backend_that_is_away(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 1).await?;
    h.kit()?.pause();
    h.pass(h.limit(millis(50))).await;
    ensure(!waiting.is_finished(), "granted by a backend that does not answer")?;
    h.kit()?.resume();
    guard.release().await?;
    ensure(h.soon_done("the hand-over", waiting).await???.is_held(), "granted, and not held")
}

/// L4, L5: whatever the caller is told, the lock is free in the end.
async fn a_lost_answer_to_a_release_is_repaired(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for fate in [Fate::AnswerLost, Fate::RequestLost] {
        let guard = within("the lock", h.gone(), a.lock("x")?.acquire()).await??;
        h.kit()?.next("a", Call::Release, 1, fate);
        match guard.release().await {
            // A repeated release that finds nothing proves nothing.
            Ok(released) => {
                ensure(released == Released::Released || fate == Fate::AnswerLost, format!("{released:?}"))?;
            }
            Err(error) => ensure(error.is_indeterminate(), format!("it claims to know: {error}"))?,
        }
        free_in_the_end(&h, &b).await?;
    }
    Ok(())
}

/// L5: a dropped guard's release is repeated until it has happened.
async fn a_failed_release_is_repeated(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    h.kit()?.next("a", Call::Release, 3, Fate::Fails);
    h.kit()?.next("a", Call::Withdraw, 2, Fate::Fails);
    drop(guard);
    eventually("the lock is free", h.gone() * 2, async || {
        Ok::<_, Error>(b.lock("x")?.try_acquire().await?.is_some())
    })
    .await
}

/// L6: so is the withdrawal of a wish.
async fn a_failed_withdrawal_is_repeated(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&b, "x").await?;
    h.kit()?.next("a", Call::Withdraw, 3, Fate::Fails);
    drop(a.lock("x")?.acquire_within(h.limit(millis(20))).await);
    guard.release().await?;
    eventually("the lock is free", h.gone() * 2, async || {
        let holders = b.lock("x")?.holders().await?;
        Ok::<_, Error>(holders.holders.is_empty() && holders.waiters.is_none_or(|n| n == 0))
    })
    .await
}

/// X1, G2: a join whose answer was lost has happened or says that it may have.
async fn a_lost_answer_to_a_join_is_honest(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for fate in [Fate::AnswerLost, Fate::RequestLost] {
        a.group("g")?.create().await.or_else(|error| match error.kind() {
            ErrorKind::GroupExists => Ok(()),
            _ => Err(error),
        })?;
        h.kit()?.next("a", Call::Join, 1, fate);
        match a.group("g")?.join(caps("mine")?).await {
            Ok(()) => {}
            Err(error) => {
                ensure(error.is_indeterminate() && error.is_retryable(), format!("{fate:?}: {error}"))?;
                // Trying again settles it: joined now, or a member already.
                match a.group("g")?.join(caps("mine")?).await {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::MemberExists => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        ensure(ids(&b, "g").await? == ["a"], "no member after the second try")?;
        a.group("g")?.leave().await?;
    }
    Ok(())
}

/// X1, G2: what certainly did not happen is not called indeterminate.
async fn a_refused_join_is_definite(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    h.kit()?.next("a", Call::Join, 1, Fate::Fails);
    let error = refused(a.group("g")?.join(Capabilities::none()).await, ErrorKind::Unavailable)?;
    ensure(!error.is_indeterminate() && error.is_retryable(), format!("{error}"))?;
    ensure(!error.operation().is_empty(), "the operation is not named")?;
    ensure(ids(&b, "g").await?.is_empty(), "a member after a definite refusal")?;
    Ok(a.group("g")?.join(Capabilities::none()).await?)
}

/// X1: a backend that does not answer costs no more than `operation_timeout`.
async fn every_operation_has_a_time_limit(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").operation_timeout(secs(1))).await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let guard = taken(&a, "held").await?;
    h.kit()?.pause();
    let group = a.group("g")?;
    let watch = h.stopwatch();
    let reads = [
        group.members().await.err(),
        group.member("a").await.err(),
        a.groups().await.err(),
        a.lock("x")?.holders().await.err(),
        a.election("g")?.leader().await.err(),
    ];
    let writes = [
        a.group("other")?.create().await.err(),
        group.update_capabilities(caps("x")?).await.err(),
        group.leave().await.err(),
        a.lock("x")?.try_acquire().await.err(),
        guard.release().await.err(),
        a.lock("held")?.break_lock("why not").await.err(),
    ];
    let each = watch.elapsed() / 11;
    ensure(each <= secs(1) + h.soon(), format!("{each:?} each, with a limit of a second"))?;
    for (n, error) in reads.into_iter().chain(writes).enumerate() {
        let error = error.ok_or_else(|| format!("operation {n} was answered by nobody"))?;
        ensure(
            matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable),
            format!("operation {n}: {error}"),
        )?;
        // One that was never sent, because an earlier one is still open, is definite.
        let honest = error.is_indeterminate() || error.kind() == ErrorKind::Unavailable;
        ensure(n < 5 || honest, format!("operation {n} claims to know: {error}"))?;
        ensure(!error.operation().is_empty(), format!("operation {n} is not named: {error}"))?;
    }
    Ok(())
}

/// L1, S6: for longer than any session lives; who holds it afterwards holds it alone.
async fn a_backend_that_stood_still_has_no_two_holders(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 1).await?;
    h.kit()?.pause();
    h.pass(h.some_ttl() * 2).await;
    ensure(guard.is_held() == h.ttl().is_none(), "its deadline is not where its ttl is")?;
    h.kit()?.resume();
    if h.ttl().is_none() {
        h.waiters("x", 1).await?;
        ensure(!waiting.is_finished(), "granted beside its holder")?;
        guard.release().await?;
        return ensure(h.soon_done("the hand-over", waiting).await???.is_held(), "granted, and not held");
    }
    let next = within("the next holder", h.gone(), waiting).await???;
    ensure(next.is_held() && !guard.is_held(), "two holders")
}

/// S5: one beat whose answer was lost costs nothing.
async fn a_lost_beat_is_no_loss(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    for fate in [Fate::AnswerLost, Fate::RequestLost, Fate::Fails] {
        h.kit()?.next("a", Call::Renew, 1, fate);
        h.pass(h.some_ttl() * 2).await;
        ensure(guard.is_held(), format!("{fate:?} of one beat lost the lock"))?;
        ensure(matches!(a.liveness(), Liveness::Alive { .. }), "not alive again")?;
    }
    Ok(())
}
