//! W5: hooks under tooz's names.

use std::sync::{Arc, Mutex, PoisonError};

use tooz_core::{BoxError, HookEvent};

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(join_and_leave_hooks_run, "W5"),
    case!(hooks_run_only_inside_run_watchers, "W5"),
    case!(a_run_sees_what_was_done_before_it, "W5"),
    case!(a_run_sees_what_another_process_did_before_it, "W5").processes(),
    case!(run_watchers_waits_for_a_first_event, "W5"),
    case!(run_watchers_runs_for_leader_before_it_waits, "W5", "E1"),
    case!(run_watchers_without_time_answers_at_once, "W5").exact(),
    case!(members_that_are_there_already_give_no_event, "W5"),
    case!(an_elected_hook_runs, "W5", "E1"),
    case!(standing_down_gives_up_what_a_hook_won, "W5", "E2"),
    case!(an_unwatched_hook_does_not_run, "W5"),
    case!(an_unknown_hook_is_refused, "W5"),
    case!(hooks_of_one_group_know_nothing_of_another, "W5"),
    case!(a_failing_hook_stops_no_other, "W5"),
    case!(a_panicking_hook_stops_no_other, "W5"),
    case!(hooks_of_an_unknown_group_are_refused, "W5", "W4"),
];

/// What hooks were told, in order.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn hook(&self) -> impl Fn(&HookEvent) -> Result<(), BoxError> + Send + Sync + 'static + use<> {
        let told = self.clone();
        move |event| {
            told.0.lock().unwrap_or_else(PoisonError::into_inner).push(text(event));
            Ok(())
        }
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn text(event: &HookEvent) -> String {
    match event {
        HookEvent::Joined { group, member } => format!("{} joined {group}", member.member),
        HookEvent::Left { group, member } => format!("{} left {group}", member.member),
        HookEvent::Elected { group, member, .. } => format!("{member} leads {group}"),
        _ => "something new".into(),
    }
}

/// Runs hooks until so many have been told something.
async fn run_until(h: &Harness, c: &Coordinator, told: &Told, count: usize) -> Outcome {
    within(&format!("{count} events; hooks were told {:?}", told.all()), h.soon() * 3, async {
        while told.all().len() < count {
            c.hooks().run_watchers(millis(20)).await?;
        }
        Outcome::Ok(())
    })
    .await?
}

/// W5: of a member that comes and goes; what ran is the answer.
async fn join_and_leave_hooks_run(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    b.group("g")?.create().await?;
    let told = Told::default();
    a.hooks().watch_join_group("g", told.hook()).await?;
    a.hooks().watch_leave_group("g", told.hook()).await?;
    b.group("g")?.join(caps("mine")?).await?;
    let events = a.hooks().run_watchers(h.soon()).await?;
    ensure(
        matches!(&events[..], [HookEvent::Joined { member, .. }] if member.capabilities == caps("mine")?),
        format!("{events:?}"),
    )?;
    b.group("g")?.leave().await?;
    let events = a.hooks().run_watchers(h.soon()).await?;
    ensure(matches!(&events[..], [HookEvent::Left { .. }]), format!("{events:?}"))?;
    ensure(told.all() == ["b joined g", "b left g"], format!("{:?}", told.all()))?;
    ensure(a.hooks().run_watchers(Duration::ZERO).await?.is_empty(), "an event ran twice")
}

/// W5: and nowhere else.
async fn hooks_run_only_inside_run_watchers(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    b.group("g")?.create().await?;
    let told = Told::default();
    a.hooks().watch_join_group("g", told.hook()).await?;
    b.group("g")?.join(Capabilities::none()).await?;
    h.pass(millis(50)).await;
    a.heartbeat().await?;
    ensure(a.group("g")?.members().await?.len() == 1, "no member")?;
    ensure(told.all().is_empty(), "a hook ran by itself")?;
    run_until(&h, &a, &told, 1).await
}

/// How often something is done elsewhere right before a run.
const ROUNDS: usize = 30;

