//! Why something that was held is gone.

use std::fmt;

use crate::{Error, ErrorKind, MemberId};

/// Why a lock, a leadership or a session was lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LossReason {
    /// The session was not renewed in time: the process was stopped or starved, or the machine was suspended.
    #[error("expired: the session was not renewed in time")]
    Expired,
    /// The backend did not answer until the deadline.
    #[error("the backend did not answer until the deadline")]
    Unreachable,
    /// An operator broke the lock.
    #[error("broken{}: {why}", by.as_ref().map(|by| format!(" by \"{by}\"")).unwrap_or_default())]
    Broken {
        /// Who broke it, where it is known.
        by: Option<MemberId>,
        /// Why, in the operator's words.
        why: String,
    },
    /// The record is gone for no known reason: a flush, an eviction, deleted by hand.
    #[error("its record is gone from the backend")]
    Vanished,
    /// The coordinator was closed, its runtime ended, or this is a forked child.
    #[error("the session was closed")]
    SessionClosed,
    /// Nothing was lost: the guard was released.
    #[error("released")]
    Released,
}

/// `SessionLost`: acquire or join again.
impl From<LossReason> for Error {
    fn from(reason: LossReason) -> Self {
        Self::new(ErrorKind::SessionLost, reason.to_string())
    }
}

/// The lock or the leadership under which work ran was lost before the work had ended.
///
/// It converts into [`Error`] (`SessionLost`), so that `guard.run(work).await?` compiles. That error is
/// [indeterminate](Error::is_indeterminate): the work may have taken effect.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("lost while the work ran: {reason}{}", if output.is_some() { "; the work ended in the same moment" } else { "" })]
#[non_exhaustive]
pub struct Lost<T> {
    /// Why it was lost.
    pub reason: LossReason,
    /// What the work returned, if the loss came during the work's last poll: it ran to its end and must not be run again
    /// blindly. `None`: the work was cancelled.
    pub output: Option<T>,
}

impl<T> fmt::Debug for Lost<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whatever the work returns is not printed: it need not be `Debug`, and may be a secret.
        f.debug_struct("Lost").field("reason", &self.reason).field("ended", &self.output.is_some()).finish()
    }
}

impl<T> From<Lost<T>> for Error {
    fn from(lost: Lost<T>) -> Self {
        Self::new(ErrorKind::SessionLost, lost.to_string()).during("run").indeterminate()
    }
}
