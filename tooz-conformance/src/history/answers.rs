//! Answers against the oracle, which is what the backend says that happened. An unknown outcome is never reported as a
//! definite one (H, L2, L4, G1 to G3), and nothing is left behind.

use std::collections::{BTreeMap, BTreeSet};

use tooz_core::ErrorKind;

use super::index::Index;
use super::{Answer, Asked, End, Fact, History, Moment, Name, OperationId, Outcome, Violation};

/// A sibling's place in its coordinator's own queue is freed when the backend's answer arrives, up to the time
/// limit of an operation after the fact: 15 s are longer than the default of 10 s.
const SIBLING: u64 = 15_000_000_000;

/// A value over time.
struct Line<T>(Vec<(Moment, T)>);

impl<T: Clone + Default> Line<T> {
    fn last(&self) -> T {
        self.0.last().map(|(_, value)| value.clone()).unwrap_or_default()
    }

    /// Whether `fits` was true at any moment of the window.
    fn ever(&self, from: Moment, to: Moment, fits: impl Fn(&T) -> bool) -> bool {
        let after = self.0.partition_point(|(moment, _)| *moment <= from);
        let before = match after.checked_sub(1).and_then(|last| self.0.get(last)) {
            Some((_, value)) => fits(value),
            None => fits(&T::default()),
        };
        before || self.0.iter().skip(after).take_while(|(at, _)| *at <= to).any(|(_, value)| fits(value))
    }
}

/// The facts that the backend told, by what they are about.
#[derive(Default)]
struct Oracle {
    /// How many hold or wait for a lock.
    busy: BTreeMap<Name, Line<usize>>,
    waiting: BTreeSet<(Name, u128)>,
    /// When a coordinator had anything to do with a lock.
    own: BTreeMap<(Name, Name), Vec<Moment>>,
    granted: Index<(Name, u64), Moment>,
    released: Index<(Name, u64), Moment>,
    exists: BTreeMap<Name, Line<bool>>,
    members: BTreeMap<Name, Line<usize>>,
    joined: BTreeMap<(Name, Name), Vec<Moment>>,
    updated: BTreeMap<(Name, Name), Vec<Moment>>,
    is_member: BTreeMap<(Name, Name), Line<bool>>,
    /// When it called to leave, and until when that may have taken effect.
    leaving: BTreeMap<(Name, Name), Vec<(Moment, Moment)>>,
    /// When a value was published. No two operations of a run publish the same.
    published: BTreeMap<(Name, Name, u64), Vec<Moment>>,
}

fn step<K: Ord, T: Clone + Default>(
    lines: &mut BTreeMap<K, Line<T>>,
    key: K,
    at: Moment,
    to: impl FnOnce(T) -> T,
) {
    let line = lines.entry(key).or_insert_with(|| Line(Vec::new()));
    let value = to(line.last());
    line.0.push((at, value));
}

fn any_in(moments: Option<&Vec<Moment>>, from: Moment, to: Moment) -> bool {
    moments.is_some_and(|all| all.get(all.partition_point(|at| *at < from)).is_some_and(|at| *at <= to))
}

impl Oracle {
    fn of(history: &History) -> Self {
        let mut oracle = Self::default();
        for (moment, fact) in &history.facts {
            oracle.add(*moment, fact);
        }
        for operation in &history.operations {
            let Asked::Leave(group) = operation.asked else { continue };
            let until = match operation.outcome {
                Outcome::Ok(_) => operation.returned,
                Outcome::Fail(_) => continue,
                Outcome::Unknown => Moment(u64::MAX),
            };
            oracle.leaving.entry((group, operation.client)).or_default().push((operation.call, until));
        }
        oracle
    }

