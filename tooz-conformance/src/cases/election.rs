//! E1 to E4: elections.

use tooz_core::driver::HolderStream;
use tooz_core::{Holders, Leader, Leadership, Observer};

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(at_most_one_leads, "E1"),
    case!(at_most_one_leads_under_contention, "E1"),
    case!(terms_grow, "E1"),
    case!(campaign_waits_to_win, "E2"),
    case!(dropping_a_leadership_hands_over, "E2", "L5"),
    case!(a_candidate_need_not_be_a_member, "E2"),
    case!(campaign_within_ends_in_time, "E2", "L2").exact(),
    case!(standing_down_when_not_leading_is_an_answer, "E2"),
    case!(leader_names_member_and_term, "E3"),
    case!(observe_starts_with_the_present, "E3"),
    case!(observe_reports_every_change_and_vacant, "E3"),
    case!(observe_never_goes_back, "E3"),
    case!(a_holders_watch_never_goes_back, "E3"),
    case!(a_crashed_leader_is_followed, "E4").ttl(),
    case!(a_resigned_leader_is_followed_at_once, "E4").needs(Characteristics::PUSH_WATCHES),
    case!(a_resigned_leader_is_followed, "E4").lacks(Characteristics::PUSH_WATCHES),
    case!(a_leader_learns_that_it_was_replaced, "E4", "L7").ttl().kit(),
];

async fn wins(c: &Coordinator) -> Outcome<Leadership> {
    c.election("g")?.try_campaign().await?.ok_or_else(|| "somebody leads already".into())
}

/// E1: also against another candidate of the same coordinator.
async fn at_most_one_leads(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = wins(&a).await?;
    ensure(b.election("g")?.try_campaign().await?.is_none(), "two leaders")?;
    ensure(a.election("g")?.try_campaign().await?.is_none(), "elected twice")?;
    ensure(lead.is_held() && lead.group().as_bytes() == b"g", "elected, and not leading")?;
    ensure(lead.resign().await? == Released::Released, "the leader's resignation found nothing")?;
    wins(&b).await.map(|_| ())
}

/// E1: many candidates; leaderships never overlap and terms only grow.
async fn at_most_one_leads_under_contention(h: Harness) -> Outcome {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    let (inside, last) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let mut candidates = Vec::new();
    for n in 0..5 {
        let c = h.coordinator(format!("c{n}")).await?;
        let (inside, last) = (Arc::clone(&inside), Arc::clone(&last));
        candidates.push(h.spawn(async move {
            for _ in 0..10 {
                let lead = c.election("g")?.campaign().await?;
                let alone = inside.fetch_add(1, Ordering::SeqCst) == 0;
                let newer = last.swap(lead.term().get(), Ordering::SeqCst) < lead.term().get();
                linger().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                if !alone || !newer {
                    return fine(false);
                }
                lead.resign().await?;
            }
            fine(true)
        }));
    }
    for candidate in candidates {
        ensure(candidate.await??, "two leaders at once, or a term that did not grow")?;
    }
    Ok(())
}

/// E1: with each leadership, however it ended.
async fn terms_grow(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut last = 0;
    for n in 0..9 {
        let c = if n % 2 == 0 { &a } else { &b };
        let lead = within("the election", h.soon(), c.election("g")?.campaign()).await??;
        ensure(lead.term().get() > last, format!("{} after {last}", lead.term()))?;
        last = lead.term().get();
        match n % 3 {
            0 => drop(lead),
            1 => drop(lead.resign().await?),
            _ => drop(b.election("g")?.break_leadership("a new election").await?),
        }
    }
    Ok(())
}

/// E2: a candidate waits, and leads when the leader has resigned.
async fn campaign_waits_to_win(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = wins(&a).await?;
    let election = b.election("g")?;
    let campaign = h.spawn(async move { election.campaign().await });
    h.candidates("g", 1).await?;
    ensure(!campaign.is_finished(), "elected beside a leader")?;
    lead.resign().await?;
    let next = h.soon_done("the election", campaign).await???;
    ensure(next.is_held(), "elected, and not leading")
}

