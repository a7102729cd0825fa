//! Closing: what was begun is brought to its end, and nothing of the coordinator's stays (S3, L5).
#![allow(clippy::disallowed_methods)] // tasks run on the paused clock of the test

use std::time::Duration;

use crate::common::*;
use crate::scripted::*;
use tooz_core::{Coordinator, ErrorKind};
use tooz_memory::{Cut, Kit, Operation};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_call_that_was_dropped_just_before_is_driven_to_its_end() {
    let url = "memory://closing-driven?ttl=15s";
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    kit.delay(SECOND); // on its way to the backend
    assert!(cancelled_at(1, a.group("g").unwrap().create()).await.is_none());
    kit.delay(Duration::ZERO);
    a.close().await.unwrap();
    assert_eq!(b.groups().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn so_is_one_that_was_dropped_when_the_close_had_begun() {
    let url = "memory://closing-begun?ttl=15s";
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    kit.delay(SECOND);
    let group = a.group("g").unwrap();
    let mut creating = Box::pin(group.create());
    assert!(tokio::time::timeout(SECOND / 2, &mut creating).await.is_err());
    kit.delay(Duration::ZERO);
    let (closed, ()) = tokio::join!(a.close(), async { drop(creating) });
    closed.unwrap();
    assert_eq!(b.groups().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_session_is_closed_and_then_the_driver() {
    let (script, kit, [a]) = scripted("closing-order", "ttl=15s", ["a"]).await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    a.close().await.unwrap();
    assert_eq!(script.log()[2..], ["close session", "session closed", "driver closed"]);
    assert_eq!((kit.sessions(), kit.held(), guard.is_held()), (0, 0, false));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_being_opened_does_not_stay() {
    let url = "memory://closing-late?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    kit.delay_answers(SECOND);
    kit.expire("a");
    eventually("another stands, and is not known yet", || kit.sessions() == 1).await;
    assert!(c.session_id().is_none());
    kit.delay_answers(Duration::ZERO);
    c.close().await.unwrap();
    assert_eq!(kit.sessions(), 0);
}

/// What ends with the process must not last as long as guards that still stand about.
#[tokio::test(start_paused = true)]
async fn a_session_that_could_not_be_closed_is_dropped_although_guards_stand_about() {
    let url = "memory://closing-dropped"; // without a ttl the drop of a session is its end
    let (kit, a, b) = (Kit::of(url).unwrap(), connect(url, "a").await, connect(url, "b").await);
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    kit.cut_off("a", Cut::Hang);
    assert_eq!(a.close().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(b.lock("x").unwrap().try_acquire().await.unwrap().is_some());
    assert_eq!((kit.sessions(), guard.is_held()), (1, false));
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_that_does_not_end_holds_the_next_one_up_for_no_longer_than_a_beat() {
    let url = "memory://closing-old?ttl=15s";
    let (kit, c) = (Kit::of(url).unwrap(), connect(url, "a").await);
    let first = c.session_id();
    kit.cut_off("a", Cut::Hang);
    eventually("it is lost", || c.session_id().is_none()).await;
    kit.heal("a");
    // The old one's end takes its time, and still comes.
    kit.reset_calls();
    eventually("a new session stands", || c.session_id().is_some_and(|id| Some(id) != first)).await;
    tokio::time::sleep(100 * MILLI).await;
    assert_eq!((kit.sessions(), kit.calls(Operation::Open)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_scope_closes_however_its_work_ends() {
    let url = "memory://closing-scope?ttl=15s";
    let kit = Kit::of(url).unwrap();
    let builder = || Coordinator::builder(url, "a").runtime(tooz_core::Runtime::Current);
    let held = async |c: Coordinator| {
        // Neither dropped nor released: the scope's end takes it along.
        std::mem::forget(c.lock("x").unwrap().acquire().await.unwrap());
        assert_eq!((kit.sessions(), kit.held()), (1, 1));
    };
    let done: tooz_core::Result<u8> = Coordinator::scope(builder(), async |c| {
        held(c).await;
        Ok(7)
    })
    .await;
    assert_eq!((done.unwrap(), kit.sessions(), kit.held()), (7, 0, 0));
    let failed: Result<(), Box<dyn std::error::Error>> = Coordinator::scope(builder(), async |c| {
        held(c).await;
        Err("the work fails".into())
    })
    .await;
    assert_eq!((failed.unwrap_err().to_string().as_str(), kit.sessions()), ("the work fails", 0));
    let panics =
        tokio::spawn(Coordinator::scope(builder(), async |c: Coordinator| -> tooz_core::Result<()> {
            let _guard = c.lock("x").unwrap().acquire().await.unwrap();
            std::panic::resume_unwind(Box::new("the work panics"));
        }));
    assert!(panics.await.unwrap_err().is_panic());
    assert_eq!((kit.sessions(), kit.held()), (0, 0));
    let refused: tooz_core::Result<()> =
        Coordinator::scope(Coordinator::builder("nowhere://x", "a"), async |_| Ok(())).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::UnknownScheme);
}

#[test]
fn code_without_a_runtime_closes_and_is_not_kept_longer_than_it_says() {
    let url = "memory://closing-blocking";
    let kit = Kit::of(url).unwrap();
    let user = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connected = || user.block_on(Coordinator::builder(url, "a").connect()).unwrap();
    let c = connected();
    std::mem::forget(user.block_on(c.lock("x").unwrap().acquire()).unwrap());
    c.close_blocking(10 * SECOND).unwrap();
    c.close_blocking(10 * SECOND).unwrap();
    assert_eq!((kit.sessions(), kit.held()), (0, 0));
    // Where the backend does not answer, this thread goes on.
    let c = connected();
    kit.pause();
    let error = c.close_blocking(10 * MILLI).unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Unavailable, "close"));
    kit.resume();
    c.close_blocking(10 * SECOND).unwrap();
    // Its own runtime would wait for itself.
    user.block_on(async {
        let c = Coordinator::builder(url, "a").runtime(tooz_core::Runtime::Current).connect().await.unwrap();
        assert_eq!(c.close_blocking(SECOND).unwrap_err().kind(), ErrorKind::Invalid);
        c.close().await.unwrap();
    });
}

#[tokio::test(start_paused = true)]
async fn a_beat_that_is_not_answered_holds_up_no_close() {
    let url = "memory://closing-beat?ttl=15s";
    let (kit, a) = (Kit::of(url).unwrap(), connect(url, "a").await);
    tokio::time::sleep(4900 * MILLI).await;
    kit.delay_answers(20 * SECOND);
    tokio::time::sleep(200 * MILLI).await; // a beat is sent
    kit.delay_answers(Duration::ZERO);
    let began = tokio::time::Instant::now();
    a.close().await.unwrap();
    assert!(began.elapsed() < SECOND, "closed after {:?}", began.elapsed());
    assert_eq!(kit.sessions(), 0);
}