    fn add(&mut self, at: Moment, fact: &Fact) {
        match *fact {
            Fact::Queued { lock, member, attempt } => {
                self.waiting.insert((lock, attempt));
                step(&mut self.busy, lock, at, |busy| busy + 1);
                self.own.entry((lock, member)).or_default().push(at);
            }
            Fact::Unqueued { lock, member, attempt } => {
                self.waiting.remove(&(lock, attempt));
                step(&mut self.busy, lock, at, |busy| busy.saturating_sub(1));
                self.own.entry((lock, member)).or_default().push(at);
            }
            Fact::Granted { lock, member, attempt, token, .. } => {
                // An attempt from the queue was counted there.
                if !self.waiting.remove(&(lock, attempt)) {
                    step(&mut self.busy, lock, at, |busy| busy + 1);
                }
                self.granted.insert((lock, token), at);
                self.own.entry((lock, member)).or_default().push(at);
            }
            Fact::Freed { lock, member, token, end, .. } => {
                step(&mut self.busy, lock, at, |busy| busy.saturating_sub(1));
                if end == End::Released {
                    self.released.insert((lock, token), at);
                }
                self.own.entry((lock, member)).or_default().push(at);
            }
            Fact::Created { group } => {
                step(&mut self.exists, group, at, |_| true);
                step(&mut self.members, group, at, |_| 0);
            }
            Fact::Deleted { group } | Fact::Lost { group } => {
                step(&mut self.exists, group, at, |_| false);
                step(&mut self.members, group, at, |_| 0);
                let of: Vec<_> = self.is_member.keys().filter(|(g, _)| *g == group).copied().collect();
                for key in of {
                    step(&mut self.is_member, key, at, |_| false);
                }
            }
            Fact::Joined { group, record } => {
                step(&mut self.members, group, at, |members| members + 1);
                self.joined.entry((group, record.member)).or_default().push(at);
                self.published.entry((group, record.member, record.value)).or_default().push(at);
                step(&mut self.is_member, (group, record.member), at, |_| true);
            }
            Fact::Updated { group, record } => {
                self.updated.entry((group, record.member)).or_default().push(at);
                self.published.entry((group, record.member, record.value)).or_default().push(at);
            }
            Fact::Left { group, record, .. } => {
                step(&mut self.members, group, at, |members| members.saturating_sub(1));
                step(&mut self.is_member, (group, record.member), at, |_| false);
            }
            Fact::Reachable { .. } => {}
        }
    }

    /// Whether a record that was written between these moments stands for one that its member lost against its will:
    /// its session ended, or it was removed.
    fn rejoined(&self, key: (Name, Name), value: u64, from: Moment, to: Moment) -> bool {
        let written =
            self.published.get(&(key.0, key.1, value)).and_then(|all| all.iter().find(|at| **at >= from));
        let Some(written) = written.filter(|at| **at <= to) else { return false };
        let ends = self.is_member.get(&key).map_or(&[][..], |line| &line.0);
        let before = ends.partition_point(|(at, _)| at < written);
        let end = ends.iter().take(before).rev().find(|(_, member)| !member);
        let by_itself = |at: &Moment| {
            self.leaving
                .get(&key)
                .is_some_and(|all| all.iter().any(|(call, until)| call <= at && at <= until))
        };
        end.is_some_and(|(at, _)| !by_itself(at))
    }

    fn group_ever(&self, group: Name, from: Moment, to: Moment, exists: bool) -> bool {
        self.exists.get(&group).map_or(!exists, |line| line.ever(from, to, |now| *now == exists))
    }
}

impl History {
    pub(super) fn check_answers(&self, found: &mut Vec<Violation>) {
        let oracle = Oracle::of(self);
        for (index, operation) in self.operations.iter().enumerate() {
            let id = OperationId(index);
            if let Some((clause, why)) = self.contradiction(&oracle, id) {
                let what =
                    format!("{} [{} to {}]: {why}", self.describe(id), operation.call, operation.returned);
                found.push(Violation { clause, operation: Some(id), what });
            }
        }
    }

