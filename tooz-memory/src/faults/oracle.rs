//! The oracle of tests: the backend tells what really happened, in the step in which it happened.
//!
//! A checker of histories needs it. Clients know only what they were told. The backend knows when a session ended,
//! which attempt was granted, and what became of a call whose answer was lost.

use std::sync::Arc;

use tooz_core::driver::{Departure, LockKey, LockMode, MemberRecord, Previous};
use tooz_core::{FencingToken, GroupId, MemberId};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Happened {
    /// A session was opened.
    Opened(MemberId),
    /// A session ended; what hung on it ended just before.
    Ended(MemberId),
    /// An attempt took its place at the end of a lock's queue.
    Queued {
        /// The lock.
        key: LockKey,
        /// Whose attempt.
        member: MemberId,
        /// Which attempt.
        attempt: u128,
    },
    /// An attempt left the queue without a grant.
    Unqueued {
        /// The lock.
        key: LockKey,
        /// Whose attempt.
        member: MemberId,
        /// Which attempt.
        attempt: u128,
    },
    /// An attempt holds a lock from now on.
    Granted {
        /// The lock.
        key: LockKey,
        /// Who.
        member: MemberId,
        /// Which attempt.
        attempt: u128,
        /// How.
        mode: LockMode,
        /// The fencing token.
        token: FencingToken,
    },
    /// A grant ended.
    Freed {
        /// The lock.
        key: LockKey,
        /// Who held it.
        member: MemberId,
        /// Which attempt.
        attempt: u128,
        /// The fencing token.
        token: FencingToken,
        /// How it ended; `Unknown`: its record was deleted.
        how: Previous,
    },
    /// A group was created.
    Created(GroupId),
    /// A group was deleted.
    Deleted(GroupId),
    /// A group went with the backend's data.
    Lost(GroupId),
    /// A member joined.
    Joined(GroupId, MemberRecord),
    /// A member published other capabilities.
    Updated(GroupId, MemberRecord),
    /// A member left, was removed, or died, and which of these.
    Left(GroupId, MemberRecord, Departure),
}

/// A test that is told of everything in one namespace.
pub(crate) struct Listener {
    pub(crate) space: Arc<str>,
    pub(crate) tell: Box<dyn FnMut(&Happened) + Send>,
}
