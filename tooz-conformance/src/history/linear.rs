//! Linearizability of one key by just-in-time linearization (G. Lowe, *Testing for linearizability*, 2017).
//!
//! The search keeps every *configuration*: which of the pending operations have taken effect already, and the state
//! they led to. At each return, configurations in which the returning operation has not taken effect are expanded.
//! Two additions keep it short. An operation that is legal and can only leave the state as it is takes effect at
//! once: that takes nothing away from any other order, and it removes the explosion of concurrent reads. And a model
//! answers a *set* of next states, so an operation of unknown outcome is exact instead of guessed: it may take effect
//! at any time until it is over for good, or never.

use std::collections::BTreeSet;

use super::{Moment, OperationId};

/// What one key does, one operation after the other.
pub trait Model {
    /// An operation with its outcome.
    type Operation;
    /// The state of the key.
    type State: Clone + Ord;

    /// Before the first operation.
    fn start() -> Self::State;

    /// Every state in which this operation can leave `state`; none: it cannot happen here.
    fn step(state: &Self::State, operation: &Self::Operation, next: &mut Vec<Self::State>);

    /// Whether the outcome is unknown: then it may also never take effect.
    fn is_unknown(operation: &Self::Operation) -> bool;
}

/// One operation on the key.
#[derive(Clone, Debug)]
pub struct Entry<T> {
    /// Which operation of the history; `None`: something that the backend did by itself.
    pub id: Option<OperationId>,
    /// From when it can take effect.
    pub call: Moment,
    /// Until when. For one of unknown outcome: when it is over for good, such as the end of its session.
    pub end: Moment,
    /// What it is.
    pub operation: T,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// No order explains this operation, by its place among the entries.
    Wrong(usize),
    /// More was pending, or more orders were possible, than can be searched. It is no verdict.
    TooMany,
}

/// As many operations may be pending at once as there are bits in a set of them.
const PENDING: usize = 64;

/// A history that keeps more configurations than this is not made for this checker; it would take minutes.
const CONFIGURATIONS: usize = 1 << 18;

type Configuration<S> = (u64, S);

/// Searches an order in which every operation does what its outcome says. The entries need not be sorted.
pub fn check<M: Model>(entries: &[Entry<M::Operation>]) -> Verdict {
    let mut events: Vec<(Moment, bool, usize)> = Vec::with_capacity(entries.len() * 2);
    for (place, entry) in entries.iter().enumerate() {
        events.push((entry.call, false, place));
        events.push((entry.end.max(entry.call), true, place));
    }
    // At the same moment a call comes before a return: they overlap.
    events.sort_unstable();
    let mut search = Search::<M>::new(entries);
    for (_, returns, place) in events {
        if !returns {
            let Some(slot) = search.slot() else { return Verdict::TooMany };
            if let Some(free) = search.pending.get_mut(slot) {
                *free = Some(place);
            }
            continue;
        }
        let Some(slot) = search.pending.iter().position(|pending| *pending == Some(place)) else { continue };
        if !search.returns(slot, place) {
            return Verdict::TooMany;
        }
        if search.now.is_empty() {
            return Verdict::Wrong(place);
        }
        if let Some(used) = search.pending.get_mut(slot) {
            *used = None;
        }
    }
    Verdict::Linearizable
}

struct Search<'a, M: Model> {
    entries: &'a [Entry<M::Operation>],
    /// Which operation is in which bit.
    pending: Vec<Option<usize>>,
    /// The configurations, each once and in order.
    now: Vec<Configuration<M::State>>,
    // Used again for every return, since mostly one configuration is in them.
    kept: Vec<Configuration<M::State>>,
    seen: Seen<M::State>,
    next: Vec<M::State>,
}

/// Configurations that were met: few in almost every search, and many in some.
struct Seen<S> {
    few: Vec<Configuration<S>>,
    many: BTreeSet<Configuration<S>>,
}

/// Up to here comparing with each is quicker than a tree.
const FEW: usize = 16;

impl<S: Clone + Ord> Seen<S> {
    /// Whether it is new.
    fn insert(&mut self, configuration: &Configuration<S>) -> bool {
        if self.few.contains(configuration) || self.many.contains(configuration) {
            return false;
        }
        if self.few.len() < FEW {
            self.few.push(configuration.clone());
        } else {
            self.many.insert(configuration.clone());
        }
        true
    }

    fn len(&self) -> usize {
        self.few.len() + self.many.len()
    }

    fn clear(&mut self) {
        self.few.clear();
        self.many.clear();
    }
}

impl<'a, M: Model> Search<'a, M> {
    fn new(entries: &'a [Entry<M::Operation>]) -> Self {
        Self {
            entries,
            pending: Vec::new(),
            now: vec![(0, M::start())],
            kept: Vec::new(),
            seen: Seen { few: Vec::new(), many: BTreeSet::new() },
            next: Vec::new(),
        }
    }

    fn slot(&mut self) -> Option<usize> {
        if let Some(free) = self.pending.iter().position(Option::is_none) {
            return Some(free);
        }
        self.pending.push(None);
        (self.pending.len() <= PENDING).then(|| self.pending.len() - 1)
    }

