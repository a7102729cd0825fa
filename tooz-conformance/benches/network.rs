//! What coordination over a network costs, as ratios to the least that a program without tooz would send: the same client
//! crate, the same server, the same run, by turns, since machines are noisy.
//!
//! `cargo bench -p tooz-conformance --bench network`, with `-- redis`, `-- etcd` or `-- memcached` for one of them. Every figure is a median;
//! nothing here passes or fails. Python tooz 9.1 is measured, too, where the tests have installed it.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)] // it reads clocks and prints

#[path = "network/etcd.rs"]
mod etcd;
#[path = "network/memcached.rs"]
mod memcached;
#[path = "network/python.rs"]
mod python;
#[path = "network/redis.rs"]
mod redis;

use std::future::Future;
use std::time::{Duration, Instant};

use tooz_core::{Capabilities, Coordinator, Runtime};
use {tooz_etcd as _, tooz_memcached as _, tooz_redis as _}; // links the drivers

const ROUNDS: usize = 9;
const MEMBERS: usize = 1_000;
const LOCKS: usize = 10_000;

/// The least that a program without tooz would send.
trait Raw: Clone + Send + Sync + 'static {
    /// Takes a name that is free.
    fn acquire(&self, name: &str) -> impl Future<Output = ()> + Send;
    /// Gives it back, if it is ours.
    fn release(&self, name: &str) -> impl Future<Output = ()> + Send;
    /// The smallest write.
    fn write(&self) -> impl Future<Output = ()> + Send;
    /// Writes so many records.
    fn prepare(&self, records: usize) -> impl Future<Output = ()> + Send;
    /// Reads them all.
    fn read_all(&self) -> impl Future<Output = usize> + Send;
    /// Prolongs what so many names hang on.
    fn prolong(&self, names: usize) -> impl Future<Output = ()> + Send;
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Microseconds of one operation.
async fn time<F: Future>(operations: usize, work: F) -> f64 {
    let start = Instant::now();
    work.await;
    start.elapsed().as_secs_f64() * 1e6 / f64::from(u32::try_from(operations).unwrap())
}

async fn raw_pairs(raw: &impl Raw, name: &str, count: usize) {
    for _ in 0..count {
        raw.acquire(name).await;
        raw.release(name).await;
    }
}

async fn pairs(c: &Coordinator, name: &str, count: usize) {
    let lock = c.lock(name).unwrap();
    for _ in 0..count {
        lock.acquire().await.unwrap().release().await.unwrap();
    }
}

/// So many at once.
async fn many<F: Future<Output = ()> + Send + 'static>(make: impl Fn(usize) -> F) {
    let tasks: Vec<_> = (0..64).map(|n| tokio::spawn(make(n))).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// A figure beside what it is compared with.
fn say(what: &str, ours: f64, raw: f64, aim: Option<f64>) {
    let aim = aim.map_or(String::new(), |aim| format!("   (aim {aim})"));
    println!("  {what:<46} {ours:10.1} µs {raw:10.1} µs  {:6.2} x{aim}", ours / raw);
}

async fn compare(driver: &str, address: &str, raw: impl Raw) {
    let url = format!("{driver}://{address}?ttl=60s");
    let connect = |member: String| Coordinator::builder(&url, member);
    let library = connect("library".into()).connect().await.unwrap();
    let other = connect("other".into()).connect().await.unwrap();
    let current = connect("current".into()).runtime(Runtime::Current).connect().await.unwrap();
    println!("{driver}{:41} {:>10}    {:>10}", "", "tooz", "raw");
    let mut figures: [Vec<f64>; 8] = Default::default();
    for _ in 0..ROUNDS {
        let here = [
            time(200, raw_pairs(&raw, "raw", 200)).await,
            time(200, pairs(&library, "library", 200)).await,
            time(200, pairs(&current, "current", 200)).await,
            time(200, async {
                for _ in 0..200 {
                    raw.write().await;
                }
            })
            .await,
            handed_over(&library, &other).await,
            time(64 * 20, {
                let raw = raw.clone();
                many(move |n| {
                    let raw = raw.clone();
                    async move { raw_pairs(&raw, &format!("raw-{n}"), 20).await }
                })
            })
            .await,
            time(64 * 20, {
                let library = library.clone();
                many(move |n| {
                    let library = library.clone();
                    async move { pairs(&library, &format!("library-{n}"), 20).await }
                })
            })
            .await,
            time(64 * 20, {
                let current = current.clone();
                many(move |n| {
                    let current = current.clone();
                    async move { pairs(&current, &format!("current-{n}"), 20).await }
                })
            })
            .await,
        ];
        figures.iter_mut().zip(here).for_each(|(all, one)| all.push(one));
    }
    let [by_hand, ours, on_current, write, hand_over, raw_64, ours_64, current_64] = figures.map(median);
    // On memcached the raw pair is the least that can be stored and deleted, and waiters look again and again.
    let aims = if driver == "memcached" { (1.6, 1.6, None) } else { (1.3, 1.15, Some(2.5)) };
    say("acquire + release", ours, by_hand, Some(aims.0));
    say("acquire + release, Runtime::Current", on_current, by_hand, Some(aims.1));
    say("hand-over to a waiter; raw: one write", hand_over, write, aims.2);
    say("acquire + release in 64 tasks", ours_64, raw_64, None);
    say("acquire + release in 64 tasks, Runtime::Current", current_64, raw_64, None);

    let all = members(&url, &library, &raw).await;
    for python in python::measure(driver, address) {
        println!("  {python}");
    }
    drop(all);
    heartbeat(&other, &raw).await;
    for c in [library, other, current] {
        c.close().await.unwrap();
    }
}

