//! Every wait of this crate that is not a call of the driver passes here, and says so at TRACE.
//!
//! The driver traces its own waits for the backend. What is left are the waits for what happens in this process: a
//! session that is being opened, a task of the same coordinator that is first, a timer. In a trace they tell why a call
//! hangs. The cancellation sweep of `tooz-conformance` finds by them at which await of this crate a future was dropped.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// The target of the events that `traced` and `traced_poll` emit.
pub const AWAIT_TARGET: &str = "tooz_core::await_point";

/// Awaits `future`, which stays where the caller pinned it: moved in here it would take its room twice.
pub(crate) async fn traced<F: Future>(mut future: Pin<&mut F>) -> F::Output {
    poll_fn(|cx| traced_poll(future.as_mut().poll(cx))).await
}

/// For what is polled by hand: passes on what polling it gave.
pub(crate) fn traced_poll<T>(poll: Poll<T>) -> Poll<T> {
    if poll.is_pending() {
        tracing::trace!(target: AWAIT_TARGET, "waits");
    }
    poll
}
