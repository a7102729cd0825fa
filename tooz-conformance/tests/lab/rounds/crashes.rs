//! Holders that are killed, and a waiter that is stopped when its turn comes.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use tooz_core::Coordinator;
use tooz_servers::lab::size;
use tooz_servers::{Helper, block_on, say, told};

use super::backend::{Backend, LIMIT, connect};

const TTL: Duration = Duration::from_secs(2);

/// The helper's part.
pub(crate) fn hold(url: &str, name: &str) {
    block_on(async {
        let c = connect(url, name).await;
        let _guard = c.lock(name).unwrap().acquire().await.unwrap();
        say("held");
        told();
    });
}

/// L1, L8: a waiter that is stopped when its turn comes, and for longer than its session lives, finds its grant when it goes
/// on; it must not believe it.
#[cfg(any(feature = "redis", feature = "etcd"))] // where waiters queue
pub(crate) fn stopped_waiter(backend: &Backend) {
    let url = backend.url(TTL);
    let (a, b) = block_on(async { (connect(&url, "a").await, connect(&url, "b").await) });
    let (mut rounds, mut tries) = (0, 0);
    while rounds < 3 {
        tries += 1;
        assert!(tries < 10, "the machine stands still for longer than a ttl, again and again");
        let first = block_on(a.lock("x").unwrap().acquire()).unwrap();
        let mut waiter = Helper::part(&["crashes", &url, "x"]).unwrap();
        block_on(queued(&b, "x"));
        waiter.stop().unwrap();
        // Its turn; or, every other time, not before it is dead for the server.
        if rounds % 2 == 1 {
            sleep(TTL * 2);
        }
        block_on(first.release()).unwrap();
        let second = block_on(async { tokio::time::timeout(LIMIT, b.lock("x").unwrap().acquire()).await });
        let second = second.unwrap().unwrap();
        waiter.resume().unwrap();
        let (sender, said) = std::sync::mpsc::channel();
        let mut lines = waiter.lines();
        std::thread::spawn(move || sender.send(lines.next()));
        let early = said.recv_timeout(TTL);
        if !second.is_held() {
            continue; // then it may have been its turn
        }
        assert!(early.is_err(), "it believes its old grant");
        block_on(second.release()).unwrap();
        assert_eq!(said.recv_timeout(LIMIT).unwrap().as_deref(), Some("held"));
        rounds += 1;
    }
}

/// Until one waits, where the server can say.
async fn queued(eye: &Coordinator, name: &str) {
    let lock = eye.lock(name).unwrap();
    let looking = async {
        // A server that is slow to answer is asked again.
        while !lock.holders().await.is_ok_and(|found| found.waiters.is_none_or(|waiters| waiters == 1)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, looking).await.unwrap();
}

/// S2: whoever waits behind one that is killed holds a ttl and a second later.
pub(crate) fn crash(backend: &Backend) {
    let (url, patient) = (backend.url(TTL), backend.url(TTL * 15));
    let mut took: Vec<Duration> = scope(|s| {
        let crashes: Vec<_> = (0..size("TOOZ_CRASHES", 5))
            .map(|n| {
                let (url, patient) = (&url, &patient);
                s.spawn(move || one(url, patient, &format!("crash-{n}")))
            })
            .collect();
        crashes.into_iter().map(|crash| crash.join().unwrap()).collect()
    });
    took.sort();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{}: {} holders killed, ttl {TTL:?}: the next one held after {median:.2?} (median), {:.2?} to {longest:.2?}",
        backend.name(),
        took.len(),
        took[0]
    );
    assert!(median <= TTL + Duration::from_secs(1), "{median:?}");
}

/// From the death of a holder to the next one's grant.
fn one(url: &str, patient: &str, name: &str) -> Duration {
    let tries = (0..10).find_map(|n| try_one(url, patient, &format!("{name}-{n}")));
    tries.expect("the machine stands still for longer than a ttl, again and again")
}

/// `None`: the holder lost it before it was killed.
fn try_one(url: &str, patient: &str, name: &str) -> Option<Duration> {
    let mut holder = Helper::part(&["crashes", url, name]).unwrap();
    assert_eq!(holder.hear().as_deref(), Some("held"), "{name}");
    block_on(async {
        let c = connect(patient, &format!("{name}-next")).await;
        let lock = c.lock(name).unwrap();
        let mut waiting = tokio::spawn(async move { (lock.acquire().await.unwrap(), Instant::now()) });
        tokio::select! {
            biased; // one that has it already waits no more
            _ = &mut waiting => return None,
            () = queued(&c, name) => {}
        }
        // At any moment between two beats.
        let thirds = u32::try_from(tooz_conformance::random() % 1000).unwrap();
        sleep(TTL / 3 * thirds / 1000);
        if waiting.is_finished() {
            return None;
        }
        let crash = Instant::now();
        holder.kill().unwrap();
        let (guard, at) = tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap();
        assert!(guard.is_held());
        Some(at.saturating_duration_since(crash))
    })
}
