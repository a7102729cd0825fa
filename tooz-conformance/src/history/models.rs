//! The two models: a fenced lock, and what one member publishes in a group.

use std::collections::{BTreeMap, BTreeSet};

use super::index::Index;
use super::linear::{Entry, Model, Verdict, check};
use super::records::by;
use super::{Answer, Asked, End, Fact, History, Mode, Name, OperationId, Outcome, Violation};

/// An exclusive lock with tokens. The backend's own endings are operations of a single moment.
#[derive(Debug)]
pub struct FencedLock;

/// One operation on a fenced lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOperation {
    /// Granted with this token.
    Granted(u64),
    /// It may have been granted, with any token.
    PerhapsGranted,
    /// The holder of this token gave it back.
    Released(u64),
    /// It may have been given back.
    PerhapsReleased(u64),
    /// The backend ended the holding with this token, whether its caller was told of it or not.
    Ended(u64),
}

/// The token of the holder, and the largest token so far. Who holds without having been told is `Unheard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holding {
    /// Nobody.
    Free,
    /// The holder of this token.
    Held(u64),
    /// Somebody whose answer was lost; the token is not known.
    Unheard,
}

impl Model for FencedLock {
    type Operation = LockOperation;
    type State = (Holding, u64);

    fn start() -> Self::State {
        (Holding::Free, 0)
    }

    fn step(&(holding, largest): &Self::State, operation: &LockOperation, next: &mut Vec<Self::State>) {
        match (*operation, holding) {
            (LockOperation::Granted(token), Holding::Free) if token > largest => {
                next.push((Holding::Held(token), token));
            }
            (LockOperation::PerhapsGranted, Holding::Free) => next.push((Holding::Unheard, largest)),
            (LockOperation::Released(token) | LockOperation::PerhapsReleased(token), Holding::Held(held))
                if token == held =>
            {
                next.push((Holding::Free, largest));
            }
            (LockOperation::Ended(token), Holding::Held(held)) if token == held => {
                next.push((Holding::Free, largest));
            }
            // A holding that no caller was told of, or one that a release whose answer is still to come has ended.
            (LockOperation::Ended(token), Holding::Unheard) if token > largest => {
                next.push((Holding::Free, token));
            }
            _ => {}
        }
    }

    fn is_read(_: &LockOperation) -> bool {
        false
    }

    fn is_unknown(operation: &LockOperation) -> bool {
        matches!(operation, LockOperation::PerhapsGranted | LockOperation::PerhapsReleased(_))
    }
}

/// What one member publishes in one group, if it is a member.
#[derive(Debug)]
pub struct MemberRegister;

/// One operation on a member's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberOperation {
    /// Joined with this value.
    Joined(u64),
    /// It may have joined.
    PerhapsJoined(u64),
    /// Published another value.
    Updated(u64),
    /// It may have published another value.
    PerhapsUpdated(u64),
    /// Left.
    Left,
    /// It may have left.
    PerhapsLeft,
    /// Somebody read it.
    Read(Option<u64>),
    /// The backend says so: the record is this now, whatever was told to whom.
    Became(Option<u64>),
}

impl Model for MemberRegister {
    type Operation = MemberOperation;
    type State = Option<u64>;

    fn start() -> Self::State {
        None
    }

    fn step(state: &Self::State, operation: &MemberOperation, next: &mut Vec<Self::State>) {
        use MemberOperation::{
            Became, Joined, Left, PerhapsJoined, PerhapsLeft, PerhapsUpdated, Read, Updated,
        };
        match (*operation, state) {
            (Joined(value) | PerhapsJoined(value), None)
            | (Updated(value) | PerhapsUpdated(value), Some(_)) => {
                next.push(Some(value));
            }
            (Left | PerhapsLeft, Some(_)) => next.push(None),
            (Read(value), state) if value == *state => next.push(*state),
            (Became(value), _) => next.push(value),
            _ => {}
        }
    }

    fn is_read(operation: &MemberOperation) -> bool {
        matches!(operation, MemberOperation::Read(_))
    }

