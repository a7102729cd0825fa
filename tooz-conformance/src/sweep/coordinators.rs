//! A coordinator's own life: connecting leaves no session behind, a beat and a close that were begun go on. And the
//! tasks and timers that drivers are given.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tooz_core::driver::Spawner;
use tooz_core::{Coordinator, ErrorKind, Liveness, Runtime};

use super::call::{Called, LATENCY};
use super::conditions::Conditions;
use super::held::{What, all_held_by, ensure_free};
use super::point::{Moment, Point};
use super::scene::{Needs, Scene, run, under_all_conditions};
use crate::tools::{Outcome, ensure, within};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = under_all_conditions("Builder::connect", "alone", Called::Open, run!(connected));
    scenes.extend(under_all_conditions("Coordinator::scope", "it takes a lock", Called::Open, run!(scoped)));
    scenes.push(Scene::new("Builder::connect_driver", "alone", run!(driver_connected)));
    scenes.push(Scene::new("Builder::examine", "the backend answers", run!(examined)));
    scenes.extend(under_all_conditions(
        "Coordinator::heartbeat",
        "its session lives",
        Called::Renew,
        run!(beaten),
    ));
    scenes.extend(under_all_conditions("Coordinator::close", "a lock is held", Called::Close, run!(closed)));
    scenes.extend(under_all_conditions(
        "Coordinator::raise_tokens",
        "a lock is held",
        Called::Raise,
        run!(tokens_raised),
    ));
    scenes.push(Scene::new("Heart::wait", "it is stopped", run!(heart_waited_for)));
    scenes.push(Scene::new("Spawner::timeout", "its work ends", run!(timed)));
    scenes.push(Scene::new("Spawner::blocking", "its work ends", run!(blocking)));
    scenes.push(Scene::new("Sleep as Future", "until its end", run!(slept)));
    scenes.push(Scene::new("Task as Future", "until its end", run!(task_waited_for)));
    scenes.push(
        Scene::new("Coordinator::heartbeat", "its session was lost", run!(beaten_after_a_loss))
            .needs(Needs::Kit),
    );
    scenes
}

/// A session that no caller takes is closed; the same member connects again at once.
async fn connected(p: Point) -> Outcome {
    let before = p.world().sessions()?;
    let member = format!("own-{}", p.name());
    match p.sweep(p.h().builder(&member).connect()).await? {
        None => {}
        Some(Err(error)) => ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?,
        Some(Ok(own)) => {
            ensure(p.world().sessions()? > before, "a coordinator without a session")?;
            own.close().await?;
        }
    }
    // One whose opening was not heard of is nobody's to close: it ends by its ttl (L6).
    if matches!(p.conditions(), Conditions::AnswerLost(_)) {
        p.h().pass(p.h().gone()).await;
    }
    p.world().sessions_are_again(before).await?;
    let again = p.h().builder(&member).connect().await?;
    let group = again.group(p.name())?;
    group.join_or_create(tooz_core::Capabilities::none()).await?;
    again.close().await?;
    p.world().sessions_are_again(before).await
}

/// Dropped, it drops the work and closes in the background; what the work held is free then.
async fn scoped(p: Point) -> Outcome {
    let before = p.world().sessions()?;
    let (h, name) = (p.h().clone(), p.name().to_owned());
    let work = async move |c: Coordinator| {
        let guard = c.lock(&name)?.acquire().await?;
        h.pass(LATENCY).await;
        drop(guard);
        Ok::<_, tooz_core::Error>(())
    };
    let builder = p.h().builder(format!("own-{}", p.name()));
    if let Some(Err(error)) = p.sweep(Coordinator::scope(builder, work)).await? {
        ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?;
    }
    // The scope cannot close a session of whose opening it did not hear: that one ends by its ttl (L6).
    if matches!(p.conditions(), Conditions::AnswerLost(_)) {
        p.h().pass(p.h().gone()).await;
    }
    p.world().sessions_are_again(before).await
}

