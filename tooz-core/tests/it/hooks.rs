//! What is read of a group and what is pushed come by different ways: hooks run for what was read, once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::*;
use crate::scripted::*;
use tooz_core::driver::{Departure, GroupChange, MemberRecord};
use tooz_core::{Capabilities, Coordinator, Error, ErrorKind, HookEvent, MemberId, Result};

const SECOND: Duration = Duration::from_secs(1);

/// Member b, as it joined for the n-th time.
fn b(incarnation: u128) -> MemberRecord {
    MemberRecord::new(MemberId::new("b").unwrap(), Capabilities::none(), incarnation)
}

fn missing() -> Result<Vec<MemberRecord>> {
    Err(ErrorKind::GroupNotFound.into())
}

/// What hooks were told, in order: `+g1` for the first join in group g.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

fn text(event: &HookEvent) -> String {
    match event {
        HookEvent::Joined { group, member } => format!("+{group}{}", member.incarnation),
        HookEvent::Left { group, member } => format!("-{group}{}", member.incarnation),
        other => format!("{other:?}"),
    }
}

fn texts(events: &[HookEvent]) -> Vec<String> {
    events.iter().map(text).collect()
}

/// A coordinator with hooks on these groups, of which nothing but the script tells. Nobody is in them.
async fn hooked(name: &str, groups: &[&str]) -> (Arc<Script>, Coordinator, Told) {
    let (script, _, [c]) = scripted(&format!("hooks-{name}"), "", ["a"]).await;
    let told = Told::default();
    for group in groups {
        script.show(group, Ok(Vec::new()));
        for joins in [true, false] {
            let told = told.clone();
            let hook = move |event: &HookEvent| {
                told.0.lock().unwrap().push(text(event));
                Ok(())
            };
            if joins {
                c.hooks().watch_join_group(group, hook).await.unwrap();
            } else {
                c.hooks().watch_leave_group(group, hook).await.unwrap();
            }
        }
    }
    (script, c, told)
}

/// The events of a run without time.
async fn run(c: &Coordinator) -> Vec<String> {
    texts(&c.hooks().run_watchers(Duration::ZERO).await.unwrap())
}

type Run = tokio::task::JoinHandle<Result<Vec<HookEvent>>>;

/// A run in a task of its own.
#[allow(clippy::disallowed_methods)] // on the test's runtime
fn begun(c: &Coordinator, timeout: Duration) -> Run {
    let c = c.clone();
    tokio::spawn(async move { c.hooks().run_watchers(timeout).await })
}

/// A run that has read what there is, and waits for more.
async fn waiting(script: &Script, c: &Coordinator) -> Run {
    let before = count(script, "read");
    let run = begun(c, LONG);
    eventually("it reads", || count(script, "read") > before).await;
    tokio::time::sleep(SECOND).await;
    assert!(!run.is_finished());
    run
}

fn count(script: &Script, what: &str) -> usize {
    script.log().iter().filter(|called| **called == what).count()
}

/// W5: what was read is not told again when it is pushed, before the next run, in it, or while it waits.
#[tokio::test(start_paused = true)]
async fn what_was_read_is_not_told_again() {
    let (script, c, told) = hooked("late", &["g"]).await;
    assert!(c.hooks().run_watchers(SECOND).await.unwrap().is_empty()); // it has a watch now
    script.show("g", Ok(vec![b(1)]));
    assert_eq!(run(&c).await, ["+g1"]);
    script.push("g", Some(Ok(GroupChange::Joined(b(1)))));
    assert!(run(&c).await.is_empty());
    let waits = waiting(&script, &c).await;
    script.push("g", Some(Ok(GroupChange::View(Vec::new())))); // of before the join
    script.push("g", Some(Ok(GroupChange::Joined(b(1)))));
    tokio::time::sleep(SECOND).await;
    assert!(!waits.is_finished());
    script.show("g", Ok(Vec::new()));
    script.push("g", Some(Ok(GroupChange::Left(b(1), Departure::Left))));
    assert_eq!(texts(&soon(waits).await.unwrap().unwrap()), ["-g1"]);
    assert!(run(&c).await.is_empty());
    assert_eq!(told.all(), ["+g1", "-g1"]);
}

