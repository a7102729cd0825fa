//! Small tools of the cases: futures that are dropped half-way, panics that are errors, no runtime at all.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use tooz_core::driver::Entropy;
pub use tooz_servers::{Failure, Outcome, eventually, within};

/// Polls `future` at most `times` and drops it then; or earlier, when nothing wakes it for `idle`.
pub async fn dropped_after<F: Future>(times: usize, idle: Duration, future: F) -> Option<F::Output> {
    if times == 0 {
        return None;
    }
    let mut future = Box::pin(future);
    let mut left = times;
    let polls = poll_fn(|cx| {
        left = left.saturating_sub(1);
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    // The wake-up that never comes is the usual end: the lock is held and nobody releases it.
    tokio::time::timeout(idle, polls).await.ok().flatten()
}

/// A future whose panic is an error.
pub(crate) struct Caught<F>(pub(crate) Pin<Box<F>>);

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic_text(&*panic))),
        }
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic that says nothing".to_owned())
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives a future on this thread, without any runtime.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Fails unless `condition` holds; the message says what was promised.
///
/// # Errors
/// It does not hold.
pub fn ensure(condition: bool, promise: impl Into<String>) -> Outcome {
    if condition { Ok(()) } else { Err(promise.into().into()) }
}

/// Lets other tasks run: long enough for a second holder to come in, if one is let in.
pub(crate) async fn linger() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// A random number.
pub fn random() -> u128 {
    Entropy::system().id()
}
