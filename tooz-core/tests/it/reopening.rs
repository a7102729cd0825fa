//! After a loss: the next session, what of the old one stands in its way, and what is joined again (S7).
#![allow(clippy::disallowed_methods)] // the paused clock is read as it is

use std::time::Duration;

use crate::common::*;
use crate::scripted::*;
use tooz_core::{Capabilities, Coordinator, ErrorKind, Event, Events};
use tooz_memory::{Cut, Kit, Operation, Outcome};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

async fn rejoined(events: &mut Events) -> Vec<String> {
    let names = |event: &Event| match event {
        Event::Rejoined(groups) => Some(groups.iter().map(ToString::to_string).collect()),
        _ => None,
    };
    event(events, names).await
}

async fn lost(events: &mut Events) {
    event(events, |event| matches!(event, Event::Lost(_)).then_some(())).await;
}

/// The events that are there already.
async fn told(events: &mut Events) -> Vec<Event> {
    let mut told = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(MILLI, events.next()).await {
        told.push(event);
    }
    told
}

async fn another_session(c: &Coordinator, earlier: Option<tooz_core::driver::SessionId>) {
    eventually("another session stands", || c.session_id().is_some_and(|id| Some(id) != earlier)).await;
}

/// An old session that still stands on the backend, since it could not be closed, does not hold its own member up.
#[tokio::test(start_paused = true)]
async fn an_old_session_that_could_not_be_closed_is_no_obstacle() {
    let url = "memory://reopening-old?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    c.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    for _ in 0..3 {
        kit.delay(SECOND);
        tokio::time::sleep(6 * SECOND).await; // it beats, and the backend counts from a second later than we do
        kit.delay(Duration::ZERO);
        kit.cut_off("a", Cut::Hang);
        lost(&mut events).await; // a margin before our deadline, to which the old session is left
        kit.next_of("a", Operation::Close, 1, Outcome::Fail);
        kit.heal("a");
        let came = tokio::time::timeout(850 * MILLI, rejoined(&mut events)).await;
        assert_eq!(came.expect("it waits for its own old record"), ["g"]);
    }
}

/// Closing it may take longer than it is waited for; it is driven to its end all the same.
#[tokio::test(start_paused = true)]
async fn the_old_session_is_closed_in_the_background_if_it_takes_long() {
    let (script, kit, [a]) = scripted("reopening-slow", "ttl=15s&connect_timeout=2s", ["a"]).await;
    let first = a.session_id();
    kit.delay(20 * SECOND);
    let began = tokio::time::Instant::now();
    kit.expire("a");
    tokio::time::sleep(SECOND / 2).await;
    kit.delay(Duration::ZERO);
    another_session(&a, first).await;
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    assert_eq!(script.log(), ["close lost session"]);
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(script.log(), ["close lost session", "session closed"]);
}

/// Of two tries of which the first one's answer came late, one session stays.
#[tokio::test(start_paused = true)]
async fn a_session_that_comes_too_late_does_not_stay() {
    let url = "memory://reopening-late?ttl=15s&connect_timeout=1s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let first = c.session_id();
    kit.expire("a");
    tokio::task::yield_now().await;
    kit.delay_answers(5 * SECOND);
    tokio::time::sleep(SECOND).await; // it is being opened
    kit.delay_answers(Duration::ZERO);
    another_session(&c, first).await;
    let second = c.session_id();
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!((c.session_id(), kit.sessions()), (second, 1));
}

/// A session that is over before it is known is not reported as one that was lost.
#[tokio::test(start_paused = true)]
async fn a_session_that_was_over_before_it_was_known_never_stood() {
    let url = "memory://reopening-over?ttl=5s&connect_timeout=60s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    kit.delay_answers(10 * SECOND);
    kit.expire("a");
    lost(&mut events).await;
    eventually("it is being opened", || kit.sessions() == 1).await;
    kit.delay_answers(Duration::ZERO);
    tokio::time::sleep(30 * SECOND).await;
    let events = told(&mut events).await;
    assert!(matches!(events[..], [Event::Rejoined(_)]), "{events:?}");
}

