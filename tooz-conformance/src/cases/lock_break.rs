//! L10: who holds a lock, and taking it away.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(holders_tell_who_holds, "L10"),
    case!(holders_of_a_free_lock_are_none, "L10"),
    case!(waiters_are_counted, "L10"),
    case!(break_frees_the_lock, "L10"),
    case!(break_tells_the_victim, "L10", "L7"),
    case!(break_hands_over_to_a_waiter, "L10", "L8"),
    case!(break_of_a_free_lock_breaks_nobody, "L10"),
    case!(break_of_one_token_spares_the_others, "L10").needs(Characteristics::SHARED_LOCKS),
    case!(break_of_an_old_token_breaks_nobody, "L10"),
    case!(break_of_readers_breaks_all, "L10", "L9").needs(Characteristics::SHARED_LOCKS),
    case!(break_of_a_leadership, "L10", "E4"),
];

/// L10: member, token, mode, since when.
async fn holders_tell_who_holds(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let holders = b.lock("x")?.holders().await?.holders;
    let [holder] = &holders[..] else { return Err(format!("{holders:?}").into()) };
    ensure(holder.member.as_ref() == Some(a.member()), format!("{holder:?}"))?;
    ensure(holder.token == Some(guard.token()) && holder.mode == LockMode::Exclusive, format!("{holder:?}"))?;
    ensure(holder.since.is_some(), "the backend knows the time, and does not say since when")?;
    guard.release().await?;
    ensure(b.lock("x")?.holders().await?.holders.is_empty(), "a holder after the release")
}

/// L10: a name that nobody ever used has no holders, and asking does not make it one.
async fn holders_of_a_free_lock_are_none(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let holders = a.lock("x")?.holders().await?;
    ensure(holders.holders.is_empty() && holders.waiters.is_none_or(|n| n == 0), format!("{holders:?}"))?;
    taken(&b, "x").await.map(|_| ())
}

/// L10: where the backend can say how many wait, it says so.
async fn waiters_are_counted(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let _guard = taken(&a, "x").await?;
    let mut waiting = Vec::new();
    for n in 0..3_u64 {
        let lock = h.coordinator(format!("w{n}")).await?.lock("x")?;
        waiting.push(h.spawn(async move { lock.acquire().await.map(|_| ()) }));
        h.soon_true("it is counted", async || {
            Ok::<_, Error>(a.lock("x")?.holders().await?.waiters.is_none_or(|count| count == n + 1))
        })
        .await?;
    }
    for one in &waiting {
        one.abort();
    }
    h.soon_true("nobody is counted", async || {
        Ok::<_, Error>(a.lock("x")?.holders().await?.waiters.is_none_or(|count| count == 0))
    })
    .await
}

/// L10: when break returns, the lock is free, and it says whom it broke.
async fn break_frees_the_lock(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let broken = b.lock("x")?.break_lock("the holder hangs").await?;
    let [victim] = &broken[..] else { return Err(format!("{broken:?}").into()) };
    ensure(victim.member.as_ref() == Some(a.member()), format!("{victim:?}"))?;
    ensure(victim.token == Some(guard.token()), format!("{victim:?}"))?;
    taken(&b, "x").await.map(|_| ())
}

/// L10, L7: the victim learns who and why, by push or at its next beat.
async fn break_tells_the_victim(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let other = taken(&a, "y").await?;
    b.lock("x")?.break_lock("the holder hangs").await?;
    let why = within("the loss", h.some_ttl() + h.soon(), guard.lost()).await?;
    let told = LossReason::Broken { by: Some(b.member().clone()), why: "the holder hangs".into() };
    ensure(why == told, format!("{why:?}"))?;
    ensure(!guard.is_held() && other.is_held(), "the wrong one was lost")
}

/// L10, L8: whoever waits is next.
async fn break_hands_over_to_a_waiter(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let _guard = taken(&a, "x").await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 1).await?;
    h.coordinator("operator").await?.lock("x")?.break_lock("the holder hangs").await?;
    let next = h.soon_done("the hand-over", waiting).await???;
    ensure(next.is_held() && next.previous() == Previous::Broken, format!("{:?}", next.previous()))
}

