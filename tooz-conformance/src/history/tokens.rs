//! Fencing tokens and terms (L3, E1).

use std::collections::BTreeMap;

use super::index::Index;
use super::records::{Granted, by};
use super::{Fact, History, Mode, Name, Violation};

/// The largest tokens so far.
#[derive(Clone, Copy, Default)]
struct Largest {
    any: u64,
    /// Of those that are ordered against everybody: readers are unordered among themselves.
    ordered: u64,
}

impl Largest {
    fn add(&mut self, mode: Mode, token: u64) {
        self.any = self.any.max(token);
        if mode != Mode::Shared {
            self.ordered = self.ordered.max(token);
        }
    }

    /// The token that a later grant in this mode must exceed.
    fn before(self, mode: Mode) -> u64 {
        if mode == Mode::Shared { self.ordered } else { self.any }
    }
}

impl History {
    pub(super) fn check_tokens(&self, found: &mut Vec<Violation>) {
        for holds in by(self.granted(), |hold| hold.lock).into_values() {
            self.check_unique(&holds, found);
            self.check_real_time(&holds, found);
        }
        let mut largest: BTreeMap<Name, Largest> = BTreeMap::new();
        for (moment, fact) in &self.facts {
            let Fact::Granted { lock, member, mode, token, .. } = *fact else { continue };
            let largest = largest.entry(lock).or_default();
            let before = largest.before(mode);
            if token <= before {
                let (lock, member) = (self.name(lock), self.name(member));
                let what = format!("{moment}: {member} was granted {lock} with token {token} after {before}");
                found.push(Violation { clause: "L3", operation: None, what });
            }
            largest.add(mode, token);
        }
    }

    fn check_unique(&self, holds: &[Granted], found: &mut Vec<Violation>) {
        let mut seen: Index<u64, &Granted> = Index::default();
        for hold in holds {
            if let Some(earlier) = seen.insert(hold.token, hold)
                && !(earlier.mode == Mode::Shared && hold.mode == Mode::Shared)
            {
                let what = format!("{} has the token of #{}", self.describe(hold.id), earlier.id.0);
                found.push(Violation { clause: "L3", operation: Some(hold.id), what });
            }
        }
    }

    /// A grant that returned before another was asked for has the smaller token.
    fn check_real_time(&self, holds: &[Granted], found: &mut Vec<Violation>) {
        let mut called: Vec<&Granted> = holds.iter().collect();
        called.sort_unstable_by_key(|hold| hold.call);
        let mut returned = holds.iter().peekable();
        let mut largest = Largest::default();
        for hold in called {
            while let Some(earlier) = returned.next_if(|earlier| earlier.from < hold.call) {
                largest.add(earlier.mode, earlier.token);
            }
            let before = largest.before(hold.mode);
            if hold.token <= before {
                let what = format!("{}, although {before} had been given before", self.describe(hold.id));
                found.push(Violation { clause: "L3", operation: Some(hold.id), what });
            }
        }
    }
}