    fn is_unknown(operation: &MemberOperation) -> bool {
        use MemberOperation::{PerhapsJoined, PerhapsLeft, PerhapsUpdated};
        matches!(operation, PerhapsJoined(_) | PerhapsLeft | PerhapsUpdated(_))
    }
}

impl History {
    /// Searches an order for every lock that was only held exclusive. Answers how many could not be searched.
    pub fn check_locks_linear(&self, found: &mut Vec<Violation>) -> usize {
        let mut entries = self.lock_entries();
        let shared: BTreeSet<Name> = self
            .granted()
            .filter(|hold| hold.mode != Mode::Exclusive)
            .map(|hold| hold.lock)
            .chain(self.facts.iter().filter_map(|(_, fact)| match fact {
                Fact::Granted { lock, mode, .. } if *mode != Mode::Exclusive => Some(*lock),
                _ => None,
            }))
            .collect();
        entries.retain(|lock, _| !shared.contains(lock));
        let mut unsearched = 0;
        for (lock, entries) in &entries {
            unsearched += self.judge::<FencedLock>(&format!("lock {}", self.name(*lock)), entries, found);
        }
        unsearched
    }

    fn judge<M: Model>(&self, key: &str, entries: &[Entry<M::Operation>], found: &mut Vec<Violation>) -> usize
    where
        M::Operation: std::fmt::Debug,
    {
        match check::<M>(entries) {
            Verdict::Linearizable => 0,
            Verdict::TooMany => 1,
            Verdict::Wrong(place) => {
                let entry = entries.get(place);
                let id = entry.and_then(|entry| entry.id);
                let told = id.map_or_else(|| "the backend".to_owned(), |id| self.describe(id));
                let operation = entry.map(|entry| format!(" ({:?} at {})", entry.operation, entry.end));
                let what = format!("no order of {key} explains {told}{}", operation.unwrap_or_default());
                found.push(Violation { clause: "H", operation: id, what });
                0
            }
        }
    }

    fn lock_entries(&self) -> BTreeMap<Name, Vec<Entry<LockOperation>>> {
        let mut all: BTreeMap<Name, Vec<Entry<LockOperation>>> = BTreeMap::new();
        let (mut granted, mut released) = (Index::default(), Index::default());
        for (place, operation) in self.operations.iter().enumerate() {
            let id = OperationId(place);
            let mut add = |lock, what, end| {
                let entry = Entry { id: Some(id), call: operation.call, end, operation: what };
                all.entry(lock).or_default().push(entry);
            };
            match (operation.asked, &operation.outcome) {
                (Asked::Acquire { lock, .. }, Outcome::Ok(Answer::Granted(token))) => {
                    add(lock, LockOperation::Granted(*token), operation.returned);
                    granted.insert((lock, *token), ());
                }
                (Asked::Release { hold }, Outcome::Ok(Answer::Done)) => {
                    if let Some((lock, token)) = self.hold_of(hold) {
                        add(lock, LockOperation::Released(token), operation.returned);
                        released.insert((lock, token), ());
                    }
                }
                _ => {}
            }
        }
        // Whoever was not told held for a while all the same. The backend says when; its grants to nobody are
        // entries of a single moment.
        for (moment, fact) in &self.facts {
            let (lock, operation) = match *fact {
                Fact::Granted { lock, token, .. } if !granted.contains(&(lock, token)) => {
                    (lock, LockOperation::Granted(token))
                }
                Fact::Freed { lock, token, end, .. }
                    if end != End::Released || !released.contains(&(lock, token)) =>
                {
                    (lock, LockOperation::Ended(token))
                }
                _ => continue,
            };
            all.entry(lock).or_default().push(Entry { id: None, call: *moment, end: *moment, operation });
        }
        all
    }

    pub(super) fn hold_of(&self, id: OperationId) -> Option<(Name, u64)> {
        let operation = self.operation(id)?;
        match (operation.asked, &operation.outcome) {
            (Asked::Acquire { lock, .. }, Outcome::Ok(Answer::Granted(token))) => Some((lock, *token)),
            _ => None,
        }
    }