/// The events of a run that has no time to wait for any, which have to be one.
async fn one_event(c: &Coordinator, told: &mut usize, after: &str) -> Outcome<HookEvent> {
    let mut events = c.hooks().run_watchers(Duration::ZERO).await?;
    *told += events.len();
    match (events.pop(), &events[..]) {
        (Some(event), []) => Ok(event),
        (last, first) => Err(format!("right after {after}: {first:?}, {last:?}").into()),
    }
}

/// W5: a join, a leave or a close that has returned is in the run that begins then, and in no later one.
async fn a_run_sees_what_was_done_before_it(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let group = b.group("g")?;
    group.create().await?;
    let (hooks, mut told) = (Told::default(), 0);
    a.hooks().watch_join_group("g", hooks.hook()).await?;
    a.hooks().watch_leave_group("g", hooks.hook()).await?;
    for round in 0..ROUNDS {
        group.join(Capabilities::new(&round)?).await?;
        let joined = one_event(&a, &mut told, "a join").await?;
        let right = matches!(&joined, HookEvent::Joined { member, .. } if member.capabilities.get::<usize>().ok() == Some(round));
        ensure(right, format!("a join is {joined:?}"))?;
        group.leave().await?;
        let left = one_event(&a, &mut told, "a leave").await?;
        ensure(matches!(left, HookEvent::Left { .. }), format!("a leave is {left:?}"))?;
    }
    for n in 0..ROUNDS / 3 {
        let c = h.coordinator(format!("c{n}")).await?;
        c.group("g")?.join(Capabilities::none()).await?;
        one_event(&a, &mut told, "a join").await?;
        c.close().await?;
        let left = one_event(&a, &mut told, "a close").await?;
        ensure(matches!(left, HookEvent::Left { .. }), format!("a close is {left:?}"))?;
    }
    runs_nothing_again(&h, &a, &hooks, told).await
}

/// W5: the same with a process, of whose changes this one has to be told first.
async fn a_run_sees_what_another_process_did_before_it(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.group("g")?.create().await?;
    let (hooks, mut told) = (Told::default(), 0);
    a.hooks().watch_join_group("g", hooks.hook()).await?;
    a.hooks().watch_leave_group("g", hooks.hook()).await?;
    let mut other = h.process("other").await?;
    for _ in 0..ROUNDS {
        other.ask("join g").await?;
        let joined = one_event(&a, &mut told, "a join").await?;
        ensure(matches!(joined, HookEvent::Joined { .. }), format!("a join is {joined:?}"))?;
        other.ask("leave g").await?;
        let left = one_event(&a, &mut told, "a leave").await?;
        ensure(matches!(left, HookEvent::Left { .. }), format!("a leave is {left:?}"))?;
    }
    other.ask("join g").await?;
    one_event(&a, &mut told, "a join").await?;
    other.ask("close").await?;
    let left = one_event(&a, &mut told, "a close").await?;
    ensure(matches!(left, HookEvent::Left { .. }), format!("a close is {left:?}"))?;
    runs_nothing_again(&h, &a, &hooks, told).await
}

/// What is pushed late, of what was told already, runs no hook, neither in a run that waits.
async fn runs_nothing_again(h: &Harness, c: &Coordinator, hooks: &Told, told: usize) -> Outcome {
    let again = c.hooks().run_watchers(h.limit(millis(20))).await?;
    ensure(again.is_empty(), format!("told twice: {again:?}"))?;
    ensure(hooks.all().len() == told, format!("{told} events, and hooks were told {:?}", hooks.all()))
}

/// W5, E1: who waits for members need not wait for them to become leader.
async fn run_watchers_runs_for_leader_before_it_waits(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.group("g")?.create().await?;
    let told = Told::default();
    a.hooks().watch_join_group("g", told.hook()).await?;
    a.hooks().watch_elected_as_leader("g", told.hook()).await?;
    let events = h.soon_done("the election", Box::pin(a.hooks().run_watchers(secs(600)))).await??;
    ensure(matches!(&events[..], [HookEvent::Elected { .. }]), format!("{events:?}"))?;
    // A leader waits as others do.
    let running = {
        let a = a.clone();
        h.spawn(async move { a.hooks().run_watchers(secs(600)).await })
    };
    h.pass(millis(20)).await;
    ensure(!running.is_finished(), "it did not wait")?;
    a.group("g")?.join(Capabilities::none()).await?;
    let events = h.soon_done("the event", running).await???;
    ensure(matches!(&events[..], [HookEvent::Joined { .. }]), format!("{events:?}"))
}

