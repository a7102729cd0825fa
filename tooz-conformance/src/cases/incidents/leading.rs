//! Two leaders, no leader, and leaders that were not told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinHandle;
use tooz_core::{Leadership, Observer};

use super::super::prelude::*;
use super::steps::alive;

pub(super) const CASES: &[Case] = &[
    case!(incident_kubernetes_23731, "E4", "L7", "E1").ttl().kit(),
    case!(incident_kubernetes_44887, "E4", "S6").ttl().kit(),
    case!(incident_kubernetes_62120, "E2"),
    case!(incident_client_go_1187, "E2", "E4"),
    case!(incident_cilium_42920, "L13", "E1").ttl().kit(),
    case!(incident_curator_1024, "S7", "E1").ttl().kit(),
    case!(incident_curator_1169, "S7", "E1").ttl().kit(),
    case!(incident_curator_1211, "L14", "E1").kit(),
    case!(incident_curator_515, "S7", "E2", "E3").ttl().kit(),
    case!(incident_etcd_java_49, "E4", "S6").ttl().kit(),
    case!(incident_etcd_18163, "E3"),
    case!(incident_etcd_11007, "E1"),
    case!(incident_charts_326, "E2", "S7").kit(),
    case!(incident_charts_327, "E3", "S2").deaths(),
    case!(incident_spring_integration_2098, "E4", "E1"),
    case!(incident_spring_integration_2116, "L4", "E2"),
    case!(incident_fisco_bcos_5265, "S1", "E4"),
];

/// Runs for leader in a task of its own, and returns when that has begun.
async fn campaigns(h: &Harness, c: &Coordinator) -> Outcome<JoinHandle<Result<Leadership>>> {
    let election = c.election("g")?;
    Ok(h.started(async move { election.campaign().await }).await)
}

/// Reads until the observer says that this term leads, or that nobody does.
async fn observes(h: &Harness, observer: &mut Observer, term: Option<u64>) -> Outcome {
    within(&format!("the observer to see {term:?}"), h.gone(), async {
        loop {
            let leader = observer.next().await.ok_or("the observer ended")??;
            if leader.and_then(|leader| leader.term).map(tooz_core::Term::get) == term {
                return Outcome::Ok(());
            }
        }
    })
    .await?
}

/// E4, L7, E1: a leader that is cut off is told to stop, and has been told when the next one leads.
async fn incident_kubernetes_23731(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = a.election("g")?.campaign().await?;
    let stopped = h.spawn({
        let signal = lead.loss_signal();
        async move { signal.wait().await }
    });
    let next = campaigns(&h, &b).await?;
    h.candidates("g", 1).await?;
    h.kit()?.cut(h.namespace(), "a");
    let next = within("the next leader", h.gone(), next).await???;
    ensure(!lead.is_held() && next.is_held(), "two leaders")?;
    ensure(stopped.is_finished(), "the next one leads, and the first was not told to stop")?;
    let why = stopped.await?;
    ensure(matches!(why, LossReason::Unreachable | LossReason::Expired), format!("{why:?}"))
}

/// E4, S6: renewals that take too long count from when they were sent: an answer after the deadline saves nobody.
async fn incident_kubernetes_44887(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = a.election("g")?.campaign().await?;
    let slow = h.some_ttl() / 8; // still in time for a renewal
    h.kit()?.slow(slow);
    h.pass(h.some_ttl()).await;
    for _ in 0..100 {
        h.pass(h.some_ttl() / 50).await;
        let left = lead.deadline().ok_or("a leadership of a session with a ttl has no deadline")?.remaining();
        ensure(lead.is_held(), "lost although every renewal was in time")?;
        ensure(left + slow <= h.some_ttl(), format!("{left:?} are left, counted from an answer"))?;
    }
    let watch = h.stopwatch();
    h.kit()?.slow(h.some_ttl() * 2);
    within("the loss", h.some_ttl(), lead.lost()).await?;
    ensure(!lead.is_held(), "leads after it was reported lost")?;
    h.pass((h.some_ttl() * 3).saturating_sub(watch.elapsed())).await; // the late answers have come
    ensure(!lead.is_held(), "a late answer brought a leadership back")?;
    h.kit()?.slow(Duration::ZERO);
    let next = within("the next leader", h.gone() * 3, b.election("g")?.campaign()).await??;
    ensure(next.term() > lead.term() && !lead.is_held(), "two leaders")
}

