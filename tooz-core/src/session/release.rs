//! How a lock is given back.

use std::sync::Arc;
use std::task::Poll;

use super::call::{Owned, Reads};
use super::cleanup::until_answered;
use super::live::GrantState;
use super::queue::Ticket;
use super::state::Shared;
use crate::Result;
use crate::driver::{End, Released, Session};

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
        let (session, ticket, end) = state.begin_release(end)?;
        ticket.set_leaving();
        let call = release_call(session, Arc::clone(state), end);
        Some(Self { shared, state, call: Some(call), ticket: Some(ticket), end })
    }
}

fn release_call(session: Arc<dyn Session>, state: Arc<GrantState>, end: End) -> Owned<Result<Released>> {
    Box::pin(async move {
        let answer = session.locks().release(&state.grant, end).await;
        if answer.is_ok() {
            state.lease.released(state.grant.attempt);
        }
        answer
    })
}

/// Gives back what was lost by its own deadline while its session lives, once the backend itself may have ended it: what
/// is left of it must not stay as long as the session does. `None`: the session is over.
pub(crate) fn give_back_lost(shared: &Arc<Shared>, state: Arc<GrantState>) -> Option<Owned<()>> {
    state.lease.session()?;
    let shared = Arc::clone(shared);
    Some(Box::pin(async move {
        shared.spawner.sleep(state.lease.margin()).await;
        release_until_answered(&shared, &state, End::Unclean).await;
    }))
}

/// Repeats a release; a withdrawal would say that the lock was never used.
async fn release_until_answered(shared: &Shared, state: &Arc<GrantState>, end: End) {
    let call = |session| {
        let call = release_call(session, Arc::clone(state), end);
        Box::pin(async move { call.await.map(drop) }) as Owned<Result<()>>
    };
    until_answered(shared, &state.lease, "release", &state.grant.key, call).await;
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let (shared, state, call) = (Arc::clone(self.shared), Arc::clone(self.state), self.call.take());
        let end = self.end;
        self.shared.settle(Box::pin(async move {
            let answered = match call {
                Some(call) => state.lease.or_lost(call).await.is_ok_and(|answer| answer.is_ok()),
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
    let answer = shared.limited(shared.config.limits.operation_timeout, call).await;
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
