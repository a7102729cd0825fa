//! L8: who is next.

use std::sync::{Arc, Mutex, PoisonError};

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(coordinators_are_served_in_order, "L8").needs(Characteristics::FAIR_LOCKS),
    case!(tasks_are_served_in_order, "L8").needs(Characteristics::FAIR_LOCKS),
    case!(whoever_releases_goes_to_the_end, "L8").needs(Characteristics::FAIR_LOCKS),
    case!(nobody_passes_the_queue, "L8").needs(Characteristics::FAIR_LOCKS),
    case!(permits_are_given_in_order, "L8", "L15").needs(Characteristics::FAIR_LOCKS),
    case!(readers_are_served_together_up_to_the_next_writer, "L8", "L9")
        .needs(Characteristics::FAIR_LOCKS.union(Characteristics::SHARED_LOCKS)),
    case!(everybody_is_served_without_order, "L8").lacks(Characteristics::FAIR_LOCKS),
    case!(a_cancelled_waiter_is_in_nobodys_way, "L8", "L6"),
    case!(a_crashed_waiter_is_in_nobodys_way, "L8").ttl(),
    case!(a_crashed_waiters_limit_refuses_no_request, "L8", "L15").ttl(),
    case!(a_waiter_whose_place_vanished_asks_again, "L8").ttl().kit(),
    case!(one_release_grants_one_writer, "L8", "L1"),
    case!(every_hand_over_is_a_grant, "L8", "L3"),
    case!(a_hand_over_takes_no_poll, "L8").exact(),
    case!(a_thousand_tasks_on_one_lock, "L8", "L1", "L3").budget(60),
];

/// Who was served, in order.
#[derive(Clone, Default)]
struct Order(Arc<Mutex<Vec<String>>>);

impl Order {
    fn note(&self, who: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(who.to_owned());
    }

