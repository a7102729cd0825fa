//! What went wrong elsewhere, played again: each case is named after the public thread that tells its story, and
//! stands in `docs/incidents.md`.

mod breaking;
mod cancelling;
mod dying;
mod leading;
mod losing;
mod naming;
mod queueing;
mod watching;

use std::cell::Cell;

use tokio::task::JoinHandle;
use tooz_core::{FencingToken, Lock};

use super::prelude::*;

/// Every table of this folder.
pub(super) const TABLES: &[&[Case]] = &[
    losing::CASES,
    dying::CASES,
    queueing::CASES,
    cancelling::CASES,
    breaking::CASES,
    leading::CASES,
    watching::CASES,
    naming::CASES,
];

/// The source of this folder's cases.
pub(super) const SOURCES: &[&str] = &[
    include_str!("losing.rs"),
    include_str!("dying.rs"),
    include_str!("queueing.rs"),
    include_str!("cancelling.rs"),
    include_str!("breaking.rs"),
    include_str!("leading.rs"),
    include_str!("watching.rs"),
    include_str!("naming.rs"),
];

/// What a lock protects, with the check that only the protected side can make.
#[derive(Debug, Default)]
struct Store(Cell<u64>);

impl Store {
    /// Whether the write was let through.
    fn write(&self, token: FencingToken) -> bool {
        let newest = self.0.get().max(token.get());
        self.0.set(newest);
        token.get() == newest
    }
}

/// Asks for a lock in a task of its own, and returns when that has begun.
async fn asks(h: &Harness, lock: Lock) -> JoinHandle<Result<LockGuard>> {
    h.started(async move { lock.acquire().await }).await
}

/// Waits until nobody holds the lock and nobody waits for it.
async fn free(h: &Harness, c: &Coordinator, name: &str) -> Outcome {
    let lock = c.lock(name)?;
    eventually(&format!("{name} is free and nobody waits"), h.gone(), async || {
        let holders = lock.holders().await?;
        Ok::<_, Error>(holders.holders.is_empty() && holders.waiters.is_none_or(|n| n == 0))
    })
    .await
}

/// Waits until the session lives again.
async fn alive(h: &Harness, c: &Coordinator) -> Outcome {
    eventually("a session that lives", h.gone(), async || {
        Ok::<_, Error>(matches!(c.liveness(), Liveness::Alive { .. }))
    })
    .await
}
