//! Waiting with a limit instead of sleeping, and how a test ends.

use std::future::Future;
use std::time::{Duration, Instant};

/// Why a test failed, in one line.
pub type Failure = Box<dyn std::error::Error>;

/// How a test ends.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Polls `check` until it returns true, for at most `within`.
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

/// Polls `check` until it returns true.
///
/// # Panics
/// `what` did not come to be within `limit`.
pub async fn until(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> bool) {
    in_time(what, limit, async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Awaits `future`.
///
/// # Panics
/// `what` took longer than `limit`.
pub async fn in_time<F: Future>(what: &str, limit: Duration, future: F) -> F::Output {
    let Ok(done) = tokio::time::timeout(limit, Box::pin(future)).await else {
        panic!("not within {limit:?}: {what}")
    };
    done
}

/// Polls `check` on this thread until it returns true, `every` so often, and returns how long that took.
///
/// # Errors
/// `what` did not come to be within `limit`.
pub fn poll(
    what: &str,
    every: Duration,
    limit: Duration,
    mut check: impl FnMut() -> bool,
) -> Result<Duration, String> {
    let begin = Instant::now();
    while !check() {
        if begin.elapsed() > limit {
            return Err(format!("not within {limit:?}: {what}"));
        }
        std::thread::sleep(every);
    }
    Ok(begin.elapsed())
}

/// Drives a future on a runtime of its own.
///
/// # Panics
/// The runtime cannot be made.
pub fn block_on<F: Future>(future: F) -> F::Output {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => panic!("no runtime: {error}"),
    }
}
