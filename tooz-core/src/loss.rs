//! Why something that was held is gone.

use std::fmt;
use std::sync::OnceLock;

use tokio::sync::Notify;

use crate::MemberId;
use crate::waits::waits;

/// Why a lock, a leadership or a session was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossReason {
    /// The session was not renewed in time: the process was stopped or starved, or the machine was suspended.
    Expired,
    /// The backend did not answer until the deadline.
    Unreachable,
    /// Somebody broke the lock.
    Broken {
        /// Who broke it, where it is known.
        by: Option<MemberId>,
        /// Why, in the operator's words.
        why: String,
    },
    /// The record is gone and nobody says why: a flush, an eviction, deleted by hand.
    Vanished,
    /// The coordinator was closed, its runtime ended, or this is a forked child.
    SessionClosed,
    /// Nothing was lost: the guard was released.
    Released,
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("expired: the session was not renewed in time"),
            Self::Unreachable => f.write_str("the backend did not answer until the deadline"),
            Self::Broken { by: Some(by), why } => write!(f, "broken by \"{by}\": {why}"),
            Self::Broken { by: None, why } => write!(f, "broken: {why}"),
            Self::Vanished => f.write_str("its record is gone from the backend"),
            Self::SessionClosed => f.write_str("the session was closed"),
            Self::Released => f.write_str("released"),
        }
    }
}

/// A loss that happens once: set by whoever notices first, heard by everybody who waits.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    reason: OnceLock<LossReason>,
    waiters: Notify,
}

impl Latch {
    /// Sets the reason, unless there is one already; answers whether this call set it.
    pub(crate) fn set(&self, reason: LossReason) -> bool {
        let first = self.reason.set(reason).is_ok();
        if first {
            self.waiters.notify_waiters();
        }
        first
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
            waits(notified).await;
        }
    }
}
