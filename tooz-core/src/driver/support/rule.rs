//! The grant rule: which mode may be held beside which.
//!
//! The rule is pure. It knows no time, no tokens, and not who grants: the caller says who is before an attempt and who
//! holds the lock. It is valid on a part of the queue, too: then the caller compares the rest where it writes the grant.

use std::num::NonZeroU32;

use super::errors::other_limit;
use crate::Result;
use crate::driver::{LockKey, LockMode};

/// A holder that is no session of ours, such as a process of Python tooz.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Foreign {
    /// There is none.
    #[default]
    None,
    /// It holds the lock alone.
    Exclusive,
    /// It holds the lock together with other readers.
    ReadersOnly,
}

/// Whether an attempt may have the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<Id> {
    /// It may.
    Free,
    /// No waiter is before the attempt, and a holder has to go first.
    Held,
    /// This waiter has to go first: of all that do, the one nearest to the attempt.
    Behind(Id),
    /// Never, as long as permits of another limit are held or waited for (L15).
    OtherLimit {
        /// The limit that the attempt names.
        asked: NonZeroU32,
        /// The limit of those before it.
        other: NonZeroU32,
    },
}

impl<Id> Verdict<Id> {
    /// The same verdict, unless it is [`OtherLimit`](Self::OtherLimit).
    ///
    /// # Errors
    /// `Invalid`, naming both limits.
    pub fn checked(self, key: &LockKey) -> Result<Self> {
        match self {
            Self::OtherLimit { asked, other } => Err(other_limit(key, asked, other)),
            verdict => Ok(verdict),
        }
    }
}

/// Whether `mode` may be held beside `holders`. Permits of two limits may not be.
pub fn fits(mode: LockMode, holders: impl IntoIterator<Item = LockMode>) -> bool {
    verdict::<()>(mode, [], holders, Foreign::None) == Verdict::Free
}

/// Whether an attempt may hold the lock in this mode. `before`: the waiters before it, in the order of the queue.
///
/// A reader passes the readers before it, since they are granted together with it. A caller whose `before` is not the
/// whole queue up to the attempt, or whose waiters do not grant to themselves, grants to the first waiter only.
pub fn verdict<Id>(
    mode: LockMode,
    before: impl IntoIterator<Item = (Id, LockMode)>,
    holders: impl IntoIterator<Item = LockMode>,
    foreign: Foreign,
) -> Verdict<Id> {
    let (mut behind, mut beside) = (None, 0_u32);
    let mut fits = match foreign {
        Foreign::None => true,
        Foreign::ReadersOnly => mode == LockMode::Shared,
        Foreign::Exclusive => false,
    };
    let before = before.into_iter().map(|(id, mode)| (Some(id), mode));
    for (waiter, other) in before.chain(holders.into_iter().map(|mode| (None, mode))) {
        let together = match (mode, other) {
            (LockMode::Shared, LockMode::Shared) => true,
            (LockMode::Permit { limit: asked }, LockMode::Permit { limit: other }) if asked != other => {
                return Verdict::OtherLimit { asked, other };
            }
            (LockMode::Permit { limit }, LockMode::Permit { .. }) if waiter.is_none() => {
                beside = beside.saturating_add(1);
                beside < limit.get()
            }
            _ => false,
        };
        match waiter {
            Some(id) if !together => behind = Some(id),
            Some(_) => {}
            None => fits &= together,
        }
    }
    match behind {
        Some(id) => Verdict::Behind(id),
        None if fits => Verdict::Free,
        None => Verdict::Held,
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Behind, Free, Held, OtherLimit};
    use super::*;
    use LockMode::{Exclusive, Shared};

    const LIMITS: [NonZeroU32; 2] = [NonZeroU32::new(2).unwrap(), NonZeroU32::new(3).unwrap()];
    const TWO: LockMode = LockMode::Permit { limit: LIMITS[0] };
    const THREE: LockMode = LockMode::Permit { limit: LIMITS[1] };

    #[test]
    fn beside_holders() {
        for (mode, holders, expected) in [
            (Exclusive, vec![], Free),
            (Exclusive, vec![Exclusive], Held),
            (Exclusive, vec![Shared], Held),
            (Shared, vec![Shared, Shared], Free),
            (Shared, vec![Exclusive], Held),
            (TWO, vec![TWO], Free),
            (TWO, vec![TWO, TWO], Held),
            (TWO, vec![Shared], Held),
            (Shared, vec![TWO], Held),
            (TWO, vec![THREE], OtherLimit { asked: LIMITS[0], other: LIMITS[1] }),
        ] {
            let found = verdict::<()>(mode, [], holders.clone(), Foreign::None);
            assert_eq!(found, expected, "{mode:?} beside {holders:?}");
            assert_eq!(fits(mode, holders), expected == Free);
        }
    }

    #[test]
    fn behind_waiters() {
        for (mode, before, holders, expected) in [
            (Exclusive, vec![Shared, Shared], vec![], Behind(1)),
            (Shared, vec![Shared, Shared], vec![], Free),
            (Shared, vec![Shared, Shared], vec![Exclusive], Held),
            (Shared, vec![Exclusive, Shared], vec![Shared], Behind(0)),
            (TWO, vec![TWO], vec![], Behind(0)),
            (TWO, vec![Exclusive, THREE], vec![], OtherLimit { asked: LIMITS[0], other: LIMITS[1] }),
            (TWO, vec![Exclusive], vec![THREE], OtherLimit { asked: LIMITS[0], other: LIMITS[1] }),
        ] {
            let queue = before.iter().copied().enumerate();
            let found = verdict(mode, queue, holders.clone(), Foreign::None);
            assert_eq!(found, expected, "{mode:?} behind {before:?} beside {holders:?}");
        }
    }

    #[test]
    fn beside_a_foreign_holder() {
        for (mode, foreign, expected) in [
            (Exclusive, Foreign::Exclusive, Held),
            (Shared, Foreign::Exclusive, Held),
            (TWO, Foreign::Exclusive, Held),
            (Exclusive, Foreign::ReadersOnly, Held),
            (Shared, Foreign::ReadersOnly, Free),
            (TWO, Foreign::ReadersOnly, Held),
        ] {
            assert_eq!(verdict::<()>(mode, [], [], foreign), expected, "{mode:?} beside {foreign:?}");
        }
    }
}
