//! Everything that takes a lock or runs for leader. A dropped one leaves neither a lock nor a place in a queue, and
//! nothing among the tasks of its own coordinator.

use std::time::Duration;

use tooz_core::{ErrorKind, Result};
use tooz_memory::{Cut, Operation, Outcome as Fate};

use super::call::Called;
use super::conditions::Conditions;
use super::held::{Held, How, What, contested, ensure_free, held_by, take};
use super::point::Point;
use super::scene::{Needs, Scene, run, under_all_conditions};
use crate::tools::{Outcome, ensure};

fn operation(what: What, how: How) -> &'static str {
    match (what, how) {
        (What::Set, How::Forever) => "LockSet::acquire",
        (What::Set, How::Try) => "LockSet::try_acquire",
        (What::Set, How::Within(_)) => "LockSet::acquire_within",
        (What::Leadership, How::Forever) => "Election::campaign",
        (What::Leadership, How::Try) => "Election::try_campaign",
        (What::Leadership, How::Within(_)) => "Election::campaign_within",
        (_, How::Forever) => "Lock::acquire",
        (_, How::Try) => "Lock::try_acquire",
        (_, How::Within(_)) => "Lock::acquire_within",
    }
}

/// Long enough for every scene.
const LONG: Duration = Duration::from_mins(1);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for what in [What::Lock, What::Shared, What::Permit, What::Set, What::Leadership] {
        for how in [How::Forever, How::Try, How::Within(LONG)] {
            let other_mode = matches!(what, What::Shared | What::Permit);
            let scene = |scene: Scene| if other_mode { scene.looks(false) } else { scene };
            scenes.extend(of(what, how).into_iter().map(scene));
        }
    }
    scenes
}

/// The words of a scene's name for what its operation's name does not tell.
fn mode(what: What) -> &'static str {
    match what {
        What::Shared => "shared, ",
        What::Permit => "permit, ",
        _ => "",
    }
}

fn of(what: What, how: How) -> Vec<Scene> {
    let op = operation(what, how);
    let named = |situation: &str| format!("{}{situation}", mode(what));
    let mut scenes = under_all_conditions(op, &named("free"), Called::Request, run!(free, what, how));
    scenes.extend(under_all_conditions(
        op,
        &named("handed over"),
        Called::Request,
        run!(handed_over, what, how),
    ));
    scenes.push(Scene::new(
        op,
        named("after a task of the same coordinator"),
        run!(after_a_sibling, what, how),
    ));
    if how != How::Forever && how != How::Try {
        let short = How::Within(Duration::from_millis(30));
        let run = run!(until_its_limit, what, short);
        // The answer that comes after the limit is a way of its own.
        let look =
            |scene: Scene| if scene.conditions == Conditions::Hangs { scene.looks(true) } else { scene };
        let limited = under_all_conditions(op, &named("until its limit"), Called::Request, run);
        scenes.extend(limited.into_iter().map(look));
    }
    scenes.extend(scenes_with_kit(op, &named, what, how));
    scenes
}

/// It is free.
async fn free(p: Point, what: What, how: How) -> Outcome {
    let taken = p.sweep(take(p.a(), what, how, p.name())).await?;
    over(&p, what, how, taken).await
}

/// Another coordinator has it, and gives it back.
async fn handed_over(p: Point, what: What, how: How) -> Outcome {
    let held = held_by(p.b(), what, p.name()).await?;
    let back = async {
        p.settle().await;
        Ok(held.give_back().await?)
    };
    let taken = p.sweep_while(take(p.a(), what, how, p.name()), back).await?;
    over(&p, what, how, taken).await
}

/// A task of the same coordinator has it, and gives it back.
async fn after_a_sibling(p: Point, what: What, how: How) -> Outcome {
    let held = held_by(p.a(), what, p.name()).await?;
    let back = async {
        p.settle().await;
        Ok(held.give_back().await?)
    };
    let taken = p.sweep_while(take(p.a(), what, how, p.name()), back).await?;
    over(&p, what, how, taken).await
}

/// Another coordinator has it, and does not give it back.
async fn until_its_limit(p: Point, what: What, how: How) -> Outcome {
    let held = held_by(p.b(), what, p.name()).await?;
    let taken = p.sweep(take(p.a(), what, how, p.name())).await?;
    ensure(!matches!(taken, Some(Ok(Some(_)))), "granted beside its holder")?;
    ensure(held.is_held(), "its holder lost it")?;
    held.give_back().await?;
    over(&p, what, how, taken).await
}

/// It ended, or was dropped: nothing is left, and the next caller has it at once.
async fn over(p: &Point, what: What, how: How, taken: Option<Result<Option<Held>>>) -> Outcome {
    match taken {
        None => {}
        Some(Ok(Some(held))) => {
            ensure(held.is_held(), "it answered what is not held")?;
            held.give_back().await?;
        }
        Some(Ok(None)) => ensure(how != How::Forever, "it gave up waiting")?,
        Some(Err(error)) => {
            let may =
                matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::SessionLost);
            ensure(p.conditions().allows_errors() && may, format!("it failed: {error}"))?;
        }
    }
    ensure_free(p, what).await
}