async fn driver_connected(p: Point) -> Outcome {
    let before = p.world().sessions()?;
    if let Some(connected) = p.sweep(p.h().builder(p.name()).connect_driver()).await? {
        connected?.0.close().await?;
    }
    p.world().sessions_are_again(before).await
}

/// Whoever looks at a backend leaves nothing there.
async fn examined(p: Point) -> Outcome {
    let before = p.world().sessions()?;
    if let Some(found) = p.sweep(p.h().builder(p.name()).examine()).await? {
        found?;
    }
    p.world().sessions_are_again(before).await
}

/// The beat goes on: it counts although nobody waits for it.
async fn beaten(p: Point) -> Outcome {
    let builder = p.h().builder(format!("own-{}", p.name())).manual_heart();
    let own = p.world().prepared(builder.connect().await?);
    let beat = p.sweep(own.heartbeat()).await?;
    let failed = match beat {
        Some(Err(error)) => {
            ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?;
            true
        }
        _ => false,
    };
    let sent = p.moment() != Moment::Woken(0);
    let expected = u64::from(sent && !failed && !p.conditions().allows_errors());
    if p.h().is_virtual() {
        ensure(own.heart().beats() == expected, format!("{} beats, not {expected}", own.heart().beats()))?;
    } else {
        p.h()
            .soon_true("the beat", async || Ok::<_, crate::Failure>(own.heart().beats() == expected))
            .await?;
    }
    p.world().forget_fates();
    own.heartbeat().await?;
    ensure(own.heart().beats() == expected + 1, "the next beat is another one")?;
    Ok(own.close().await?)
}

/// Closing goes on: what was held is free and the session is gone. Before, nothing has happened.
async fn closed(p: Point) -> Outcome {
    let before = p.world().sessions()?;
    let builder = p.h().builder(format!("own-{}", p.name()));
    let own = p.world().prepared(builder.connect().await?);
    let held = all_held_by(&own, What::Lock, p.name()).await?;
    let closed = p.sweep(own.close()).await?;
    if let Some(Err(error)) = &closed {
        ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?;
    }
    if p.moment() == Moment::Woken(0) {
        ensure(matches!(own.liveness(), Liveness::Alive { .. }) && held.is_held(), "closed by nobody")?;
        own.close().await?;
    }
    if closed.is_some() {
        ensure(!held.is_held(), "held by a coordinator that is closed")?;
    }
    // It was told to close by the first poll, and may live on a thread of its own.
    p.h().soon_true("nothing is held", async || Ok::<_, crate::Failure>(!held.is_held())).await?;
    let refused = own.lock(p.name())?.try_acquire().await;
    ensure(refused.is_err_and(|error| error.kind() == ErrorKind::Closed), "it is used after it was closed")?;
    // Twice is as good as once.
    let again = within("the second close", p.h().soon(), own.close()).await?;
    ensure(again.is_ok() || p.conditions().allows_errors(), format!("{again:?}"))?;
    drop(held);
    drop(own);
    // One that could not be closed holds on until its ttl is over (S3).
    if p.conditions().allows_errors() {
        p.h().pass(p.h().gone()).await;
    }
    p.world().sessions_are_again(before).await?;
    ensure_free(&p, What::Lock).await
}

/// A raise that was begun is done. What is held stays as it is.
async fn tokens_raised(p: Point) -> Outcome {
    let held = p.b().lock(p.name())?.acquire().await?;
    // Further than a scene's grants count.
    let n = held.token().get() + 1_000_000;
    let raised = p.sweep(p.a().raise_tokens(n)).await?;
    if let Some(Err(error)) = &raised {
        ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?;
    }
    ensure(held.is_held() && held.token().get() < n, "what is held is another grant")?;
    held.release().await?;
    let done = p.polls() > 0 && p.conditions().lets_through();
    p.h()
        .soon_true("the raise", async || {
            let next = p.b().lock(p.name())?.acquire().await?;
            let token = next.token().get();
            next.release().await?;
            Ok::<_, crate::Failure>((token >= n) == done)
        })
        .await?;
    ensure_free(&p, What::Lock).await
}

