//! The state machine of a lock, and the grant rule that it asks.

use std::num::NonZeroU32;

use proptest::prelude::*;
use tooz_core::FencingToken;
use tooz_core::driver::support::lock_state::{Effect, LockState, Waiter};
use tooz_core::driver::support::rule::{Foreign, Verdict, fits, verdict};
use tooz_core::driver::{AttemptId, LockMode, Previous, SessionId};

use LockMode::{Exclusive, Shared};

const LIMITS: [NonZeroU32; 2] = [NonZeroU32::new(2).unwrap(), NonZeroU32::new(3).unwrap()];
const TWO: LockMode = LockMode::Permit { limit: LIMITS[0] };
const THREE: LockMode = LockMode::Permit { limit: LIMITS[1] };

/// A lock, and the counter of its tokens.
#[derive(Default)]
struct Stage(LockState<()>, u64);

fn asks(attempt: u128, session: u128, mode: LockMode) -> Waiter<()> {
    Waiter { attempt: AttemptId(attempt), session: SessionId(session), mode, data: () }
}

impl Stage {
    fn request(&mut self, waiter: Waiter<()>) -> Verdict<AttemptId> {
        let Self(lock, last) = self;
        lock.request(waiter, true, |_| next(last))
    }

    /// The attempts that are granted.
    fn promote(&mut self, lives: impl Fn(SessionId) -> bool) -> Vec<u128> {
        let Self(lock, last) = self;
        let effects = lock.promote(|waiter| lives(waiter.session), |_| next(last));
        effects
            .iter()
            .filter_map(|effect| if let Effect::Granted(id) = effect { Some(id.0) } else { None })
            .collect()
    }

    fn holders(&self) -> Vec<(u128, Previous)> {
        self.0.holders.iter().map(|holder| (holder.attempt.0, holder.previous)).collect()
    }
}

fn next(last: &mut u64) -> FencingToken {
    *last += 1;
    FencingToken::new(*last).unwrap()
}

#[test]
fn a_request_sent_again_changes_nothing() {
    let mut stage = Stage::default();
    assert_eq!(stage.request(asks(1, 1, TWO)), Verdict::Free);
    assert_eq!(stage.request(asks(2, 1, Exclusive)), Verdict::Held);
    assert_eq!(stage.request(asks(3, 2, TWO)), Verdict::Behind(AttemptId(2)));
    assert_eq!(stage.request(asks(4, 2, THREE)), Verdict::OtherLimit { asked: LIMITS[1], other: LIMITS[0] });
    let before = stage.0.clone();
    assert_eq!(stage.request(asks(1, 1, TWO)), Verdict::Free);
    assert_eq!(stage.request(asks(3, 2, TWO)), Verdict::Held);
    assert_eq!(
        stage.0.request(asks(5, 2, Exclusive), false, |_| next(&mut 0)),
        Verdict::Behind(AttemptId(3))
    );
    assert!(stage.promote(|_| true).is_empty());
    assert_eq!(stage.0, before);
}

/// L12: the next holder is told once; what was never seen is passed on; of several ends, the one that says most.
#[test]
fn how_the_last_holder_ended_is_told_once() {
    let mut stage = Stage::default();
    stage.request(asks(1, 1, Shared));
    stage.request(asks(2, 2, Shared));
    stage.0.break_grants(stage.0.holders.first().map(|holder| holder.token));
    stage.0.session_ended(SessionId(2), Previous::Expired);
    assert_eq!(stage.0.mark, Previous::Broken);
    stage.request(asks(3, 3, Exclusive));
    stage.request(asks(4, 4, Exclusive));
    assert_eq!(stage.0.release(SessionId(4), AttemptId(3), Previous::Clean), []);
    stage.0.withdraw(SessionId(3), AttemptId(3));
    assert_eq!(stage.promote(|_| true), [4]);
    assert_eq!(stage.holders(), [(4, Previous::Broken)]);
    assert_eq!(stage.0.release(SessionId(4), AttemptId(4), Previous::Clean).len(), 1);
    assert!(stage.0.is_idle());
}

