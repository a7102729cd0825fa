//! Who was sure to hold a lock, and when (L1, L7, L9, L10, L15, E1).

use std::collections::BTreeMap;

use super::index::Index;
use super::records::{Granted, by};
use super::{Bounds, End, Fact, History, Mode, Moment, Name, Violation};

/// Whether two such holders may stand beside each other, permits apart.
pub(super) fn conflict(a: Mode, b: Mode) -> bool {
    !matches!((a, b), (Mode::Shared, Mode::Shared) | (Mode::Permit(_), Mode::Permit(_)))
}

/// When each member could be reached.
pub(super) struct Reach(BTreeMap<Name, Vec<(Moment, bool)>>);

impl Reach {
    pub(super) fn of(history: &History) -> Self {
        let mut reach: BTreeMap<Name, Vec<_>> = BTreeMap::new();
        for (moment, fact) in &history.facts {
            if let Fact::Reachable { member, reachable } = fact {
                reach.entry(*member).or_default().push((*moment, *reachable));
            }
        }
        Self(reach)
    }

    /// The longest time in which `member` could be reached without a break between these two moments.
    pub(super) fn longest(&self, member: Name, from: Moment, to: Moment) -> u64 {
        let changes = self.0.get(&member).map_or(&[][..], Vec::as_slice);
        let after = changes.partition_point(|(moment, _)| *moment <= from);
        let mut up = after.checked_sub(1).and_then(|last| changes.get(last)).is_none_or(|(_, up)| *up);
        let (mut since, mut longest) = (from, 0);
        for (moment, now_up) in changes.iter().skip(after).take_while(|(moment, _)| *moment < to) {
            if up {
                longest = longest.max(moment.0 - since.0);
            }
            (since, up) = (*moment, *now_up);
        }
        if up { longest.max(to.0.saturating_sub(since.0)) } else { longest }
    }
}

impl History {
    pub(super) fn check_holds(&self, bounds: &Bounds, found: &mut Vec<Violation>) {
        let (mut forced, mut expired) = (Index::default(), Index::default());
        for (moment, fact) in &self.facts {
            match fact {
                Fact::Freed { lock, token, end: End::Forced, .. } => {
                    forced.or_insert((*lock, *token), *moment);
                }
                Fact::Freed { lock, token, end: End::Expired, .. } => {
                    expired.or_insert((*lock, *token), *moment);
                }
                _ => {}
            }
        }
        let reach = Reach::of(self);
        for holds in by(self.granted(), |hold| hold.lock).into_values() {
            let mut active: Vec<(Granted, Moment)> = Vec::new();
            for hold in holds {
                let Some(mut until) = hold.until else { continue }; // nobody ever believed in it
                if let Some(end) = expired.get(&(hold.lock, hold.token)).filter(|end| until > **end) {
                    // Its deadline comes before the backend's: nobody believes longer than that.
                    let what =
                        format!("{} ended at {end} and was claimed at {until}", self.describe(hold.id));
                    found.push(Violation { clause: "S6", operation: Some(hold.id), what });
                }
                if let Some(end) = forced.get(&(hold.lock, hold.token)) {
                    if let Some(bound) = bounds.told_within {
                        self.check_told(&hold, until, *end, bound, &reach, found);
                    }
                    until = until.min(*end);
                    if until < hold.from {
                        continue; // it was never valid
                    }
                }
                active.retain(|(_, until)| *until > hold.from);
                for (earlier, until) in active.iter().filter(|(earlier, _)| conflict(earlier.mode, hold.mode))
                {
                    found.push(self.overlap(earlier, *until, &hold));
                }
                active.push((hold, until));
                if let Mode::Permit(limit) = hold.mode
                    && active.iter().filter(|(h, _)| matches!(h.mode, Mode::Permit(_))).count()
                        > limit as usize
                {
                    let what = format!("{} is one holder too many: {}", hold.token, self.describe(hold.id));
                    found.push(Violation { clause: "L15", operation: Some(hold.id), what });
                }
            }
        }
    }

    fn overlap(&self, earlier: &Granted, until: Moment, hold: &Granted) -> Violation {
        let clause = if earlier.mode == Mode::Shared || hold.mode == Mode::Shared { "L9" } else { "L1" };
        let what = format!(
            "{} of {} was granted token {} at {} while #{} of {} (token {}) was valid until {}",
            self.describe(hold.id),
            self.name(hold.lock),
            hold.token,
            hold.from,
            earlier.id.0,
            self.name(earlier.client),
            earlier.token,
            until,
        );
        Violation { clause, operation: Some(hold.id), what }
    }

    /// A victim must not go on believing.
    fn check_told(
        &self,
        hold: &Granted,
        until: Moment,
        end: Moment,
        bound: u64,
        reach: &Reach,
        found: &mut Vec<Violation>,
    ) {
        if until > end && reach.longest(hold.client, end, until) > bound {
            let what = format!(
                "{} was ended by force at {end} and still claimed at {until}",
                self.describe(hold.id)
            );
            found.push(Violation { clause: "L10", operation: Some(hold.id), what });
        }
    }
}
