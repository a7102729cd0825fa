//! Groups. What changes one is driven to its end once it was begun, but for a join, which is undone; what reads one
//! changes nothing.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tooz_core::{Capabilities, Coordinator, Error, ErrorKind, Group, Result};
use tooz_memory::{Operation, Outcome as Fate};

use super::call::Called;
use super::point::{Moment, Point};
use super::scene::{Needs, Scene, run, under_all_conditions};
use crate::tools::{Outcome, ensure, eventually};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for (operation, change) in [
        ("Group::create", Change::Create),
        ("Group::delete", Change::Delete),
        ("Group::join", Change::Join),
        ("Group::join_or_create", Change::JoinOrCreate),
        ("Group::leave", Change::Leave),
        ("Group::update_capabilities", Change::Update),
    ] {
        scenes.extend(under_all_conditions(operation, "alone", change.call(), run!(changed, change)));
        if change.is_of_a_member() {
            scenes.push(Scene::new(operation, "after another change", run!(changed_after_another, change)));
            let lost = Scene::new(operation, "while no session stands", run!(without_a_session, change));
            scenes.push(lost.needs(Needs::Kit));
        }
    }
    for (operation, look) in [
        ("Group::members", Look::Members),
        ("Group::member", Look::Member),
        ("Group::member_capabilities", Look::Capabilities),
        ("Coordinator::groups", Look::Groups),
    ] {
        let call = if look == Look::Groups { Called::List } else { Called::Members };
        scenes.extend(under_all_conditions(operation, "two members", call, run!(looked_at, look)));
    }
    scenes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Create,
    Delete,
    Join,
    JoinOrCreate,
    Leave,
    Update,
}

impl Change {
    fn call(self) -> Called {
        match self {
            Self::Create => Called::Create,
            Self::Delete => Called::Delete,
            Self::Join | Self::JoinOrCreate => Called::Join,
            Self::Leave => Called::Leave,
            Self::Update => Called::Update,
        }
    }

    fn is_of_a_member(self) -> bool {
        !matches!(self, Self::Create | Self::Delete)
    }

    async fn prepare(self, a: &Coordinator, b: &Coordinator, name: &str) -> Outcome {
        if !matches!(self, Self::Create | Self::JoinOrCreate) {
            b.group(name)?.create().await?;
        }
        if matches!(self, Self::Leave | Self::Update) {
            a.group(name)?.join(Capabilities::new("old")?).await?;
        }
        Ok(())
    }

    async fn make(self, group: &Group) -> Result<()> {
        match self {
            Self::Create => group.create().await,
            Self::Delete => group.delete().await,
            Self::Join => group.join(Capabilities::new("new")?).await,
            Self::JoinOrCreate => group.join_or_create(Capabilities::new("new")?).await,
            Self::Leave => group.leave().await,
            Self::Update => group.update_capabilities(Capabilities::new("new")?).await,
        }
    }

    /// What can be seen when it was not done, and when it was.
    fn states(self) -> [State; 2] {
        match self {
            Self::Create => [State::NoGroup, State::Empty],
            Self::Delete => [State::Empty, State::NoGroup],
            Self::Join => [State::Empty, State::New],
            Self::JoinOrCreate => [State::NoGroup, State::New],
            Self::Leave => [State::Old, State::Empty],
            Self::Update => [State::Old, State::New],
        }
    }
}

/// What others see of the group and its one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NoGroup,
    Empty,
    Old,
    New,
}

async fn state(p: &Point) -> Outcome<State> {
    let members = match p.b().group(p.name())?.members().await {
        Ok(members) => members,
        Err(error) if error.kind() == ErrorKind::GroupNotFound => return Ok(State::NoGroup),
        Err(error) => return Err(error.into()),
    };
    match &members[..] {
        [] => Ok(State::Empty),
        [one] if one.capabilities == Capabilities::new("old")? => Ok(State::Old),
        [one] if one.capabilities == Capabilities::new("new")? => Ok(State::New),
        others => Err(format!("members that nobody is: {others:?}").into()),
    }
}

async fn changed(p: Point, change: Change) -> Outcome {
    change.prepare(p.a(), p.b(), p.name()).await?;
    let before = p.world().calls(change.call());
    let done = p.sweep(change.make(&p.a().group(p.name())?)).await?;
    let begun = p.world().calls(change.call()).map_or(p.polls() > 0, |calls| Some(calls) > before);
    ensure(begun == (p.moment() != Moment::Woken(0)), "the first poll begins it")?;
    judge(&p, p.a(), change, done, begun).await
}

/// A change of another group is on its way: this one waits for its turn.
async fn changed_after_another(p: Point, change: Change) -> Outcome {
    change.prepare(p.a(), p.b(), p.name()).await?;
    let other = p.a().group(format!("{}-other", p.name()))?;
    other.create().await?;
    let mut joining = pin!(other.join(Capabilities::none()));
    // Polled once, it has the turn; on a fast backend it is over with that.
    let joined = poll_fn(|cx| Poll::Ready(joining.as_mut().poll(cx))).await.is_ready();
    let before = p.world().calls(change.call());
    let ends = async {
        p.settle().await;
        if !joined {
            joining.await?;
        }
        Ok(())
    };
    let group = p.a().group(p.name())?;
    let done = p.sweep_while(change.make(&group), ends).await?;
    let begun = p.world().calls(change.call()).map(|calls| Some(calls) > before);
    other.leave().await?;
    match begun {
        Some(begun) => judge(&p, p.a(), change, done, begun).await,
        None => either(&p, change, done).await,
    }
}

