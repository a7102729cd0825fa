//! Beats: what a deadline is counted from, what a beat alone may tell, and answers that overtake each other.
#![allow(clippy::disallowed_methods)] // the paused clock is read as it is

use std::time::Duration;

use crate::common::*;
use crate::scripted::*;
use tooz_core::{Capabilities, Coordinator, ErrorKind, Event, Events, Liveness, LossReason};
use tooz_memory::{Cut, Kit, Operation, Outcome};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

async fn pass(millis: u32) {
    tokio::time::sleep(millis * MILLI).await;
}

fn left(c: &Coordinator) -> Duration {
    match c.liveness() {
        Liveness::Alive { until: Some(until) } | Liveness::Suspended { until } => until.remaining(),
        other => panic!("{other:?}"),
    }
}

/// The events that are there already.
async fn told(events: &mut Events) -> Vec<Event> {
    let mut told = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(MILLI, events.next()).await {
        told.push(event);
    }
    told
}

/// S6: a twentieth of the ttl, at least 100 ms, before the backend's, counted from before the beat was sent.
#[tokio::test(start_paused = true)]
async fn the_deadline_is_counted_from_the_sending_less_the_margin() {
    for (ttl, margin) in [(1000, 100), (2000, 100), (15_000, 750), (60_000, 3000)] {
        let url = &format!("memory://beats-margin-{ttl}?ttl={ttl}ms");
        let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
        assert_eq!(left(&c), (ttl - margin) * MILLI);
        pass(ttl / 3 - 10).await;
        kit.delay_answers(ttl / 10 * MILLI);
        pass(ttl / 10 + 20).await; // sent 10 ms later, and answered 10 ms ago
        let expected = (ttl - margin - ttl / 10 - 10) * MILLI;
        let now = left(&c);
        assert!(now + 3 * MILLI > expected && now < expected + 3 * MILLI, "{now:?} of {ttl} ms");
    }
}

/// S6, L7: the loss itself comes at the deadline, also when no beat is due and the backend says nothing.
#[tokio::test(start_paused = true)]
async fn the_loss_is_told_at_the_deadline() {
    let url = "memory://beats-deadline?ttl=15s";
    let kit = Kit::of(url).unwrap();
    let c = builder(url, "a").manual_heart().connect().await.unwrap();
    let mut events = c.events();
    let guard = c.lock("x").unwrap().acquire().await.unwrap();
    kit.cut_off("a", Cut::Hang);
    let deadline = guard.deadline().unwrap().remaining();
    let began = tokio::time::Instant::now();
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    let took = began.elapsed();
    assert!(took >= deadline && took <= deadline + 2 * MILLI, "{took:?} for {deadline:?}");
    event(&mut events, |event| matches!(event, Event::Lost(LossReason::Expired)).then_some(())).await;
}

