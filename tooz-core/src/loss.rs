//! Why something that was held is gone.

use std::fmt;

use crate::MemberId;

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
        }
    }
}