/// W5: a caller with time is woken by the event.
async fn run_watchers_waits_for_a_first_event(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    b.group("g")?.create().await?;
    let told = Told::default();
    a.hooks().watch_join_group("g", told.hook()).await?;
    let running = {
        let a = a.clone();
        h.spawn(async move { a.hooks().run_watchers(secs(600)).await })
    };
    h.pass(millis(20)).await;
    ensure(!running.is_finished(), "it did not wait")?;
    b.group("g")?.join(Capabilities::none()).await?;
    let events = h.soon_done("the event", running).await???;
    ensure(events.len() == 1 && told.all().len() == 1, format!("{events:?}"))
}

/// W5: no time means what is there already.
async fn run_watchers_without_time_answers_at_once(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.group("g")?.create().await?;
    a.hooks().watch_join_group("g", |_| Ok(())).await?;
    let watch = h.stopwatch();
    ensure(a.hooks().run_watchers(Duration::ZERO).await?.is_empty(), "events of nothing")?;
    ensure(watch.elapsed() < millis(10), format!("it took {:?}", watch.elapsed()))?;
    let watch = h.stopwatch();
    ensure(a.hooks().run_watchers(secs(2)).await?.is_empty(), "events of nothing")?;
    let took = watch.elapsed();
    ensure(took >= secs(2) && took <= secs(2) + millis(100), format!("a timeout of 2 s took {took:?}"))
}

/// W5: only what happens after the registration.
async fn members_that_are_there_already_give_no_event(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    b.group("g")?.join_or_create(Capabilities::none()).await?;
    let told = Told::default();
    a.hooks().watch_join_group("g", told.hook()).await?;
    ensure(a.hooks().run_watchers(Duration::ZERO).await?.is_empty(), "an event of the past")?;
    a.group("g")?.join(Capabilities::none()).await?; // our own join counts
    run_until(&h, &a, &told, 1).await?;
    ensure(told.all() == ["a joined g"], format!("{:?}", told.all()))
}

/// W5, E1: once for each election that was won, and it really leads.
async fn an_elected_hook_runs(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let told = Told::default();
    for c in [&a, &b] {
        c.group("g")?.create().await.ok();
        c.hooks().watch_elected_as_leader("g", told.hook()).await?;
        c.hooks().run_watchers(Duration::ZERO).await?;
        c.hooks().run_elect_coordinator().await?;
    }
    ensure(told.all() == ["a leads g"], format!("{:?}", told.all()))?;
    let leader = b.election("g")?.leader().await?.ok_or("nobody leads")?;
    ensure(leader.member.as_ref() == Some(a.member()), format!("{leader:?}"))?;
    a.close().await?;
    within("the next election", h.soon(), async {
        while told.all().len() < 2 {
            b.hooks().run_watchers(millis(20)).await?;
        }
        Outcome::Ok(())
    })
    .await??;
    ensure(told.all() == ["a leads g", "b leads g"], format!("{:?}", told.all()))
}

/// W5, E2: `stand_down` says whether there was something to give up.
async fn standing_down_gives_up_what_a_hook_won(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let told = Told::default();
    let hook = a.hooks().watch_elected_as_leader("g", told.hook()).await?;
    a.hooks().run_watchers(Duration::ZERO).await?;
    a.hooks().unwatch_elected_as_leader("g", hook)?;
    ensure(a.hooks().stand_down("g").await?, "it did not lead")?;
    ensure(!a.hooks().stand_down("g").await?, "it stood down twice")?;
    b.election("g")?.try_campaign().await?.ok_or("somebody still leads")?.resign().await?;
    Ok(())
}