/// Nothing is changed by waiting.
async fn heart_waited_for(p: Point) -> Outcome {
    let own = p.fresh().await?;
    let heart = own.heart();
    let stops = async {
        p.settle().await;
        ensure(heart.is_alive(), "waiting for its end stopped it")?;
        heart.stop();
        Ok(())
    };
    p.sweep_while(heart.wait(), stops).await?;
    within("its end", p.h().soon(), heart.wait()).await?;
    heart.start();
    ensure(heart.is_alive(), "it does not start again")
}

fn spawner(p: &Point) -> Outcome<Spawner> {
    Ok(Spawner::new(if p.h().is_virtual() { Runtime::Current } else { Runtime::Library })?)
}

/// Says when it is dropped.
struct Work(Arc<AtomicBool>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn work() -> (Work, Arc<AtomicBool>) {
    let gone = Arc::new(AtomicBool::new(false));
    (Work(Arc::clone(&gone)), gone)
}

/// The work goes with it.
async fn timed(p: Point) -> Outcome {
    let (work, gone) = work();
    let h = p.h().clone();
    let timed = spawner(&p)?;
    let done = p
        .sweep(timed.timeout(p.h().limit(Duration::from_secs(1)), async move {
            let _work = work;
            h.pass(LATENCY).await;
        }))
        .await?;
    ensure(!matches!(done, Some(None)), "its time was over before its work")?;
    ensure(gone.load(Ordering::Acquire), "its work goes on")
}

/// What runs on a thread cannot be dropped; it ends by itself.
async fn blocking(p: Point) -> Outcome {
    let (work, gone) = work();
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let blocking = spawner(&p)?;
    // A virtual clock stands still as long as it runs.
    let ends = async {
        crate::tools::linger().await;
        drop(go_on);
        Ok(())
    };
    let swept = blocking.blocking(move || {
        let _work = work;
        // An error: nobody has anything to say, as expected.
        let _ = may_go_on.recv();
    });
    if let Some(done) = p.sweep_while(swept, ends).await? {
        done?;
    }
    while !gone.load(Ordering::Acquire) {
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn slept(p: Point) -> Outcome {
    let before = p.h().stopwatch();
    let time = Duration::from_millis(5);
    if p.sweep(spawner(&p)?.sleep(time)).await?.is_some() {
        ensure(before.elapsed() >= time, "it woke early")?;
    }
    Ok(())
}

/// The task ends with its handle.
async fn task_waited_for(p: Point) -> Outcome {
    let (work, gone) = work();
    let h = p.h().clone();
    let task = spawner(&p)?.spawn(async move {
        let _work = work;
        h.pass(LATENCY).await;
    });
    let done = p.sweep(task).await?;
    ensure(!matches!(done, Some(None)), "it ended otherwise")?;
    p.h().soon_true("its end", async || Ok::<_, crate::Failure>(gone.load(Ordering::Acquire))).await
}

/// The beat goes on: it opens a new session although nobody waits for it.
async fn beaten_after_a_loss(p: Point) -> Outcome {
    let builder = p.h().builder(format!("own-{}", p.name())).manual_heart();
    let own = p.world().prepared(builder.connect().await?);
    p.world().kit().ok_or("this scene needs the kit")?.expire(own.member().as_bytes());
    p.settle().await;
    ensure(own.session_id().is_none(), "its session has not ended")?;
    if let Some(beat) = p.sweep(own.heartbeat()).await? {
        beat?;
    }
    // The old one is closed first.
    p.settle().await;
    let asked = p.moment() != Moment::Woken(0);
    ensure(own.session_id().is_some() == asked, "the first poll asks for a session, and it is opened")?;
    own.heartbeat().await?;
    ensure(own.session_id().is_some(), "the next beat opens none")?;
    Ok(own.close().await?)
}