/// W5: what was not read yet is told by the run that waits, although it came between reading and watching.
#[tokio::test(start_paused = true)]
async fn what_comes_while_it_waits_is_told_once() {
    let (script, c, told) = hooked("new", &["g"]).await;
    script.reading(SECOND);
    let run = begun(&c, LONG);
    eventually("it has read and watches", || count(&script, "watch") == 1).await;
    script.show("g", Ok(vec![b(1)])); // the watch said that nobody is there
    assert_eq!(texts(&soon(run).await.unwrap().unwrap()), ["+g1"]);

    let waits = waiting(&script, &c).await;
    script.show("g", Ok(vec![b(2)]));
    script.push("g", Some(Ok(GroupChange::Joined(b(1)))));
    script.push("g", Some(Ok(GroupChange::Left(b(1), Departure::Left))));
    script.push("g", Some(Ok(GroupChange::Joined(b(2)))));
    assert_eq!(texts(&soon(waits).await.unwrap().unwrap()), ["-g1", "+g2"]);
    assert_eq!(told.all(), ["+g1", "-g1", "+g2"]);
}

/// W5: what came and went between two readings is told by nobody; another incarnation left and joined.
#[tokio::test(start_paused = true)]
async fn what_happens_between_two_readings_is_folded() {
    let (script, c, told) = hooked("folded", &["g"]).await;
    for change in [GroupChange::Joined(b(1)), GroupChange::Left(b(1), Departure::Left)] {
        script.push("g", Some(Ok(change)));
    }
    assert!(c.hooks().run_watchers(SECOND).await.unwrap().is_empty());
    script.show("g", Ok(vec![b(2)]));
    assert_eq!(run(&c).await, ["+g2"]);
    script.show("g", Ok(vec![b(5)]));
    assert_eq!(run(&c).await, ["-g2", "+g5"]);
    assert_eq!(told.all(), ["+g2", "-g2", "+g5"]);
}

/// W5, W4: members of a group that is gone have left, and those of a group of the same name have joined.
#[tokio::test(start_paused = true)]
async fn a_group_that_is_made_again_is_another_one() {
    let (script, c, _) = hooked("deleted", &["g"]).await;
    script.show("g", Ok(vec![b(1)]));
    assert_eq!(run(&c).await, ["+g1"]);
    script.show("g", missing());
    assert_eq!(run(&c).await, ["-g1"]);
    assert!(c.hooks().run_watchers(SECOND).await.unwrap().is_empty());
    script.show("g", Ok(vec![b(2)]));
    assert_eq!(run(&c).await, ["+g2"]);

    // While a run waits: the group goes, and its watch with it.
    let waits = waiting(&script, &c).await;
    script.show("g", missing());
    script.push("g", Some(Ok(GroupChange::Deleted)));
    script.push("g", None);
    assert_eq!(texts(&soon(waits).await.unwrap().unwrap()), ["-g2"]);
    // Made again, and in between nobody looked: the next watch is of the new one.
    script.show("g", Ok(vec![b(3)]));
    assert_eq!(run(&c).await, ["+g3"]);
    let waits = waiting(&script, &c).await;
    script.show("g", Ok(vec![b(4)]));
    script.push("g", Some(Ok(GroupChange::Deleted)));
    script.push("g", None);
    assert_eq!(texts(&soon(waits).await.unwrap().unwrap()), ["-g3", "+g4"]);
}

/// W5: a group that goes between reading and watching is read once more.
#[tokio::test(start_paused = true)]
async fn a_group_that_goes_before_it_is_watched_is_noticed() {
    let (script, c, _) = hooked("gone", &["g", "h"]).await;
    script.show("g", Ok(vec![b(1)]));
    assert_eq!(run(&c).await, ["+g1"]);
    script.read_once("g", Ok(vec![b(1)]));
    script.show("g", missing());
    assert_eq!(texts(&soon(c.hooks().run_watchers(LONG)).await.unwrap()), ["-g1"]);
}

