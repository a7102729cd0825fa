//! What is done with what is held: a release that was begun goes on, so does a break, and waiting for a loss changes
//! nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tooz_core::LossReason;

use super::call::{Called, LATENCY};
use super::held::{What, all_held_by, contested, ensure_free};
use super::point::Point;
use super::scene::{Scene, run, under_all_conditions};
use crate::tools::{Outcome, ensure, eventually};

const KINDS: [What; 3] = [What::Lock, What::Set, What::Leadership];

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for what in KINDS {
        let (give_back, lost, work) = match what {
            What::Set => ("LockSetGuard::release", "LockSetGuard::lost", "LockSetGuard::run"),
            What::Leadership => ("Leadership::resign", "Leadership::lost", "Leadership::run"),
            _ => ("LockGuard::release", "LockGuard::lost", "LockGuard::run"),
        };
        scenes.extend(under_all_conditions(give_back, "nobody waits", Called::Release, run!(released, what)));
        scenes.push(Scene::new(give_back, "somebody waits", run!(released_to_the_next, what)));
        scenes.push(Scene::new(lost, "broken meanwhile", run!(loss_waited_for, what)));
        scenes.push(Scene::new(work, "broken meanwhile", run!(work_until_a_loss, what)));
        scenes.push(Scene::new(work, "the work ends", run!(work_that_ends, what)));
    }
    scenes.push(Scene::new("LossSignal::wait", "broken meanwhile", run!(signal_waited_for)));
    for (operation, how) in [
        ("Lock::break_lock", Break::Lock),
        ("Lock::break_token", Break::Token),
        ("Lock::break_holder", Break::Holder),
        ("Election::break_leadership", Break::Leadership),
        ("Election::break_holder", Break::Leader),
    ] {
        scenes.extend(under_all_conditions(operation, "held", Called::Break, run!(broken, how)));
    }
    for (operation, how) in [
        ("Lock::holders", Look::Lock),
        ("Election::leader", Look::Leader),
        ("Election::holders", Look::Leadership),
    ] {
        scenes.extend(under_all_conditions(operation, "held", Called::Holders, run!(looked_at, how)));
    }
    scenes
}

/// It was begun with the call, so it is done, whether anybody waits for that or not.
async fn released(p: Point, what: What) -> Outcome {
    let held = all_held_by(p.a(), what, p.name()).await?;
    let signal = held.signal().ok_or("an empty set")?;
    let released = p.sweep(held.give_back()).await?;
    if let Some(Err(error)) = released {
        ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?;
    }
    ensure(signal.reason() == Some(LossReason::Released), format!("it ended otherwise: {signal:?}"))?;
    ensure_free(&p, what).await
}

/// Whoever waits for it has it then.
async fn released_to_the_next(p: Point, what: What) -> Outcome {
    let held = all_held_by(p.a(), what, p.name()).await?;
    let (lock, election) = (p.b().lock(contested(p.name()))?, p.b().election(p.name())?);
    let waiting = p.h().spawn(async move {
        if what == What::Leadership {
            election.campaign().await?.resign().await
        } else {
            lock.acquire().await?.release().await
        }
    });
    p.settle().await;
    if let Some(released) = p.sweep(held.give_back()).await? {
        released?;
    }
    p.h().soon_done("the turn of whoever waits", waiting).await???;
    ensure_free(&p, what).await
}

async fn break_it(p: &Point, what: What) -> Outcome {
    let broken = match what {
        What::Leadership => p.b().election(p.name())?.break_leadership("swept").await?,
        _ => p.b().lock(contested(p.name()))?.break_lock("swept").await?,
    };
    ensure(broken.len() == 1, "nobody held it")
}

fn is_broken(reason: &LossReason) -> bool {
    matches!(reason, LossReason::Broken { why, .. } if why == "swept")
}

/// It is held until it is broken, and known to be broken then.
async fn loss_waited_for(p: Point, what: What) -> Outcome {
    let held = all_held_by(p.a(), what, p.name()).await?;
    let ends = async {
        p.settle().await;
        ensure(held.is_held(), "waiting for its loss lost it")?;
        break_it(&p, what).await
    };
    let reason = p.sweep_while(held.lost(), ends).await?;
    ensure(reason.as_ref().is_none_or(is_broken), format!("{reason:?}"))?;
    p.h().soon_true("the loss is known", async || Ok::<_, crate::Failure>(!held.is_held())).await?;
    ensure(is_broken(&held.lost().await), "the second who asks is told another reason")?;
    held.give_back().await?;
    ensure_free(&p, what).await
}

async fn signal_waited_for(p: Point) -> Outcome {
    let held = all_held_by(p.a(), What::Lock, p.name()).await?;
    let signal = held.signal().ok_or("an empty set")?;
    let ends = async {
        p.settle().await;
        ensure(held.is_held() && !signal.is_lost(), "waiting for its loss lost it")?;
        break_it(&p, What::Lock).await
    };
    let other = signal.clone();
    let reason = p.sweep_while(other.wait(), ends).await?;
    ensure(reason.as_ref().is_none_or(is_broken), format!("{reason:?}"))?;
    ensure(is_broken(&signal.wait().await), "the second who asks is told another reason")?;
    held.give_back().await?;
    ensure_free(&p, What::Lock).await
}

