//! Hooks. A registration that is dropped registers nothing, an event runs once whoever drops the run, and a leadership
//! that a run was about to win is given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tooz_core::{BoxError, Capabilities, Coordinator, HookEvent, HookId, Result};
use tooz_memory::Cut;

use super::call::{Called, LATENCY};
use super::held::{What, ensure_free, held_by};
use super::point::{Moment, Point};
use super::scene::{Needs, Scene, run, under_all_conditions};
use crate::tools::{Outcome, ensure};

/// How long watchers are run: enough for an event that has come, and where none comes, somebody waits for it.
const WHILE: Duration = Duration::from_millis(100);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for (operation, kind) in [
        ("Hooks::watch_join_group", Kind::Join),
        ("Hooks::watch_leave_group", Kind::Leave),
        ("Hooks::watch_elected_as_leader", Kind::Elected),
    ] {
        scenes.extend(under_all_conditions(operation, "a group", Called::Watch, run!(registered, kind)));
        let late = Scene::new(operation, "its first view is late", run!(first_view_late, kind));
        scenes.push(late.needs(Needs::Kit));
        // One for an election waits for nobody.
        if kind != Kind::Elected {
            scenes.push(Scene::new(
                operation,
                "while the watchers are run",
                run!(registered_beside_a_run, kind),
            ));
        }
    }
    let run = "Hooks::run_watchers";
    scenes.push(Scene::new(run, "an event has come", run!(run_with_an_event)));
    scenes.push(Scene::new(run, "an event comes", run!(run_until_an_event)));
    scenes.push(Scene::new(run, "beside another run", run!(run_beside_a_run)));
    scenes.extend(under_all_conditions(
        run,
        "a group is there again",
        Called::Watch,
        run!(run_watches_again, false),
    ));
    scenes.push(Scene::new(run, "an event comes and a group is there again", run!(run_watches_again, true)));
    scenes.extend(under_all_conditions(run, "an election is free", Called::Request, run!(elected, true)));
    let elect = "Hooks::run_elect_coordinator";
    scenes.extend(under_all_conditions(elect, "an election is free", Called::Request, run!(elected, false)));
    scenes.push(Scene::new(elect, "beside another run", run!(elected_beside_a_run)));
    let down = "Hooks::stand_down";
    scenes.extend(under_all_conditions(down, "leading", Called::Release, run!(stood_down)));
    scenes.push(Scene::new(down, "beside another run", run!(stood_down_beside_a_run)));
    scenes
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Join,
    Leave,
    Elected,
}

/// How often hooks ran.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn hook(&self) -> impl Fn(&HookEvent) -> Result<(), BoxError> + Send + Sync + 'static + use<> {
        let count = Arc::clone(&self.0);
        move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    fn is(&self, expected: usize) -> Outcome {
        let ran = self.0.load(Ordering::SeqCst);
        ensure(ran == expected, format!("the hook ran {ran} times, not {expected}"))
    }
}

async fn register(c: &Coordinator, kind: Kind, name: &str, count: &Count) -> Result<HookId> {
    match kind {
        Kind::Join => c.hooks().watch_join_group(name, count.hook()).await,
        Kind::Leave => c.hooks().watch_leave_group(name, count.hook()).await,
        Kind::Elected => c.hooks().watch_elected_as_leader(name, count.hook()).await,
    }
}

fn unregister(c: &Coordinator, kind: Kind, name: &str, id: HookId) -> Result<()> {
    match kind {
        Kind::Join => c.hooks().unwatch_join_group(name, id),
        Kind::Leave => c.hooks().unwatch_leave_group(name, id),
        Kind::Elected => c.hooks().unwatch_elected_as_leader(name, id),
    }
}

/// Everything that can happen to a group happens, one thing after the other; answers the events of the watchers.
async fn happens(p: &Point, c: &Coordinator) -> Outcome<Vec<HookEvent>> {
    let group = p.b().group(p.name())?;
    group.join(Capabilities::none()).await?;
    p.settle().await;
    let mut events = c.hooks().run_watchers(p.h().limit(WHILE)).await?;
    group.leave().await?;
    p.settle().await;
    events.extend(c.hooks().run_watchers(p.h().limit(WHILE)).await?);
    Ok(events)
}

/// Runs what there is to run, so that no watch is kept for hooks that are gone.
async fn run_out(c: &Coordinator) -> Outcome {
    c.hooks().run_watchers(Duration::ZERO).await?;
    Ok(())
}

async fn registered(p: Point, kind: Kind) -> Outcome {
    p.b().group(p.name())?.create().await?;
    let count = Count::default();
    let id = p.sweep(register(p.a(), kind, p.name(), &count)).await?;
    settled(&p, kind, id, &count).await
}

