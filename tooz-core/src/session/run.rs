//! Work that runs while locks are held, and is cancelled at their loss.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use super::live::GrantState;
use crate::{LossReason, Lost, Result};

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