/// E2, L5: dropping is resigning.
async fn dropping_a_leadership_hands_over(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = wins(&a).await?;
    let election = b.election("g")?;
    let campaign = h.spawn(async move { election.campaign().await });
    h.candidates("g", 1).await?;
    drop(lead);
    ensure(h.soon_done("the election", campaign).await???.is_held(), "elected, and not leading")
}

/// E2: membership and leadership are two things.
async fn a_candidate_need_not_be_a_member(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let lead = wins(&b).await?;
    a.group("g")?.leave().await?;
    ensure(lead.is_held(), "lost with somebody's membership")?;
    ensure(ids(&a, "g").await?.is_empty(), "a leader became a member")
}

/// E2, L2: a limited campaign ends in time and leaves no candidate.
async fn campaign_within_ends_in_time(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = wins(&a).await?;
    let watch = h.stopwatch();
    ensure(b.election("g")?.campaign_within(secs(3)).await?.is_none(), "elected beside a leader")?;
    let took = watch.elapsed();
    ensure(took >= secs(3) && took <= secs(3) + millis(100), format!("it took {took:?}"))?;
    h.candidates("g", 0).await?;
    lead.resign().await?;
    wins(&a).await.map(|_| ())
}

/// E2: nothing to give up is no error.
async fn standing_down_when_not_leading_is_an_answer(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    ensure(!a.hooks().stand_down("g").await?, "it stood down from nothing")?;
    let lead = wins(&a).await?;
    ensure(!b.hooks().stand_down("g").await?, "it stood down for somebody else")?;
    ensure(lead.is_held(), "deposed by another's standing down")?;
    b.election("g")?.break_leadership("a new election").await?;
    ensure(lead.resign().await? == Released::WasNotHolder, "a broken leadership was resigned")
}

/// E3: or nobody.
async fn leader_names_member_and_term(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    ensure(b.election("g")?.leader().await?.is_none(), "somebody leads a new group")?;
    let lead = wins(&a).await?;
    let leader = b.election("g")?.leader().await?.ok_or("nobody leads")?;
    ensure(leader.member.as_ref() == Some(a.member()), format!("{leader:?}"))?;
    ensure(leader.term == Some(lead.term()), format!("{leader:?}"))?;
    lead.resign().await?;
    ensure(b.election("g")?.leader().await?.is_none(), "somebody leads after the resignation")
}

async fn seen(h: &Harness, observer: &mut Observer, what: &str) -> Outcome<Option<Leader>> {
    Ok(h.soon_done(what, observer.next()).await?.ok_or("the observer ended")??)
}

/// E3: whoever comes later learns who leads, without waiting for a change.
async fn observe_starts_with_the_present(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut vacant = b.election("g")?.observe().await?;
    ensure(seen(&h, &mut vacant, "the present").await?.is_none(), "somebody leads a new group")?;
    let lead = wins(&a).await?;
    let mut observer = b.election("g")?.observe().await?;
    let leader = seen(&h, &mut observer, "the present").await?.ok_or("nobody leads")?;
    ensure(
        leader.term == Some(lead.term()) && leader.member.as_ref() == Some(a.member()),
        format!("{leader:?}"),
    )
}

/// E3: elected, vacant, elected, vacant, each awaited.
async fn observe_reports_every_change_and_vacant(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut observer = b.election("g")?.observe().await?;
    ensure(seen(&h, &mut observer, "the present").await?.is_none(), "somebody leads a new group")?;
    for c in [&a, &b, &a] {
        let lead = wins(c).await?;
        let leader = seen(&h, &mut observer, "the election").await?.ok_or("vacant after an election")?;
        ensure(leader.term == Some(lead.term()), format!("{leader:?}"))?;
        ensure(leader.member.as_ref() == Some(c.member()), format!("{leader:?}"))?;
        lead.resign().await?;
        ensure(seen(&h, &mut observer, "the resignation").await?.is_none(), "led after a resignation")?;
    }
    Ok(())
}