/// Says when it is dropped.
struct Work(Arc<AtomicBool>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The work ends with the future, or with the lock.
async fn work_until_a_loss(p: Point, what: What) -> Outcome {
    let held = all_held_by(p.a(), what, p.name()).await?;
    let gone = Arc::new(AtomicBool::new(false));
    let work = Work(Arc::clone(&gone));
    let endless = async move {
        let _work = work;
        std::future::pending::<()>().await;
    };
    let ends = async {
        p.settle().await;
        ensure(held.is_held(), "work that was dropped took the lock along")?;
        break_it(&p, what).await
    };
    let answer = p.sweep_while(held.run(endless), ends).await?;
    ensure(
        answer.is_none_or(|answer| answer.is_err_and(|lost| is_broken(&lost.reason))),
        "work without an end has ended",
    )?;
    ensure(gone.load(Ordering::Acquire), "the work goes on")?;
    p.h().soon_true("the loss is known", async || Ok::<_, crate::Failure>(!held.is_held())).await?;
    held.give_back().await?;
    ensure_free(&p, what).await
}

/// The lock stays held.
async fn work_that_ends(p: Point, what: What) -> Outcome {
    let held = all_held_by(p.a(), what, p.name()).await?;
    let h = p.h().clone();
    let answer = p.sweep(held.run(async move { h.pass(LATENCY).await })).await?;
    ensure(answer.is_none_or(|answer| answer.is_ok()), "it was lost")?;
    ensure(held.is_held(), "work that was dropped took the lock along")?;
    held.give_back().await?;
    ensure_free(&p, what).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Break {
    Lock,
    Token,
    Holder,
    Leadership,
    Leader,
}

/// One that was begun is driven to its end; before, nothing has happened.
async fn broken(p: Point, how: Break) -> Outcome {
    let what = if matches!(how, Break::Leadership | Break::Leader) { What::Leadership } else { What::Lock };
    let held = all_held_by(p.b(), what, p.name()).await?;
    let signal = held.signal().ok_or("an empty set")?;
    let before = p.world().calls(Called::Break);
    let (lock, election) = (p.a().lock(contested(p.name()))?, p.a().election(p.name())?);
    let seen = if what == What::Lock { lock.holders().await? } else { election.holders().await? };
    let holder = seen.holders.first().ok_or("it saw no holder")?;
    let broken = p
        .sweep(async {
            match how {
                Break::Lock => lock.break_lock("swept").await,
                Break::Holder => lock.break_holder(holder, "swept").await,
                Break::Leadership => election.break_leadership("swept").await,
                Break::Leader => election.break_holder(holder, "swept").await,
                Break::Token => {
                    let Some(held) = lock.holders().await?.holders.pop() else { return Ok(Vec::new()) };
                    let Some(token) = held.token else { return Ok(Vec::new()) };
                    lock.break_token(token, "swept").await
                }
            }
        })
        .await?;
    // Reading the token comes before.
    let begun = p.world().calls(Called::Break).map_or(p.polls() > 0, |calls| Some(calls) > before);
    let told = match broken {
        Some(Ok(victims)) => {
            ensure(victims.len() == 1, "it answered another number of victims")?;
            true
        }
        Some(Err(error)) => {
            ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?;
            false
        }
        None => how != Break::Token && p.polls() > 0,
    };
    ensure(begun || !told, "it was begun and is not done")?;
    let is_known = async || Ok::<_, crate::Failure>(signal.reason().as_ref().is_some_and(is_broken));
    // Where nobody counts calls, it is only known to be begun if its answer came or it begins with the first poll.
    let done = begun && (told || p.h().is_virtual());
    if done && p.conditions().lets_through() {
        p.h().soon_true("the holder is told", is_known).await?;
    } else if p.h().is_virtual() {
        ensure(held.is_held(), "broken by nobody")?;
    }
    held.give_back().await?;
    let limit = p.h().limit(std::time::Duration::from_millis(100));
    eventually("it is free", limit, async || {
        Ok::<_, crate::Failure>(p.b().lock(contested(p.name()))?.holders().await?.holders.is_empty())
    })
    .await?;
    ensure_free(&p, what).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Lock,
    Leader,
    Leadership,
}

/// Nothing is changed.
async fn looked_at(p: Point, how: Look) -> Outcome {
    let what = if how == Look::Lock { What::Lock } else { What::Leadership };
    let held = all_held_by(p.b(), what, p.name()).await?;
    let (lock, election) = (p.a().lock(contested(p.name()))?, p.a().election(p.name())?);
    let seen = p
        .sweep(async {
            match how {
                Look::Lock => lock.holders().await.map(|holders| holders.holders.len() == 1),
                Look::Leader => election.leader().await.map(|leader| leader.is_some()),
                Look::Leadership => election.holders().await.map(|holders| holders.holders.len() == 1),
            }
        })
        .await?;
    match seen {
        Some(Err(error)) => ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?,
        seen => ensure(!matches!(seen, Some(Ok(false))), "it saw nobody")?,
    }
    ensure(held.is_held(), "looking at it lost it")?;
    held.give_back().await?;
    ensure_free(&p, what).await
}
