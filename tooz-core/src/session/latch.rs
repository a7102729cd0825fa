//! A loss that is set once and waited for by many.

use std::sync::OnceLock;

use tokio::sync::Notify;

use crate::LossReason;
use crate::platform::await_point::traced;

/// A loss that happens once: set by the first that notices, seen by all that wait.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    reason: OnceLock<LossReason>,
    waiters: Notify,
}

impl Latch {
    /// Sets the reason, unless there is one already.
    pub(crate) fn set(&self, reason: LossReason) {
        if self.reason.set(reason).is_ok() {
            self.waiters.notify_waiters();
        }
    }

    pub(crate) fn get(&self) -> Option<&LossReason> {
        self.reason.get()
    }

    /// Waits for the reason. Cancel-safe.
    pub(crate) async fn wait(&self) -> LossReason {
        loop {
            let notified = self.waiters.notified();
            tokio::pin!(notified);
            // Registered before looking, or a reason that is set in between would be missed.
            notified.as_mut().enable();
            if let Some(reason) = self.get() {
                return reason.clone();
            }
            traced(notified).await;
        }
    }
}
