//! What a target can do to its own backend, for the cases that need it to fail.

use std::fmt;
use std::time::Duration;

/// A call of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call {
    /// Asking for a lock.
    Request,
    /// Withdrawing a wish for one.
    Withdraw,
    /// Giving one back.
    Release,
    /// Joining a group.
    Join,
    /// Creating a group.
    Create,
    /// A beat.
    Renew,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It is not done, and the error says so.
    Fails,
    /// It is done, and its answer is lost.
    AnswerLost,
    /// It is not done, and the caller cannot know.
    RequestLost,
}

/// Hurts a backend on purpose. The namespace is the case's; what still stands when the case ends goes with its
/// [`TestBackend`](crate::TestBackend).
pub trait Kit: fmt::Debug + Send + Sync {
    /// The backend ends the session of `member` as if its ttl had passed.
    fn expire(&self, namespace: &str, member: &str);

    /// Nothing of `member` reaches the backend any more: its calls hang.
    fn cut(&self, namespace: &str, member: &str);

    /// Undoes [`Kit::cut`].
    fn heal(&self, namespace: &str, member: &str);

    /// The whole backend stops answering until [`Kit::resume`].
    fn pause(&self);

    /// Undoes [`Kit::pause`].
    fn resume(&self);

    /// What becomes of the next calls of this kind by `member`.
    fn next(&self, member: &str, call: Call, times: u64, fate: Fate);

    /// Every call takes this much longer; zero ends it.
    fn slow(&self, by: Duration);

    /// Removes a member's record behind its back.
    fn evict(&self, namespace: &str, group: &str, member: &str);

    /// Everything is forgotten, as by a backend that lost its disk.
    fn lose_data(&self);

    /// Removes the record of whoever holds the lock, without a word to anybody.
    fn vanish(&self, namespace: &str, lock: &str);

    /// How many round trips were made so far, beats among them; waiting for a turn is none.
    fn round_trips(&self) -> u64;

    /// How many watches the backend serves.
    fn watches(&self) -> usize;
}
