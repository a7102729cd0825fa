//! Watches. Beginning one that is dropped leaves none on the backend, and waiting for the next change loses none.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use futures_core::Stream;
use tooz_core::{Capabilities, Event, GroupEvent, GroupWatch, Leader, Observer, Result};

use super::call::Called;
use super::point::Point;
use super::scene::{Scene, run, under_all_conditions};
use crate::tools::{Outcome, ensure, within};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = under_all_conditions("Group::watch", "a group", Called::Watch, run!(group_watched));
    scenes.extend(under_all_conditions(
        "Election::observe",
        "nobody leads",
        Called::Watch,
        run!(election_observed),
    ));
    for (operation, by_hand) in [("GroupWatch::next", false), ("GroupWatch as Stream", true)] {
        scenes.push(Scene::new(operation, "somebody joins", run!(next_of_a_group, by_hand)));
        scenes.push(Scene::new(operation, "the first view", run!(first_of_a_group, by_hand)));
    }
    for (operation, by_hand) in [("Observer::next", false), ("Observer as Stream", true)] {
        scenes.push(Scene::new(operation, "somebody is elected", run!(next_leader, by_hand)));
        scenes.push(Scene::new(operation, "the first state", run!(first_leader, by_hand)));
    }
    for (operation, by_hand) in [("Events::next", false), ("Events as Stream", true)] {
        scenes.push(Scene::new(operation, "the session ends", run!(next_event, by_hand)));
    }
    scenes
}

/// The next item of a stream, as whoever polls streams by hand asks for it.
async fn polled<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

async fn group_event(watch: &mut GroupWatch, by_hand: bool) -> Option<Result<GroupEvent>> {
    if by_hand { polled(watch).await } else { watch.next().await }
}

async fn leader(observer: &mut Observer, by_hand: bool) -> Option<Result<Option<Leader>>> {
    if by_hand { polled(observer).await } else { observer.next().await }
}

/// No watch stands; the next one begins at once.
async fn group_watched(p: Point) -> Outcome {
    let group = p.a().group(p.name())?;
    group.create().await?;
    match p.sweep(group.watch()).await? {
        None => {}
        Some(Err(error)) => ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?,
        Some(Ok(mut watch)) => first_is_empty(&p, &mut watch).await?,
    }
    p.world().nothing_stands()?;
    first_is_empty(&p, &mut group.watch().await?).await
}

async fn first_is_empty(p: &Point, watch: &mut GroupWatch) -> Outcome {
    let first = within("the first view", p.h().soon(), watch.next()).await?;
    ensure(
        matches!(&first, Some(Ok(GroupEvent::Snapshot(members))) if members.is_empty()),
        format!("{first:?}"),
    )
}

async fn election_observed(p: Point) -> Outcome {
    let election = p.a().election(p.name())?;
    match p.sweep(election.observe()).await? {
        None => {}
        Some(Err(error)) => ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?,
        Some(Ok(mut observer)) => first_is_vacant(&p, &mut observer).await?,
    }
    p.world().nothing_stands()?;
    first_is_vacant(&p, &mut election.observe().await?).await
}

async fn first_is_vacant(p: &Point, observer: &mut Observer) -> Outcome {
    let first = within("the first state", p.h().soon(), observer.next()).await?;
    ensure(matches!(first, Some(Ok(None))), format!("{first:?}"))
}

/// It comes to whoever asks next, if it has not come to this one.
async fn first_of_a_group(p: Point, by_hand: bool) -> Outcome {
    let group = p.a().group(p.name())?;
    group.create().await?;
    let mut watch = group.watch().await?;
    match p.sweep(group_event(&mut watch, by_hand)).await? {
        None => first_is_empty(&p, &mut watch).await,
        Some(first) => ensure(matches!(&first, Some(Ok(GroupEvent::Snapshot(_)))), format!("{first:?}")),
    }
}

async fn next_of_a_group(p: Point, by_hand: bool) -> Outcome {
    let group = p.a().group(p.name())?;
    group.create().await?;
    let mut watch = group.watch().await?;
    first_is_empty(&p, &mut watch).await?;
    let theirs = p.b().group(p.name())?;
    let joins = async {
        p.settle().await;
        Ok(theirs.join(Capabilities::none()).await?)
    };
    let event = p.sweep_while(group_event(&mut watch, by_hand), joins).await?;
    let joined = match event {
        Some(event) => event,
        None => within("the change", p.h().soon(), watch.next()).await?,
    };
    ensure(
        matches!(&joined, Some(Ok(GroupEvent::Joined(member))) if member.member == *p.b().member()),
        format!("{joined:?}"),
    )?;
    theirs.leave().await?;
    let left = within("the next change", p.h().soon(), watch.next()).await?;
    ensure(matches!(&left, Some(Ok(GroupEvent::Left(..)))), format!("{left:?}"))
}

async fn first_leader(p: Point, by_hand: bool) -> Outcome {
    let mut observer = p.a().election(p.name())?.observe().await?;
    match p.sweep(leader(&mut observer, by_hand)).await? {
        None => first_is_vacant(&p, &mut observer).await,
        Some(first) => ensure(matches!(first, Some(Ok(None))), format!("{first:?}")),
    }
}

async fn next_leader(p: Point, by_hand: bool) -> Outcome {
    let mut observer = p.a().election(p.name())?.observe().await?;
    first_is_vacant(&p, &mut observer).await?;
    let election = p.b().election(p.name())?;
    let mut won = None;
    let wins = async {
        p.settle().await;
        won = election.try_campaign().await?;
        Ok(())
    };
    let state = p.sweep_while(leader(&mut observer, by_hand), wins).await?;
    let state = match state {
        Some(state) => state,
        None => within("the change", p.h().soon(), observer.next()).await?,
    };
    let term = won.as_ref().map(tooz_core::Leadership::term);
    ensure(
        matches!(&state, Some(Ok(Some(leader))) if leader.term.is_none() || leader.term == term),
        format!("{state:?}, not {won:?}"),
    )?;
    won.ok_or("the election is not free to begin with")?.resign().await?;
    first_is_vacant(&p, &mut observer).await
}

/// Of a coordinator that is closed: the events end for everybody who asks.
async fn next_event(p: Point, by_hand: bool) -> Outcome {
    let own = p.fresh().await?;
    let mut events = own.events();
    let ends = async {
        p.settle().await;
        own.heart().stop();
        Ok(own.close().await?)
    };
    let asked = async { if by_hand { polled(&mut events).await } else { events.next().await } };
    let event: Option<Option<Event>> = p.sweep_while(asked, ends).await?;
    ensure(matches!(event, None | Some(None)), format!("{event:?}"))?;
    let end = within("the end of the events", p.h().soon(), events.next()).await?;
    ensure(end.is_none(), format!("{end:?}"))?;
    // Whoever polls again after the end hears the same.
    let again = poll_fn(|cx| Poll::Ready(Pin::new(&mut events).poll_next(cx))).await;
    ensure(matches!(again, Poll::Ready(None)), format!("{again:?}"))
}
