//! Watches against what really happened in the group (W1, W4).
//!
//! INVARIANT of the check: a watch stands at a set of places in the group's history, those at which everything that
//! it delivered so far could have been delivered. A view narrows the set to the places with these members; a change
//! moves each place on, or out of the set.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bounds, Fact, History, Moment, Name, Record, Seen, Violation, Watch};

/// What happened in one group, and a fingerprint of its members after each change.
#[derive(Default)]
struct Timeline {
    changes: Vec<Seen>,
    moments: Vec<Moment>,
    /// One more than changes: before all, and after each.
    prints: Vec<u128>,
    members: BTreeMap<Name, Record>,
}

/// A fingerprint of a record: those of all members are added up, so that it can be kept up to date.
fn print(record: &Record) -> u128 {
    let mut mixed = record.incarnation ^ (u128::from(record.value) << 64) ^ u128::from(record.member.0);
    for _ in 0..2 {
        // Multiplication by an odd constant and a shift mix all bits (as in murmur's finalizer).
        mixed = (mixed ^ (mixed >> 65)).wrapping_mul(0xff51_afd7_ed55_8ccd_c4ce_b9fe_1a85_ec53);
    }
    mixed
}

impl Timeline {
    fn add(&mut self, moment: Moment, change: Seen) {
        let mut now = self.prints.last().copied().unwrap_or(0);
        if self.prints.is_empty() {
            self.prints.push(0);
        }
        match &change {
            Seen::Joined(record) | Seen::Updated(record) => {
                if let Some(earlier) = self.members.insert(record.member, *record) {
                    now = now.wrapping_sub(print(&earlier));
                }
                now = now.wrapping_add(print(record));
            }
            Seen::Left(record, _) => {
                if let Some(earlier) = self.members.remove(&record.member) {
                    now = now.wrapping_sub(print(&earlier));
                }
            }
            Seen::Snapshot(_) | Seen::Resync(_) | Seen::Deleted => {
                self.members.clear();
                now = 0;
            }
        }
        self.changes.push(change);
        self.moments.push(moment);
        self.prints.push(now);
    }
}

impl History {
    pub(super) fn check_watches(&self, bounds: &Bounds, found: &mut Vec<Violation>) {
        let mut timelines: BTreeMap<Name, Timeline> = BTreeMap::new();
        for (moment, fact) in &self.facts {
            let (group, change) = match fact {
                Fact::Joined { group, record } => (group, Seen::Joined(*record)),
                Fact::Updated { group, record } => (group, Seen::Updated(*record)),
                Fact::Left { group, record, how } => (group, Seen::Left(*record, *how)),
                Fact::Deleted { group } => (group, Seen::Deleted),
                // The watchers are told by a view.
                Fact::Lost { group } => (group, Seen::Resync(Vec::new())),
                Fact::Created { group } => (group, Seen::Snapshot(Vec::new())),
                _ => continue,
            };
            timelines.entry(*group).or_default().add(*moment, change);
        }
        let none = Timeline { prints: vec![0], ..Timeline::default() };
        for watch in &self.watches {
            let timeline = timelines.get(&watch.group).unwrap_or(&none);
            let wrong = follow(watch, timeline, bounds.every_change);
            if let Some((place, what)) = wrong {
                let at =
                    watch.seen.get(place).map_or(String::new(), |(at, seen)| format!(" at {at}: {seen:?}"));
                let (client, group) = (self.name(watch.client), self.name(watch.group));
                let what = format!("the watch of {client} on {group}, event {place}{at}: {what}");
                found.push(Violation { clause: "W1", operation: None, what });
            }
        }
    }
}

/// The places from `from` at which the group has exactly these members.
fn views(timeline: &Timeline, from: usize, members: &[Record]) -> BTreeSet<usize> {
    let wanted = members.iter().fold(0u128, |sum, record| sum.wrapping_add(print(record)));
    let places = timeline.prints.iter().enumerate().skip(from);
    places.filter(|(_, print)| **print == wanted).map(|(place, _)| place).collect()
}

/// The first event that cannot be, and why.
fn follow(watch: &Watch, timeline: &Timeline, every_change: bool) -> Option<(usize, String)> {
    let mut places: BTreeSet<usize> = BTreeSet::from([0]);
    let mut view: BTreeMap<Name, Record> = BTreeMap::new();
    let mut ended = false;
    let mut resting = watch.at_rest;
    for (number, (moment, seen)) in watch.seen.iter().enumerate() {
        if let Some(rest) = resting.take_if(|rest| *moment > *rest)
            && let Some(wrong) = not_at_rest(timeline, rest, &view)
        {
            return Some((number, wrong));
        }
        if ended {
            return Some((number, "it comes after the end".into()));
        }
        if (number == 0) != matches!(seen, Seen::Snapshot(_)) {
            return Some((number, "a watch begins with the only snapshot".into()));
        }
        if let Some(wrong) = apply(&mut view, seen) {
            return Some((number, wrong.into()));
        }
        let first = places.first().copied().unwrap_or(0);
        places = match seen {
            Seen::Snapshot(members) | Seen::Resync(members) => views(timeline, first, members),
            change => {
                places.iter().filter_map(|place| after(timeline, *place, change, every_change)).collect()
            }
        };
        if places.is_empty() {
            return Some((
                number,
                "this did not happen then: something was lost, invented or out of order".into(),
            ));
        }
        ended = *seen == Seen::Deleted;
    }
    let wrong = resting.filter(|_| !ended).and_then(|rest| not_at_rest(timeline, rest, &view));
    wrong.map(|wrong| (watch.seen.len(), wrong))
}

/// What is wrong with a view when all members are at rest.
fn not_at_rest(timeline: &Timeline, rest: Moment, view: &BTreeMap<Name, Record>) -> Option<String> {
    let place = timeline.moments.partition_point(|moment| *moment <= rest);
    let now = view.values().fold(0u128, |sum, record| sum.wrapping_add(print(record)));
    let right = timeline.prints.get(place).copied().unwrap_or(0) == now;
    let what =
        || format!("at rest it shows {:?}, and that is not the group", view.values().collect::<Vec<_>>());
    (!right).then(what)
}

/// Folds an event into a view; says what is wrong with it.
fn apply(view: &mut BTreeMap<Name, Record>, seen: &Seen) -> Option<&'static str> {
    match seen {
        Seen::Snapshot(members) | Seen::Resync(members) => {
            *view = members.iter().map(|record| (record.member, *record)).collect();
            (view.len() != members.len()).then_some("a member is there twice")
        }
        Seen::Joined(record) => {
            view.insert(record.member, *record).is_some().then_some("it had joined before, and had not left")
        }
        Seen::Left(record, _) => {
            let left = view.remove(&record.member);
            left.is_none_or(|left| left.incarnation != record.incarnation).then_some("it was not there")
        }
        Seen::Updated(record) => {
            let known = view.insert(record.member, *record);
            known.is_none_or(|known| known.incarnation != record.incarnation).then_some("it was not there")
        }
        Seen::Deleted => {
            view.clear();
            None
        }
    }
}

/// The place after `change` when it is delivered at `place`; a watch that folds may pass over others.
fn after(timeline: &Timeline, place: usize, change: &Seen, every_change: bool) -> Option<usize> {
    // A creation is no event of a watch.
    let silent = |other: &Seen| matches!(other, Seen::Snapshot(_));
    for (number, other) in timeline.changes.iter().enumerate().skip(place) {
        if other == change {
            return Some(number + 1);
        }
        if every_change && !silent(other) {
            return None;
        }
    }
    None
}