/// Groups are created again after a loss of data, and only then: not after the next loss.
#[tokio::test(start_paused = true)]
async fn a_loss_of_data_counts_once() {
    let url = "memory://reopening-data?ttl=15s";
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    let mut events = a.events();
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    kit.lose_data();
    assert_eq!(rejoined(&mut events).await, ["g"]);
    kit.cut_off("a", Cut::Hang);
    lost(&mut events).await;
    tokio::time::sleep(2 * SECOND).await;
    b.group("g").unwrap().delete().await.unwrap();
    kit.heal("a");
    let deleted = |event: &Event| matches!(event, Event::GroupDeleted(_)).then_some(());
    event(&mut events, deleted).await;
    assert_eq!(rejoined(&mut events).await, [""; 0]);
    assert_eq!(b.groups().await.unwrap().len(), 0);
}

/// Somebody removed a record: it is told once, whoever says it.
#[tokio::test(start_paused = true)]
async fn an_eviction_is_told_once() {
    let url = "memory://reopening-evicted?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    c.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    kit.delay(SECOND);
    let evicting = async {
        tokio::time::sleep(SECOND / 2).await;
        kit.delay(Duration::ZERO);
        kit.next_of("a", Operation::Join, 3, Outcome::Fail);
        kit.evict("g", "a")
    };
    // The beat lists the group, and reaches the backend when the record is gone.
    let (beat, evicted) = tokio::join!(c.heartbeat(), evicting);
    assert!(beat.is_ok() && evicted);
    assert_eq!(rejoined(&mut c.events()).await, ["g"]);
    let told = told(&mut events).await;
    assert!(matches!(told[..], [Event::Evicted(_), Event::Rejoined(_)]), "{told:?}");
}

/// A second group that is evicted while the first one is joined again is joined again, too.
#[tokio::test(start_paused = true)]
async fn an_eviction_during_a_rejoin_is_not_forgotten() {
    let url = "memory://reopening-second?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    for name in ["g", "h"] {
        c.group(name).unwrap().join_or_create(Capabilities::none()).await.unwrap();
    }
    kit.delay_answers(SECOND);
    assert!(kit.evict("g", "a"));
    tokio::time::sleep(SECOND / 2).await;
    assert!(kit.evict("h", "a"));
    kit.delay_answers(Duration::ZERO);
    let mut names = rejoined(&mut events).await;
    if names.len() < 2 {
        names.extend(rejoined(&mut events).await);
    }
    assert_eq!(names, ["g", "h"]);
    for name in ["g", "h"] {
        assert_eq!(c.group(name).unwrap().members().await.unwrap().len(), 1, "{name}");
    }
}

/// What an earlier session joined is not what this one has joined.
#[tokio::test(start_paused = true)]
async fn a_rejoin_of_an_earlier_session_is_not_announced() {
    let url = "memory://reopening-earlier?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    c.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    let first = c.session_id();
    kit.expire("a");
    another_session(&c, first).await;
    let second = c.session_id();
    kit.delay_answers(5 * SECOND);
    assert!(kit.evict("g", "a") || kit.expire("a") == 1);
    tokio::time::sleep(SECOND).await;
    kit.expire("a");
    kit.delay_answers(Duration::ZERO);
    another_session(&c, second).await;
    while c.group("g").unwrap().members().await.unwrap().is_empty() {
        tokio::time::sleep(MILLI).await;
    }
    tokio::time::sleep(30 * SECOND).await;
    let told = told(&mut events).await;
    let sessions = told.iter().filter(|event| matches!(event, Event::Lost(_))).count();
    let announced = told.iter().filter(|event| matches!(event, Event::Rejoined(_))).count();
    assert!(announced <= sessions, "{told:?}");
    assert!(matches!(told.last(), Some(Event::Rejoined(groups)) if groups.len() == 1), "{told:?}");
}

