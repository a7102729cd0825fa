//! L7: how a holder learns that a lock is gone.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(closing_loses_guards, "L7", "S3"),
    case!(a_vanished_record_is_noticed, "L7").ttl().kit(),
    case!(an_ended_session_is_noticed, "L7").kit(),
    case!(an_unreachable_backend_is_noticed_in_time, "L7", "S6").ttl().kit().exact(),
    case!(a_loss_is_told_to_everybody, "L7", "L13"),
    case!(work_that_outlived_its_lock_is_told_so, "L13", "S6").ttl().exact(),
    case!(a_token_is_told_after_the_loss, "L7", "L3"),
    case!(a_lost_guard_stays_lost, "L7").lasting(),
];

/// L7, S3: with the reason.
async fn closing_loses_guards(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    let lead = a.election("g")?.campaign().await?;
    a.close().await?;
    ensure(!guard.is_held() && !lead.is_held(), "held after close")?;
    ensure(guard.lost().await == LossReason::SessionClosed, "another reason")?;
    ensure(lead.lost().await == LossReason::SessionClosed, "another reason")
}

/// L7: a record that is gone without a word is noticed at the next beat.
async fn a_vanished_record_is_noticed(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    let other = taken(&a, "y").await?;
    h.kit()?.vanish(h.namespace(), "x");
    let why = within("the loss", h.some_ttl(), guard.lost()).await?;
    ensure(why == LossReason::Vanished, format!("{why:?}"))?;
    ensure(!guard.is_held() && other.is_held(), "the wrong one was lost")
}

/// L7: a session that the backend ended takes its guards along.
async fn an_ended_session_is_noticed(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    let signal = guard.loss_signal();
    h.kit()?.expire(h.namespace(), "a");
    let why = within("the loss", h.some_ttl(), signal.wait()).await?;
    ensure(why == LossReason::Expired, format!("{why:?}"))?;
    ensure(!guard.is_held() && signal.is_lost(), "held after it was reported lost")
}

/// L7, S6: at the deadline, to the millisecond, and the guard does not need to be told.
async fn an_unreachable_backend_is_noticed_in_time(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    h.kit()?.cut(h.namespace(), "a");
    h.pass(h.some_ttl() / 2).await; // the last beat that came through lies behind
    let deadline = guard.deadline().ok_or("a guard of a session with a ttl has no deadline")?;
    ensure(guard.is_held(), "lost before its deadline")?;
    let left = deadline.remaining();
    h.pass(left.saturating_sub(millis(5))).await;
    ensure(guard.is_held(), "lost before its deadline")?;
    h.pass(millis(6)).await;
    ensure(!guard.is_held() && deadline.has_passed(), "held after its deadline")?;
    let why = within("the reason", millis(10), guard.lost()).await?;
    ensure(why == LossReason::Unreachable, format!("{why:?}"))
}

/// L7, L13: guard, signal, clones of it in other tasks, run.
async fn a_loss_is_told_to_everybody(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let signal = guard.loss_signal().clone();
        waiting.push(h.started(async move { signal.wait().await }).await);
    }
    ensure(waiting.iter().all(|one| !one.is_finished()), "reported lost before it was")?;
    b.lock("x")?.break_lock("enough").await?;
    let limit = h.some_ttl() + h.soon();
    for one in waiting {
        let why = within("the loss", limit, one).await??;
        ensure(matches!(why, LossReason::Broken { .. }), format!("{why:?}"))?;
    }
    ensure(
        guard.loss_signal().is_lost() && guard.loss_signal().reason().is_some(),
        "a new signal knows nothing",
    )?;
    ensure(guard.run(async {}).await.is_err(), "work is run under a lock that is lost")
}

/// L13, S6: the process stands still while the work's last step runs, until after the deadline. The work had ended, and the
/// answer says both: that it had, and that it had no lock at the end.
async fn work_that_outlived_its_lock_is_told_so(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let (guard, lead) = (taken(&a, "x").await?, a.election("g")?.campaign().await?);
    let of_lock = guard.run(async {
        a.simulate_suspend(h.some_ttl());
        42
    });
    let of_lock = of_lock.await;
    let lost = of_lock.err().ok_or("the work is reported as done under the lock")?;
    ensure(lost.output == Some(42), "what the work returned is gone")?;
    ensure(
        lead.run(async {}).await.is_err_and(|lost| lost.output.is_none()),
        "work was run without leading",
    )?;
    let error = Error::from(lost);
    ensure(error.kind() == ErrorKind::SessionLost && error.is_indeterminate(), format!("{error:?}"))
}

/// L7, L3: a late token is harmless, since the guarded write refuses it.
async fn a_token_is_told_after_the_loss(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let token = guard.token();
    b.lock("x")?.break_lock("enough").await?;
    within("the loss", h.some_ttl() + h.soon(), guard.lost()).await?;
    ensure(guard.token() == token, "another token after the loss")
}

/// L7: nothing brings it back, also not a release of the next holder.
async fn a_lost_guard_stays_lost(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    b.lock("x")?.break_lock("enough").await?;
    within("the loss", h.some_ttl() + h.soon(), guard.lost()).await?;
    taken(&b, "x").await?.release().await?;
    h.pass(h.some_ttl()).await;
    ensure(!guard.is_held(), "a guard came back from lost")?;
    let again = taken(&a, "x").await?;
    ensure(again.is_held() && !guard.is_held(), "a guard came back with the next grant")
}