/// S5: beats that fail are repeated soon, and not in a hot loop.
#[tokio::test(start_paused = true)]
async fn a_beat_that_failed_is_repeated_soon() {
    let url = "memory://beats-failed?ttl=24s";
    let (kit, _c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    pass(7_900).await;
    kit.cut_off("a", Cut::Fail);
    kit.reset_calls();
    // The first one at 8 s, then one after each 1 to 2 s.
    pass(10_200).await;
    let beats = kit.calls(Operation::Renew);
    assert!((6..=11).contains(&beats), "{beats} beats in 10 s");
}

/// S4, S10: a beat that is not answered in a sixth of the ttl is followed by the next one at once; its answer still
/// counts when it comes, from when it was sent, and says nothing about the newer one.
#[tokio::test(start_paused = true)]
async fn an_answer_that_was_overtaken_moves_nothing_back() {
    for outcome in [None, Some(Outcome::Fail)] {
        let url = &format!("memory://beats-overtaken-{}?ttl=24s", outcome.is_some());
        let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
        let mut events = c.events();
        pass(7_900).await;
        kit.reset_calls();
        kit.delay_answers(6 * SECOND);
        if let Some(outcome) = outcome {
            kit.next_of("a", Operation::Renew, 1, outcome);
        }
        pass(200).await; // the first is under way since 8 s
        kit.delay_answers(Duration::ZERO);
        pass(4_000).await; // its time was over at 12 s, the second was answered at once
        assert_eq!(kit.calls(Operation::Renew), 2);
        let recovered = told(&mut events).await;
        assert!(matches!(recovered[..], [Event::Suspended, Event::Recovered]), "{recovered:?}");
        let newer = left(&c);
        pass(2_000).await; // the first is answered at 14 s
        assert!(newer.saturating_sub(left(&c)) <= 2_010 * MILLI, "{newer:?}, then {:?}", left(&c));
        let late = told(&mut events).await;
        assert!(matches!(late[..], [Event::BeatLate { .. }]), "{late:?}");
        assert!(matches!(c.liveness(), Liveness::Alive { .. }));
    }
}

/// S10: while the newer one is under way, too.
#[tokio::test(start_paused = true)]
async fn an_answer_that_was_overtaken_does_not_end_the_wait_for_the_newer_one() {
    let url = "memory://beats-newer?ttl=24s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    pass(7_900).await;
    kit.reset_calls();
    kit.delay_answers(6 * SECOND);
    pass(200).await; // sent at 8 s, to be answered at 14 s
    kit.delay_answers(LONG);
    pass(4_000).await; // the second was sent at 12 s, and is never answered
    kit.delay_answers(Duration::ZERO);
    pass(4_000).await; // its time was over at 16 s
    assert_eq!(kit.calls(Operation::Renew), 3);
    assert!(left(&c) > 20 * SECOND, "{:?}", left(&c));
}

/// S7: an answer to a beat of the session before says nothing about this one.
#[tokio::test(start_paused = true)]
async fn an_answer_to_an_earlier_sessions_beat_is_not_ours() {
    let url = "memory://beats-earlier?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    pass(4_900).await;
    kit.delay(2 * SECOND);
    pass(200).await; // a beat is under way, and reaches the backend at 7 s
    kit.delay(Duration::ZERO);
    let first = c.session_id();
    kit.expire("a");
    eventually("a new session stands", || c.session_id().is_some_and(|id| Some(id) != first)).await;
    let (second, beats) = (c.session_id(), c.heart().beats());
    let guard = c.lock("x").unwrap().acquire().await.unwrap();
    pass(3_000).await; // it was told that its session is gone
    assert_eq!((c.session_id(), c.heart().beats()), (second, beats));
    assert!(guard.is_held());
}

/// L7, S7: a backend that says nothing by itself says it with the next beat.
#[tokio::test(start_paused = true)]
async fn a_beat_alone_tells_what_is_gone() {
    let (script, kit, [a, b]) = scripted("beats-alone", "ttl=15s", ["a", "b"]).await;
    script.silent();
    let mut events = a.events();
    let group = a.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    let (broken, stays) = (a.lock("x").unwrap(), a.lock("y").unwrap());
    let (broken, stays) = (broken.acquire().await.unwrap(), stays.acquire().await.unwrap());

    b.lock("x").unwrap().break_lock("enough").await.unwrap();
    let why = tokio::time::timeout(6 * SECOND, broken.lost()).await.unwrap();
    assert!(matches!(why, LossReason::Broken { by: Some(_), .. }), "{why:?}");
    assert!(stays.is_held() && told(&mut events).await.is_empty());

    assert!(kit.evict("g", "a"));
    let evicted =
        |event: &Event| matches!(event, Event::Evicted(group) if group.to_string() == "g").then_some(());
    tokio::time::timeout(6 * SECOND, event(&mut events, evicted)).await.unwrap();
    event(&mut events, |event| matches!(event, Event::Rejoined(_)).then_some(())).await;
    assert_eq!(group.members().await.unwrap().len(), 1);
    assert!(stays.is_held());

    assert_eq!(kit.expire("a"), 1);
    let why = tokio::time::timeout(6 * SECOND, stays.lost()).await.unwrap();
    assert_eq!(why, LossReason::Expired);
    event(&mut events, |event| matches!(event, Event::Rejoined(_)).then_some(())).await;
}

/// S7: a driver may say it as an error, too.
#[tokio::test(start_paused = true)]
async fn a_beat_that_is_told_of_a_lost_session_ends_it() {
    let (script, _, [a]) = scripted("beats-error", "ttl=15s", ["a"]).await;
    let mut events = a.events();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    script.next_beat(tooz_core::Error::new(ErrorKind::SessionLost, "the lease is gone"));
    assert_eq!(a.heartbeat().await.unwrap_err().kind(), ErrorKind::SessionLost);
    assert!(!guard.is_held());
    let events = told(&mut events).await;
    assert!(matches!(events[..], [Event::Lost(LossReason::Expired), Event::Rejoined(_)]), "{events:?}");
}

/// S5: no news while all is well.
#[tokio::test(start_paused = true)]
async fn beats_that_succeed_are_no_events() {
    for ttl in ["", "?ttl=15s"] {
        let c = connect(&format!("memory://beats-quiet{ttl}"), "a").await;
        let mut events = c.events();
        pass(120_000).await;
        assert!(c.heart().beats() > 20);
        let events = told(&mut events).await;
        assert!(events.is_empty(), "{events:?}");
    }
}

/// S7: a beat that was sent before a group was joined again does not say that its record was removed.
#[tokio::test(start_paused = true)]
async fn a_beat_under_way_does_not_evict_who_joins_meanwhile() {
    let url = "memory://beats-evict?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    c.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    kit.next_of("a", Operation::Join, 1, Outcome::Fail);
    let first = c.session_id();
    kit.expire("a");
    eventually("a new session stands", || c.session_id().is_some_and(|id| Some(id) != first)).await;
    kit.delay_answers(SECOND);
    let beat = c.heartbeat();
    let calm = async {
        pass(10).await;
        kit.delay_answers(Duration::ZERO);
        let rejoined = event(&mut events, |event| matches!(event, Event::Rejoined(_)).then_some(()));
        tokio::time::timeout(SECOND / 2, rejoined).await.expect("the beat is over already");
    };
    let (beat, ()) = tokio::join!(beat, calm);
    beat.unwrap();
    let after = told(&mut events).await;
    assert!(!after.iter().any(|event| matches!(event, Event::Evicted(_))), "{after:?}");
}

/// S8: a beat by hand that ends with the session says so, and does not wait for the next session.
#[tokio::test(start_paused = true)]
async fn a_beat_by_hand_ends_with_the_session_and_with_the_coordinator() {
    for close in [false, true] {
        let url = &format!("memory://beats-hand-{close}?ttl=15s&operation_timeout=1h");
        let kit = Kit::of(url).unwrap();
        let c = builder(url, "a").manual_heart().connect().await.unwrap();
        kit.cut_off("a", Cut::Hang);
        pass(14_000).await; // less before the deadline than a beat may take
        let began = tokio::time::Instant::now();
        let beat = async { (c.heartbeat().await.unwrap_err(), began.elapsed()) };
        let closing = async {
            pass(100).await;
            if close { c.close().await } else { Ok(()) }
        };
        let ((error, took), _) = tokio::join!(beat, closing);
        let expected = if close { (ErrorKind::Closed, 100) } else { (ErrorKind::SessionLost, 250) };
        assert_eq!(error.kind(), expected.0);
        assert!(took >= expected.1 * MILLI && took <= (expected.1 + 5) * MILLI, "{took:?}");
    }
}

/// S10: stopped and started again in time, the heart goes on with the same session.
#[tokio::test(start_paused = true)]
async fn a_heart_that_is_started_again_in_time_loses_nothing() {
    let url = "memory://beats-start?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let guard = c.lock("x").unwrap().acquire().await.unwrap();
    let heart = c.heart();
    let waiting = {
        let heart = heart.clone();
        tokio::spawn(async move { heart.wait().await })
    };
    pass(100).await;
    heart.stop();
    tokio::time::timeout(MILLI, waiting).await.expect("whoever waits is let go").unwrap();
    let beats = kit.calls(Operation::Renew);
    pass(10_000).await;
    assert_eq!(kit.calls(Operation::Renew), beats, "it beats although it was stopped");
    heart.start();
    pass(60_000).await;
    assert!(guard.is_held() && heart.is_alive());
    // Whoever waits for a session that only the heart would open hears that it was stopped.
    kit.cut_off("a", Cut::Hang);
    eventually("it is lost", || c.session_id().is_none()).await;
    let lock = c.lock("y").unwrap();
    let (waited, ()) = tokio::join!(lock.acquire_within(LONG), async {
        pass(1_000).await;
        heart.stop();
    });
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::SessionLost);
    kit.heal("a");
    pass(60_000).await;
    assert!(c.session_id().is_none(), "opened by a heart that was stopped");
    heart.start();
    eventually("a new session stands", || c.session_id().is_some()).await;
}

/// S7: a session that has lived for a beat is replaced at once.
#[tokio::test(start_paused = true)]
async fn a_session_that_has_beaten_is_replaced_without_a_pause() {
    let url = "memory://beats-replaced?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    for _ in 0..5 {
        let session = c.session_id();
        kit.expire("a");
        let began = tokio::time::Instant::now();
        eventually("a new session stands", || c.session_id().is_some_and(|id| Some(id) != session)).await;
        assert!(began.elapsed() < 50 * MILLI, "{:?}", began.elapsed());
        pass(6_000).await;
    }
}