/// E2: stepping down is an ordinary thing: nothing ends, and the same candidate may lead again.
async fn incident_kubernetes_62120(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let mut last = None;
    for n in 0..6 {
        let (c, other) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let lead = within("the election", h.soon(), c.election("g")?.campaign()).await??;
        ensure(last < Some(lead.term()), format!("{} after {last:?}", lead.term()))?;
        last = Some(lead.term());
        ensure(other.election("g")?.try_campaign().await?.is_none(), "two leaders")?;
        ensure(lead.resign().await? == Released::Released, "the leader's resignation found nothing")?;
        ensure(matches!(c.liveness(), Liveness::Alive { .. }), "resigning ended more than a leadership")?;
    }
    ensure(ids(&b, "g").await? == ["a"], "resigning ended a membership")
}

/// E2, E4: a candidate that never led is told of no end of a leadership, neither when it gives up nor when it ends.
async fn incident_client_go_1187(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ran);
    b.hooks()
        .watch_elected_as_leader("g", move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .await?;
    let lead = a.election("g")?.campaign().await?;
    let mut events = b.events();
    let none = b.election("g")?.campaign_within(h.limit(millis(20))).await;
    ensure(!matches!(none, Ok(Some(_))), "two leaders")?;
    ensure(b.hooks().run_elect_coordinator().await?.is_empty(), "elected beside a leader")?;
    ensure(!b.hooks().stand_down("g").await?, "it stood down from nothing")?;
    let campaign = campaigns(&h, &b).await?;
    h.candidates("g", 1).await?;
    campaign.abort();
    h.candidates("g", 0).await?;
    ensure(lead.is_held(), "a candidate that gave up ended a leadership")?;
    b.close().await?;
    let told = h.soon_done("the end of the events", events.next()).await?;
    ensure(told.is_none(), format!("a candidate that never led was told {told:?}"))?;
    ensure(ran.load(Ordering::SeqCst) == 0, "a hook ran for nothing")?;
    ensure(lead.is_held(), "a candidate that ended took a leadership along")
}

/// L13, E1: the leader's work takes its time to stop; it is cut short before anybody else leads.
async fn incident_cilium_42920(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let leading = Arc::new(AtomicUsize::new(0));
    let lead = a.election("g")?.campaign().await?;
    let working = h.spawn({
        let leading = Arc::clone(&leading);
        async move {
            let inside = Inside::enter(leading);
            lead.run(async move {
                let _inside = inside;
                // It would shut down gracefully, and never gets there.
                std::future::pending::<()>().await;
            })
            .await
        }
    });
    let next = campaigns(&h, &b).await?;
    h.candidates("g", 1).await?;
    h.kit()?.cut(h.namespace(), "a");
    let next = within("the next leader", h.gone(), next).await???;
    ensure(leading.load(Ordering::SeqCst) == 0, "the first leader's work goes on beside the next leader")?;
    ensure(h.soon_done("the end of the work", working).await??.is_err(), "the work came to its end")?;
    ensure(next.is_held(), "elected, and not leading")
}

/// Counted as long as it lives.
struct Inside(Arc<AtomicUsize>);

