//! The state machine of one lock, for a backend where one atomic cell holds the whole lock.
//!
//! A driver reads the cell, makes one or more transitions, and writes the cell back in the same atomic step. Each
//! transition is explicit and returns its effects; the driver passes them on to sessions and watchers after the step.
//! Nothing here reads a clock or a counter: the driver says who lives, and gives each grant its token.
//!
//! ```
//! use tooz_core::driver::support::lock_state::{Effect, LockState, Waiter};
//! use tooz_core::driver::support::rule::Verdict;
//! use tooz_core::driver::{AttemptId, LockMode, Previous, SessionId};
//! use tooz_core::FencingToken;
//!
//! let mut counter = 0;
//! let mut token = |_: &mut Waiter<&str>| {
//!     counter += 1;
//!     FencingToken::new(counter).expect("the counter begins with 1")
//! };
//! let ask = |attempt, session, member| Waiter {
//!     attempt: AttemptId(attempt),
//!     session: SessionId(session),
//!     mode: LockMode::Exclusive,
//!     data: member,
//! };
//!
//! let mut lock = LockState::default();
//! assert_eq!(lock.request(ask(1, 10, "a"), true, &mut token), Verdict::Free);
//! assert_eq!(lock.request(ask(2, 20, "b"), true, &mut token), Verdict::Held);
//!
//! // Session 10 dies: its grant ends, and the first waiter is granted the lock.
//! lock.session_ended(SessionId(10), Previous::Expired);
//! let effects = lock.promote(|_| true, &mut token);
//! assert!(matches!(effects[..], [Effect::Granted(AttemptId(2))]));
//! let holder = lock.holder(AttemptId(2)).expect("it was granted");
//! assert_eq!((holder.token.get(), holder.previous), (2, Previous::Expired));
//! ```

use std::collections::VecDeque;

use super::rule::{Foreign, Verdict, verdict};
use crate::FencingToken;
use crate::driver::{AttemptId, LockMode, Previous, SessionId};

/// An attempt that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter<T> {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its session.
    pub session: SessionId,
    /// How it wants the lock.
    pub mode: LockMode,
    /// What else the driver records of it.
    pub data: T,
}

/// An attempt that holds the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder<T> {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its session.
    pub session: SessionId,
    /// How it holds the lock.
    pub mode: LockMode,
    /// What else the driver records of it.
    pub data: T,
    /// Its fencing token.
    pub token: FencingToken,
    /// How the last holder before it ended (L12).
    pub previous: Previous,
}

/// What a transition did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<T> {
    /// The holders changed: this attempt is one of them now, and [`LockState::holder`] has its token.
    Granted(AttemptId),
    /// The holders changed: this one is gone, and its grant ended in this way.
    Freed(Holder<T>, Previous),
    /// This waiter is gone without a grant.
    Unqueued(Waiter<T>),
}

/// One lock: who holds it, who waits, and how the last holder ended.
///
/// After a transition that takes something away the driver calls [`promote`](Self::promote), once for several. A lock
/// that [is idle](Self::is_idle) need not be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockState<T> {
    /// In the order of their grants.
    pub holders: Vec<Holder<T>>,
    /// In the order of asking.
    pub queue: VecDeque<Waiter<T>>,
    /// How the last holder ended. The next grant tells its holder, and leaves [`Previous::Clean`] (L12).
    pub mark: Previous,
    /// Whether a holder that is no session of ours has the lock.
    pub foreign: Foreign,
}

impl<T> Default for LockState<T> {
    fn default() -> Self {
        Self { holders: Vec::new(), queue: VecDeque::new(), mark: Previous::Clean, foreign: Foreign::None }
    }
}

impl<T> LockState<T> {
    /// The holder with this attempt.
    pub fn holder(&self, attempt: AttemptId) -> Option<&Holder<T>> {
        self.holders.iter().find(|holder| holder.attempt == attempt)
    }

    /// The waiter with this attempt.
    pub fn waiter(&self, attempt: AttemptId) -> Option<&Waiter<T>> {
        self.queue.iter().find(|waiter| waiter.attempt == attempt)
    }

    /// The modes of the holders.
    pub fn modes(&self) -> impl Iterator<Item = LockMode> {
        self.holders.iter().map(|holder| holder.mode)
    }

    /// Whether nothing is left to remember.
    pub fn is_idle(&self) -> bool {
        self.holders.is_empty()
            && self.queue.is_empty()
            && self.mark == Previous::Clean
            && self.foreign == Foreign::None
    }

    /// Asks for the lock (L8, L14, L15). An attempt that holds or waits stays as it is, so a request may be repeated.
    ///
    /// [`Verdict::Free`]: the attempt holds the lock. [`Verdict::OtherLimit`]: the request is refused, and changes
    /// nothing. Otherwise the attempt is in the queue if it wants to `wait`.
    ///
    /// `token` makes the token of a grant, and may record in the waiter's data what a grant needs, such as the time. The
    /// caller has made sure that the session lives.
    pub fn request(
        &mut self,
        waiter: Waiter<T>,
        wait: bool,
        token: impl FnOnce(&mut Waiter<T>) -> FencingToken,
    ) -> Verdict<AttemptId> {
        if self.holder(waiter.attempt).is_some() {
            return Verdict::Free;
        }
        if self.waiter(waiter.attempt).is_some() {
            return Verdict::Held;
        }
        let before = self.queue.iter().map(|other| (other.attempt, other.mode));
        let verdict = match verdict(waiter.mode, before, self.modes(), self.foreign) {
            // The readers in the queue are first: the next `promote` grants the lock to them, and then to this one.
            Verdict::Free => self.queue.back().map_or(Verdict::Free, |last| Verdict::Behind(last.attempt)),
            verdict => verdict,
        };
        match verdict {
            Verdict::Free => drop(self.grant(waiter, token)),
            Verdict::Held | Verdict::Behind(_) if wait => self.queue.push_back(waiter),
            _ => {}
        }
        verdict
    }

