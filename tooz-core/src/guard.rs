//! The proof of holding a lock.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::driver::{LockMode, Previous, Released};
use crate::platform::clock::Deadline;
use crate::session::live::GrantState;
use crate::session::release::{release, release_in_background};
use crate::session::run::run;
use crate::session::state::CloseOnDrop;
use crate::{FencingToken, LockName, LossReason, Lost, Result};

/// The proof of holding a lock. Dropping it releases the lock.
///
/// A dropped guard is released in the background, and what runs in the background ends with the process. Before `main`
/// returns, close the coordinator or work in a [`Coordinator::scope`](crate::Coordinator::scope). Otherwise the lock may
/// stay held until the session's end.
///
/// The release is clean, with three exceptions: the guard was lost, it is dropped while its thread panics, or work under
/// it ([`LockGuard::run`]) was dropped before its end. Then the next holder's [`previous`](LockGuard::previous) says so.
///
/// # Guarantees
/// [`is_held`](LockGuard::is_held) reads the clock at every question. At its deadline the guard is lost, even while a
/// renewal hangs or after the process was stopped. A lost guard never becomes valid again. Between two questions the
/// process may be stopped for any time. Only the [token](LockGuard::token), compared by the protected resource, covers
/// that.
///
/// # Examples
/// Work that is cancelled when the lock is lost:
/// ```
/// # use tooz_core::{self as tooz, Coordinator, LossReason};
/// # use tooz_memory as _;
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// # let c = Coordinator::builder("memory://a-guard", "host-1").connect().await?;
/// # let operator = Coordinator::builder("memory://a-guard", "operator").connect().await?;
/// let guard = c.lock("reindex")?.acquire().await?;
/// let token = guard.token();
/// let done = guard.run(async { format!("row written with token {token}") }).await?;
/// assert!(guard.is_held() && done.ends_with(&token.to_string()));
///
/// // An operator breaks the lock while the next piece of work runs.
/// let breaks = operator.lock("reindex")?;
/// let (lost, broken) = tokio::join!(
///     guard.run(std::future::pending::<()>()),
///     breaks.break_lock("maintenance"),
/// );
/// assert_eq!(broken?.len(), 1);
/// let lost = lost.unwrap_err();
/// assert!(matches!(lost.reason, LossReason::Broken { .. }));
/// assert!(lost.output.is_none(), "the work was cancelled");
/// assert!(!guard.is_held());
/// # c.close().await?;
/// # operator.close().await
/// # }
/// ```
#[must_use = "a guard that is dropped releases its lock"]
pub struct LockGuard {
    shared: Arc<CloseOnDrop>,
    name: LockName,
    pub(crate) state: Arc<GrantState>,
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("name", &self.name)
            .field("token", &self.token())
            .field("mode", &self.mode())
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }
}

impl LockGuard {
    pub(crate) fn new(shared: Arc<CloseOnDrop>, name: LockName, state: Arc<GrantState>) -> Self {
        Self { shared, name, state }
    }

    /// The lock's name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The fencing token of this grant. It never fails: a late token is harmless, the guarded write refuses it.
    pub fn token(&self) -> FencingToken {
        self.state.grant.token
    }

    /// How the lock is held.
    pub fn mode(&self) -> LockMode {
        self.state.grant.mode
    }

    /// How the last holder ended. After anything but [`Previous::Clean`], what the lock protects may be half
    /// done.
    pub fn previous(&self) -> Previous {
        self.state.grant.previous
    }

    /// Whether it is held now.
    pub fn is_held(&self) -> bool {
        self.state.loss().is_none()
    }

    /// When it ends unless it is renewed; `None` where liveness does not depend on time.
    pub fn deadline(&self) -> Option<Deadline> {
        self.state.deadline()
    }

    /// A signal for tasks that do not own the guard.
    pub fn loss_signal(&self) -> LossSignal {
        LossSignal(Arc::clone(&self.state))
    }

    /// Waits until the lock is lost, at the latest at its deadline.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn lost(&self) -> LossReason {
        self.state.lost().await
    }

    /// Runs `work` while the lock is held, and cancels it at a loss. The clock is compared before and after each poll of
    /// `work`, so `Ok` means that the lock was held until `work` had returned.
    ///
    /// # Errors
    /// [`Lost`]: the reason of the loss, and what `work` returned if the loss came during its last poll.
    ///
    /// # Cancel safety
    /// Dropping it drops `work`; the lock stays held. Work that had begun and was dropped before its end may have left half of
    /// it behind: if the guard is then dropped, too, and not given back by [`release`](LockGuard::release), the next holder
    /// is told [`Previous::Expired`].
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Lost<F::Output>> {
        run(&self.state, work).await
    }

    /// Gives the lock back and waits for the backend's answer. A guard that was lost before is answered at once.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`: the release goes on in the background until the backend answers or the
    /// session ends.
    ///
    /// # Cancel safety
    /// Dropping the future lets the release go on in the background.
    pub async fn release(self) -> Result<Released> {
        // The guard is dropped afterwards, when there is nothing left to begin.
        release(&self.shared, &self.state).await
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        release_in_background(&self.shared, &self.state);
    }
}

/// Tells when a guard is lost, to tasks that do not own it. It keeps neither the lock nor the coordinator.
#[derive(Clone)]
pub struct LossSignal(Arc<GrantState>);

impl LossSignal {
    pub(crate) fn new(state: &Arc<GrantState>) -> Self {
        Self(Arc::clone(state))
    }

    /// Why it is lost, computed from the clock now; `None` while it is held.
    pub fn reason(&self) -> Option<LossReason> {
        self.0.loss()
    }

    /// Whether it is lost or was released.
    pub fn is_lost(&self) -> bool {
        self.reason().is_some()
    }

    /// Waits for the loss, or for the release.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn wait(&self) -> LossReason {
        self.0.lost().await
    }
}

impl fmt::Debug for LossSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LossSignal({:?})", self.reason())
    }
}