/// E3: a slow observer may skip, but never goes back, and ends in the present.
async fn observe_never_goes_back(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut observer = b.election("g")?.observe().await?;
    let mut newest = 0;
    for n in 0..=30 {
        let lead = wins(if n % 2 == 0 { &a } else { &b }).await?;
        if n % 10 != 0 {
            lead.resign().await?;
            continue;
        }
        within("the present leader", h.soon(), async {
            while newest != lead.term().get() {
                if let Some(leader) = observer.next().await.ok_or("the observer ended")?? {
                    let term = leader.term.ok_or("a leader without a term")?.get();
                    ensure(term >= newest, format!("term {term} after {newest}"))?;
                    newest = term;
                }
            }
            Outcome::Ok(())
        })
        .await??;
        let more = tokio::time::timeout(millis(50), observer.next()).await;
        ensure(more.is_err(), format!("after the present: {more:?}"))?;
        lead.resign().await?;
    }
    Ok(())
}

/// E3: the same at the driver's level, where nothing above it hides a driver that goes back.
async fn a_holders_watch_never_goes_back(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let driver = h.driver().await?;
    let key = tooz_core::driver::LockKey::Leader(tooz_core::GroupId::new("g")?);
    let mut stream = driver.locks().watch(&key).await?;
    let mut newest = 0;
    for n in 0..10 {
        let lead = wins(if n % 2 == 0 { &a } else { &b }).await?;
        // To the present, and past it: until nothing more comes.
        let until = h.stopwatch();
        loop {
            let next = tokio::time::timeout(millis(50), next_of(&mut stream)).await;
            let Ok(next) = next else {
                if newest == lead.term().get() || until.elapsed() > h.soon() {
                    break;
                }
                continue;
            };
            if let Some(holder) = next?.holders.first() {
                let token = holder.token.ok_or("a holder without a token")?.get();
                ensure(token >= newest, format!("token {token} after {newest}"))?;
                newest = token;
            }
        }
        ensure(newest == lead.term().get(), format!("{newest} is shown where {} leads", lead.term()))?;
        lead.resign().await?;
    }
    Ok(())
}

async fn next_of(stream: &mut HolderStream) -> Outcome<Holders> {
    let next = std::future::poll_fn(|cx| futures_core::Stream::poll_next(stream.as_mut(), cx)).await;
    Ok(next.ok_or("the watch ended")??)
}

/// E4: a candidate leads at the latest a ttl and the grain after the leader's crash.
async fn a_crashed_leader_is_followed(h: Harness) -> Outcome {
    let dead = h.keep(h.builder("dead").manual_heart().rejoin(false)).await?; // it never beats
    let b = h.coordinator("b").await?;
    let lead = wins(&dead).await?;
    let mut observer = b.election("g")?.observe().await?;
    let next = within("the next leader", h.gone(), b.election("g")?.campaign()).await??;
    ensure(!lead.is_held() && next.is_held(), "two leaders")?;
    ensure(next.term() > lead.term(), "an older term")?;
    within("the observer to see it", h.soon(), async {
        loop {
            if let Some(leader) = observer.next().await.ok_or("the observer ended")??
                && leader.term == Some(next.term())
            {
                return Outcome::Ok(());
            }
        }
    })
    .await?
}

/// E4: within 100 ms, since the backend pushes.
async fn a_resigned_leader_is_followed_at_once(h: Harness) -> Outcome {
    followed(&h, h.limit(millis(100))).await
}

/// E4: at the next look, where the backend does not push.
async fn a_resigned_leader_is_followed(h: Harness) -> Outcome {
    followed(&h, h.limit(secs(1))).await
}

async fn followed(h: &Harness, limit: Duration) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = wins(&a).await?;
    let election = b.election("g")?;
    let campaign = h.spawn(async move { election.campaign().await });
    h.pass(millis(500)).await; // whatever polls has settled to its slowest
    lead.resign().await?;
    let next = within("the next leader", limit, campaign).await???;
    ensure(next.is_held(), "elected, and not leading")
}

/// E4, L7: while it is cut off, and before anybody else leads.
async fn a_leader_learns_that_it_was_replaced(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = wins(&a).await?;
    h.kit()?.cut(h.namespace(), "a");
    let next = within("the next leader", h.gone(), b.election("g")?.campaign()).await??;
    ensure(!lead.is_held(), "two leaders: the first does not know that it was replaced")?;
    let why = h.soon_done("the reason of the loss", lead.lost()).await?;
    ensure(matches!(why, LossReason::Unreachable | LossReason::Expired), format!("{why:?}"))?;
    ensure(next.is_held(), "elected, and not leading")
}
