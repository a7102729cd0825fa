//! The life of sessions: ttl on the backend's clock, death, closing, beats.

use std::time::Duration;

use crate::common::*;
use tooz_core::driver::{Clock, Context, End, Entropy, Notice, Previous, Released, SessionId};
use tooz_core::{Characteristics, ErrorKind, LossReason};
use tooz_memory::Kit;

const TTL: Duration = Duration::from_secs(15);

fn confirmed(renewal: &tooz_core::driver::Renewal) -> bool {
    renewal.lost.is_none()
        && renewal.gone.is_empty()
        && renewal.unqueued.is_empty()
        && renewal.evicted.is_empty()
}

#[tokio::test(start_paused = true)]
async fn without_a_ttl_time_ends_nothing_and_a_crash_everything() {
    let url = "memory://no-ttl";
    let (driver, a) = member(url, "a").await;
    let (_db, b) = member(url, "b").await;
    assert!(driver.characteristics().contains(Characteristics::NON_TIMEOUT_BASED));
    assert_eq!(a.ttl(), None);
    granted(&a, 1, Exclusive).await;
    let place = queued(&b, 2, Exclusive).await;
    tokio::time::sleep(Duration::from_hours(24)).await;
    assert!(still_waits(&b, &place).await);
    assert!(never(a.notice()).await);
    drop(a);
    assert_eq!(turn(&b, &place).await.previous, Previous::Expired);
    assert_eq!(Kit::of(url).unwrap().sessions(), 1);
}