/// Somebody waits for an event and has the turn.
async fn registered_beside_a_run(p: Point, kind: Kind) -> Outcome {
    let own = p.fresh().await?;
    let (other, count) = (Count::default(), Count::default());
    let elsewhere = format!("{}-other", p.name());
    p.b().group(p.name())?.create().await?;
    p.b().group(&elsewhere)?.create().await?;
    register(&own, Kind::Join, &elsewhere, &other).await?;
    let runs = async {
        own.hooks().run_watchers(p.h().limit(WHILE)).await?;
        Ok(())
    };
    let mut runs = Box::pin(runs);
    first_poll(&mut runs).await;
    let id = p.sweep_while(register(&own, kind, p.name(), &count), runs).await?;
    if let Some(id) = id {
        unregister(&own, kind, p.name(), id?)?;
    }
    let events = happens(&p, &own).await?;
    ensure(events.is_empty(), format!("a hook that nobody knows of ran: {events:?}"))?;
    count.is(0)
}

/// Lets somebody be first.
async fn first_poll<F: Future + Unpin>(future: &mut F) {
    std::future::poll_fn(|cx| {
        // It waits for what comes later.
        let _ = std::pin::Pin::new(&mut *future).poll(cx);
        std::task::Poll::Ready(())
    })
    .await;
}

/// A hook that was registered runs; one whose registration was dropped or failed never does, and leaves no watch.
async fn settled(p: &Point, kind: Kind, id: Option<Result<HookId>>, count: &Count) -> Outcome {
    let registered = match id {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(error)) => {
            ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?;
            None
        }
    };
    if registered.is_none() {
        p.world().nothing_stands()?;
    }
    let events = happens(p, p.a()).await?;
    ensure(events.is_empty() == registered.is_none(), format!("{events:?}"))?;
    count.is(usize::from(registered.is_some()))?;
    if let Some(id) = registered {
        unregister(p.a(), kind, p.name(), id)?;
        p.a().hooks().stand_down(p.name()).await?;
    }
    run_out(p.a()).await
}

/// A join that has come, or comes, runs the hook once, in this run or in the next.
async fn run_once(
    p: &Point,
    c: &Coordinator,
    events: Option<Result<Vec<HookEvent>>>,
    count: &Count,
) -> Outcome {
    if let Some(events) = events {
        let events = events?;
        ensure(events.len() == 1, format!("{events:?}"))?;
        count.is(1)?;
    } else {
        c.hooks().run_watchers(p.h().limit(WHILE)).await?;
    }
    count.is(1)?;
    let again = c.hooks().run_watchers(Duration::ZERO).await?;
    ensure(again.is_empty(), format!("again: {again:?}"))?;
    count.is(1)?;
    p.b().group(p.name())?.leave().await?;
    Ok(())
}

async fn run_with_an_event(p: Point) -> Outcome {
    let (own, count) = (p.fresh().await?, Count::default());
    let group = p.b().group(p.name())?;
    group.create().await?;
    register(&own, Kind::Join, p.name(), &count).await?;
    group.join(Capabilities::none()).await?;
    p.settle().await;
    let events = p.sweep(own.hooks().run_watchers(p.h().limit(WHILE))).await?;
    run_once(&p, &own, events, &count).await
}

async fn run_until_an_event(p: Point) -> Outcome {
    let (own, count) = (p.fresh().await?, Count::default());
    let group = p.b().group(p.name())?;
    group.create().await?;
    register(&own, Kind::Join, p.name(), &count).await?;
    let joins = async {
        p.settle().await;
        Ok(group.join(Capabilities::none()).await?)
    };
    let events = p.sweep_while(own.hooks().run_watchers(p.h().limit(WHILE * 10)), joins).await?;
    run_once(&p, &own, events, &count).await
}

async fn run_beside_a_run(p: Point) -> Outcome {
    let (own, count) = (p.fresh().await?, Count::default());
    let group = p.b().group(p.name())?;
    group.create().await?;
    register(&own, Kind::Join, p.name(), &count).await?;
    let first = async {
        let events = own.hooks().run_watchers(p.h().limit(WHILE)).await?;
        ensure(events.is_empty(), format!("{events:?}"))?;
        Ok(group.join(Capabilities::none()).await?)
    };
    let mut first = Box::pin(first);
    first_poll(&mut first).await;
    let events = p.sweep_while(own.hooks().run_watchers(p.h().limit(WHILE * 10)), first).await?;
    run_once(&p, &own, events, &count).await
}

/// A watched group was deleted and is there again: the run begins a new watch, and loses nothing of the others.
async fn run_watches_again(p: Point, meanwhile: bool) -> Outcome {
    let count = Count::default();
    let (group, again) = (p.b().group(p.name())?, p.b().group(format!("{}-again", p.name()))?);
    group.create().await?;
    again.create().await?;
    let ids = [
        (p.name().to_owned(), register(p.a(), Kind::Join, p.name(), &count).await?),
        (
            format!("{}-again", p.name()),
            p.a().hooks().watch_join_group(again.id().as_bytes(), count.hook()).await?,
        ),
    ];
    again.delete().await?;
    p.settle().await;
    run_out(p.a()).await?;
    run_out(p.a()).await?;
    if !meanwhile {
        again.create().await?;
        group.join(Capabilities::none()).await?;
        p.settle().await;
    }
    let joins = async {
        p.settle().await;
        if meanwhile {
            again.create().await?;
            group.join(Capabilities::none()).await?;
        }
        Ok(())
    };
    let events = p.sweep_while(p.a().hooks().run_watchers(p.h().limit(WHILE * 10)), joins).await?;
    let events = match events {
        Some(Err(_)) if p.conditions().allows_errors() => None,
        events => events,
    };
    run_once(&p, p.a(), events, &count).await?;
    for (name, id) in ids {
        p.a().hooks().unwatch_join_group(name, id)?;
    }
    run_out(p.a()).await
}