    /// Grants the lock without asking the rule, for a driver that decides for itself.
    pub fn grant(
        &mut self,
        mut waiter: Waiter<T>,
        token: impl FnOnce(&mut Waiter<T>) -> FencingToken,
    ) -> Effect<T> {
        let token = token(&mut waiter);
        let Waiter { attempt, session, mode, data } = waiter;
        let previous = std::mem::take(&mut self.mark);
        self.holders.push(Holder { attempt, session, mode, data, token, previous });
        Effect::Granted(attempt)
    }

    /// Hands the lock on: grants from the front of the queue as long as the grant rule lets it, to one writer or to all
    /// readers up to the next writer.
    ///
    /// `lives`: whether the waiter's session lives now. The first waiter that does not is removed, and the next one has
    /// its turn (L14).
    pub fn promote(
        &mut self,
        lives: impl Fn(&Waiter<T>) -> bool,
        mut token: impl FnMut(&mut Waiter<T>) -> FencingToken,
    ) -> Vec<Effect<T>> {
        let mut effects = Vec::new();
        while let Some(first) = self.queue.pop_front() {
            if !lives(&first) {
                effects.push(Effect::Unqueued(first));
            } else if verdict::<()>(first.mode, [], self.modes(), self.foreign) == Verdict::Free {
                effects.push(self.grant(first, &mut token));
            } else {
                self.queue.push_front(first);
                break;
            }
        }
        effects
    }

    /// A session's grant was given back, and ended in this way (L4). No effect: the session did not hold the lock by it.
    pub fn release(&mut self, session: SessionId, attempt: AttemptId, how: Previous) -> Vec<Effect<T>> {
        self.end(|holder| (holder.session, holder.attempt) == (session, attempt), |_| how)
    }

    /// A session's attempt was taken back (L6). The session has not seen a grant of it, so the next holder is told how the
    /// holder before that grant ended.
    pub fn withdraw(&mut self, session: SessionId, attempt: AttemptId) -> Vec<Effect<T>> {
        let mut effects = self.unqueue(|waiter| (waiter.session, waiter.attempt) == (session, attempt));
        let own = |holder: &Holder<T>| (holder.session, holder.attempt) == (session, attempt);
        effects.extend(self.end(own, |holder| holder.previous));
        effects
    }

    /// An operator broke the grant with this token, or all of them together with a foreign holder's (L10).
    pub fn break_grants(&mut self, only: Option<FencingToken>) -> Vec<Effect<T>> {
        let effects = self.end(|holder| only.is_none_or(|token| token == holder.token), |_| Previous::Broken);
        if only.is_none() && std::mem::take(&mut self.foreign) != Foreign::None {
            self.note(Previous::Broken);
        }
        effects
    }

    /// A session ended: its waiters go, and its grants ended in this way.
    pub fn session_ended(&mut self, session: SessionId, how: Previous) -> Vec<Effect<T>> {
        let mut effects = self.unqueue(|waiter| waiter.session == session);
        effects.extend(self.end(|holder| holder.session == session, |_| how));
        effects
    }

    /// Ends the grants that the backend does not vouch for any more. For a driver that learns of a session's end only by
    /// looking: waiters are looked at when they are first, by [`promote`](Self::promote).
    pub fn expire(&mut self, lives: impl Fn(&Holder<T>) -> bool) -> Vec<Effect<T>> {
        self.end(|holder| !lives(holder), |_| Previous::Expired)
    }

    /// A foreign holder came or went, as the driver found it. Who cannot hold the lock beside it has lost it. How a foreign
    /// holder ends is not known, so after it nothing is known of the holder before it.
    pub fn set_foreign(&mut self, foreign: Foreign) -> Vec<Effect<T>> {
        self.foreign = foreign;
        let stays = |holder: &Holder<T>| verdict::<()>(holder.mode, [], [], foreign) == Verdict::Free;
        let effects = self.expire(stays);
        if foreign != Foreign::None && self.mark != Previous::Clean {
            self.mark = Previous::Unknown;
        }
        effects
    }

    /// Of several ends, the one that says most (L12).
    fn note(&mut self, how: Previous) {
        let rank = |how| match how {
            Previous::Clean => 0,
            Previous::Unknown => 1,
            Previous::Expired => 2,
            Previous::Broken => 3,
        };
        if rank(how) > rank(self.mark) {
            self.mark = how;
        }
    }

    fn end(
        &mut self,
        ends: impl Fn(&Holder<T>) -> bool,
        how: impl Fn(&Holder<T>) -> Previous,
    ) -> Vec<Effect<T>> {
        let ended: Vec<_> = self.holders.extract_if(.., |holder| ends(holder)).collect();
        let freed = ended.into_iter().map(|holder| {
            let how = how(&holder);
            self.note(how);
            Effect::Freed(holder, how)
        });
        freed.collect()
    }

    fn unqueue(&mut self, goes: impl Fn(&Waiter<T>) -> bool) -> Vec<Effect<T>> {
        let (gone, stay) = std::mem::take(&mut self.queue).into_iter().partition::<Vec<_>, _>(goes);
        self.queue = stay.into();
        gone.into_iter().map(Effect::Unqueued).collect()
    }
}
