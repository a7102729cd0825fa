//! The proof of holding a lock.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use crate::clock::Deadline;
use crate::contend::Ticket;
use crate::driver::{LockMode, Previous, Released, Session};
use crate::shared::{Life, Owned, Shared};
use crate::tenure::GrantState;
use crate::{FencingToken, LockName, LossReason, Result};

/// The user's proof of holding a lock; dropping it releases the lock.
///
/// **Guarantees.** Whether it is held is computed from the clock at every question: at its deadline it is lost,
/// also while a renewal hangs or after the process was stopped. Nothing comes back from lost. Between two
/// questions the process may be stopped for any time: only the [token](LockGuard::token), compared by the
/// protected resource, covers that.
#[must_use = "a guard that is dropped releases its lock"]
pub struct LockGuard {
    life: Arc<Life>,
    name: LockName,
    state: Arc<GrantState>,
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
    pub(crate) fn new(life: Arc<Life>, name: LockName, state: Arc<GrantState>) -> Self {
        Self { life, name, state }
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
    pub fn loss(&self) -> LossSignal {
        LossSignal(Arc::clone(&self.state))
    }

    /// Waits until the lock is lost, at the latest at its deadline.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn lost(&self) -> LossReason {
        self.state.lost().await
    }

    /// Runs `work` while the lock is held: at a loss it is cancelled, and the reason is the answer. The clock is
    /// compared at each poll, before `work` is polled.
    ///
    /// # Errors
    /// The reason of the loss.
    ///
    /// # Cancel safety
    /// Dropping it drops `work`; the lock stays held.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, LossReason> {
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
        release(&self.life, &self.state).await
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        release_in_background(&self.life, &self.state);
    }
}

pub(crate) async fn run<F: Future>(state: &Arc<GrantState>, work: F) -> Result<F::Output, LossReason> {
    let mut lost = pin!(state.lost());
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        // The clock first: after a stop of the process this poll may come before any task set a flag.
        if let Some(reason) = state.loss() {
            return Poll::Ready(Err(reason));
        }
        if let Poll::Ready(reason) = lost.as_mut().poll(cx) {
            return Poll::Ready(Err(reason));
        }
        work.as_mut().poll(cx).map(Ok)
    })
    .await
}

/// A release that was begun and has not been answered. Dropping it hands it over to the keeper.
struct Releasing<'a> {
    shared: &'a Arc<Shared>,
    state: &'a Arc<GrantState>,
    call: Option<Owned<Result<Released>>>,
    ticket: Option<Ticket>,
}

impl<'a> Releasing<'a> {
    fn begin(shared: &'a Arc<Shared>, state: &'a Arc<GrantState>) -> Option<Self> {
        if shared.check().is_err() {
            return None; // closed: everything has ended; forked: it is the parent's
        }
        let (session, ticket) = state.begin_release()?;
        ticket.set_leaving();
        let call = release_call(session, Arc::clone(state));
        Some(Self { shared, state, call: Some(call), ticket: Some(ticket) })
    }
}

fn release_call(session: Arc<dyn Session>, state: Arc<GrantState>) -> Owned<Result<Released>> {
    Box::pin(async move { session.locks().release(&state.grant).await })
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let (shared, state, call) = (Arc::clone(self.shared), Arc::clone(self.state), self.call.take());
        self.shared.settle(Box::pin(async move {
            let answered = match call {
                Some(call) => state.tenure.or_lost(call).await.is_some_and(|answer| answer.is_ok()),
                None => false,
            };
            if !answered {
                shared.withdraw(&state.tenure, &state.grant.key, state.grant.attempt).await;
            }
            // Only now: a sibling that asked earlier could be overtaken by the unfinished release.
            drop(ticket);
        }));
    }
}

pub(crate) fn release_in_background(shared: &Arc<Shared>, state: &Arc<GrantState>) {
    drop(Releasing::begin(shared, state));
}

pub(crate) async fn release(shared: &Arc<Shared>, state: &Arc<GrantState>) -> Result<Released> {
    let lost = state.loss().is_some();
    let Some(mut releasing) = Releasing::begin(shared, state) else { return Ok(Released::WasNotHolder) };
    if lost {
        // What may still stand on the backend is given back in the background, or goes with the session.
        return Ok(Released::WasNotHolder);
    }
    let call = std::future::poll_fn(|cx| match &mut releasing.call {
        Some(call) => call.as_mut().poll(cx),
        None => Poll::Ready(Ok(Released::WasNotHolder)),
    });
    let answer = shared.limited(shared.config.operation_timeout, call).await;
    let answer = match answer {
        Some(answer) => {
            releasing.call = None;
            answer
        }
        None => Err(shared.timed_out()),
    };
    if answer.is_ok() {
        releasing.ticket = None;
    }
    drop(releasing);
    answer.map_err(|error| error.during("release"))
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