/// Won by the run, or given back.
async fn elected(p: Point, watchers: bool) -> Outcome {
    let count = Count::default();
    let id = register(p.a(), Kind::Elected, p.name(), &count).await?;
    let events = p
        .sweep(async {
            if watchers {
                p.a().hooks().run_watchers(p.h().limit(WHILE)).await
            } else {
                p.a().hooks().run_elect_coordinator().await
            }
        })
        .await?;
    match events {
        None => count.is(0)?,
        Some(Ok(events)) => {
            ensure(matches!(&events[..], [HookEvent::Elected { .. }]), format!("{events:?}"))?;
            count.is(1)?;
            ensure(p.a().hooks().stand_down(p.name()).await?, "it does not lead although it was elected")?;
        }
        Some(Err(error)) => {
            ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?;
            count.is(0)?;
        }
    }
    ensure_free(&p, What::Leadership).await?;
    ensure(!p.a().hooks().stand_down(p.name()).await?, "it leads although the run was dropped")?;
    Ok(p.a().hooks().unwatch_elected_as_leader(p.name(), id)?)
}

async fn elected_beside_a_run(p: Point) -> Outcome {
    let (own, count) = (p.fresh().await?, Count::default());
    p.b().group(p.name())?.create().await?;
    register(&own, Kind::Join, p.name(), &count).await?;
    let first = async {
        own.hooks().run_watchers(p.h().limit(WHILE)).await?;
        Ok(())
    };
    let mut first = Box::pin(first);
    first_poll(&mut first).await;
    let events = p.sweep_while(own.hooks().run_elect_coordinator(), first).await?;
    ensure(
        events.is_none_or(|events| events.is_ok_and(|events| events.is_empty())),
        "it ran hooks of no election",
    )?;
    ensure(own.hooks().run_elect_coordinator().await?.is_empty(), "the next run has the turn")
}

async fn leads(p: &Point, c: &Coordinator) -> Outcome<HookId> {
    let id = c.hooks().watch_elected_as_leader(p.name(), |_| Ok(())).await?;
    let events = c.hooks().run_elect_coordinator().await?;
    ensure(events.len() == 1, "it was not elected to begin with")?;
    Ok(id)
}

/// Begun, it goes on; before, it still leads.
async fn stood_down(p: Point) -> Outcome {
    let id = leads(&p, p.a()).await?;
    let stood_down = p.sweep(p.a().hooks().stand_down(p.name())).await?;
    match stood_down {
        Some(Ok(led)) => ensure(led, "it led and was told that it did not")?,
        Some(Err(error)) => ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?,
        None => {}
    }
    let still = p.a().hooks().stand_down(p.name()).await?;
    ensure(still == (p.moment() == Moment::Woken(0)), "the first poll begins it, and it goes on")?;
    p.a().hooks().unwatch_elected_as_leader(p.name(), id)?;
    ensure_free(&p, What::Leadership).await
}

async fn stood_down_beside_a_run(p: Point) -> Outcome {
    let (own, count) = (p.fresh().await?, Count::default());
    p.b().group(p.name())?.create().await?;
    let id = leads(&p, &own).await?;
    register(&own, Kind::Join, p.name(), &count).await?;
    let first = async {
        own.hooks().run_watchers(p.h().limit(WHILE)).await?;
        Ok(())
    };
    let mut first = Box::pin(first);
    first_poll(&mut first).await;
    let stood_down = p.sweep_while(own.hooks().stand_down(p.name()), first).await?;
    own.hooks().unwatch_elected_as_leader(p.name(), id)?;
    let led = stood_down.transpose()?;
    ensure(led != Some(false), "it led and was told that it did not")?;
    let still = own.hooks().stand_down(p.name()).await?;
    ensure(!(still && led.is_some()), "it leads although it stood down")?;
    held_by(p.b(), What::Leadership, p.name()).await?.give_back().await?;
    // Its watch goes with it.
    p.end().await?;
    ensure_free(&p, What::Leadership).await
}

/// The watch stands, and what it says first does not come through for a while.
async fn first_view_late(p: Point, kind: Kind) -> Outcome {
    p.b().group(p.name())?.create().await?;
    let kit = p.world().kit().ok_or("this scene needs the kit")?;
    let late = async {
        p.h().pass(LATENCY + LATENCY / 2).await;
        kit.cut_off("a", Cut::Hang);
        p.settle().await;
        kit.heal("a");
        Ok(())
    };
    let count = Count::default();
    let id = p.sweep_while(register(p.a(), kind, p.name(), &count), late).await?;
    settled(&p, kind, id, &count).await
}
