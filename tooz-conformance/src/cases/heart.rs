//! S2, S4 to S6, S8, S10: the session and its beats.

use super::prelude::*;
use crate::kit::{Call, Fate};

pub(super) const CASES: &[Case] = &[
    case!(what_is_held_outlives_the_ttl, "S2").ttl(),
    case!(what_is_held_outlives_any_time, "S2").no_ttl().exact(),
    case!(a_beat_is_one_round_trip, "S4").ttl().kit(),
    case!(a_failed_renewal_suspends_and_recovers, "S5").ttl().kit(),
    case!(the_deadline_is_before_the_backends, "S6", "L7").ttl().kit(),
    case!(a_suspended_machine_holds_nothing, "S6", "L1").ttl().exact(),
    case!(the_deadline_comes_while_a_renewal_hangs, "S6").ttl().kit(),
    case!(nothing_is_given_back_at_the_deadline, "S6", "L1").ttl().kit(),
    case!(without_a_ttl_nothing_is_lost_to_time, "S6")
        .needs(Characteristics::NON_TIMEOUT_BASED)
        .no_ttl()
        .exact(),
    case!(beating_by_hand_keeps_the_session, "S8").ttl(),
    case!(not_beating_by_hand_loses_the_session, "S8").ttl(),
    case!(beating_by_hand_is_allowed_where_it_is_not_needed, "S8", "S10"),
    case!(a_late_beat_is_reported, "S10").ttl().kit(),
    case!(the_heart_counts_stops_and_starts, "S10").ttl(),
    case!(waiting_for_the_heart_ends_with_close, "S10"),
];

/// S2: the heart keeps everything alive, ten ttls long.
async fn what_is_held_outlives_the_ttl(h: Harness) -> Outcome {
    outlives(&h, h.some_ttl() * 10).await
}

/// S2: the same where nothing beats.
async fn what_is_held_outlives_any_time(h: Harness) -> Outcome {
    outlives(&h, secs(600)).await
}

async fn outlives(h: &Harness, time: Duration) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let guard = taken(&a, "x").await?;
    let lead = a.election("g")?.campaign().await?;
    let session = a.session_id();
    h.pass(time).await;
    ensure(guard.is_held() && lead.is_held(), "lost although the heart beats")?;
    ensure(matches!(a.liveness(), Liveness::Alive { .. }), "not alive although the heart beats")?;
    ensure(a.session_id() == session, "the session was replaced although the heart beats")?;
    ensure(ids(&b, "g").await? == ["a"], "no member any more although the heart beats")?;
    held_by_another(&b, "x").await
}

/// S4: however much is held, a beat is one round trip, and there is no other traffic.
async fn a_beat_is_one_round_trip(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut guards = Vec::new();
    for n in 0..20 {
        guards.push(taken(&a, &format!("x{n}")).await?);
        a.group(format!("g{n}"))?.join_or_create(Capabilities::none()).await?;
    }
    h.pass(h.some_ttl()).await; // whatever the preparation started is over
    let (before, beats) = (h.kit()?.round_trips(), a.heart().beats());
    h.pass(h.some_ttl() * 4).await;
    let (after, beats) = (h.kit()?.round_trips(), a.heart().beats() - beats);
    ensure(beats >= 8, format!("{beats} beats in four ttls"))?;
    let trips = after - before;
    ensure(trips <= beats + 1, format!("{trips} round trips for {beats} beats"))
}

/// S5: a beat that fails suspends; one that succeeds before the deadline repairs it, and nothing was lost.
async fn a_failed_renewal_suspends_and_recovers(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut events = a.events();
    let guard = taken(&a, "x").await?;
    h.kit()?.cut(h.namespace(), "a");
    let ttl = h.some_ttl();
    event(&mut events, ttl, "Suspended", |event| matches!(event, Event::Suspended)).await?;
    ensure(matches!(a.liveness(), Liveness::Suspended { .. }), "suspended, and liveness does not say so")?;
    ensure(guard.is_held(), "lost before the deadline")?;
    h.kit()?.heal(h.namespace(), "a");
    event(&mut events, ttl, "Recovered", |event| matches!(event, Event::Recovered)).await?;
    ensure(matches!(a.liveness(), Liveness::Alive { .. }), "recovered, and liveness does not say so")?;
    h.pass(ttl * 2).await;
    ensure(guard.is_held() && !guard.loss_signal().is_lost(), "lost although the beats came back in time")
}

