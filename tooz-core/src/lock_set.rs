//! Several locks taken together, in an order that cannot deadlock.

use std::future::Future;
use std::time::Duration;

use crate::driver::LockMode;
use crate::guard::LockGuard;
use crate::lock::Lock;
use crate::platform::clock::Instant;
use crate::session::acquire::Patience;
use crate::session::run::run_under;
use crate::{LockName, LossReason, Lost, Result};

/// Several locks to be taken together.
///
/// The names are sorted by bytes and deduplicated, so two callers that name the same locks in any order never
/// wait for each other in a circle; a name that is asked for both shared and exclusive is taken exclusive.
#[derive(Clone, Debug)]
pub struct LockSet {
    locks: Vec<Lock>,
    names: Vec<LockName>,
}

impl LockSet {
    pub(crate) fn new(mut locks: Vec<Lock>) -> Self {
        let shared_last = |lock: &Lock| lock.mode == LockMode::Shared;
        locks.sort_by(|a, b| a.name().cmp(b.name()).then(shared_last(a).cmp(&shared_last(b))));
        locks.dedup_by(|later, earlier| later.name() == earlier.name());
        let names = locks.iter().map(|lock| lock.name().clone()).collect();
        Self { locks, names }
    }

    /// The names in the order in which they are taken.
    pub fn names(&self) -> &[LockName] {
        &self.names
    }

    /// The same names, each held shared.
    #[must_use]
    pub fn shared(&self) -> Self {
        Self { locks: self.locks.iter().map(Lock::shared).collect(), names: self.names.clone() }
    }

    /// These locks and `others`; a name that is exclusive in either is taken exclusive.
    #[must_use]
    pub fn with(&self, others: &Self) -> Self {
        Self::new(self.locks.iter().chain(&others.locks).cloned().collect())
    }

    /// Waits until all are held. What is lost while it waits for the others is taken anew.
    ///
    /// # Errors
    /// As [`Lock::acquire`]; what was taken is released.
    ///
    /// # Cancel safety
    /// Dropping the future releases what was taken.
    pub async fn acquire(&self) -> Result<LockSetGuard> {
        loop {
            // Without a limit the answer is never that another has them.
            if let Some(guard) = self.take(|_| Patience::Forever).await? {
                return Ok(guard);
            }
        }
    }

    /// Takes all that are named if all can be had at once; else none.
    ///
    /// # Errors
    /// As [`LockSet::acquire`].
    ///
    /// # Cancel safety
    /// As [`LockSet::acquire`].
    pub async fn try_acquire(&self) -> Result<Option<LockSetGuard>> {
        self.take(|_| Patience::None).await
    }

    /// Takes all within `limit`, which counts for all together; else none.
    ///
    /// # Errors
    /// As [`LockSet::acquire`].
    ///
    /// # Cancel safety
    /// As [`LockSet::acquire`].
    pub async fn acquire_within(&self, limit: Duration) -> Result<Option<LockSetGuard>> {
        let end = self.locks.first().map(|first| first.shared.clock.now() + limit);
        let left = |now| Patience::For(end.map_or(limit, |end| end.saturating_since(now)));
        self.take(left).await
    }

    /// Takes one after the other, each as patiently as is said at that moment. INVARIANT: what it answers was held
    /// together: a session that ends between two of them takes the first along, and then all are taken anew, in
    /// their order, or two callers could wait for each other in a circle.
    async fn take(&self, patience: impl Fn(Instant) -> Patience) -> Result<Option<LockSetGuard>> {
        loop {
            let mut guards = Vec::with_capacity(self.locks.len());
            for lock in &self.locks {
                match lock.acquire_by(patience(lock.shared.clock.now())).await? {
                    Some(guard) => guards.push(guard),
                    None => return Ok(None),
                }
            }
            let set = LockSetGuard { guards };
            if set.is_held() {
                return Ok(Some(set));
            }
            tracing::debug!("a lock was lost before the last one was taken: all are taken anew");
        }
    }
}

/// The proof of holding several locks; dropping it releases them all.
#[derive(Debug)]
#[must_use = "a guard that is dropped releases its locks"]
pub struct LockSetGuard {
    guards: Vec<LockGuard>,
}

impl LockSetGuard {
    /// The guards in the order in which they were taken.
    pub fn guards(&self) -> &[LockGuard] {
        &self.guards
    }

    /// Whether all are held now.
    pub fn is_held(&self) -> bool {
        self.guards.iter().all(LockGuard::is_held)
    }

    /// Waits until any of them is lost; never ends for an empty set.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn lost(&self) -> LossReason {
        let mut losses: Vec<_> = self.guards.iter().map(|guard| Box::pin(guard.lost())).collect();
        std::future::poll_fn(|cx| {
            for loss in &mut losses {
                if let std::task::Poll::Ready(reason) = loss.as_mut().poll(cx) {
                    return std::task::Poll::Ready(reason);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Runs `work` while all are held, as [`LockGuard::run`] does; the first loss cancels it.
    ///
    /// # Errors
    /// As [`LockGuard::run`].
    ///
    /// # Cancel safety
    /// Dropping it drops `work`; the locks stay held.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Lost<F::Output>> {
        let under: Vec<_> = self.guards.iter().map(|guard| &*guard.state).collect();
        run_under(&under, self.lost(), work).await
    }

    /// Gives all back, the last one first.
    ///
    /// # Errors
    /// The first error; all releases go on in the background all the same.
    ///
    /// # Cancel safety
    /// Dropping the future lets the releases go on in the background.
    pub async fn release(mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(guard) = self.guards.pop() {
            let released = guard.release().await.map(drop);
            outcome = outcome.and(released);
        }
        outcome
    }
}
