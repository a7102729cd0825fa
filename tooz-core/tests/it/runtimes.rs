//! Where coordinators live and die: no runtime, one that ends, one that is blocked.
#![allow(clippy::disallowed_methods)] // outside tokio there is nothing but threads and real time

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tooz_core::{Coordinator, ErrorKind, Liveness, LossReason, Runtime};
use tooz_memory::Kit;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// An executor that is not tokio's.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let (mut future, mut cx) = (std::pin::pin!(future), Context::from_waker(&waker));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        std::thread::park();
    }
}

/// Runs `work` on another thread and gives up after a while: what hangs is a failure and no standstill.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    ended.recv_timeout(limit).expect("it hangs or panicked")
}

fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < end, "it was never so: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn everything_works_without_a_tokio_runtime_of_the_caller() {
    within(LIMIT, || {
        let url = "memory://runtimes-none?ttl=15s";
        let kit = Kit::of(url).unwrap();
        block_on(async {
            let c = Coordinator::builder(url, "a").connect().await.unwrap();
            let lock = c.lock("x").unwrap();
            let guard = lock.acquire().await.unwrap();
            let short = Duration::from_millis(50);
            assert!(lock.acquire_within(short).await.unwrap().is_none());
            assert!(lock.try_acquire().await.unwrap().is_none());
            assert_eq!(guard.run(async { 7 }).await, Ok(7));
            drop(guard);
            let leadership = c.election("g").unwrap().campaign().await.unwrap();
            leadership.resign().await.unwrap();
            c.close().await.unwrap();
        });
        assert_eq!((kit.held(), kit.sessions()), (0, 0));
    });
}

#[test]
fn none_at_the_limit_is_none_every_time() {
    within(Duration::from_mins(1), || {
        let url = "memory://runtimes-limit";
        block_on(async {
            let a = Coordinator::builder(url, "a").connect().await.unwrap();
            let b = Coordinator::builder(url, "b").connect().await.unwrap();
            let _guard = a.lock("x").unwrap().acquire().await.unwrap();
            let lock = b.lock("x").unwrap();
            for _ in 0..300 {
                // The keeper withdraws on its own thread while this one still has to say what happened.
                let answer = lock.acquire_within(Duration::from_millis(5)).await;
                assert!(answer.expect("the backend said that it is held").is_none());
            }
        });
    });
}

#[test]
fn a_current_coordinator_needs_a_runtime_and_says_so() {
    let connecting =
        Coordinator::builder("memory://runtimes-current", "a").runtime(Runtime::Current).connect();
    assert_eq!(block_on(connecting).unwrap_err().kind(), ErrorKind::NoRuntime);
}

#[test]
fn a_current_runtime_without_timers_is_refused() {
    within(LIMIT, || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let connecting = Coordinator::builder("memory://runtimes-timers", "a").runtime(Runtime::Current);
        let error = runtime.block_on(connecting.connect()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRuntime);
    });
}

fn abandoned(name: &'static str, settle: bool) {
    within(LIMIT, move || {
        let url = format!("memory://{name}");
        let kit = Kit::of(&url).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let c =
            runtime.block_on(Coordinator::builder(&url, "a").runtime(Runtime::Current).connect()).unwrap();
        let guard = settle.then(|| runtime.block_on(c.lock("x").unwrap().acquire()).unwrap());
        drop(runtime);
        assert!(matches!(c.liveness(), Liveness::Lost { why: LossReason::SessionClosed }));
        if let Some(guard) = guard {
            assert!(!guard.is_held());
            assert_eq!(block_on(guard.lost()), LossReason::SessionClosed);
            drop(guard);
        }
        assert_eq!(block_on(c.lock("x").unwrap().acquire()).unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(block_on(c.heartbeat()).unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(
            block_on(c.hooks().run_watchers(Duration::from_secs(1))).unwrap_err().kind(),
            ErrorKind::Closed
        );
        assert_eq!(block_on(c.close()).unwrap_err().kind(), ErrorKind::Closed);
        block_on(c.heart().wait());
        drop(c);
        assert_eq!((kit.held(), kit.sessions()), (0, 0));
    });
}

#[test]
fn when_its_runtime_ends_a_coordinator_and_its_guards_are_lost() {
    abandoned("runtimes-ends", true);
}

#[test]
fn when_its_runtime_ends_before_the_keeper_ran_the_coordinator_is_lost_too() {
    abandoned("runtimes-ends-at-once", false);
}

#[test]
fn a_blocked_runtime_delays_no_renewal() {
    within(LIMIT, || {
        let url = "memory://runtimes-blocked?ttl=3s";
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let c = Coordinator::builder(url, "a").connect().await.unwrap();
            let guard = c.lock("x").unwrap().acquire().await.unwrap();
            std::thread::sleep(Duration::from_secs(7));
            assert!(guard.is_held(), "{:?}", guard.loss_signal());
            assert!(c.heart().beats() >= 4, "{} beats", c.heart().beats());
        });
    });
}

#[test]
fn a_guard_may_be_dropped_anywhere() {
    within(LIMIT, || {
        let url = "memory://runtimes-drops";
        let kit = Kit::of(url).unwrap();
        let c = block_on(Coordinator::builder(url, "a").connect()).unwrap();
        let take = |name: &str| block_on(c.lock(name).unwrap().acquire()).unwrap();

        drop(take("outside a runtime"));
        eventually("it is released", || kit.held() == 0);

        let guard = take("while panicking");
        let panicked = std::thread::spawn(move || {
            let _guard = guard;
            // Unwinds without the message of a panic.
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.join().is_err());
        eventually("it is released", || kit.held() == 0);

        let late = take("after the close");
        block_on(c.close()).unwrap();
        assert!(!late.is_held());
        drop(late);
        assert_eq!((kit.held(), kit.sessions()), (0, 0));
    });
}

#[test]
fn the_last_handle_closes_the_coordinator() {
    within(LIMIT, || {
        let url = "memory://runtimes-last";
        let kit = Kit::of(url).unwrap();
        let c = block_on(Coordinator::builder(url, "a").connect()).unwrap();
        let guard = block_on(c.lock("x").unwrap().acquire()).unwrap();
        let signal = guard.loss_signal();
        drop(c);
        assert!(guard.is_held());
        drop(guard);
        eventually("the session ends", || kit.sessions() == 0);
        assert_eq!(block_on(signal.wait()), LossReason::Released);
    });
}