/// After an outage the pauses begin anew: the next one that is short is over soon.
#[tokio::test(start_paused = true)]
async fn after_an_outage_the_pauses_begin_anew() {
    let url = "memory://reopening-pauses?ttl=15s&initial_reconnect_backoff=100ms&max_reconnect_backoff=30s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    kit.cut_off("a", Cut::Fail);
    lost(&mut events).await;
    kit.reset_calls();
    tokio::time::sleep(300 * SECOND).await;
    let tries = kit.calls(Operation::Open);
    assert!((15..400).contains(&tries), "{tries} tries in five minutes");
    kit.heal("a");
    rejoined(&mut events).await;
    tokio::time::sleep(10 * SECOND).await;
    for _ in 0..2 {
        let session = c.session_id();
        kit.next_of("a", Operation::Open, 1, Outcome::Fail);
        let began = tokio::time::Instant::now();
        kit.expire("a");
        another_session(&c, session).await;
        assert!(began.elapsed() >= 100 * MILLI && began.elapsed() <= 320 * MILLI, "{:?}", began.elapsed());
        tokio::time::sleep(10 * SECOND).await;
    }
}

/// Without `rejoin` what was joined is forgotten with its session.
#[tokio::test(start_paused = true)]
async fn without_rejoin_an_evicted_member_stays_out() {
    let url = "memory://reopening-off?ttl=15s&rejoin=false";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let mut events = c.events();
    let group = c.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    assert!(kit.evict("g", "a"));
    event(&mut events, |event| matches!(event, Event::Evicted(_)).then_some(())).await;
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(group.members().await.unwrap().len(), 0);
    assert_eq!(group.leave().await.unwrap_err().kind(), ErrorKind::MemberNotFound);
    group.join(Capabilities::none()).await.unwrap();
    let session = c.session_id();
    kit.expire("a");
    another_session(&c, session).await;
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(group.members().await.unwrap().len(), 0);
    group.join(Capabilities::none()).await.unwrap();
}

/// A try to open a session is not made sooner, and none beside another, because something else happens meanwhile.
#[tokio::test(start_paused = true)]
async fn what_happens_meanwhile_makes_no_try_come_sooner() {
    for how in [Cut::Fail, Cut::Hang] {
        let url = &format!("memory://reopening-sooner-{how:?}?ttl=15s&initial_reconnect_backoff=1s");
        let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
        let mut events = c.events();
        kit.cut_off("a", how);
        lost(&mut events).await;
        kit.reset_calls();
        for _ in 0..1_000 {
            c.heart().start(); // it wakes the keeper
            tokio::time::sleep(10 * MILLI).await;
        }
        let tries = kit.calls(Operation::Open) + kit.calls(Operation::Close);
        assert!((1..=22).contains(&tries), "{tries} calls in ten seconds");
    }
}

/// An update whose answer was lost while a rejoin was under way is newer than what the rejoin began with.
#[tokio::test(start_paused = true)]
async fn an_update_of_unknown_outcome_is_not_undone_by_a_rejoin() {
    let url = "memory://reopening-update?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let (mut events, g) = (c.events(), c.group("g").unwrap());
    let value = |value: &str| Capabilities::new(value).unwrap();
    g.join_or_create(value("old")).await.unwrap();
    kit.next_of("a", Operation::Join, 1, Outcome::Indeterminate);
    assert!(kit.expire("a") > 0);
    lost(&mut events).await;
    let stands = async {
        while g.member("a").await.is_err() {
            tokio::time::sleep(MILLI).await;
        }
    };
    tokio::time::timeout(SECOND, stands).await.expect("the record stands");
    kit.next_of("a", Operation::Update, 1, Outcome::Indeterminate);
    assert!(g.update_capabilities(value("new")).await.unwrap_err().is_indeterminate());
    assert_eq!(rejoined(&mut events).await, ["g"]);
    assert_eq!(g.member_capabilities("a").await.unwrap(), value("new"));
}