/// S6, L7: as long as anybody could believe that we hold it, the backend gives it to nobody.
async fn the_deadline_is_before_the_backends(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for phase in 0..6 {
        // At different moments between two beats: the deadline counts from the sending of the last good one.
        let guard = within("the lock", h.gone(), a.lock("x")?.acquire()).await??;
        h.pass(h.some_ttl() / 3 * phase / 5).await;
        h.kit()?.cut(h.namespace(), "a");
        let next = within("the next holder", h.gone(), b.lock("x")?.acquire()).await??;
        ensure(!guard.is_held(), "two valid guards: ours outlived the backend's record")?;
        ensure(matches!(a.liveness(), Liveness::Lost { .. }), "alive after the backend ended the session")?;
        ensure(guard.deadline().is_none_or(|deadline| deadline.has_passed()), "its deadline lies ahead")?;
        let why = h.soon_done("the reason of the loss", guard.lost()).await?;
        ensure(matches!(why, LossReason::Unreachable | LossReason::Expired), format!("{why:?}"))?;
        h.kit()?.heal(h.namespace(), "a");
        next.release().await?;
        eventually("a lives again", h.gone(), async || {
            Ok::<_, Error>(matches!(a.liveness(), Liveness::Alive { .. }))
        })
        .await?;
    }
    Ok(())
}

/// S6, L1: a machine that was suspended counts that time; longer than the ttl, and it holds nothing when it goes on.
async fn a_suspended_machine_holds_nothing(h: Harness) -> Outcome {
    // The backend goes by the clock of the first.
    let (a, b) = h.pair().await?;
    let guard = taken(&b, "x").await?;
    h.suspend(h.some_ttl() / 2);
    ensure(guard.is_held(), "lost although the ttl was not over")?;
    h.suspend(h.some_ttl() / 2);
    ensure(!guard.is_held(), "held after a suspend as long as the ttl")?;
    ensure(matches!(b.liveness(), Liveness::Lost { .. }), "alive after a suspend as long as the ttl")?;
    let next = within("the next holder", h.gone(), a.lock("x")?.acquire()).await??;
    ensure(next.token() > guard.token(), "the next holder has no larger token")?;
    ensure(!guard.is_held(), "a guard came back from lost")
}

/// S6: a renewal that hangs holds no loss back.
async fn the_deadline_comes_while_a_renewal_hangs(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    let ttl = h.some_ttl();
    h.kit()?.pause();
    within("the loss", ttl + h.soon(), guard.lost()).await?;
    ensure(!guard.is_held(), "held after it was reported lost")?;
    ensure(matches!(a.liveness(), Liveness::Lost { .. }), "alive after the deadline")
}

/// S6, L1: who stops believing at the deadline gets the margin to stop working: the lock moves no earlier than by itself.
async fn nothing_is_given_back_at_the_deadline(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let lock = b.lock("x")?;
    h.kit()?.next("a", Call::Renew, 1_000, Fate::RequestLost);
    h.pass(h.some_ttl() / 4).await; // an answer that was on its way is there
    let (watch, left) = (h.stopwatch(), guard.deadline().ok_or("no deadline")?.remaining());
    ensure(guard.is_held(), "lost before its deadline")?;
    let next = within("the next holder", h.gone(), lock.acquire()).await??;
    let (moved, margin) = (watch.elapsed(), (h.some_ttl() / 20).max(millis(100)));
    ensure(moved + millis(5) >= left + margin, format!("moved after {moved:?}, deadline after {left:?}"))?;
    ensure(!guard.is_held() && next.is_held(), "two valid guards")
}