/// Answers the members, who stay until they are dropped.
async fn members(url: &str, eye: &Coordinator, raw: &impl Raw) -> Vec<Coordinator> {
    let group = eye.group("many").unwrap();
    let mut all = Vec::new();
    for n in 0..MEMBERS {
        let member = Coordinator::builder(url, format!("member-{n}")).connect().await.unwrap();
        let joined = member.group("many").unwrap();
        joined.join_or_create(Capabilities::new(&n).unwrap()).await.unwrap();
        all.push(member);
    }
    raw.prepare(MEMBERS).await;
    let mut figures: [Vec<f64>; 2] = Default::default();
    for _ in 0..ROUNDS {
        figures[0].push(time(1, async { assert_eq!(group.members().await.unwrap().len(), MEMBERS) }).await);
        figures[1].push(time(1, async { assert_eq!(raw.read_all().await, MEMBERS) }).await);
    }
    let [ours, by_hand] = figures.map(median);
    say(&format!("members of {MEMBERS}; raw: reading as many"), ours, by_hand, None);
    all
}

async fn heartbeat(c: &Coordinator, raw: &impl Raw) {
    let mut guards = Vec::new();
    for n in 0..LOCKS {
        guards.push(c.lock(format!("held-{n}")).unwrap().acquire().await.unwrap());
    }
    let mut figures: [Vec<f64>; 2] = Default::default();
    for _ in 0..ROUNDS {
        figures[0].push(time(1, async { assert!(c.heartbeat().await.unwrap().is_some()) }).await);
        figures[1].push(time(1, raw.prolong(LOCKS)).await);
    }
    let [ours, by_hand] = figures.map(median);
    say(&format!("heartbeat with {LOCKS} locks held; raw: prolonging"), ours, by_hand, None);
    assert!(guards.iter().all(tooz_core::LockGuard::is_held), "a lock was lost while it was beaten for");
}

/// From the call of `release` until the waiter has it.
async fn handed_over(a: &Coordinator, b: &Coordinator) -> f64 {
    let mut figures = Vec::new();
    for _ in 0..30 {
        let guard = a.lock("handed").unwrap().acquire().await.unwrap();
        let lock = b.lock("handed").unwrap();
        let waiting = tokio::spawn(async move {
            let guard = lock.acquire().await.unwrap();
            (Instant::now(), guard)
        });
        let lock = a.lock("handed").unwrap();
        while lock.holders().await.unwrap().waiters.is_some_and(|waiters| waiters != 1) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Where the server cannot say who waits: long enough to begin.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let start = Instant::now();
        let released = tokio::spawn(guard.release());
        let (at, guard) = waiting.await.unwrap();
        figures.push((at - start).as_secs_f64() * 1e6);
        released.await.unwrap().unwrap();
        guard.release().await.unwrap();
    }
    median(figures)
}

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let runs = |driver: &str| wanted.is_empty() || wanted.iter().any(|one| one == driver);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if runs("redis") {
        redis::run(&runtime);
    }
    if runs("etcd") {
        etcd::run(&runtime);
    }
    if runs("memcached") {
        memcached::run(&runtime);
    }
}
