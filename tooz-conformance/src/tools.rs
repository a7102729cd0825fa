//! Small tools of the cases: how a case ends, waiting without sleeping, futures that are dropped half-way, no runtime at
//! all.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;
use tooz_core::driver::Entropy;

/// Why a case failed, in one line.
pub type Failure = Box<dyn std::error::Error>;

/// How a case ends.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Polls `check` until it says yes, for at most `within`.
///
/// # Errors
/// `what` did not come to be in time, or `check` failed.
pub async fn eventually<F, E>(what: &str, within: Duration, mut check: impl FnMut() -> F) -> Outcome
where
    F: Future<Output = Result<bool, E>>,
    E: Into<Failure>,
{
    let step = (within / 100).clamp(Duration::from_millis(1), Duration::from_millis(20));
    let looking = async {
        while !check().await.map_err(Into::into)? {
            tokio::time::sleep(step).await;
        }
        Ok(())
    };
    match tokio::time::timeout(within, looking).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("not within {within:?}: {what}").into()),
    }
}

/// Awaits `future` for at most `within`.
///
/// # Errors
/// `what` took longer.
pub async fn within<F: Future>(what: &str, within: Duration, future: F) -> Outcome<F::Output> {
    tokio::time::timeout(within, future).await.map_err(|_| format!("not within {within:?}: {what}").into())
}

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
