//! Changes of membership that cross, and observers of drivers that go back.

use std::time::Duration;

use crate::common::*;
use crate::scripted::*;
use tooz_core::{Capabilities, Coordinator, ErrorKind, Event};
use tooz_memory::{Kit, Operation, Outcome};

const SECOND: Duration = Duration::from_secs(1);

/// S7, G3: a leave that comes while a rejoin is under way has the last word.
#[tokio::test(start_paused = true)]
async fn a_leave_during_a_rejoin_leaves_no_member() {
    let url = "memory://groups-cross?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let group = c.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    let mut events = c.events();
    kit.evict("g", "a");
    kit.delay(2 * SECOND);
    event(&mut events, |event| matches!(event, Event::Evicted(_)).then_some(())).await;
    tokio::time::sleep(SECOND).await; // the join is on its way
    kit.delay(Duration::ZERO);
    soon(group.leave()).await.unwrap();
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(group.members().await.unwrap().len(), 0);
    group.join(Capabilities::none()).await.unwrap();
}

/// G2, L6: nor does a join that was dropped, although the next change comes before it has ended.
#[tokio::test(start_paused = true)]
async fn a_dropped_join_is_undone_before_the_next_change() {
    let url = "memory://groups-dropped?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let group = c.group("g").unwrap();
    group.create().await.unwrap();
    kit.delay(SECOND);
    assert!(cancelled_at(1, group.join(Capabilities::none())).await.is_none());
    kit.delay(Duration::ZERO);
    soon(group.join(Capabilities::none())).await.unwrap();
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(group.members().await.unwrap().len(), 1);
    soon(group.leave()).await.unwrap();
}

/// X1, G2: a join that may have taken effect is undone, and one that was refused leaves nothing to undo.
#[tokio::test(start_paused = true)]
async fn a_join_whose_answer_was_lost_leaves_no_member() {
    let url = "memory://groups-lost?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let group = c.group("g").unwrap();
    group.create().await.unwrap();
    kit.next_of("a", Operation::Join, 1, Outcome::Fail);
    assert!(!group.join(Capabilities::none()).await.unwrap_err().is_indeterminate());
    tokio::time::sleep(SECOND).await;
    assert_eq!(kit.calls(Operation::Leave), 0);
    kit.next_of("a", Operation::Join, 1, Outcome::Indeterminate);
    assert!(group.join(Capabilities::none()).await.unwrap_err().is_indeterminate());
    tokio::time::sleep(SECOND).await;
    assert_eq!((kit.calls(Operation::Leave), group.members().await.unwrap().len()), (1, 0));
}

/// S7, G3: whoever leaves while its record is gone with its session has left, and whose record was removed has not.
#[tokio::test(start_paused = true)]
async fn a_leave_between_two_sessions_is_a_leave() {
    let (script, kit, [c]) = scripted("groups-between", "ttl=15s", ["a"]).await;
    let group = c.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    let session = c.session_id();
    kit.next_of("a", Operation::Join, 100, Outcome::Fail);
    kit.expire("a");
    eventually("a new session stands", || c.session_id().is_some_and(|id| Some(id) != session)).await;
    group.leave().await.unwrap();
    assert_eq!(group.leave().await.unwrap_err().kind(), ErrorKind::MemberNotFound);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(group.members().await.unwrap().len(), 0);

    let group = c.group("h").unwrap();
    let (other, session) = (c.group("other").unwrap(), c.session_id());
    while group.join_or_create(Capabilities::none()).await.is_err() {} // until the failures are used up
    assert_eq!(c.session_id(), session);
    assert_eq!(other.leave().await.unwrap_err().kind(), ErrorKind::GroupNotFound);
    script.silent();
    assert!(kit.evict("h", "a"));
    assert_eq!(group.leave().await.unwrap_err().kind(), ErrorKind::MemberNotFound);
}

/// E3: whatever the backend shows again, an observer passes on what is news, and no older term after a newer one.
#[tokio::test(start_paused = true)]
async fn an_observer_passes_on_nothing_old_and_nothing_twice() {
    // The one shows older states again, the other shows every state twice.
    let url = "memory://groups-observer?fault=leader-backwards";
    let (a, b) = (connect(url, "a").await, connect(url, "b").await);
    follows(&a, &b).await;
    let (_, _, [a, b]) = scripted("groups-observer-twice", "", ["a", "b"]).await;
    follows(&a, &b).await;
}

async fn follows(a: &Coordinator, b: &Coordinator) {
    let mut observer = b.election("g").unwrap().observe().await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..6 {
        let lead = a.election("g").unwrap().campaign().await.unwrap();
        let term = lead.term();
        while let Ok(Some(state)) = tokio::time::timeout(SECOND, observer.next()).await {
            seen.push(state.unwrap().map(|leader| leader.term.unwrap().get()));
        }
        assert_eq!(seen.last(), Some(&Some(term.get())), "it does not end in the present: {seen:?}");
        lead.resign().await.unwrap();
    }
    let terms: Vec<_> = seen.iter().flatten().collect();
    assert!(terms.is_sorted(), "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "{seen:?}");
    assert!(terms.len() >= 6, "{seen:?}");
}
