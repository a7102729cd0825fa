//! What the tests of the core share: coordinators on the in-process driver, and looking until something is so.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tooz_core::{Builder, Coordinator, Event, Events, Runtime};

/// On the virtual clock this costs nothing; whatever is still waiting then waits for ever.
pub(crate) const LONG: Duration = Duration::from_hours(1);

static SEED: AtomicU64 = AtomicU64::new(1);

/// A coordinator on the runtime, and on the paused clock, of the test.
pub(crate) fn builder(url: &str, member: &str) -> Builder {
    // Nothing but a reference keeps the linker from leaving the driver out.
    let _ = tooz_memory::Kit::of(url);
    // Two coordinators of one seed would use the same ids.
    Coordinator::builder(url, member).runtime(Runtime::Current).seed(SEED.fetch_add(1, Ordering::Relaxed))
}

pub(crate) async fn connect(url: &str, member: &str) -> Coordinator {
    builder(url, member).connect().await.unwrap()
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it did not come")
}

/// Looks until `so`.
pub(crate) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it was never so: {what}");
}

/// Polls a future until its `count`-th wake-up, then drops it. Answers its output if it ended before.
pub(crate) async fn cancelled_at<T>(count: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut polls = 0;
    poll_fn(|cx| {
        polls += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls > count => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// The first event that `wanted` takes.
pub(crate) async fn event<T>(events: &mut Events, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
    soon(async {
        loop {
            let event = events.next().await.expect("the events ended");
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    })
    .await
}