/// What is seen is what was begun, and the next change is made at once.
async fn judge(p: &Point, a: &Coordinator, change: Change, done: Option<Result<()>>, begun: bool) -> Outcome {
    let [before, after] = change.states();
    let undone = if change == Change::JoinOrCreate && begun && p.conditions().lets_through() {
        State::Empty
    } else {
        before
    };
    let joins = matches!(change, Change::Join | Change::JoinOrCreate);
    let expected = match &done {
        Some(Ok(())) => after,
        Some(Err(error)) => {
            ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?;
            if joins {
                undone
            } else if change == Change::Leave || p.conditions().lets_through() {
                after
            } else {
                before
            }
        }
        None if joins => undone,
        None if begun && (change == Change::Leave || p.conditions().lets_through()) => after,
        None => before,
    };
    if p.h().is_virtual() {
        let seen = state(p).await?;
        ensure(seen == expected, format!("{seen:?}, not {expected:?} (begun: {begun}, ended: {done:?})"))?;
    } else {
        let limit = p.h().limit(std::time::Duration::from_millis(100));
        eventually(&format!("{expected:?}"), limit, async || {
            Ok::<_, crate::Failure>(state(p).await? == expected)
        })
        .await?;
    }
    next(p, a, expected).await
}

/// Where nobody counts its calls: either it was done or not, and then it stays so.
async fn either(p: &Point, change: Change, done: Option<Result<()>>) -> Outcome {
    let [before, after] = change.states();
    // The next change comes after this one, so asking for one waits for it.
    let group = p.a().group(p.name())?;
    let _ = group.update_capabilities(Capabilities::new("new")?).await;
    let seen = state(p).await?;
    let allowed: &[State] = match (&done, change) {
        (Some(result), _) => {
            if let Err(error) = result {
                return Err(format!("it failed: {error}").into());
            }
            &[after]
        }
        (None, Change::Join) => &[State::Empty],
        (None, Change::JoinOrCreate) => &[State::NoGroup, State::Empty],
        // The update that was just asked for.
        (None, Change::Leave) => &[State::New, State::Empty],
        (None, Change::Update) => &[State::New],
        (None, _) => &[before, after],
    };
    ensure(allowed.contains(&seen), format!("{seen:?}, not one of {allowed:?}"))?;
    next(p, p.a(), seen).await
}

fn is(result: Result<()>, kind: Option<ErrorKind>) -> Outcome {
    match (result.map_err(|error: Error| error.kind()), kind) {
        (Ok(()), None) => Ok(()),
        (Err(error), Some(kind)) if error == kind => Ok(()),
        (result, expected) => Err(format!("the next change ended as {result:?}, not {expected:?}").into()),
    }
}

/// From each state the whole way round, on the coordinator whose future was dropped.
async fn next(p: &Point, a: &Coordinator, now: State) -> Outcome {
    let group = a.group(p.name())?;
    if now == State::NoGroup {
        is(group.delete().await, Some(ErrorKind::GroupNotFound))?;
        group.create().await?;
    }
    if matches!(now, State::NoGroup | State::Empty) {
        is(group.leave().await, Some(ErrorKind::MemberNotFound))?;
        group.join(Capabilities::new("old")?).await?;
    }
    is(group.join(Capabilities::new("twice")?).await, Some(ErrorKind::MemberExists))?;
    group.update_capabilities(Capabilities::new("new")?).await?;
    ensure(state(p).await? == State::New, "an update is not seen")?;
    group.leave().await?;
    group.delete().await?;
    ensure(state(p).await? == State::NoGroup, "a deletion is not seen")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Members,
    Member,
    Capabilities,
    Groups,
}

/// Nothing is changed, whoever looks.
async fn looked_at(p: Point, look: Look) -> Outcome {
    let (a, b) = (p.a().group(p.name())?, p.b().group(p.name())?);
    a.join_or_create(Capabilities::new("new")?).await?;
    b.join(Capabilities::new("new")?).await?;
    let before = p.world().calls(Called::Join);
    let seen = p
        .sweep(async {
            Ok::<_, Error>(match look {
                Look::Members => a.members().await?.len() == 2,
                Look::Member => a.member("b").await?.member == *p.b().member(),
                Look::Capabilities => a.member_capabilities("b").await? == Capabilities::new("new")?,
                Look::Groups => p.a().groups().await?.contains(a.id()),
            })
        })
        .await?;
    match seen {
        Some(Err(error)) => ensure(p.conditions().allows_errors(), format!("it failed: {error}"))?,
        seen => ensure(!matches!(seen, Some(Ok(false))), "it saw something else")?,
    }
    ensure(b.members().await?.len() == 2 && p.world().calls(Called::Join) == before, "looking changed it")?;
    a.leave().await?;
    b.leave().await?;
    Ok(a.delete().await?)
}

/// The session is lost, and a new one is being opened; the groups are joined again first.
async fn without_a_session(p: Point, change: Change) -> Outcome {
    let own = p.fresh().await?;
    change.prepare(&own, p.b(), p.name()).await?;
    let kit = p.world().kit().ok_or("this scene needs the kit")?;
    kit.next(Operation::Open, 1, Fate::Fail);
    kit.expire(own.member().as_bytes());
    p.settle().await;
    ensure(own.session_id().is_none(), "its session has not ended")?;
    let before = kit.calls(change.call().operation());
    let done = p.sweep(change.make(&own.group(p.name())?)).await?;
    // Until the new session stands and has joined again.
    p.h().pass(Duration::from_secs(1)).await;
    let begun = kit.calls(change.call().operation()) > before;
    judge(&p, &own, change, done, begun).await
}