#[test]
fn a_session_takes_its_waiters_with_it() {
    let mut stage = Stage::default();
    for (attempt, session) in [(1, 1), (2, 2), (3, 1), (4, 3), (5, 4)] {
        stage.request(asks(attempt, session, Exclusive));
    }
    assert_eq!(stage.0.session_ended(SessionId(1), Previous::Expired).len(), 2);
    // A driver that learns of an end by looking: the dead are passed over.
    assert_eq!(stage.promote(|session| session.0 > 2), [4]);
    assert_eq!(stage.holders(), [(4, Previous::Expired)]);
    assert_eq!(stage.0.expire(|holder| holder.session.0 > 3).len(), 1);
    assert_eq!(stage.promote(|_| true), [5]);
}

#[test]
fn a_foreign_holder_leaves_nothing_known() {
    let mut stage = Stage::default();
    stage.request(asks(1, 1, Shared));
    assert_eq!(stage.0.set_foreign(Foreign::ReadersOnly), []);
    assert_eq!(stage.request(asks(2, 2, Shared)), Verdict::Free);
    assert_eq!(stage.0.set_foreign(Foreign::Exclusive).len(), 2);
    assert_eq!(stage.request(asks(3, 3, Shared)), Verdict::Held);
    assert!(stage.promote(|_| true).is_empty() && !stage.0.is_idle());
    stage.0.set_foreign(Foreign::None);
    assert_eq!(stage.promote(|_| true), [3]);
    assert_eq!(stage.holders(), [(3, Previous::Unknown)]);
    stage.0.set_foreign(Foreign::Exclusive);
    assert_eq!(stage.0.break_grants(None), []);
    assert_eq!((stage.0.foreign, stage.0.mark), (Foreign::None, Previous::Broken));
}

proptest! {
    #![proptest_config(crate::properties::config())]

    /// Two rules, one set of holders: the longest prefix of all contenders, in the order of asking, in which each fits beside
    /// those before it; and the queue, which grants from its front. So it does not matter whether a waiter finds its turn out by
    /// itself or is granted the lock by another.
    #[test]
    fn the_prefix_rule_is_the_queue_rule(
        steps in prop::collection::vec((0..7_usize, any::<prop::sample::Index>()), 0..60),
    ) {
        let mut stage = Stage::default();
        let mut contenders: Vec<(u128, LockMode)> = Vec::new();
        for (attempt, (kind, which)) in (0_u128..).zip(steps) {
            if let Some(mode) = [Exclusive, Shared, TWO, THREE].get(kind).copied() {
                if !matches!(stage.request(asks(attempt, attempt, mode)), Verdict::OtherLimit { .. }) {
                    contenders.push((attempt, mode));
                }
            } else if !contenders.is_empty() {
                let (attempt, _) = contenders.remove(which.index(contenders.len()));
                if kind == 4 {
                    stage.0.session_ended(SessionId(attempt), Previous::Expired);
                } else {
                    stage.0.withdraw(SessionId(attempt), AttemptId(attempt));
                }
                stage.promote(|_| true);
            }
            let modes = |n: usize| contenders[..n].iter().map(|(_, mode)| *mode);
            let admitted = (0..contenders.len()).take_while(|n| fits(contenders[*n].1, modes(*n))).count();
            let mut holders: Vec<_> = stage.0.holders.iter().map(|holder| holder.attempt.0).collect();
            holders.sort_unstable();
            let mut prefix: Vec<_> = contenders[..admitted].iter().map(|(attempt, _)| *attempt).collect();
            prefix.sort_unstable();
            prop_assert_eq!(&holders, &prefix);
            // No waiter that judges for itself would grant what the queue does not.
            for (at, waiter) in stage.0.queue.iter().enumerate() {
                let before = stage.0.queue.iter().take(at).map(|other| (other.attempt, other.mode));
                let found = verdict(waiter.mode, before, stage.0.modes(), Foreign::None);
                prop_assert!(matches!(found, Verdict::Held | Verdict::Behind(_)), "{found:?}");
            }
        }
    }
}