    /// Goes on to the configurations after the operation in `slot` has returned; `false`: too many.
    fn returns(&mut self, slot: usize, place: usize) -> bool {
        let bit = 1u64 << slot;
        let optional = self.entries.get(place).is_some_and(|entry| M::is_unknown(&entry.operation));
        self.kept.clear();
        self.seen.clear();
        while let Some((mut done, state)) = self.now.pop() {
            done = self.eager(done, &state);
            if done & bit != 0 || optional {
                // It has taken effect, or never will.
                self.kept.push((done & !bit, state.clone()));
                if done & bit != 0 {
                    continue;
                }
            }
            for (number, pending) in self.pending.iter().enumerate() {
                let Some(entry) = pending.and_then(|place| self.entries.get(place)) else { continue };
                if done & (1 << number) != 0 {
                    continue;
                }
                self.next.clear();
                M::step(&state, &entry.operation, &mut self.next);
                for state in self.next.drain(..) {
                    let further = (done | 1 << number, state);
                    if self.seen.insert(&further) {
                        self.now.push(further);
                    }
                }
            }
            if self.seen.len() > CONFIGURATIONS {
                return false;
            }
        }
        self.kept.sort_unstable();
        self.kept.dedup();
        std::mem::swap(&mut self.now, &mut self.kept);
        true
    }

    /// Lets everything take effect that is legal and leaves the state as it is.
    fn eager(&mut self, mut done: u64, state: &M::State) -> u64 {
        for (number, pending) in self.pending.iter().enumerate() {
            let Some(entry) = pending.and_then(|place| self.entries.get(place)) else { continue };
            if done & (1 << number) == 0 && !M::is_unknown(&entry.operation) {
                self.next.clear();
                M::step(state, &entry.operation, &mut self.next);
                if self.next.len() == 1 && self.next.first() == Some(state) {
                    done |= 1 << number;
                }
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register of numbers: write, read.
    struct Register;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u8),
        Read(u8),
        Perhaps(u8),
    }

    impl Model for Register {
        type Operation = Op;
        type State = u8;

        fn start() -> u8 {
            0
        }

        fn step(state: &u8, operation: &Op, next: &mut Vec<u8>) {
            match operation {
                Op::Write(value) | Op::Perhaps(value) => next.push(*value),
                Op::Read(value) if value == state => next.push(*state),
                Op::Read(_) => {}
            }
        }

        fn is_unknown(operation: &Op) -> bool {
            matches!(operation, Op::Perhaps(_))
        }
    }

    fn entries(list: &[(u64, u64, Op)]) -> Vec<Entry<Op>> {
        let entry = |(call, end, operation): &(u64, u64, Op)| Entry {
            id: None,
            call: Moment(*call),
            end: Moment(*end),
            operation: operation.clone(),
        };
        list.iter().map(entry).collect()
    }

    #[test]
    fn concurrent_writes_may_come_in_either_order() {
        let list = [(0, 10, Op::Write(1)), (1, 11, Op::Write(2)), (12, 13, Op::Read(1))];
        assert_eq!(check::<Register>(&entries(&list)), Verdict::Linearizable);
        let list = [(0, 10, Op::Write(1)), (11, 12, Op::Write(2)), (13, 14, Op::Read(1))];
        assert_eq!(check::<Register>(&entries(&list)), Verdict::Wrong(2));
    }

    #[test]
    fn a_read_never_goes_back() {
        let list = [(0, 20, Op::Write(1)), (1, 5, Op::Read(1)), (6, 9, Op::Read(0))];
        assert_eq!(check::<Register>(&entries(&list)), Verdict::Wrong(2));
    }

    #[test]
    fn an_unknown_write_may_come_late_or_never_and_not_twice() {
        let maybe = (0, 100, Op::Perhaps(1));
        for (reads, expected) in [
            (vec![(5, 6, Op::Read(0)), (7, 8, Op::Read(1))], Verdict::Linearizable),
            (vec![(5, 6, Op::Read(0)), (7, 8, Op::Read(0))], Verdict::Linearizable),
            (vec![(5, 6, Op::Read(1)), (7, 8, Op::Read(0))], Verdict::Wrong(2)),
            (vec![(101, 102, Op::Read(0)), (103, 104, Op::Read(1))], Verdict::Wrong(2)),
        ] {
            let mut list = vec![maybe.clone()];
            list.extend(reads);
            assert_eq!(check::<Register>(&entries(&list)), expected, "{list:?}");
        }
    }

    #[test]
    fn more_than_can_be_searched_is_no_verdict() {
        let many: Vec<_> = (0..65).map(|number| (number, 1_000, Op::Write(1))).collect();
        assert_eq!(check::<Register>(&entries(&many)), Verdict::TooMany);
    }

    /// The reason for the eager step: without it sixty concurrent reads are 2^60 orders.
    #[test]
    fn concurrent_reads_cost_nothing() {
        let mut many: Vec<_> = (0..60).map(|number| (number, 1_000 + number, Op::Read(0))).collect();
        many.push((500, 2_000, Op::Write(1)));
        assert_eq!(check::<Register>(&entries(&many)), Verdict::Linearizable);
    }
}
