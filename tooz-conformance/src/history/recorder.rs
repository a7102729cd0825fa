//! Writes a history while it happens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tooz_core::driver::{Clock, Instant};

use super::records::{
    Answer, Asked, Fact, History, Hold, Left, Moment, Name, Operation, OperationId, Outcome, Seen, Watch,
};

/// Records operations and facts on one clock. Clones write the same history.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    start: Instant,
    last: Moment,
    words: BTreeMap<String, Name>,
    holds: BTreeMap<OperationId, usize>,
    history: History,
}

impl Inner {
    fn moment(&mut self) -> Moment {
        let passed = self.clock.now().saturating_since(self.start);
        let passed = Moment(u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX));
        // INVARIANT: no two moments are the same, or "before" would mean nothing on a clock that stands still.
        self.last = passed.max(Moment(self.last.0 + 1));
        self.last
    }
}

impl Recorder {
    /// A recorder on this clock.
    pub fn new(clock: Clock) -> Self {
        let start = clock.now();
        Self(Arc::new(Mutex::new(Inner {
            clock,
            start,
            last: Moment::default(),
            words: BTreeMap::new(),
            holds: BTreeMap::new(),
            history: History::default(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new moment, later than all before.
    pub fn now(&self) -> Moment {
        self.inner().moment()
    }

    /// Simulation: the clock jumps.
    pub fn suspend(&self, duration: Duration) {
        self.inner().clock.simulate_suspend(duration);
    }

    /// The number of a word.
    pub fn name(&self, word: &str) -> Name {
        let mut inner = self.inner();
        if let Some(name) = inner.words.get(word) {
            return *name;
        }
        let name = Name(u32::try_from(inner.history.names.len()).unwrap_or(u32::MAX));
        inner.words.insert(word.to_owned(), name);
        inner.history.names.push(word.to_owned());
        name
    }

    /// An operation is called. Until [`Recorder::returned`] it is Unknown.
    pub fn called(&self, client: Name, asked: Asked) -> OperationId {
        let mut inner = self.inner();
        let call = inner.moment();
        let id = OperationId(inner.history.operations.len());
        // Never returned, until it does.
        let returned = Moment(u64::MAX);
        let operation = Operation { client, asked, call, returned, outcome: Outcome::Unknown };
        inner.history.operations.push(operation);
        id
    }

    /// An operation returned; a granted acquire is a hold from now on.
    pub fn returned(&self, id: OperationId, outcome: Outcome) {
        let mut inner = self.inner();
        let moment = inner.moment();
        if let (true, Some(operation)) =
            (matches!(outcome, Outcome::Ok(Answer::Granted(_))), inner.history.operations.get(id.0))
            && matches!(operation.asked, Asked::Acquire { .. })
        {
            let place = inner.history.holds.len();
            inner.holds.insert(id, place);
            inner.history.holds.push(Hold { operation: id, claimed: None, ended: None });
        }
        if let Some(operation) = inner.history.operations.get_mut(id.0) {
            operation.returned = moment;
            operation.outcome = outcome;
        }
    }

    /// A hold was said to be held.
    pub fn claimed(&self, hold: OperationId) {
        let mut inner = self.inner();
        let moment = inner.moment();
        if let Some(place) = inner.holds.get(&hold).copied()
            && let Some(hold) = inner.history.holds.get_mut(place)
        {
            hold.claimed = Some(moment);
        }
    }

    /// A client begins to give a hold back.
    pub fn ended(&self, hold: OperationId) {
        let mut inner = self.inner();
        let moment = inner.moment();
        if let Some(place) = inner.holds.get(&hold).copied()
            && let Some(hold) = inner.history.holds.get_mut(place)
        {
            hold.ended = Some(moment);
        }
    }

    /// Something really happened.
    pub fn fact(&self, fact: Fact) -> Moment {
        let mut inner = self.inner();
        let moment = inner.moment();
        inner.history.facts.push((moment, fact));
        moment
    }

    /// A watch begins; the answer is its place for [`Recorder::seen`].
    pub fn watches(&self, client: Name, group: Name) -> usize {
        let mut inner = self.inner();
        inner.history.watches.push(Watch { client, group, seen: Vec::new(), at_rest: None });
        inner.history.watches.len() - 1
    }

    /// A watch delivered something.
    pub fn seen(&self, watch: usize, seen: Seen) {
        let mut inner = self.inner();
        let moment = inner.moment();
        if let Some(watch) = inner.history.watches.get_mut(watch) {
            watch.seen.push((moment, seen));
        }
    }

    /// Nothing comes from this watch any more, and everybody is at rest.
    pub fn at_rest(&self, watch: usize) {
        let mut inner = self.inner();
        let moment = inner.moment();
        if let Some(watch) = inner.history.watches.get_mut(watch) {
            watch.at_rest = Some(moment);
        }
    }

    /// Something is left behind; none of it is no entry.
    pub fn left(&self, what: &'static str, count: usize) {
        if count > 0 {
            self.inner().history.left.push(Left { what, count });
        }
    }

    /// Reads the history so far.
    pub fn read<T>(&self, read: impl FnOnce(&History) -> T) -> T {
        read(&self.inner().history)
    }
}
