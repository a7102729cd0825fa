//! Deliberate faults: `memory://name?fault=WORD` is a backend that is wrong in one way, so that a test suite can
//! show that it would notice. Search for `Fault::` to find where each fault acts.

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// One way to be wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Fault {
            $($(#[$doc])* $variant,)*
        }

        impl Fault {
            /// The words of the `fault` option.
            pub(crate) const WORDS: &[&str] = &[$($word),*];

            /// The fault of this word.
            pub(crate) fn parse(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

faults! {
    /// An exclusive request is granted beside a holder.
    TwoHolders = "two-holders",
    /// The release of a grant that has ended removes the present holder.
    StaleRelease = "stale-release",
    /// Every grant has the same token.
    TokenRepeats = "token-repeats",
    /// A waiter that is granted is never told.
    LostWakeup = "lost-wakeup",
    /// Members of sessions that ended stay listed.
    DeadMember = "dead-member",
    /// Every second event of a watch is dropped, and no view follows.
    WatchGap = "watch-gap",
    /// Withdrawing does nothing.
    CancelLeaks = "cancel-leaks",
    /// A new request is admitted past the queue.
    Barging = "barging",
    /// A shared request is granted beside an exclusive holder.
    ReaderBesideWriter = "reader-beside-writer",
    /// The holder of a lock that is broken is never told.
    SilentBreak = "silent-break",
    /// An update adds the member again after it left, and overwrites another session's record.
    Resurrect = "resurrect",
    /// A lock's watch shows the older holders again after the newer ones.
    LeaderBackwards = "leader-backwards",
    /// A session reports twice the ttl that the backend keeps.
    DeadlineLate = "deadline-late",
    /// Group ids are compared without regard to case and cut at a NUL.
    GroupIdsFold = "group-ids-fold",
    /// The list of groups shows those of other namespaces.
    NamespaceLeak = "namespace-leak",
    /// A beat returns the answer of the beat before it: its deadline counts from after that answer.
    DeadlineFromReply = "deadline-from-reply",
    /// A call whose answer is lost is reported as one that was refused.
    UnknownIsFailure = "unknown-is-failure",
    /// A call whose answer is lost is reported as one that was done.
    UnknownIsSuccess = "unknown-is-success",
    /// An update arrives once more after the next one, and overwrites it.
    LateUpdate = "late-update",
    /// After a view a watch goes on one change too late.
    ResumeTooFar = "resume-too-far",
    /// After a view a watch goes on one change too early.
    ResumeTooEarly = "resume-too-early",
    /// A waiter that was deleted with the lock's record is not told.
    PlaceLost = "place-lost",
    /// One permit more is given than the limit says.
    TooManyPermits = "too-many-permits",
    /// A session that ended is renewed all the same, and its owner is not told of the end.
    RenewsTheDead = "renews-the-dead",
    /// The waiters of a session that ended stay in the queues, and are granted.
    DeadWaiter = "dead-waiter",
    /// The locks of a session that ended stay held.
    OrphanLock = "orphan-lock",
    /// The last waiter of a queue is the first to be granted.
    LastFirst = "last-first",
    /// The watchers of a group are not told of its deletion.
    DeletionUntold = "deletion-untold",
    /// The watchers of a group are not told that it went with the backend's data.
    LossUntold = "loss-untold",
    /// Closing a session ends nothing.
    CloseLeaks = "close-leaks",
    /// Leaving a group is reported as done and is not.
    LeaveIgnored = "leave-ignored",
    /// The fencing tokens begin again with the backend's data.
    TokensRestart = "tokens-restart",
    /// Raising the tokens is reported as done and is not.
    RaiseIgnored = "raise-ignored",
    /// An unclean end is taken for a clean one.
    EndsUnmarked = "ends-unmarked",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_a_different_fault() {
        let mut seen = Vec::new();
        for word in Fault::WORDS {
            let fault = Fault::parse(word).unwrap();
            assert!(!seen.contains(&fault), "{word}");
            seen.push(fault);
        }
        assert_eq!(Fault::parse("none"), None);
    }
}