/// S6: liveness has no deadline, and never ends by itself.
async fn without_a_ttl_nothing_is_lost_to_time(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    h.pass(secs(600)).await;
    ensure(matches!(a.liveness(), Liveness::Alive { until: None }), format!("{:?}", a.liveness()))?;
    ensure(guard.is_held() && guard.deadline().is_none(), "a guard with a deadline")?;
    ensure(!a.requires_beating(), "it asks for beats")
}

/// S8: `heartbeat()` says when the next one is due, and keeping to it keeps everything.
async fn beating_by_hand_keeps_the_session(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").manual_heart()).await?;
    ensure(a.requires_beating(), "a session with a ttl needs beats")?;
    let guard = taken(&a, "x").await?;
    let mut beaten = 0;
    while beaten < 12 {
        let due = match a.heartbeat().await {
            // The machine stood still: that beat does not count, and the next one must come in time.
            Err(error) if error.kind() == ErrorKind::Timeout && !h.is_virtual() && guard.is_held() => {
                continue;
            }
            answer => answer?.ok_or("no next beat is due")?,
        };
        beaten += 1;
        ensure(due > Duration::ZERO && due <= h.some_ttl() / 2, format!("the next beat is due in {due:?}"))?;
        h.pass(due).await;
        ensure(guard.is_held(), "lost although it was beaten for in time")?;
    }
    Ok(())
}

/// S8: with the automatic heart off, not calling it loses the session.
async fn not_beating_by_hand_loses_the_session(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").manual_heart().rejoin(false)).await?;
    let b = h.coordinator("b").await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let guard = taken(&a, "x").await?;
    let next = within("the next holder", h.gone(), b.lock("x")?.acquire()).await??;
    ensure(!guard.is_held() && next.is_held(), "held without a beat")?;
    eventually("the member is gone", h.gone(), async || Ok::<_, Error>(ids(&b, "g").await?.is_empty())).await
}

/// S8, S10: `requires_beating` tells the truth, and beating where it is not needed does no harm.
async fn beating_by_hand_is_allowed_where_it_is_not_needed(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    ensure(a.requires_beating() == h.ttl().is_some(), "requires_beating differs from the ttl")?;
    let guard = taken(&a, "x").await?;
    let due = a.heartbeat().await?;
    ensure(due.is_some() || h.ttl().is_none(), "no next beat although the session has a ttl")?;
    ensure(guard.is_held(), "lost by beating")
}

/// S10: a beat that took longer than the idle time left is reported.
async fn a_late_beat_is_reported(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut events = a.events();
    let slow = h.some_ttl() / 5; // more than a renewal may take, less than would lose the session
    h.kit()?.slow(slow);
    let late = async {
        loop {
            match events.next().await {
                Some(Event::BeatLate { took }) => return Ok(took),
                Some(_) => {}
                None => return Err("the events ended"),
            }
        }
    };
    let took = tokio::time::timeout(h.some_ttl() * 6, late).await;
    h.kit()?.slow(Duration::ZERO);
    let took = took.map_err(|_| "a slow beat is not reported")??;
    ensure(took >= slow, format!("a beat of {slow:?} is reported as {took:?}"))
}

/// S10: the heart can be asked, stopped, waited for and started.
async fn the_heart_counts_stops_and_starts(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let heart = a.heart();
    ensure(heart.is_alive(), "a new coordinator's heart beats")?;
    let ttl = h.some_ttl();
    eventually("some beats", ttl * 3, async || Ok::<_, Error>(heart.beats() >= 3)).await?;
    heart.stop();
    h.soon_done("the heart to stop", heart.wait()).await?;
    ensure(!heart.is_alive(), "stopped, and says that it is alive")?;
    heart.start();
    let beats = heart.beats();
    eventually("beats after the start", ttl * 3, async || Ok::<_, Error>(heart.beats() > beats)).await?;
    ensure(heart.is_alive(), "started, and says that it is not alive")
}

/// S10: whoever waits for the heart is let go by close.
async fn waiting_for_the_heart_ends_with_close(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let heart = a.heart();
    let waiting = h.started(async move { heart.wait().await }).await;
    ensure(!waiting.is_finished(), "the heart beats, and waiting for it ended")?;
    a.close().await?;
    Ok(h.soon_done("the wait to end", waiting).await??)
}