    /// Why this answer cannot be true.
    #[allow(clippy::match_same_arms)] // one arm for each promise
    fn contradiction(&self, oracle: &Oracle, id: OperationId) -> Option<(&'static str, &'static str)> {
        let operation = self.operation(id)?;
        let (from, to, client) = (operation.call, operation.returned, operation.client);
        let within = |moment: Option<&Moment>| moment.is_some_and(|at| (from..=to).contains(at));
        match (operation.asked, &operation.outcome) {
            (Asked::Acquire { lock, .. }, Outcome::Ok(Answer::Granted(token))) => {
                let known = within(oracle.granted.get(&(lock, *token)));
                (!known).then_some(("H", "the backend granted no such token meanwhile"))
            }
            (Asked::Acquire { lock, .. }, Outcome::Ok(Answer::Held)) => {
                let busy = oracle.busy.get(&lock).is_some_and(|line| line.ever(from, to, |busy| *busy > 0));
                let sibling = Moment(from.0.saturating_sub(SIBLING));
                let own = any_in(oracle.own.get(&(lock, client)), sibling, to);
                (!busy && !own && !self.has_sibling(id)).then_some(("L2", "nobody held it or was before us"))
            }
            (Asked::Release { hold }, Outcome::Ok(Answer::Done)) => {
                let hold = self.operation(hold)?;
                let (Asked::Acquire { lock, .. }, Outcome::Ok(Answer::Granted(token))) =
                    (hold.asked, &hold.outcome)
                else {
                    return Some(("L4", "it was never granted"));
                };
                let known = within(oracle.released.get(&(lock, *token)));
                (!known).then_some(("L4", "the backend released nothing meanwhile"))
            }
            (Asked::Create(group), Outcome::Ok(Answer::Done)) => {
                let created = oracle.exists.get(&group).is_some_and(|line| {
                    line.0.iter().any(|(at, exists)| *exists && (from..=to).contains(at))
                });
                (!created).then_some(("G1", "no group was created meanwhile"))
            }
            (Asked::Create(group), Outcome::Fail(ErrorKind::GroupExists)) => {
                (!oracle.group_ever(group, from, to, true)).then_some(("G1", "there was no such group"))
            }
            (Asked::Delete(group), Outcome::Fail(ErrorKind::GroupNotEmpty)) => {
                let members = oracle.members.get(&group).is_some_and(|line| line.ever(from, to, |n| *n > 0));
                (!members).then_some(("G1", "it had no members"))
            }
            (Asked::Delete(group), Outcome::Ok(Answer::Done))
            | (
                Asked::Delete(group) | Asked::Join(group, _) | Asked::Leave(group) | Asked::Update(group, _),
                Outcome::Fail(ErrorKind::GroupNotFound),
            ) => (!oracle.group_ever(group, from, to, false))
                .then_some(("G1", "the group was there all the time")),
            (Asked::Join(group, _), Outcome::Ok(Answer::Done)) => {
                let joined = any_in(oracle.joined.get(&(group, client)), from, to);
                (!joined).then_some(("G2", "nobody joined meanwhile"))
            }
            (Asked::Leave(group), Outcome::Ok(Answer::Done)) => {
                let line = oracle.is_member.get(&(group, client));
                let out = line.is_none_or(|line| line.ever(from, to, |member| !member));
                (!out).then_some(("G3", "it was a member all the time"))
            }
            (Asked::Update(group, value), Outcome::Ok(Answer::Done)) => {
                let key = (group, client);
                let updated = any_in(oracle.updated.get(&key), from, to);
                // Between the loss of a session and the rejoin it is noted and published with the rejoin, before or
                // after it is answered; an update that itself makes a member of nobody is another matter.
                let out =
                    oracle.is_member.get(&key).is_some_and(|line| line.ever(from, to, |member| !member));
                let written = any_in(oracle.published.get(&(group, client, value)), from, to);
                let later = out && (!written || oracle.rejoined(key, value, from, to));
                (!updated && !later).then_some(("G5", "no record was updated meanwhile"))
            }
            (Asked::Join(group, value) | Asked::Update(group, value), Outcome::Fail(_)) => {
                let done = any_in(oracle.published.get(&(group, client, value)), from, to);
                done.then_some(("H", "it is reported as refused, and was done"))
            }
            (Asked::Release { hold }, Outcome::Fail(_)) => {
                let done = self.hold_of(hold).and_then(|known| oracle.released.get(&known));
                within(done).then_some(("H", "it is reported as refused, and was done"))
            }
            (Asked::List, Outcome::Ok(Answer::Groups(listed))) => {
                let invented = listed.iter().any(|group| !oracle.group_ever(*group, from, to, true));
                let mut always = oracle
                    .exists
                    .iter()
                    .filter(|(_, line)| !line.ever(from, to, |exists| !exists))
                    .map(|(g, _)| g);
                if invented {
                    Some(("G7", "it lists a group that was not there"))
                } else if always.any(|group| !listed.contains(group)) {
                    Some(("G1", "a group is missing"))
                } else {
                    None
                }
            }
            _ => None,
        }
    }