/// L10: nobody held it, and that is an answer.
async fn break_of_a_free_lock_breaks_nobody(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    ensure(a.lock("x")?.break_lock("why not").await?.is_empty(), "somebody was broken")?;
    let guard = taken(&b, "x").await?;
    ensure(guard.previous() == Previous::Clean, "a break of nobody left a trace")
}

/// L10: only the grant that was meant.
async fn break_of_one_token_spares_the_others(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let one = a.lock("x")?.shared().acquire().await?;
    let two = b.lock("x")?.shared().acquire().await?;
    let broken = b.lock("x")?.break_token(one.token(), "this one").await?;
    ensure(broken.len() == 1 && broken[0].token == Some(one.token()), format!("{broken:?}"))?;
    within("the loss", h.some_ttl() + h.soon(), one.lost()).await?;
    ensure(two.is_held(), "the other reader was lost, too")?;
    let holders = a.lock("x")?.holders().await?.holders;
    ensure(holders.len() == 1 && holders[0].token == Some(two.token()), format!("{holders:?}"))
}

/// L10: an operator who looked a while ago does not hit the next holder.
async fn break_of_an_old_token_breaks_nobody(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let old = guard.token();
    let shown = b.lock("x")?.holders().await?.holders;
    ensure(shown.len() == 1 && shown[0].token == Some(old), format!("{shown:?}"))?;
    guard.release().await?;
    let next = taken(&a, "x").await?;
    ensure(b.lock("x")?.break_token(old, "too late").await?.is_empty(), "another holder was broken")?;
    ensure(b.lock("x")?.break_holder(&shown[0], "too late").await?.is_empty(), "another holder was broken")?;
    ensure(next.is_held(), "the next holder lost it")?;
    held_by_another(&b, "x").await?;
    let shown = b.lock("x")?.holders().await?.holders;
    ensure(
        b.lock("x")?.break_holder(&shown[0], "now").await? == shown,
        "the holder that was shown is not broken",
    )
}

/// L10, L9: a break without a token takes all.
async fn break_of_readers_breaks_all(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let one = a.lock("x")?.shared().acquire().await?;
    let two = b.lock("x")?.shared().acquire().await?;
    ensure(a.lock("x")?.break_lock("all of them").await?.len() == 2, "not both were broken")?;
    for guard in [&one, &two] {
        within("the loss", h.some_ttl() + h.soon(), guard.lost()).await?;
    }
    taken(&h.coordinator("c").await?, "x").await.map(|_| ())
}

/// L10, E4: leaders can be deposed like holders.
async fn break_of_a_leadership(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = a.election("g")?.campaign().await?;
    let broken = b.election("g")?.break_leadership("a new election").await?;
    ensure(broken.len() == 1 && broken[0].member.as_ref() == Some(a.member()), format!("{broken:?}"))?;
    let next = b.election("g")?.try_campaign().await?.ok_or("not free after the break")?;
    ensure(next.term() > lead.term(), format!("{} after {}", next.term(), lead.term()))?;
    let why = within("the loss", h.some_ttl() + h.soon(), lead.lost()).await?;
    ensure(matches!(why, LossReason::Broken { .. }), format!("{why:?}"))?;
    ensure(lead.resign().await? == Released::WasNotHolder, "a broken leadership was resigned")?;
    ensure(next.is_held(), "the next leader lost it")?;
    // One leader alone, as it was shown.
    let shown = a.election("g")?.holders().await?.holders;
    ensure(shown.len() == 1 && shown[0].token == Some(next.term().token()), format!("{shown:?}"))?;
    next.resign().await?;
    let last = b.election("g")?.campaign().await?;
    ensure(
        a.election("g")?.break_holder(&shown[0], "too late").await?.is_empty(),
        "another leader was broken",
    )?;
    ensure(last.is_held(), "the last leader lost it")?;
    let shown = a.election("g")?.holders().await?.holders;
    let broken = a.election("g")?.break_holder(&shown[0], "now").await?;
    ensure(broken == shown, format!("{broken:?} instead of {shown:?}"))?;
    within("the loss", h.some_ttl() + h.soon(), last.lost()).await.map(|_| ())
}