    fn seen(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

type Waiting = tokio::task::JoinHandle<Result<()>>;

/// Starts to wait, notes when it is served, and gives back at once. It has its place among the tasks of its
/// coordinator; [`Harness::waiters`] says when the backend has given it one.
async fn wait(h: &Harness, order: &Order, who: &str, lock: tooz_core::Lock) -> Waiting {
    let (order, who) = (order.clone(), who.to_owned());
    h.started(async move {
        let guard = lock.acquire().await?;
        order.note(&who);
        guard.release().await?;
        Ok(())
    })
    .await
}

async fn all(h: &Harness, waiting: Vec<Waiting>) -> Outcome {
    within("everybody's turn", h.limit(secs(1)), async {
        for one in waiting {
            one.await??;
        }
        Outcome::Ok(())
    })
    .await?
}

/// L8: coordinators in the order in which they began to contend.
async fn coordinators_are_served_in_order(h: Harness) -> Outcome {
    let order = Order::default();
    let guard = taken(&h.coordinator("first").await?, "x").await?;
    let mut waiting = Vec::new();
    for (n, who) in (1..).zip(["c", "a", "d", "b"]) {
        waiting.push(wait(&h, &order, who, h.coordinator(who).await?.lock("x")?).await);
        h.waiters("x", n).await?;
    }
    guard.release().await?;
    all(&h, waiting).await?;
    ensure(order.seen() == ["c", "a", "d", "b"], format!("{:?}", order.seen()))
}

/// L8: tasks of one coordinator in order of asking.
async fn tasks_are_served_in_order(h: Harness) -> Outcome {
    let order = Order::default();
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    let mut waiting = Vec::new();
    for who in ["3", "1", "4", "2"] {
        waiting.push(wait(&h, &order, who, a.lock("x")?).await);
    }
    guard.release().await?;
    all(&h, waiting).await?;
    ensure(order.seen() == ["3", "1", "4", "2"], format!("{:?}", order.seen()))
}

/// L8: a coordinator that has released goes behind those who waited meanwhile.
async fn whoever_releases_goes_to_the_end(h: Harness) -> Outcome {
    let order = Order::default();
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let waiting = vec![wait(&h, &order, "a1", a.lock("x")?).await, wait(&h, &order, "b", b.lock("x")?).await];
    h.waiters("x", 1).await?; // a's own tasks wait among themselves
    guard.release().await?;
    let last = wait(&h, &order, "a2", a.lock("x")?).await;
    all(&h, waiting).await?;
    all(&h, vec![last]).await?;
    let seen = order.seen();
    ensure(seen.len() == 3, format!("{seen:?}"))?;
    ensure(
        seen.iter().position(|who| who == "b") < seen.iter().position(|who| who == "a2"),
        format!("{seen:?}"),
    )
}

/// L8: neither a new wish nor a try is granted past those who wait.
async fn nobody_passes_the_queue(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let (a, b, c) =
        (h.session(&driver, "a").await?, h.session(&driver, "b").await?, h.session(&driver, "c").await?);
    let grant = granted(&a, "x", true).await?;
    let place = queued(&b, "x", false).await?;
    // A reader would fit beside the reader, were it not for the writer that waits.
    let _behind = queued(&c, "x", true).await?;
    a.locks().release(&grant, End::Clean).await?;
    let turn = h.soon_done("the turn of the first in the queue", b.locks().turn(&place)).await??;
    ensure(matches!(turn, tooz_core::driver::Turn::Granted(_)), format!("{turn:?}"))?;
    let holders = driver.locks().holders(&place.key).await?;
    ensure(holders.holders.len() == 1, format!("{holders:?}"))
}

/// L8, L15: permits that come free go to whoever has waited longest.
async fn permits_are_given_in_order(h: Harness) -> Outcome {
    let order = Order::default();
    let a = h.coordinator("a").await?;
    let one = a.lock("x")?.permits(2)?.acquire().await?;
    let two = a.lock("x")?.permits(2)?.acquire().await?;
    let mut waiting = Vec::new();
    for (n, who) in (1..).zip(["c", "b", "d"]) {
        waiting.push(wait(&h, &order, who, h.coordinator(who).await?.lock("x")?.permits(2)?).await);
        h.waiters("x", n).await?;
    }
    one.release().await?;
    all(&h, waiting).await?;
    two.release().await?;
    ensure(order.seen() == ["c", "b", "d"], format!("{:?}", order.seen()))
}

/// L8, L9: one release lets all readers in that stand before the next writer, and none behind it.
async fn readers_are_served_together_up_to_the_next_writer(h: Harness) -> Outcome {
    let guard = taken(&h.coordinator("first").await?, "x").await?;
    let mut waiting = Vec::new();
    for (n, (who, shared)) in (1..).zip([("r1", true), ("r2", true), ("w", false), ("r3", true)]) {
        let lock = h.coordinator(who).await?.lock("x")?;
        let lock = if shared { lock.shared() } else { lock };
        waiting.push(h.spawn(async move { lock.acquire().await }));
        h.waiters("x", n).await?;
    }
    guard.release().await?;
    let mut waiting = waiting.into_iter();
    let mut next = async |what: &str| -> Outcome<LockGuard> {
        Ok(h.soon_done(what, waiting.next().ok_or("nobody waits")?).await???)
    };
    let (one, two) = (next("the first reader").await?, next("the second reader").await?);
    ensure(one.is_held() && two.is_held(), "readers are not together")?;
    one.release().await?;
    h.waiters("x", 2).await?;
    ensure(two.is_held(), "a reader's release ended another's")?;
    two.release().await?;
    let writer = next("the writer").await?;
    ensure(writer.mode() == LockMode::Exclusive && writer.is_held(), "not the writer's turn")?;
    writer.release().await?;
    next("the last reader").await.map(|_| ())
}

/// L8: without an order everybody is served all the same.
async fn everybody_is_served_without_order(h: Harness) -> Outcome {
    let order = Order::default();
    let guard = taken(&h.coordinator("first").await?, "x").await?;
    let mut waiting = Vec::new();
    for (n, who) in (1..).zip(["a", "b", "c", "d"]) {
        waiting.push(wait(&h, &order, who, h.coordinator(who).await?.lock("x")?).await);
        h.waiters("x", n).await?;
    }
    guard.release().await?;
    all(&h, waiting).await?;
    ensure(order.seen().len() == 4, format!("{:?}", order.seen()))
}

/// L8, L6: whoever gave up waiting is passed over.
async fn a_cancelled_waiter_is_in_nobodys_way(h: Harness) -> Outcome {
    let order = Order::default();
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let mut given_up = Vec::new();
    for c in [&a, &b, &h.coordinator("c").await?] {
        given_up.push(wait(&h, &order, "cancelled", c.lock("x")?).await);
    }
    h.waiters("x", 2).await?; // the holder's own task waits beside it
    let last = wait(&h, &order, "last", h.coordinator("d").await?.lock("x")?).await;
    h.waiters("x", 3).await?;
    for one in given_up {
        one.abort();
    }
    h.waiters("x", 1).await?;
    guard.release().await?;
    all(&h, vec![last]).await?;
    ensure(order.seen() == ["last"], format!("{:?}", order.seen()))
}

/// L8: a waiter that died is passed over, at the latest when its session ends.
async fn a_crashed_waiter_is_in_nobodys_way(h: Harness) -> Outcome {
    let order = Order::default();
    let a = h.coordinator("a").await?;
    let dead = h.keep(h.builder("dead").manual_heart().rejoin(false)).await?; // it never beats
    let guard = taken(&a, "x").await?;
    let _never = wait(&h, &order, "dead", dead.lock("x")?).await;
    h.waiters("x", 1).await?;
    let last = wait(&h, &order, "last", h.coordinator("b").await?.lock("x")?).await;
    h.waiters("x", 2).await?;
    h.outlive().await;
    guard.release().await?;
    all(&h, vec![last]).await?;
    ensure(order.seen().first().is_some_and(|who| who == "last"), format!("{:?}", order.seen()))
}

/// L8, L15: a waiter that died refuses no permit of another limit once its session has ended, wherever it stood in the queue.
async fn a_crashed_waiters_limit_refuses_no_request(h: Harness) -> Outcome {
    let order = Order::default();
    let a = h.coordinator("a").await?;
    let dead = h.keep(h.builder("dead").manual_heart().rejoin(false)).await?; // it never beats
    let guard = taken(&a, "x").await?;
    let first = wait(&h, &order, "first", h.coordinator("b").await?.lock("x")?).await;
    h.waiters("x", 1).await?;
    let _never = wait(&h, &order, "dead", dead.lock("x")?.permits(3)?).await;
    h.waiters("x", 2).await?;
    h.outlive().await;
    let last = wait(&h, &order, "last", h.coordinator("c").await?.lock("x")?.permits(2)?).await;
    guard.release().await?;
    all(&h, vec![first, last]).await?;
    let mut seen = order.seen();
    if !h.claimed().contains(Characteristics::FAIR_LOCKS) {
        seen.sort(); // both were served, in any order
    }
    ensure(seen == ["first", "last"], format!("{seen:?}"))
}

/// L8: a lock's record is deleted with its queue; whoever waited learns it at its next beat, and asks again.
async fn a_waiter_whose_place_vanished_asks_again(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    eventually("b waits", h.soon(), async || {
        Ok::<_, Error>(a.lock("x")?.holders().await?.waiters != Some(0))
    })
    .await?;
    h.kit()?.vanish(h.namespace(), "x");
    let next = within("the lock", h.some_ttl(), waiting).await???;
    ensure(next.is_held() && next.token() > guard.token(), "granted, and not held, or with an old token")
}

/// L8, L1: of several writers that wait, one release lets exactly one in.
async fn one_release_grants_one_writer(h: Harness) -> Outcome {
    let guard = taken(&h.coordinator("first").await?, "x").await?;
    let mut waiting = Vec::new();
    for (n, who) in (1..).zip(["a", "b", "c"]) {
        let lock = h.coordinator(who).await?.lock("x")?;
        waiting.push(h.spawn(async move { lock.acquire().await }));
        h.waiters("x", n).await?;
    }
    guard.release().await?;
    h.soon_true("one is served", async || {
        Ok::<_, Error>(waiting.iter().any(tokio::task::JoinHandle::is_finished))
    })
    .await?;
    h.waiters("x", 2).await?;
    let served = waiting.iter().filter(|one| one.is_finished()).count();
    ensure(served == 1, format!("{served} are served by one release"))
}

/// L8, L3: also tasks of one coordinator hand over by a release and a grant, each with its own token.
async fn every_hand_over_is_a_grant(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let guard = taken(&a, "x").await?;
    let (first, lock) = (guard.token(), a.lock("x")?);
    let waiting = h.started(async move { lock.acquire().await }).await;
    guard.release().await?;
    let next = h.soon_done("the hand-over", waiting).await???;
    ensure(next.token() > first, format!("{} after {first}", next.token()))?;
    let holders = a.lock("x")?.holders().await?.holders;
    ensure(holders.len() == 1 && holders[0].token == Some(next.token()), format!("{holders:?}"))
}

/// L8: a release wakes the next one; nobody waits for a poll.
async fn a_hand_over_takes_no_poll(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.pass(secs(2)).await;
    let watch = h.stopwatch();
    guard.release().await?;
    let _next = waiting.await??;
    ensure(watch.elapsed() <= millis(10), format!("the hand-over took {:?}", watch.elapsed()))
}

/// L8, L1, L3: a thousand tasks of one process are served one after the other.
async fn a_thousand_tasks_on_one_lock(h: Harness) -> Outcome {
    let c = h.coordinator("a").await?;
    let state = Arc::new(Mutex::new((0_u64, 0_usize)));
    let mut tasks = Vec::new();
    for _ in 0..1_000 {
        let (c, state) = (c.clone(), Arc::clone(&state));
        tasks.push(h.spawn(async move {
            let guard = c.lock("x")?.acquire().await?;
            let newer = {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let newer = guard.token().get() > state.0;
                *state = (guard.token().get(), state.1 + 1);
                newer
            };
            guard.release().await?;
            fine(newer)
        }));
    }
    for task in tasks {
        ensure(task.await??, "a token is not larger than the one before it")?;
    }
    let served = state.lock().unwrap_or_else(PoisonError::into_inner).1;
    ensure(served == 1_000, format!("{served} were served"))?;
    let holders = c.lock("x")?.holders().await?;
    ensure(holders.holders.is_empty() && holders.waiters.is_none_or(|n| n == 0), format!("{holders:?}"))
}