impl Inside {
    fn enter(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// S7, E1: the leader reconnects, finds traces of its earlier self, and does not believe them.
async fn incident_curator_1024(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for _ in 0..3 {
        let lead = within("the election", h.gone(), a.election("g")?.campaign()).await??;
        h.kit()?.cut(h.namespace(), "a");
        let next = within("the next leader", h.gone(), b.election("g")?.campaign()).await??;
        let again = campaigns(&h, &a).await?; // it runs again while it is away
        h.kit()?.heal(h.namespace(), "a");
        alive(&h, &a).await?;
        h.pass(h.some_ttl() * 2).await;
        ensure(next.is_held() && !lead.is_held(), "the reconnected leader leads again")?;
        if again.is_finished() {
            // The backend did not answer in time: an error, and no leadership.
            ensure(again.await?.is_err(), "two leaders")?;
        } else {
            again.abort();
        }
        let leader = b.election("g")?.leader().await?.ok_or("nobody leads")?;
        ensure(leader.term == Some(next.term()), format!("{leader:?}"))?;
        next.resign().await?;
        eventually("nobody leads or runs", h.gone(), async || {
            match a.election("g")?.try_campaign().await? {
                Some(lead) => lead.resign().await.map(|_| true),
                None => Ok(false),
            }
        })
        .await?;
    }
    Ok(())
}

/// S7, E1: leader and candidate are cut off together and come back together, in either order.
async fn incident_curator_1169(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut newest = 0;
    for round in 0..4 {
        let lead = within("the election", h.gone(), a.election("g")?.campaign()).await??;
        ensure(lead.term().get() > newest, "an older term")?;
        let next = campaigns(&h, &b).await?;
        h.candidates("g", 1).await?;
        for member in ["a", "b"] {
            h.kit()?.cut(h.namespace(), member);
        }
        h.outlive().await;
        ensure(!lead.is_held(), "leads although its session has ended")?;
        let order = if round % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
        for member in order {
            h.kit()?.heal(h.namespace(), member);
        }
        let next = within("the only leader", h.gone(), next).await???;
        newest = next.term().get();
        for _ in 0..6 {
            h.pass(h.some_ttl() / 3).await;
            ensure(next.is_held() && !lead.is_held(), "the wrong one leads")?;
            ensure(a.election("g")?.try_campaign().await?.is_none(), "two leaders")?;
        }
        next.resign().await?;
    }
    Ok(())
}

/// L14, E1: the record of an expired session is not the new session's; whoever led finds itself a candidate.
async fn incident_curator_1211(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut events = a.events();
    let lead = a.election("g")?.campaign().await?;
    let next = campaigns(&h, &b).await?;
    h.candidates("g", 1).await?;
    h.kit()?.expire(h.namespace(), "a");
    event(&mut events, h.gone(), "Lost", |event| matches!(event, Event::Lost(_))).await?;
    let next = within("the next leader", h.gone(), next).await???;
    alive(&h, &a).await?;
    for _ in 0..5 {
        ensure(!lead.is_held() && next.is_held(), "two leaders")?;
        ensure(
            a.election("g")?.try_campaign().await?.is_none(),
            "elected by the record of an earlier session",
        )?;
        h.pass(h.some_ttl() / 3).await;
    }
    drop(lead);
    linger().await;
    ensure(next.is_held(), "the earlier leader resigned for its successor")
}

/// S7, E2, E3: everything is gone, also what elections stand on; there is a leader again, and everybody sees it.
async fn incident_curator_515(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut observer = h.coordinator("observer").await?.election("g")?.observe().await?;
    let lead = a.election("g")?.campaign().await?;
    let next = campaigns(&h, &b).await?;
    h.candidates("g", 1).await?;
    h.kit()?.lose_data();
    within("the first leader to be told", h.gone(), lead.lost()).await?;
    let next = within("a leader", h.gone(), next).await???;
    ensure(next.term() > lead.term() && !lead.is_held(), "two leaders, or an older term")?;
    observes(&h, &mut observer, Some(next.term().get())).await
}

/// E4, S6: nobody can tell an offline leader; it tells itself, at its deadline.
async fn incident_etcd_java_49(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let lead = a.election("g")?.campaign().await?;
    h.kit()?.pause();
    let deadline = lead.deadline().ok_or("a leadership of a session with a ttl has no deadline")?;
    let watch = h.stopwatch();
    let why = within("the loss", h.some_ttl(), lead.lost()).await?;
    ensure(watch.elapsed() <= h.some_ttl() && deadline.has_passed(), format!("after {:?}", watch.elapsed()))?;
    ensure(!lead.is_held() && why == LossReason::Unreachable, format!("{why:?}"))
}

/// E3: an observer names who leads, and never somebody who only runs.
async fn incident_etcd_18163(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let c = h.coordinator("c").await?;
    let mut observer = c.election("g")?.observe().await?;
    let mut lead = a.election("g")?.campaign().await?;
    let mut members = vec![b.clone(), c.clone()];
    let mut leads = a.clone();
    while let Some(candidate) = members.pop() {
        let next = campaigns(&h, &candidate).await?;
        h.candidates("g", 1).await?;
        observes(&h, &mut observer, Some(lead.term().get())).await?;
        let leader = candidate.election("g")?.leader().await?.ok_or("nobody leads")?;
        ensure(leader.member.as_ref() == Some(leads.member()), format!("{leader:?}"))?;
        ensure(leader.term == Some(lead.term()), format!("{leader:?}"))?;
        lead.resign().await?;
        lead = h.soon_done("the election", next).await???;
        leads = candidate;
    }
    observes(&h, &mut observer, Some(lead.term().get())).await?;
    lead.resign().await?;
    observes(&h, &mut observer, None).await
}

/// E1: many candidates, also of one program, at the same moment: one wins.
async fn incident_etcd_11007(h: Harness) -> Outcome {
    let mut candidates = Vec::new();
    for n in 0..4 {
        candidates.push(h.coordinator(format!("c{n}")).await?);
    }
    for _ in 0..5 {
        let mut campaigns = Vec::new();
        for n in 0..16 {
            let election = candidates[n % 4].election("g")?;
            campaigns.push(h.spawn(async move { election.try_campaign().await }));
        }
        let mut winners = Vec::new();
        for campaign in campaigns {
            winners.extend(campaign.await??);
        }
        ensure(winners.len() <= 1, format!("{} winners", winners.len()))?;
        // Each try may have lost to one that was about to lose, too; alone, one wins.
        let lead = match winners.pop() {
            Some(lead) => lead,
            None => within("an election", h.soon(), candidates[0].election("g")?.campaign()).await??,
        };
        lead.resign().await?;
    }
    Ok(())
}

/// E2, S7: a candidate whose session ends while it runs goes on running, in its next session.
async fn incident_charts_326(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = a.election("g")?.campaign().await?;
    let next = campaigns(&h, &b).await?;
    h.candidates("g", 1).await?;
    let mut events = b.events();
    h.kit()?.expire(h.namespace(), "b");
    event(&mut events, h.gone(), "Lost", |event| matches!(event, Event::Lost(_))).await?;
    alive(&h, &b).await?;
    h.candidates("g", 1).await?;
    ensure(!next.is_finished() && lead.is_held(), "elected beside a leader")?;
    lead.resign().await?;
    let next = within("the election", h.gone(), next).await???;
    ensure(next.is_held(), "elected, and not leading")
}

/// E3, S2: the leader dies and nobody runs: that nobody leads is said, too.
async fn incident_charts_327(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut dead = h.victim("dead").await?;
    let term = dead.ask_token("campaign g").await?;
    let mut observer = a.election("g")?.observe().await?;
    observes(&h, &mut observer, Some(term)).await?;
    dead.die()?;
    observes(&h, &mut observer, None).await?;
    ensure(a.election("g")?.leader().await?.is_none(), "somebody leads after the observer saw nobody")?;
    let lead = a.election("g")?.try_campaign().await?.ok_or("vacant, and nobody can be elected")?;
    ensure(lead.term().get() > term, "the term of the dead")
}

/// E4, E1: the lock under a leadership is lost by itself, with the session in best health: its leader steps down.
async fn incident_spring_integration_2098(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = a.election("g")?.campaign().await?;
    let other = taken(&a, "x").await?;
    let working = h.spawn(async move { (lead.run(std::future::pending::<()>()).await, lead) });
    b.election("g")?.break_leadership("a new election").await?;
    let next = b.election("g")?.try_campaign().await?.ok_or("not free after the break")?;
    let (end, lead) = within("the end of the work", h.some_ttl() + h.soon(), working).await??;
    ensure(matches!(end, Err(Lost { reason: LossReason::Broken { .. }, .. })), format!("{end:?}"))?;
    ensure(!lead.is_held() && next.is_held() && other.is_held(), "the wrong one was lost")
}

/// L4, E2: giving up what is not held any more is an answer and no error.
async fn incident_spring_integration_2116(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let (guard, lead) = (taken(&a, "x").await?, a.election("g")?.campaign().await?);
    b.lock("x")?.break_lock("enough").await?;
    b.election("g")?.break_leadership("enough").await?;
    ensure(guard.release().await? == Released::WasNotHolder, "a broken lock was released")?;
    ensure(lead.resign().await? == Released::WasNotHolder, "a broken leadership was resigned")?;
    let (guard, lead) = (taken(&a, "x").await?, a.election("g")?.campaign().await?);
    a.close().await?;
    ensure(guard.release().await? == Released::WasNotHolder, "released after close")?;
    ensure(lead.resign().await? == Released::WasNotHolder, "resigned after close")
}

/// S1, E4: a ttl of nothing, or too short to be kept, is refused before anybody is elected with it.
async fn incident_fisco_bcos_5265(h: Harness) -> Outcome {
    for ttl in ["0", "0s", "1ms", "999ms", "0.5", "-1s", "", "1e9999s", "18446744073709551616s"] {
        let error = refused(h.builder("a").option("ttl", ttl).connect().await, ErrorKind::InvalidOption)?;
        ensure(error.to_string().contains("ttl"), format!("the option is not named: {error}"))?;
    }
    // A machine that stands still for a second loses it rightly: there, one of some is enough.
    for member in if h.is_virtual() { &["a"][..] } else { &["a", "b", "c", "d", "e"] } {
        let a = h.keep(h.builder(*member).ttl(secs(1))).await?;
        let Ok(lead) = a.election(format!("g-{member}"))?.campaign().await else { continue };
        h.pass(secs(3)).await;
        if lead.is_held() {
            return Ok(());
        }
    }
    Err("lost with the shortest ttl that is accepted".into())
}