fn scenes_with_kit(op: &'static str, named: &dyn Fn(&str) -> String, what: What, how: How) -> Vec<Scene> {
    let mut scenes = vec![
        Scene::new(op, named("beside a task that asks"), run!(beside_one_that_asks, what, how)),
        Scene::new(op, named("while no session stands"), run!(without_a_session, what, how)),
    ];
    if how != How::Try {
        scenes.extend([
            Scene::new(op, named("its session ends in the queue"), run!(session_ends_waiting, what, how)),
            Scene::new(op, named("its session ends while it is asked"), run!(session_ends_asking, what, how)),
            Scene::new(op, named("waiting fails"), run!(waiting_fails, what, how)),
            Scene::new(op, named("granted after its deadline"), run!(granted_too_late, what, how))
                .needs(Needs::Ttl),
        ]);
        if what != What::Leadership {
            for conditions in [Conditions::Normal, Conditions::ClearingFails(Called::Request)] {
                let scene = Scene::new(op, named("its place is gone"), run!(place_gone, what, how));
                scenes.push(scene.under(conditions));
            }
        }
    }
    let kit = |scene: Scene| if scene.fits(false, true) { scene.needs(Needs::Kit) } else { scene };
    scenes.into_iter().map(kit).collect()
}

/// Shorter than the ttl, so that the session stands on the backend, but by less than the margin at which its
/// coordinator stops believing that.
const DEAD: Duration = Duration::from_millis(14_500);

/// A suspend is noticed a quarter of a second after it at the latest, on a clock whose timers sleep through it; and what is
/// left of the ttl then passes before anything is given back.
const NOTICED: Duration = Duration::from_secs(1);

fn kit(p: &Point) -> Outcome<&tooz_memory::Kit> {
    p.world().kit().ok_or_else(|| "this scene needs the kit".into())
}

/// A task of the same coordinator is asking for it and has not heard yet.
async fn beside_one_that_asks(p: Point, what: What, how: How) -> Outcome {
    let (a, name) = (p.a().clone(), p.name().to_owned());
    let sibling = p.h().spawn(async move {
        let what = if what == What::Leadership { what } else { What::Lock };
        take(&a, what, How::Try, &name).await
    });
    // Its turn comes first.
    tokio::task::yield_now().await;
    let back = async {
        let held = sibling.await??;
        p.settle().await;
        Ok(held.ok_or("the task that asked first has nothing")?.give_back().await?)
    };
    let taken = p.sweep_while(take(p.a(), what, how, p.name()), back).await?;
    over(&p, what, how, taken).await
}

/// The session is lost, and a new one is being opened.
async fn without_a_session(p: Point, what: What, how: How) -> Outcome {
    let own = p.fresh().await?;
    kit(&p)?.next(Operation::Open, 1, Fate::Fail);
    kit(&p)?.expire(own.member().as_bytes());
    p.settle().await;
    ensure(own.session_id().is_none(), "its session has not ended")?;
    let taken = p.sweep(take(&own, what, how, p.name())).await?;
    done(&p, what, taken).await
}

/// It waits in the queue; then its session is gone.
async fn session_ends_waiting(p: Point, what: What, how: How) -> Outcome {
    let (own, held) = (p.fresh().await?, held_by(p.b(), what, p.name()).await?);
    let ends = async {
        p.settle().await;
        kit(&p)?.expire(own.member().as_bytes());
        p.settle().await;
        Ok(held.give_back().await?)
    };
    let taken = p.sweep_while(take(&own, what, how, p.name()), ends).await?;
    done(&p, what, taken).await
}

/// Its request hangs until its session is over.
async fn session_ends_asking(p: Point, what: What, how: How) -> Outcome {
    let own = p.fresh().await?;
    kit(&p)?.cut_off(own.member().as_bytes(), Cut::Hang);
    let ends = async {
        p.settle().await;
        // Its coordinator hears of it although its calls hang: another way than the one they take.
        own.simulate_suspend(Duration::from_hours(1));
        p.h().pass(Duration::from_secs(2)).await;
        kit(&p)?.heal(own.member().as_bytes());
        Ok(())
    };
    let taken = p.sweep_while(take(&own, what, how, p.name()), ends).await?;
    done(&p, what, taken).await
}

/// The backend takes no calls for a while.
async fn waiting_fails(p: Point, what: What, how: How) -> Outcome {
    let (own, held) = (p.fresh().await?, held_by(p.b(), what, p.name()).await?);
    let fails = async {
        p.settle().await;
        kit(&p)?.cut_off(own.member().as_bytes(), Cut::Fail);
        p.settle().await;
        kit(&p)?.heal(own.member().as_bytes());
        p.h().pass(Duration::from_secs(1)).await;
        Ok(held.give_back().await?)
    };
    let taken = p.sweep_while(take(&own, what, how, p.name()), fails).await?;
    done(&p, what, taken).await
}

/// It is granted to a session that cannot be believed in any more.
async fn granted_too_late(p: Point, what: What, how: How) -> Outcome {
    let (own, held) = (p.fresh().await?, held_by(p.b(), what, p.name()).await?);
    let late = async {
        p.settle().await;
        own.simulate_suspend(DEAD);
        Ok(held.give_back().await?)
    };
    let taken = p.sweep_while(take(&own, what, how, p.name()), late).await?;
    // What such a session has ends with it, and it is ended when its time on the backend is over.
    p.h().pass(NOTICED).await;
    done(&p, what, taken).await
}

/// The lock's record is deleted by hand, and the queue with it.
async fn place_gone(p: Point, what: What, how: How) -> Outcome {
    let held = held_by(p.b(), what, p.name()).await?;
    let gone = async {
        p.settle().await;
        kit(&p)?.forget_lock(contested(p.name()));
        Ok(())
    };
    let taken = p.sweep_while(take(p.a(), what, how, p.name()), gone).await?;
    // Its record is gone; only its coordinator does not know yet.
    drop(held);
    p.calm().await;
    over(&p, what, how, taken).await
}

/// What was swept on a coordinator of the point's own; it may have heard of its session's end instead.
async fn done(p: &Point, what: What, taken: Option<Result<Option<Held>>>) -> Outcome {
    if let Some(Ok(Some(held))) = taken {
        ensure(held.is_held(), "it answered what is not held")?;
        held.give_back().await?;
    }
    ensure_free(p, what).await
}
