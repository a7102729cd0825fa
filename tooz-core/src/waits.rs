//! Every wait of this crate that is not a call of the driver passes here, and says so at TRACE.
//!
//! A wait for the backend is the driver's, and it traces its calls itself. What is left are the waits for what
//! happens in this process: a session that is being opened, a task of the same coordinator that is first, a timer. In
//! a trace they tell why a call hangs; the cancellation sweep of `tooz-conformance` finds by them at which await of
//! this crate a future was dropped.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// The target of the events.
const TARGET: &str = "tooz_core::waits";

/// Awaits `future`, which stays where the caller pinned it: moved in here it would take its room twice.
pub(crate) async fn waits<F: Future>(mut future: Pin<&mut F>) -> F::Output {
    poll_fn(|cx| seen(future.as_mut().poll(cx))).await
}

/// For what is polled by hand: passes on what polling it gave.
pub(crate) fn seen<T>(poll: Poll<T>) -> Poll<T> {
    if poll.is_pending() {
        tracing::trace!(target: TARGET, "waits");
    }
    poll
}