/// W5: unregistered by its id; others of the group stay.
async fn an_unwatched_hook_does_not_run(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    b.group("g")?.create().await?;
    let (gone, stays) = (Told::default(), Told::default());
    let hook = a.hooks().watch_join_group("g", gone.hook()).await?;
    a.hooks().watch_join_group("g", stays.hook()).await?;
    a.hooks().unwatch_join_group("g", hook)?;
    b.group("g")?.join(Capabilities::none()).await?;
    run_until(&h, &a, &stays, 1).await?;
    ensure(gone.all().is_empty(), "an unregistered hook ran")
}

/// W5: an id of another kind, another group, or used up.
async fn an_unknown_hook_is_refused(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.group("g")?.create().await?;
    let hook = a.hooks().watch_join_group("g", |_| Ok(())).await?;
    refused(a.hooks().unwatch_leave_group("g", hook), ErrorKind::HookNotFound)?;
    refused(a.hooks().unwatch_elected_as_leader("g", hook), ErrorKind::HookNotFound)?;
    refused(a.hooks().unwatch_join_group("other", hook), ErrorKind::HookNotFound)?;
    a.hooks().unwatch_join_group("g", hook)?;
    refused(a.hooks().unwatch_join_group("g", hook), ErrorKind::HookNotFound).map(|_| ())
}

/// W5: registered per group.
async fn hooks_of_one_group_know_nothing_of_another(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    b.group("g")?.create().await?;
    b.group("h")?.create().await?;
    let (of_g, of_h) = (Told::default(), Told::default());
    a.hooks().watch_join_group("g", of_g.hook()).await?;
    a.hooks().watch_join_group("h", of_h.hook()).await?;
    b.group("h")?.join(Capabilities::none()).await?;
    run_until(&h, &a, &of_h, 1).await?;
    ensure(of_g.all().is_empty(), format!("{:?}", of_g.all()))?;
    ensure(of_h.all() == ["b joined h"], format!("{:?}", of_h.all()))
}

/// W5: its failure is reported, the others run, and nothing runs twice.
async fn a_failing_hook_stops_no_other(h: Harness) -> Outcome {
    bad_hook(h, |_| Err("this hook fails, as the case wants it".into())).await
}

/// W5: the same with a panic.
async fn a_panicking_hook_stops_no_other(h: Harness) -> Outcome {
    bad_hook(h, |_| std::panic::resume_unwind(Box::new("as the case wants it"))).await
}

async fn bad_hook(
    h: Harness,
    bad: impl Fn(&HookEvent) -> Result<(), BoxError> + Send + Sync + 'static,
) -> Outcome {
    let (a, b) = h.pair().await?;
    b.group("g")?.create().await?;
    let (before, after, calls) = (Told::default(), Told::default(), Told::default());
    let mut events = a.events();
    a.hooks().watch_join_group("g", before.hook()).await?;
    let counted = calls.hook();
    a.hooks()
        .watch_join_group("g", move |event| {
            counted(event)?;
            bad(event)
        })
        .await?;
    a.hooks().watch_join_group("g", after.hook()).await?;
    b.group("g")?.join(Capabilities::none()).await?;
    let ran = a.hooks().run_watchers(h.soon()).await?;
    ensure(ran.len() == 1, format!("{ran:?}"))?;
    a.hooks().run_watchers(Duration::ZERO).await?;
    ensure(before.all().len() == 1 && after.all().len() == 1, "another hook did not run once")?;
    ensure(calls.all().len() == 1, format!("the bad hook ran {} times", calls.all().len()))?;
    let failed = |event: &Event| matches!(event, Event::HookFailed { .. });
    event(&mut events, h.soon(), "HookFailed", failed).await?;
    b.group("g")?.leave().await?;
    b.group("g")?.join(Capabilities::none()).await?;
    run_until(&h, &a, &after, 2).await
}

/// W5, W4: a group that is not there cannot be watched by hooks either.
async fn hooks_of_an_unknown_group_are_refused(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    refused(a.hooks().watch_join_group("g", |_| Ok(())).await, ErrorKind::GroupNotFound)?;
    refused(a.hooks().watch_leave_group("g", |_| Ok(())).await, ErrorKind::GroupNotFound).map(|_| ())
}