#[tokio::test(start_paused = true)]
async fn with_a_ttl_a_session_ends_when_its_time_is_over_though_nobody_calls() {
    let url = "memory://ttl?ttl=15s";
    let (driver, a) = member(url, "a").await;
    let (db, b) = member(url, "b").await;
    assert!(!driver.characteristics().contains(Characteristics::NON_TIMEOUT_BASED));
    assert_eq!(a.ttl(), Some(TTL));
    let clock = Clock::tokio(std::time::SystemTime::UNIX_EPOCH);
    let join = tooz_core::driver::Join::new(group("g"), tooz_core::Capabilities::none()).create(true);
    a.groups().join(&join).await.unwrap();
    let mut changes = db.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "[a]");
    let grant = granted(&a, 1, Exclusive).await;
    let place = queued(&b, 2, Exclusive).await;

    // The holder beats for a while and then stops; the waiter beats all the time.
    let started = clock.now();
    let beats = async {
        for beat in 0.. {
            tokio::time::sleep(Duration::from_secs(5)).await;
            if beat < 9 {
                assert!(confirmed(&a.renew(&held(&[&grant], &[], &["g"])).await.unwrap()));
            }
            assert!(confirmed(&b.renew(&held(&[], &[&place], &[])).await.unwrap()));
        }
    };
    let (next_grant, left) = tokio::select! {
        biased; // the beats never end
        both = async { tokio::join!(turn(&b, &place), next(&mut changes)) } => both,
        () = beats => unreachable!(),
    };
    let after = clock.now().saturating_since(started);
    // The last of nine beats was at 45 s.
    assert!(after >= Duration::from_mins(1) && after < Duration::from_millis(60_010), "{after:?}");
    assert_eq!((next_grant.previous, short(left)), (Previous::Expired, "-a".into()));
    assert!(next_grant.token > grant.token);

    // The dead session hears of it, whatever it asks.
    assert!(matches!(soon(a.notice()).await, Notice::SessionLost(LossReason::Expired)));
    assert_eq!(a.renew(&held(&[&grant], &[], &["g"])).await.unwrap().lost, Some(LossReason::Expired));
    assert_eq!(kind(a.locks().request(&ask(3, "x", Exclusive)).await), ErrorKind::SessionLost);
    assert_eq!(kind(a.locks().turn(&place).await), ErrorKind::SessionLost);
    assert_eq!(kind(a.groups().join(&join).await), ErrorKind::SessionLost);
    assert_eq!(a.locks().release(&grant, End::Clean).await.unwrap(), Released::WasNotHolder);
    a.locks().withdraw(&grant.key, grant.attempt).await.unwrap();
    a.close(End::Clean).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_with_a_ttl_outlives_its_owner_until_then() {
    let url = "memory://crash?ttl=15s";
    let (_da, a) = member(url, "a").await;
    let (_db, b) = member("memory://crash?ttl=1h", "b").await;
    granted(&a, 1, Exclusive).await;
    let place = queued(&b, 2, Exclusive).await;
    drop(a);
    let early = tokio::time::timeout(Duration::from_millis(14_999), b.locks().turn(&place)).await;
    assert!(early.is_err());
    assert_eq!(turn(&b, &place).await.previous, Previous::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_suspend_that_no_timer_notices_ends_the_session_at_the_next_look() {
    let url = "memory://suspend?ttl=15s";
    let base = context();
    let first = connect_in(url, base.clone()).await; // its clock is the backend's
    let a = first.open_session(&opening("a")).await.unwrap();
    let b = {
        let driver = connect("memory://suspend").await; // no ttl of its own
        driver.open_session(&opening("b")).await.unwrap()
    };
    granted(&a, 1, Exclusive).await;
    let place = queued(&b, 2, Exclusive).await;
    let started = Stopwatch::start();
    let suspend = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        base.clock.simulate_suspend(Duration::from_mins(1));
    };
    let (grant, ()) = tokio::join!(turn(&b, &place), suspend);
    assert_eq!(grant.previous, Previous::Expired);
    // On the timers' clock it took the second before and less than one look after.
    assert!(started.elapsed() <= Duration::from_millis(1_300), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn waiters_hear_of_a_session_that_ends_before_all_others() {
    let long = "memory://shorter?ttl=1h";
    let (_da, a) = member(long, "a").await;
    let mut holders = {
        let driver = connect(long).await;
        driver.locks().watch(&key("x")).await.unwrap()
    };
    assert!(next(&mut holders).await.unwrap().holders.is_empty());
    let started = Stopwatch::start();
    let shorter = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (_d, b) = member("memory://shorter?ttl=2s", "b").await;
        granted(&b, 1, Exclusive).await;
    };
    let watching = async { (next(&mut holders).await.unwrap(), next(&mut holders).await.unwrap()) };
    let ((held, vacant), ()) = tokio::join!(watching, shorter);
    assert_eq!((held.holders.len(), vacant.holders.len()), (1, 0));
    assert!(started.elapsed() < Duration::from_millis(3_010), "{:?}", started.elapsed());
    assert_eq!(a.renew(&held_nothing()).await.unwrap().lost, None);
}

fn held_nothing() -> tooz_core::driver::Held {
    held(&[], &[], &[])
}

#[tokio::test(start_paused = true)]
async fn closing_ends_everything_cleanly_and_can_be_repeated() {
    let url = "memory://closing";
    let (da, a) = member(url, "a").await;
    let (_db, b) = member(url, "b").await;
    let join = tooz_core::driver::Join::new(group("g"), tooz_core::Capabilities::none()).create(true);
    a.groups().join(&join).await.unwrap();
    granted(&a, 1, Exclusive).await;
    let theirs = queued(&b, 2, Exclusive).await;
    let own = queued(&a, 3, Exclusive).await;
    let (waited, closed) = tokio::join!(a.locks().turn(&own), a.close(End::Clean));
    closed.unwrap();
    assert_eq!(kind(waited), ErrorKind::SessionLost);
    a.close(End::Clean).await.unwrap();
    assert_eq!(turn(&b, &theirs).await.previous, Previous::Clean);
    assert!(da.groups().members(&group("g")).await.unwrap().is_empty());
    b.close(End::Clean).await.unwrap();
    let kit = Kit::of(url).unwrap();
    assert_eq!((kit.sessions(), kit.held(), kit.queued(), kit.watchers()), (0, 0, 0, 0));

    // A closed driver answers at once, and still closes what was opened through it.
    let c = da.open_session(&opening("a")).await.unwrap();
    da.close().await.unwrap();
    da.close().await.unwrap();
    assert_eq!(kind(da.groups().list().await), ErrorKind::Closed);
    c.close(End::Clean).await.unwrap();
    assert_eq!(kit.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn closing_the_driver_ends_waits_and_streams() {
    let (driver, a) = member("memory://closed-waits", "a").await;
    granted(&a, 1, Exclusive).await;
    let place = queued(&a, 2, Exclusive).await;
    let mut holders = driver.locks().watch(&key("x")).await.unwrap();
    next(&mut holders).await.unwrap();
    let close = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        driver.close().await
    };
    let (turn, ended, closed) = tokio::join!(a.locks().turn(&place), next(&mut holders), close);
    assert_eq!(kind(turn), ErrorKind::Closed);
    assert_eq!(ended, None);
    closed.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_beat_names_what_is_no_longer_there() {
    let url = "memory://beat";
    let (_da, a) = member(url, "a").await;
    let join = tooz_core::driver::Join::new(group("g"), tooz_core::Capabilities::none()).create(true);
    a.groups().join(&join).await.unwrap();
    let grant = granted(&a, 1, Exclusive).await;
    let place = queued(&a, 2, Exclusive).await;
    assert!(confirmed(&a.renew(&held(&[&grant], &[&place], &["g"])).await.unwrap()));
    let kit = Kit::of(url).unwrap();
    assert_eq!(kit.forget_lock("x"), 1);
    assert!(kit.evict("g", "a"));
    let renewal = a.renew(&held(&[&grant], &[&place], &["g"])).await.unwrap();
    assert_eq!(renewal.gone, [(grant.attempt, LossReason::Vanished)]);
    assert_eq!(renewal.unqueued, [place.attempt]);
    assert_eq!(renewal.evicted, [group("g")]);
    // The waiter asks again with the same attempt.
    granted(&a, 2, Exclusive).await;
}

#[tokio::test(start_paused = true)]
async fn the_earlier_session_of_a_coordinator_ends_when_it_opens_the_next() {
    let url = "memory://previous";
    let (driver, a) = member(url, "a").await;
    granted(&a, 1, Exclusive).await;
    let second = driver.open_session(&opening("a").after(Some(a.id()))).await.unwrap();
    assert_ne!(second.id(), a.id());
    assert_eq!(a.renew(&held_nothing()).await.unwrap().lost, Some(LossReason::Expired));
    assert_eq!(granted(&second, 2, Exclusive).await.previous, Previous::Expired);
    // One that nobody knows is no error.
    driver.open_session(&opening("a").after(Some(SessionId(7)))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_epoch_is_the_backends() {
    let seeded = |seed| {
        let Context { clock, spawner, .. } = context();
        Context::new(clock, Entropy::seeded(seed), spawner)
    };
    let one = connect_in("memory://epoch", seeded(1)).await.open_session(&opening("a")).await.unwrap();
    let two = connect_in("zake://epoch", seeded(2)).await.open_session(&opening("b")).await.unwrap();
    let other = connect_in("memory://epoch-2", seeded(3)).await.open_session(&opening("a")).await.unwrap();
    assert_eq!(one.epoch(), two.epoch());
    assert_ne!(one.epoch(), other.epoch());
}

/// A driver must work for code that runs on no runtime at all: timers are the library's.
#[test]
fn waits_end_without_a_runtime_around_them() {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
        let mut future = std::pin::pin!(future);
        loop {
            let mut cx = std::task::Context::from_waker(&waker);
            match future.as_mut().poll(&mut cx) {
                std::task::Poll::Ready(output) => return output,
                std::task::Poll::Pending => std::thread::park(),
            }
        }
    }
    use tooz_core::Runtime;
    use tooz_core::driver::Spawner;
    let clock = Clock::boot();
    let context = Context::new(clock.clone(), Entropy::system(), Spawner::new(Runtime::Library).unwrap());
    block_on(async {
        let driver = connect_in("memory://no-runtime?ttl=300ms", context).await;
        let a = driver.open_session(&opening("a")).await.unwrap();
        let b = driver.open_session(&opening("b")).await.unwrap();
        let started = clock.now();
        granted(&a, 1, Exclusive).await;
        let place = queued(&b, 2, Exclusive).await;
        // The waiter's own session must live: it beats half way, and then the holder's ends first.
        let half = Spawner::new(Runtime::Library).unwrap().sleep(Duration::from_millis(150));
        half.await;
        b.renew(&held_nothing()).await.unwrap();
        let tooz_core::driver::Turn::Granted(grant) = b.locks().turn(&place).await.unwrap() else {
            panic!("the place is gone");
        };
        assert_eq!(grant.previous, Previous::Expired);
        assert!(clock.now().saturating_since(started) >= Duration::from_millis(300));
    });
}
