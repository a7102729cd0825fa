//! The proof of holding a lock.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use crate::clock::Deadline;
use crate::contend::Ticket;
use crate::driver::{End, LockMode, Previous, Released, Session};
use crate::shared::{Life, Owned, Shared};
use crate::tenure::{GrantState, Release};
use crate::{FencingToken, LockName, LossReason, Lost, Result};

/// The user's proof of holding a lock; dropping it releases the lock.
///
/// A dropped guard is released in the background: before `main` returns, close the coordinator or work in a
/// [`Coordinator::scope`](crate::Coordinator::scope), or the process ends first and the lock stays held until the
/// session's end.
///
/// The release is clean, unless the guard was lost, is dropped while its thread panics, or work under it
/// ([`LockGuard::run`]) was dropped before its end: then the next holder's [`previous`](LockGuard::previous) says so.
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

    pub(crate) fn state(&self) -> &GrantState {
        &self.state
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
        release(&self.life, &self.state).await
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        release_in_background(&self.life, &self.state);
    }
}

/// Work that runs under these grants. Dropped or cancelled between its first poll and its end, it leaves word that it was
/// interrupted.
struct Working<'a> {
    under: &'a [&'a GrantState],
    half_done: bool,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if self.half_done {
            self.under.iter().for_each(|state| state.interrupt());
        }
    }
}

/// Polls `work` while all of these are held; `lost` wakes it at a loss.
pub(crate) async fn run_under<F: Future>(
    under: &[&GrantState],
    lost: impl Future<Output = LossReason>,
    work: F,
) -> Result<F::Output, Lost<F::Output>> {
    let (mut lost, mut task) = (pin!(lost), pin!(work));
    let found = || under.iter().find_map(|state| state.loss());
    let mut working = Working { under, half_done: false };
    std::future::poll_fn(|cx| {
        // The clock first: after a stop of the process this poll may come before any task set a flag.
        if let Some(reason) = found() {
            return Poll::Ready(Err(Lost { reason, output: None }));
        }
        if let Poll::Ready(reason) = lost.as_mut().poll(cx) {
            return Poll::Ready(Err(Lost { reason, output: None }));
        }
        working.half_done = true;
        let polled = task.as_mut().poll(cx);
        working.half_done = polled.is_pending();
        // And once more: the process may have been stopped within this poll, its last one or not.
        match (found(), polled) {
            (Some(reason), Poll::Ready(output)) => Poll::Ready(Err(Lost { reason, output: Some(output) })),
            (Some(reason), Poll::Pending) => Poll::Ready(Err(Lost { reason, output: None })),
            (None, polled) => polled.map(Ok),
        }
    })
    .await
}

pub(crate) async fn run<F: Future>(state: &Arc<GrantState>, work: F) -> Result<F::Output, Lost<F::Output>> {
    run_under(&[state], state.lost(), work).await
}

/// A release that was begun and has not been answered. Dropping it hands it over to the keeper.
struct Releasing<'a> {
    shared: &'a Arc<Shared>,
    state: &'a Arc<GrantState>,
    call: Option<Owned<Result<Released>>>,
    ticket: Option<Ticket>,
    end: End,
}

impl<'a> Releasing<'a> {
    fn begin(shared: &'a Arc<Shared>, state: &'a Arc<GrantState>, end: End) -> Option<Self> {
        if shared.check().is_err() {
            return None; // closed: everything has ended; forked: it is the parent's
        }
        let Release { session, ticket, end } = state.begin_release(end)?;
        ticket.set_leaving();
        let call = release_call(session, Arc::clone(state), end);
        Some(Self { shared, state, call: Some(call), ticket: Some(ticket), end })
    }
}

fn release_call(session: Arc<dyn Session>, state: Arc<GrantState>, end: End) -> Owned<Result<Released>> {
    Box::pin(async move {
        let answer = session.locks().release(&state.grant, end).await;
        if answer.is_ok() {
            state.tenure.released(state.grant.attempt);
        }
        answer
    })
}

/// Gives back what was lost by its own deadline while its session lives, once the backend itself may have ended it: what
/// is left of it must not stay as long as the session does. `None`: the session is over.
pub(crate) fn give_back_lost(shared: &Arc<Shared>, state: Arc<GrantState>) -> Option<Owned<()>> {
    state.tenure.session()?;
    let shared = Arc::clone(shared);
    Some(Box::pin(async move {
        shared.spawner.sleep(state.tenure.margin()).await;
        release_until_answered(&shared, &state, End::Unclean).await;
    }))
}

/// Repeats a release; a withdrawal would say that the lock was never used.
async fn release_until_answered(shared: &Shared, state: &Arc<GrantState>, end: End) {
    let call = |session| {
        let call = release_call(session, Arc::clone(state), end);
        Box::pin(async move { call.await.map(drop) }) as Owned<Result<()>>
    };
    shared.until_answered(&state.tenure, call).await;
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let (shared, state, call) = (Arc::clone(self.shared), Arc::clone(self.state), self.call.take());
        let end = self.end;
        self.shared.settle(Box::pin(async move {
            let answered = match call {
                Some(call) => state.tenure.or_lost(call).await.is_some_and(|answer| answer.is_ok()),
                None => false,
            };
            if !answered {
                release_until_answered(&shared, &state, end).await;
            }
            // Only now: a sibling that asked earlier could be overtaken by the unfinished release.
            drop(ticket);
        }));
    }
}

pub(crate) fn release_in_background(shared: &Arc<Shared>, state: &Arc<GrantState>) {
    drop(Releasing::begin(shared, state, state.end_of_drop()));
}

pub(crate) async fn release(shared: &Arc<Shared>, state: &Arc<GrantState>) -> Result<Released> {
    let lost = state.loss().is_some();
    let Some(mut releasing) = Releasing::begin(shared, state, End::Clean) else {
        return Ok(Released::WasNotHolder);
    };
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
