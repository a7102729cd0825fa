//! Every public future, dropped after each of its wake-ups in turn, leaves nothing behind (L6).

use std::time::Duration;

use crate::common::*;
use tooz_core::{Capabilities, Coordinator};
use tooz_memory::Kit;

/// More wake-ups than any of these futures needs on this driver; each loop proves it by ending before.
const MOST: usize = 60;

const SECOND: Duration = Duration::from_secs(1);

fn url(name: &str, seed: u64) -> String {
    format!("memory://cancel-{name}-{seed}?ttl=15s&yield_seed={seed}")
}

async fn nothing_is_left(kit: &Kit) {
    eventually("nothing is held and nobody waits", || kit.held() + kit.queued() + kit.watchers() == 0).await;
}

/// Drops `call` after its n-th wake-up for every n until it ends by itself.
/// Answers how often it was dropped.
async fn at_every_wake_up<F, T>(kit: &Kit, other: &Coordinator, call: F) -> usize
where
    F: AsyncFn() -> T,
{
    for count in 0..MOST {
        let ended = cancelled_at(count, call()).await;
        let done = ended.is_some();
        drop(ended);
        nothing_is_left(kit).await;
        let next = soon(other.lock("x").unwrap().acquire_within(SECOND)).await;
        assert!(next.unwrap().is_some(), "dropped at wake-up {count}");
        nothing_is_left(kit).await;
        if done {
            return count;
        }
    }
    panic!("it needs more than {MOST} wake-ups");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_acquire_leaves_nothing() {
    let mut dropped = 0;
    for seed in 0..8 {
        let url = url("acquire", seed);
        let (kit, a, b) = (Kit::of(&url).unwrap(), connect(&url, "a").await, connect(&url, "b").await);
        let lock = a.lock("x").unwrap();
        dropped += at_every_wake_up(&kit, &b, async || lock.acquire().await.unwrap()).await;
        dropped += at_every_wake_up(&kit, &b, async || lock.try_acquire().await.unwrap()).await;
        dropped += at_every_wake_up(&kit, &b, async || lock.acquire_within(SECOND).await.unwrap()).await;
        dropped += at_every_wake_up(&kit, &b, async || lock.shared().acquire().await.unwrap()).await;
        dropped +=
            at_every_wake_up(&kit, &b, async || lock.permits(2).unwrap().acquire().await.unwrap()).await;
        let set = a.lock_all(["y", "x", "z"]).unwrap();
        dropped += at_every_wake_up(&kit, &b, async || set.acquire().await.unwrap()).await;
        dropped += at_every_wake_up(&kit, &b, async || set.try_acquire().await.unwrap()).await;
        let election = a.election("g").unwrap();
        dropped += at_every_wake_up(&kit, &b, async || election.campaign().await.unwrap()).await;
        dropped += at_every_wake_up(&kit, &b, async || election.observe().await.unwrap()).await;
    }
    assert!(dropped > 50, "{dropped} times tell little");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_release_is_driven_to_its_end() {
    let mut dropped = 0;
    for seed in 0..8 {
        let url = url("release", seed);
        let (kit, a, b) = (Kit::of(&url).unwrap(), connect(&url, "a").await, connect(&url, "b").await);
        let lock = a.lock("x").unwrap();
        dropped += at_every_wake_up(&kit, &b, async || {
            let guard = lock.acquire().await.unwrap();
            guard.release().await.unwrap()
        })
        .await;
        let election = a.election("g").unwrap();
        dropped += at_every_wake_up(&kit, &b, async || {
            let leadership = election.campaign().await.unwrap();
            leadership.resign().await.unwrap()
        })
        .await;
    }
    assert!(dropped > 50, "{dropped} times tell little");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_gives_up_at_any_wake_up_never_blocks_the_next() {
    for seed in 0..8 {
        let url = url("waiter", seed);
        let (kit, a, b) = (Kit::of(&url).unwrap(), connect(&url, "a").await, connect(&url, "b").await);
        let (mine, theirs) = (a.lock("x").unwrap(), b.lock("x").unwrap());
        for count in 0..MOST {
            let guard = theirs.acquire().await.unwrap();
            let (waited, _) = tokio::join!(cancelled_at(count, mine.acquire()), async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                guard.release().await.unwrap()
            });
            let done = waited.is_some();
            drop(waited);
            nothing_is_left(&kit).await;
            let next = soon(mine.acquire_within(SECOND)).await.unwrap();
            assert!(next.is_some(), "dropped at wake-up {count}");
            drop(next);
            nothing_is_left(&kit).await;
            if done {
                break;
            }
            assert!(count < MOST - 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_join_leaves_no_member_and_the_next_join_succeeds() {
    let mut dropped = 0;
    for seed in 0..8 {
        let url = url("join", seed);
        let (a, b) = (connect(&url, "a").await, connect(&url, "b").await);
        let (group, seen) = (a.group("g").unwrap(), b.group("g").unwrap());
        group.create().await.unwrap();
        for count in 0..MOST {
            let joined = cancelled_at(count, group.join(Capabilities::none())).await;
            if joined.is_some() {
                assert_eq!(seen.members().await.unwrap().len(), 1);
                soon(group.leave()).await.unwrap();
                dropped += count;
                break;
            }
            // Whatever the dropped one left is undone before the next change begins.
            soon(group.join(Capabilities::none())).await.unwrap();
            assert_eq!(seen.members().await.unwrap().len(), 1, "dropped at wake-up {count}");
            let left = cancelled_at(count, group.leave()).await;
            if left.is_none() {
                // Dropped before it was sent it has not begun, and after that it goes on.
                let again = soon(group.leave()).await;
                assert!(again.is_ok() || again.unwrap_err().kind() == tooz_core::ErrorKind::MemberNotFound);
            }
            assert_eq!(seen.members().await.unwrap().len(), 0, "dropped at wake-up {count}");
            assert!(count < MOST - 1);
        }
    }
    assert!(dropped > 10, "{dropped} times tell little");
}

#[tokio::test(start_paused = true)]
async fn what_the_hooks_were_not_told_because_the_run_was_dropped_they_are_told_at_the_next() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let url = url("hooks", 3);
    let (a, b) = (connect(&url, "a").await, connect(&url, "b").await);
    let seen = Arc::new(AtomicUsize::new(0));
    b.group("g").unwrap().create().await.unwrap();
    // A second watched group that is away makes every run ask the backend for it.
    b.group("gone").unwrap().create().await.unwrap();
    let count = Arc::clone(&seen);
    a.hooks()
        .watch_join_group("g", move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .await
        .unwrap();
    a.hooks().watch_join_group("gone", |_| Ok(())).await.unwrap();
    b.group("gone").unwrap().delete().await.unwrap();
    a.hooks().run_watchers(Duration::ZERO).await.unwrap();
    for expected in 1..MOST {
        let (dropped, joined) = tokio::join!(cancelled_at(expected, a.hooks().run_watchers(SECOND)), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            b.group("g").unwrap().join(Capabilities::none()).await
        });
        joined.unwrap();
        drop(dropped);
        soon(a.hooks().run_watchers(SECOND)).await.unwrap();
        assert_eq!(seen.load(Ordering::SeqCst), expected);
        soon(b.group("g").unwrap().leave()).await.unwrap();
        soon(a.hooks().run_watchers(Duration::ZERO)).await.unwrap();
    }
}
