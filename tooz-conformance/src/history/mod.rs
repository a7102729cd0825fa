//! Histories: what clients were told and what really happened on one clock, and the checkers that judge it
//! (contract, section H).
//!
//! Words. An **operation** is a call with its outcome: `Ok`, `Fail`, or `Unknown` where the answer was lost or the
//! caller gave up. A **hold** is an acquire that was granted; a **claim** is a yes of `is_held` on it. A **fact** is
//! what the backend itself says that happened. A **moment** is a point on the one clock of the run; no two things
//! have the same moment.
//!
//! [`History::violations`] judges everything in time proportional to the history (sorting aside); [`linear`] is the
//! general search for one key at a time. Every [`Violation`] names the operation, or the watch, that shows it.

mod answers;
mod holds;
mod index;
pub mod linear;
pub mod models;
mod queues;
mod recorder;
mod records;
mod tokens;
mod watches;

pub use recorder::Recorder;
pub use records::{
    Answer, Asked, End, Fact, History, Hold, Left, Mode, Moment, Name, Operation, OperationId, Outcome,
    Record, Seen, Violation, Watch,
};

/// What a run has to keep beside the contract's order: the bounds that its backend promises.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long after a forced end a victim that is not cut off may still believe, in nanoseconds; `None`: not
    /// judged.
    pub told_within: Option<u64>,
    /// Whether waiters are granted in order of asking.
    pub fair: bool,
    /// Whether watches deliver every change (a log), or may fold what happened between two reads.
    pub every_change: bool,
}

impl History {
    /// Everything in this history that the contract forbids; empty: none.
    pub fn violations(&self, bounds: &Bounds) -> Vec<Violation> {
        let mut found = Vec::new();
        self.check_holds(bounds, &mut found);
        self.check_tokens(&mut found);
        self.check_answers(&mut found);
        self.check_updates(&mut found);
        self.check_queues(bounds, &mut found);
        self.check_watches(bounds, &mut found);
        self.check_left(&mut found);
        found
    }
}
