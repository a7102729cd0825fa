//! The backend's own decisions: which attempts it grants, in which order, and whether their callers learn it (L1, L6,
//! L8, L9, L15).

use std::collections::BTreeMap;

use super::holds::{Reach, conflict};
use super::index::Index;
use super::{Bounds, Fact, History, Mode, Moment, Name, Violation};

/// A grant that has not ended.
struct Present {
    member: Name,
    mode: Mode,
    token: u64,
    since: Moment,
}

#[derive(Default)]
struct Lock {
    holders: BTreeMap<u128, Present>,
    queue: Vec<u128>,
}

impl History {
    pub(super) fn check_queues(&self, bounds: &Bounds, found: &mut Vec<Violation>) {
        let reach = Reach::of(self);
        let known = self.granted().map(|hold| ((hold.lock, hold.token), hold.ended)).collect();
        let mut locks: BTreeMap<Name, Lock> = BTreeMap::new();
        let mut end = Moment::default();
        for (moment, fact) in &self.facts {
            end = *moment;
            match *fact {
                Fact::Queued { lock, attempt, .. } => locks.entry(lock).or_default().queue.push(attempt),
                Fact::Unqueued { lock, attempt, .. } => {
                    locks.entry(lock).or_default().queue.retain(|queued| *queued != attempt);
                }
                Fact::Granted { lock, member, attempt, mode, token } => {
                    let known = locks.entry(lock).or_default();
                    if bounds.fair && known.queue.first().is_some_and(|first| *first != attempt) {
                        let what = format!(
                            "{moment}: {} was granted {} (token {token}) before those who asked earlier",
                            self.name(member),
                            self.name(lock)
                        );
                        found.push(Violation { clause: "L8", operation: None, what });
                    }
                    known.queue.retain(|queued| *queued != attempt);
                    for holder in known.holders.values().filter(|holder| conflict(holder.mode, mode)) {
                        let what = format!(
                            "{moment}: the backend gave {} to {} (token {token}) beside {} (token {})",
                            self.name(lock),
                            self.name(member),
                            self.name(holder.member),
                            holder.token
                        );
                        let clause = if mode == Mode::Shared { "L9" } else { "L1" };
                        found.push(Violation { clause, operation: None, what });
                    }
                    let permits =
                        known.holders.values().filter(|h| matches!(h.mode, Mode::Permit(_))).count();
                    if let Mode::Permit(limit) = mode
                        && permits >= limit as usize
                    {
                        let what = format!(
                            "{moment}: the backend gave {} to {} (token {token}) beside {permits}, and the limit \
                             is {limit}",
                            self.name(lock),
                            self.name(member)
                        );
                        found.push(Violation { clause: "L15", operation: None, what });
                    }
                    known.holders.insert(attempt, Present { member, mode, token, since: *moment });
                }
                Fact::Freed { lock, attempt, .. } => {
                    if let Some(holder) = locks.entry(lock).or_default().holders.remove(&attempt) {
                        self.check_heard(lock, &holder, *moment, bounds, &known, &reach, found);
                    }
                }
                _ => {}
            }
        }
        for (lock, present) in &locks {
            for holder in present.holders.values() {
                self.check_heard(*lock, holder, end, bounds, &known, &reach, found);
            }
        }
    }

    /// A grant is told to its waiter or taken back, and a grant that was given back is gone: none is left without a
    /// holder that knows of it.
    #[allow(clippy::too_many_arguments)] // called twice, above
    fn check_heard(
        &self,
        lock: Name,
        holder: &Present,
        until: Moment,
        bounds: &Bounds,
        known: &Index<(Name, u64), Option<Moment>>,
        reach: &Reach,
        found: &mut Vec<Violation>,
    ) {
        let Some(bound) = bounds.told_within else { return };
        let (since, why) = match known.get(&(lock, holder.token)) {
            None => (holder.since, "nobody heard of it"),
            Some(Some(ended)) => (holder.since.max(*ended), "it was given back, and stood"),
            Some(None) => return,
        };
        if reach.longest(holder.member, since, until) > bound {
            let what = format!(
                "{since}: {} has token {} of {}, and {why} until {until}",
                self.name(holder.member),
                holder.token,
                self.name(lock)
            );
            found.push(Violation { clause: "L6", operation: None, what });
        }
    }
}