    /// Searches an order for what each member published in each group. Answers how many could not be searched.
    ///
    /// What a coordinator does by itself (joining again after a loss, leaving where a join was given up) and the
    /// ends of sessions are operations of the backend at the moment at which they happened.
    pub fn check_members_linear(&self, found: &mut Vec<Violation>) -> usize {
        let mut all: Vec<((Name, Name), Entry<MemberOperation>)> = Vec::new();
        for (place, operation) in self.operations.iter().enumerate() {
            let (key, operation_kind) = match (operation.asked, &operation.outcome) {
                (Asked::Read(group, member), Outcome::Ok(Answer::Value(value))) => {
                    ((group, member), MemberOperation::Read(*value))
                }
                _ => continue,
            };
            let (id, call, end) = (Some(OperationId(place)), operation.call, operation.returned);
            all.push((key, Entry { id, call, end, operation: operation_kind }));
        }
        let own = self.own_changes();
        let mut entries = by(all.into_iter().chain(own), |(key, _)| *key);
        let mut unsearched = 0;
        for ((group, member), entries) in &mut entries {
            let key = format!("{} in {}", self.name(*member), self.name(*group));
            let entries: Vec<_> = entries.iter().map(|(_, entry)| entry.clone()).collect();
            unsearched += self.judge::<MemberRegister>(&key, &entries, found);
        }
        unsearched
    }

    /// Changes of records: those that a client was told of stand between call and return, the others at the moment
    /// at which the backend says that they happened.
    fn own_changes(&self) -> Vec<((Name, Name), Entry<MemberOperation>)> {
        let mut changes = Vec::new();
        let mut told: Vec<(OperationId, Name, Name, MemberOperation)> = Vec::new();
        for (place, operation) in self.operations.iter().enumerate() {
            let (group, change) = match (operation.asked, &operation.outcome) {
                (Asked::Join(group, value), Outcome::Ok(_)) => (group, MemberOperation::Joined(value)),
                (Asked::Update(group, value), Outcome::Ok(_)) => (group, MemberOperation::Updated(value)),
                _ => continue,
            };
            told.push((OperationId(place), group, operation.client, change));
        }
        let mut used = vec![false; told.len()];
        for (moment, fact) in &self.facts {
            let (group, member, change, value) = match *fact {
                Fact::Joined { group, record } => {
                    (group, record.member, MemberOperation::Joined(record.value), Some(record.value))
                }
                Fact::Updated { group, record } => {
                    (group, record.member, MemberOperation::Updated(record.value), Some(record.value))
                }
                Fact::Left { group, record, .. } => (group, record.member, MemberOperation::Left, None),
                Fact::Deleted { group } | Fact::Lost { group } => {
                    for member in self.members_ever(group) {
                        let became = MemberOperation::Became(None);
                        let entry = Entry { id: None, call: *moment, end: *moment, operation: became };
                        changes.push(((group, member), entry));
                    }
                    continue;
                }
                _ => continue,
            };
            let same = told.iter().zip(&used).position(|((id, g, m, told), used)| {
                let during = self.operation(*id).is_some_and(|o| (o.call..=o.returned).contains(moment));
                !used && *g == group && *m == member && *told == change && during
            });
            if let Some(same) = same.and_then(|same| used.get_mut(same)) {
                *same = true;
            } else {
                let operation = MemberOperation::Became(value);
                changes.push(((group, member), Entry { id: None, call: *moment, end: *moment, operation }));
            }
        }
        for ((id, group, member, change), used) in told.into_iter().zip(used) {
            // An update between a loss and the rejoin is noted, and becomes true with the rejoin: that one stands
            // among the backend's.
            if let (Some(operation), true) =
                (self.operation(id), used || matches!(change, MemberOperation::Joined(_)))
            {
                let (call, end) = (operation.call, operation.returned);
                changes.push(((group, member), Entry { id: Some(id), call, end, operation: change }));
            }
        }
        changes
    }

    fn members_ever(&self, group: Name) -> Vec<Name> {
        let members = self.facts.iter().filter_map(|(_, fact)| match fact {
            Fact::Joined { group: joined, record } if *joined == group => Some(record.member),
            _ => None,
        });
        members.collect::<BTreeSet<_>>().into_iter().collect()
    }
}