/// W5: a run whose reading fails runs no hook and loses nothing, of no group; all are read at the same time.
#[tokio::test(start_paused = true)]
async fn a_failed_reading_loses_nothing() {
    let (script, c, told) = hooked("failed", &["g", "h", "i"]).await;
    script.show("g", Ok(vec![b(1)]));
    script.show("h", Err(Error::new(ErrorKind::Unavailable, "as the test wants it")));
    assert_eq!(c.hooks().run_watchers(LONG).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(told.all().is_empty());
    script.show("h", Ok(vec![b(2)]));
    script.reading(SECOND);
    let start = script.now();
    assert_eq!(run(&c).await, ["+g1", "+h2"]);
    assert!(script.now().saturating_since(start) < 2 * SECOND);
    assert_eq!(told.all(), ["+g1", "+h2"]);
}

/// W5: a watch that fails ends the waiting, and the next run has a new one.
#[tokio::test(start_paused = true)]
async fn a_failed_watch_loses_nothing() {
    let (script, c, told) = hooked("unwatched", &["g", "h"]).await;
    let waits = waiting(&script, &c).await;
    assert_eq!(count(&script, "watch"), 2);
    script.show("h", Ok(vec![b(1)]));
    script.push("g", Some(Err(Error::new(ErrorKind::Denied, "as the test wants it"))));
    script.push("h", Some(Ok(GroupChange::Joined(b(1)))));
    assert_eq!(soon(waits).await.unwrap().unwrap_err().kind(), ErrorKind::Denied);
    assert!(told.all().is_empty());
    assert_eq!(run(&c).await, ["+h1"]);
    let waits = waiting(&script, &c).await;
    assert_eq!(count(&script, "watch"), 3);
    script.show("g", Ok(vec![b(2)]));
    script.push("g", Some(Ok(GroupChange::Joined(b(2)))));
    assert_eq!(texts(&soon(waits).await.unwrap().unwrap()), ["+g2"]);
}

/// W5: capabilities are no event and not worth a reading; whoever leaves is shown with what it published last.
#[tokio::test(start_paused = true)]
async fn an_update_is_noted_and_no_more() {
    let (script, c, _) = hooked("updated", &["g"]).await;
    script.show("g", Ok(vec![b(1)]));
    assert_eq!(run(&c).await, ["+g1"]);
    let waits = waiting(&script, &c).await;
    let reads = count(&script, "read");
    let mut newest = b(1);
    newest.capabilities = Capabilities::new("newest").unwrap();
    script.push("g", Some(Ok(GroupChange::Updated(newest.clone()))));
    script.push("g", Some(Ok(GroupChange::Updated(b(7))))); // nobody who is known
    tokio::time::sleep(SECOND).await;
    assert_eq!(count(&script, "read"), reads);
    script.show("g", Ok(Vec::new()));
    script.push("g", Some(Ok(GroupChange::Left(newest.clone(), Departure::Died))));
    let events = soon(waits).await.unwrap().unwrap();
    assert!(matches!(&events[..], [HookEvent::Left { member, .. }] if *member == newest), "{events:?}");
}

/// W5: a run with time waits as long as nothing happens, whatever is pushed.
#[tokio::test(start_paused = true)]
async fn news_of_nothing_do_not_end_the_waiting() {
    let (script, c, told) = hooked("nothing", &["g"]).await;
    let start = script.now();
    let run = begun(&c, 10 * SECOND);
    for _ in 0..5 {
        tokio::time::sleep(SECOND).await;
        script.push("g", Some(Ok(GroupChange::View(Vec::new()))));
    }
    assert!(soon(run).await.unwrap().unwrap().is_empty());
    assert!(script.now().saturating_since(start) >= 10 * SECOND);
    assert!(told.all().is_empty());
}

/// W5: wherever a run is dropped, each event is told once.
#[tokio::test(start_paused = true)]
async fn a_dropped_run_loses_nothing() {
    let (script, c, told) = hooked("dropped", &["g"]).await;
    script.reading(SECOND);
    let mut expected = Vec::new();
    for count in 0..12 {
        let n = count as u128 + 1;
        // There already for one half; for the other it comes while the run waits.
        if count % 2 == 0 {
            script.show("g", Ok(vec![b(n)]));
        }
        drop(cancelled_at(count / 2, c.hooks().run_watchers(LONG)).await);
        script.show("g", Ok(vec![b(n)]));
        script.push("g", Some(Ok(GroupChange::Joined(b(n)))));
        drop(cancelled_at(count / 2, c.hooks().run_watchers(SECOND)).await);
        run(&c).await;
        if count > 0 {
            expected.push(format!("-g{count}"));
        }
        expected.push(format!("+g{n}"));
        assert_eq!(told.all(), expected);
    }
}