    /// Whether another task of the same coordinator was busy with the lock meanwhile, or was given up before.
    fn has_sibling(&self, id: OperationId) -> bool {
        let Some(operation) = self.operation(id) else { return false };
        let Asked::Acquire { lock: wanted, .. } = operation.asked else { return false };
        let earliest = Moment(operation.call.0.saturating_sub(SIBLING));
        let first = self.operations.partition_point(|other| other.call < earliest);
        let called = self.operations.iter().enumerate().skip(first);
        let mut window = called.take_while(|(_, other)| other.call < operation.returned);
        // Those that began still earlier and wait stand in the backend's queue.
        window.any(|(index, other)| {
            index != id.0
                && other.client == operation.client
                && matches!(other.asked, Asked::Acquire { lock, .. } if lock == wanted)
        })
    }

    /// A record changes because its own member says so, and what was replaced does not come back (G5). That the core
    /// publishes again what stands is no change; neither is a rejoin, which is a record of its own.
    pub(super) fn check_updates(&self, found: &mut Vec<Violation>) {
        let mut asked: BTreeMap<(Name, Name, u64), OperationId> = BTreeMap::new();
        for (index, operation) in self.operations.iter().enumerate() {
            if let Asked::Join(group, value) | Asked::Update(group, value) = operation.asked {
                asked.entry((group, operation.client, value)).or_insert(OperationId(index));
            }
        }
        let (mut present, mut published) = (BTreeMap::new(), BTreeSet::new());
        for (moment, fact) in &self.facts {
            let (Fact::Joined { group, record } | Fact::Updated { group, record }) = *fact else { continue };
            let key = (group, record.member, record.value);
            let same = present.insert((group, record.member), record.value) == Some(record.value);
            let before = !published.insert(key);
            if same || matches!(fact, Fact::Joined { .. }) {
                continue;
            }
            let id = asked.get(&key).copied();
            let called = id.and_then(|id| self.operation(id)).is_some_and(|known| known.call <= *moment);
            let why = match (called, before) {
                (false, _) => "nobody had asked for it",
                (true, true) => "that had been replaced before",
                (true, false) => continue,
            };
            let (member, group) = (self.name(record.member), self.name(group));
            let what = format!("{moment}: {member} in {group} became {}: {why}", record.value);
            found.push(Violation { clause: "G5", operation: id, what });
        }
    }

    pub(super) fn check_left(&self, found: &mut Vec<Violation>) {
        for left in &self.left {
            let what = format!("{} {} left behind", left.count, left.what);
            let clause = if left.what.ends_with("at rest") { "L6" } else { "S3" };
            found.push(Violation { clause, operation: None, what });
        }
    }
}
