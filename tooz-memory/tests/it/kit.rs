//! What the test kit does to calls, and that a run with a seed replays.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::*;
use tooz_core::driver::{Acquired, End, Join, LockKey, Notice, Released};
use tooz_core::{Capabilities, ErrorKind, LossReason};
use tooz_memory::{Cut, Kit, Operation, Outcome};

#[tokio::test(start_paused = true)]
async fn a_url_of_another_driver_has_no_kit() {
    for url in ["sqlite:///x", "memory", "memory://u@x", "memory://x?fault=none"] {
        assert!(Kit::of(url).is_err(), "{url}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_is_not_done_and_says_so() {
    let url = "memory://kit-fail";
    let (_d, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    kit.next(Operation::Request, 2, Outcome::Fail);
    for attempt in 1..=2 {
        let error = a.locks().request(&ask(attempt, "x", Exclusive)).await.unwrap_err();
        assert_eq!((error.kind(), error.is_indeterminate()), (ErrorKind::Unavailable, false));
        assert_eq!(error.operation(), "request lock");
        assert_eq!(kit.held(), 0);
    }
    granted(&a, 3, Exclusive).await;
    assert_eq!(kit.calls(Operation::Request), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_lost_with_the_effect_or_without() {
    let url = "memory://kit-lost";
    let (driver, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    let join = Join::new(group("g"), Capabilities::none()).create(true);
    let known = async || driver.groups().list().await.unwrap().len();
    kit.next_of("somebody-else", Operation::Join, 1, Outcome::Fail);
    for (outcome, groups) in [(Outcome::Lost, 0), (Outcome::Indeterminate, 1)] {
        kit.next_of("a", Operation::Join, 1, outcome);
        let error = a.groups().join(&join).await.unwrap_err();
        assert_eq!((error.kind(), error.is_indeterminate()), (ErrorKind::Unavailable, true));
        assert_eq!(known().await, groups, "{outcome:?}");
    }
    // A session whose opening answer was lost is nobody's and ends.
    kit.next(Operation::Open, 1, Outcome::Indeterminate);
    assert!(driver.open_session(&opening("a")).await.is_err_and(|error| error.is_indeterminate()));
    assert_eq!(kit.sessions(), 1);

    // A turn whose answer is lost was granted.
    let grant = granted(&a, 1, Exclusive).await;
    let place = queued(&a, 2, Exclusive).await;
    kit.next(Operation::Turn, 1, Outcome::Indeterminate);
    let release = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        a.locks().release(&grant, End::Clean).await.unwrap()
    };
    let (answer, released) = tokio::join!(a.locks().turn(&place), release);
    assert!(answer.unwrap_err().is_indeterminate());
    assert_eq!((released, kit.held(), kit.queued()), (Released::Released, 1, 0));
    turn(&a, &place).await;
}

#[tokio::test(start_paused = true)]
async fn every_operation_passes_the_gate() {
    let url = "memory://kit-all";
    let (driver, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    let (g, x, grant) = (group("g"), key("x"), granted(&a, 1, Exclusive).await);
    let join = Join::new(g.clone(), Capabilities::none());
    let place = queued(&a, 2, Exclusive).await;
    let breaking = tooz_core::driver::BreakRequest::new(x.clone(), id("b"), "");
    let none = held(&[], &[], &[]);
    macro_rules! gated {
        ($($operation:ident: $call:expr,)*) => {$(
            kit.reset_calls();
            kit.next(Operation::$operation, 1, Outcome::Fail);
            assert_eq!($call.await.map(drop).unwrap_err().kind(), ErrorKind::Unavailable, stringify!($operation));
            assert_eq!((kit.calls(Operation::$operation), kit.all_calls()), (1, 1), stringify!($operation));
        )*};
    }
    gated! {
        Open: driver.open_session(&opening("a")),
        Renew: a.renew(&none),
        Request: a.locks().request(&ask(3, "x", Exclusive)),
        Turn: a.locks().turn(&place),
        Withdraw: a.locks().withdraw(&x, place.attempt),
        Release: a.locks().release(&grant, End::Clean),
        Join: a.groups().join(&join),
        Leave: a.groups().leave(&g),
        Update: a.groups().update(&g, &join.capabilities),
        Create: driver.groups().create(&g),
        Delete: driver.groups().delete(&g),
        List: driver.groups().list(),
        Members: driver.groups().members(&g),
        Members: driver.groups().member(&g, &id("a")),
        Watch: driver.groups().watch(&g),
        Watch: driver.locks().watch(&x),
        Holders: driver.locks().holders(&x),
        Break: driver.locks().break_lock(&breaking),
        Close: a.close(End::Clean),
    }
    assert_eq!((kit.held(), kit.queued(), kit.sessions()), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_cut_off_neither_reaches_nor_hears_the_backend() {
    let url = "memory://kit-cut";
    let (da, a) = member(url, "a").await;
    let (db, b) = member(url, "b").await;
    let kit = Kit::of(url).unwrap();
    let grant = granted(&b, 1, Exclusive).await;
    let place = queued(&a, 2, Exclusive).await;
    db.groups().create(&group("g")).await.unwrap();
    let mut changes = da.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "[]");

    kit.cut_off("a", Cut::Hang);
    b.locks().release(&grant, End::Clean).await.unwrap();
    b.groups().join(&Join::new(group("g"), Capabilities::none())).await.unwrap();
    assert!(never(da.groups().list()).await && quiet(&mut changes).await && still_waits(&a, &place).await);
    assert_eq!(kit.break_lock("x", "cut off"), 1);
    assert!(never(a.notice()).await);
    assert_eq!(kit.hanging(), 0); // all of those were dropped
    kit.cut_off("a", Cut::Fail);
    assert_eq!(kind(a.renew(&held(&[], &[], &[])).await), ErrorKind::Unavailable);
    assert_eq!(kind(a.locks().turn(&place).await), ErrorKind::Unavailable);

    // What hangs goes on when it is healed.
    kit.cut_off("a", Cut::Hang);
    let heal = async {
        while kit.hanging() < 1 {
            tokio::task::yield_now().await;
        }
        kit.heal("a");
    };
    let (groups, ()) = tokio::join!(da.groups().list(), heal);
    assert_eq!((groups.unwrap().len(), kit.hanging()), (1, 0));
    assert_eq!(short(next(&mut changes).await), "+b");
    assert!(matches!(soon(a.notice()).await, Notice::GrantLost(_, LossReason::Broken { by: None, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_paused_backend_answers_nobody_and_ttls_go_on() {
    let url = "memory://kit-pause?ttl=15s";
    let (driver, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    kit.pause();
    assert!(never(a.renew(&held(&[], &[], &[]))).await);
    assert!(never(driver.groups().list()).await);
    kit.resume();
    assert_eq!(a.renew(&held(&[], &[], &[])).await.unwrap().lost, Some(LossReason::Expired));
    driver.groups().list().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delay_takes_as_long_as_it_says() {
    let url = "memory://kit-delay";
    let (driver, _a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    for delay in [Duration::from_secs(3), Duration::ZERO] {
        kit.delay(delay);
        let started = Stopwatch::start();
        driver.groups().list().await.unwrap();
        assert_eq!(started.elapsed().as_secs(), delay.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn leaders_can_be_deposed_and_members_expired() {
    let url = "memory://kit-depose";
    let (_d, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    let mut request = ask(1, "x", Exclusive);
    request.key = LockKey::Leader(group("x"));
    assert!(matches!(a.locks().request(&request).await.unwrap(), Acquired::Granted(_)));
    assert_eq!(kit.break_lock("x", ""), 0); // the leadership is another key
    assert!(kit.depose("x", "drill"));
    assert!(!kit.depose("x", "drill"));
    assert!(matches!(soon(a.notice()).await, Notice::GrantLost(..)));
    assert_eq!((kit.expire("nobody"), kit.expire("a"), kit.expire("a")), (0, 1, 0));
    assert!(matches!(soon(a.notice()).await, Notice::SessionLost(LossReason::Expired)));
}

/// Twenty attempts of five members on one lock, written down as they end.
async fn story(url: &str) -> Vec<(u128, u64, Duration)> {
    let started = Stopwatch::start();
    let log = std::sync::Mutex::new(Vec::new());
    let mut members = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        members.push(member(url, name).await.1);
    }
    let run = |index: usize| {
        let (session, log, started) = (&members[index], &log, &started);
        async move {
            for round in 0..4 {
                let attempt = (index as u128) * 10 + round;
                let grant = match request(session, attempt, Exclusive).await {
                    Acquired::Granted(grant) => grant,
                    Acquired::Queued(place) => turn(session, &place).await,
                    other => panic!("{other:?}"),
                };
                log.lock().unwrap().push((attempt, grant.token.get(), started.elapsed()));
                session.locks().release(&grant, End::Clean).await.unwrap();
            }
        }
    };
    tokio::join!(run(0), run(1), run(2), run(3), run(4));
    log.into_inner().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_seed_replays_and_another_one_does_not() {
    let one = story("memory://replay-1?yield_seed=7").await;
    let same = story("memory://replay-2?yield_seed=7").await;
    let other = story("memory://replay-3?yield_seed=8").await;
    assert_eq!(one, same);
    assert_ne!(one, other);
    assert_eq!(one.len(), 20);
    assert!(one.iter().map(|(_, token, _)| *token).eq(1..=20));
}

/// The oracle tells a test what happened, in the order in which it happened.
#[tokio::test(start_paused = true)]
async fn a_listener_hears_everything_of_its_namespace() {
    let url = "memory://listened";
    let (_d, a) = member(url, "a").await;
    let (_e, _other) = member(&format!("{url}?namespace=other"), "b").await;
    let kit = Kit::of(url).unwrap();
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = heard.clone();
    kit.listen(move |happened| {
        let word = format!("{happened:?}");
        let end = word.find(|c: char| !c.is_alphanumeric()).unwrap_or(word.len());
        noted.lock().unwrap().push(word[..end].to_owned());
    });
    a.groups().join(&Join::new(group("g"), Capabilities::none()).create(true)).await.unwrap();
    let first = granted(&a, 1, Exclusive).await;
    queued(&a, 2, Exclusive).await;
    queued(&a, 3, Exclusive).await;
    a.locks().withdraw(&key("x"), tooz_core::driver::AttemptId(3)).await.unwrap();
    a.locks().release(&first, End::Clean).await.unwrap();
    kit.expire("a");
    kit.expire("b");
    let expected = [
        "Created", "Joined", "Granted", "Queued", "Queued", "Unqueued", "Freed", "Granted", "Freed", "Left",
        "Ended",
    ];
    assert_eq!(*heard.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_answer_is_of_a_call_that_was_done_before() {
    let url = "memory://answers-delayed";
    let (_d, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    kit.delay_answers(Duration::from_secs(2));
    let watch = Stopwatch::start();
    let asking = granted(&a, 1, Exclusive);
    let looking = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        kit.held()
    };
    assert_eq!(tokio::join!(asking, looking).1, 1);
    assert_eq!(watch.elapsed(), Duration::from_secs(2));
}
