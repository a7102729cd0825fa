//! Steps that several incidents share.

use std::cell::Cell;

use tokio::task::JoinHandle;
use tooz_core::{FencingToken, Lock};

use super::super::prelude::*;

/// What a lock protects, with the check that only the protected side can make.
#[derive(Debug, Default)]
pub(super) struct Store(Cell<u64>);

impl Store {
    /// Whether the write was let through.
    pub(super) fn write(&self, token: FencingToken) -> bool {
        let newest = self.0.get().max(token.get());
        self.0.set(newest);
        token.get() == newest
    }
}

/// Asks for a lock in a task of its own, and returns when that has begun.
pub(super) async fn asks(h: &Harness, lock: Lock) -> JoinHandle<Result<LockGuard>> {
    h.started(async move { lock.acquire().await }).await
}

/// Waits until each has had the lock and given it back: where locks are fair, in this order.
pub(super) async fn take_turns(
    h: &Harness,
    what: &str,
    limit: Duration,
    waiting: impl IntoIterator<Item = JoinHandle<Result<LockGuard>>>,
) -> Outcome {
    /// Whether it was held; `None`: the task did not end by itself.
    async fn take(one: JoinHandle<Result<LockGuard>>) -> Option<Result<bool>> {
        let next = match one.await.ok()? {
            Ok(next) => next,
            Err(error) => return Some(Err(error)),
        };
        let held = next.is_held();
        Some(next.release().await.map(|_| held))
    }
    let taken = |turn: Option<Result<bool>>| {
        let held = turn.ok_or("the task that waited did not end by itself")??;
        ensure(held, "granted, and not held")
    };
    if h.claimed().contains(Characteristics::FAIR_LOCKS) {
        for one in waiting {
            taken(within(what, limit, take(one)).await?)?;
        }
        return Ok(());
    }
    let turns: Vec<_> = waiting.into_iter().map(|one| h.spawn(take(one))).collect();
    for turn in turns {
        taken(within(what, limit, turn).await??)?;
    }
    Ok(())
}

/// Waits until the lock is free and no attempt waits for it.
pub(super) async fn free(h: &Harness, c: &Coordinator, name: &str) -> Outcome {
    let lock = c.lock(name)?;
    eventually(&format!("{name} is free and nobody waits"), h.gone(), async || {
        let holders = lock.holders().await?;
        Ok::<_, Error>(holders.holders.is_empty() && holders.waiters.is_none_or(|n| n == 0))
    })
    .await
}

/// Waits until the session lives again.
pub(super) async fn alive(h: &Harness, c: &Coordinator) -> Outcome {
    eventually("a session that lives", h.gone(), async || {
        Ok::<_, Error>(matches!(c.liveness(), Liveness::Alive { .. }))
    })
    .await
}
