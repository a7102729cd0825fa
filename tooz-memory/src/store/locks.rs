//! Locks: how a session's calls, its end and operators change a lock, each change in one step. The state machine is that
//! of [`LockState`](tooz_core::driver::support::lock_state::LockState).

use std::sync::Arc;

use tooz_core::driver::support::lock_state::Effect;
use tooz_core::driver::support::rule::{Verdict, fits};
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, Grant, HolderRecord, Holders, LockKey, LockMode, Notice, Previous,
    QueueEntry, Released, Turn,
};
use tooz_core::{Error, ErrorKind, FencingToken, LossReason, MemberId, Result};

use super::state::{Asker, Ended, Fate, Holder, Lock, State, Step, Waiter};
use crate::faults::oracle::Happened;
use crate::faults::planted::Fault;

fn attempt_over(attempt: AttemptId, how: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("attempt {attempt} {how}; ask with a new attempt"))
}

fn grant(key: &LockKey, holder: &Holder) -> Grant {
    Grant::new(holder.attempt, key.clone(), holder.mode, holder.token, holder.previous)
}

fn record(holder: &Holder) -> HolderRecord {
    HolderRecord::new(Some(holder.data.member.clone()), Some(holder.token), holder.mode, holder.data.since)
}

fn freed(key: &LockKey, holder: &Holder, how: Previous) -> Happened {
    let (member, attempt) = (holder.data.member.clone(), holder.attempt.0);
    Happened::Freed { key: key.clone(), member, attempt, token: holder.token, how }
}

fn unqueued(key: &LockKey, waiter: &Waiter) -> Happened {
    Happened::Unqueued { key: key.clone(), member: waiter.data.member.clone(), attempt: waiter.attempt.0 }
}

/// What a grant needs of the backend.
pub(super) struct Grants<'a> {
    lives: &'a dyn Fn(&Waiter) -> bool,
    token: &'a mut dyn FnMut(&mut Waiter) -> FencingToken,
}

impl State {
    /// Asks for a lock in one step (L1, L8, L14, L15).
    pub(crate) fn request(&mut self, fate: &Fate, request: &Acquire) -> Result<Acquired> {
        let Some(session) = self.sessions.get(&fate.id) else { return Err(fate.error()) };
        let (space, member) = (session.space.clone(), session.member.clone());
        let (key, attempt) = (&request.key, request.attempt);
        if session.ended.get(attempt).is_some() {
            return Err(attempt_over(attempt, "was withdrawn, released or broken"));
        }
        if let Some(asked) = session.attempts.get(&attempt) {
            if asked != key {
                return Err(attempt_over(attempt, &format!("asked for {asked} before")));
            }
            return Ok(self.report_attempt(&space, key, attempt));
        }
        self.spaces.entry(space.clone()).or_default().locks.entry(key.clone()).or_default();
        let (fault, mut verdict) = (self.fault, Verdict::Held);
        self.change(&space, key, |lock, grants| {
            let asker = Asker { member: member.clone(), since: None, unseen: false, granted: Arc::default() };
            let waiter = Waiter { attempt, session: fate.id, mode: request.mode, data: asker };
            verdict = if is_admitted_by_fault(fault, lock, request.mode) {
                lock.grant(waiter, grants.token);
                Verdict::Free
            } else {
                lock.request(waiter, request.wait, grants.token)
            };
            if fault == Some(Fault::LastFirst) && lock.waiter(attempt).is_some() {
                lock.queue.rotate_right(1);
            }
            if verdict == Verdict::Free { vec![Effect::Granted(attempt)] } else { Vec::new() }
        });
        if verdict != Verdict::Free {
            self.remove_idle(&space, key);
            verdict.checked(key)?;
            if !request.wait {
                return Ok(Acquired::Held);
            }
            self.tell(&space, || Happened::Queued { key: key.clone(), member, attempt: attempt.0 });
        }
        if let Some(session) = self.sessions.get_mut(&fate.id) {
            session.attempts.insert(attempt, key.clone());
        }
        Ok(self.report_attempt(&space, key, attempt))
    }

    pub(super) fn lock(&self, space: &str, key: &LockKey) -> Option<&Lock> {
        self.spaces.get(space)?.locks.get(key)
    }

    /// The answer for an attempt that holds or waits.
    fn report_attempt(&self, space: &str, key: &LockKey, attempt: AttemptId) -> Acquired {
        match self.lock(space, key).and_then(|lock| lock.holder(attempt)) {
            Some(holder) => Acquired::Granted(grant(key, holder)),
            None => Acquired::Queued(QueueEntry::new(attempt, key.clone())),
        }
    }

    /// Changes a lock, and wakes and tells whom the effects concern.
    pub(super) fn change(
        &mut self,
        space: &str,
        key: &LockKey,
        change: impl FnOnce(&mut Lock, Grants<'_>) -> Vec<Effect<Asker>>,
    ) -> Vec<Effect<Asker>> {
        let (repeats, dead_too) = (self.has(Fault::TokenRepeats), self.has(Fault::DeadWaiter));
        let since = self.wall();
        let Self { spaces, sessions, fence, .. } = self;
        let Some(lock) = spaces.get_mut(space).and_then(|space| space.locks.get_mut(key)) else {
            return Vec::new();
        };
        // INVARIANT: the queue has waiters of live sessions only, since a session takes its waiters with it.
        // Checked again here: a grant to a dead session would never be given back (L14).
        let lives = |waiter: &Waiter| dead_too || sessions.contains_key(&waiter.session);
        let mut token = |waiter: &mut Waiter| {
            if !(repeats && *fence > 0) {
                *fence += 1;
            }
            waiter.data.since = since;
            FencingToken::new(*fence).expect("microseconds since 1970 fit into 63 bits for 292,000 years")
        };
        let effects = change(lock, Grants { lives: &lives, token: &mut token });
        for effect in &effects {
            self.apply(space, key, effect);
        }
        effects
    }

    fn apply(&mut self, space: &str, key: &LockKey, effect: &Effect<Asker>) {
        match effect {
            Effect::Granted(attempt) => {
                let Some(holder) = self.lock(space, key).and_then(|lock| lock.holder(*attempt)) else {
                    return;
                };
                let (member, mode, token) = (holder.data.member.clone(), holder.mode, holder.token);
                let granted = holder.data.granted.clone();
                self.wakes.push(granted);
                self.holders_changed(space, key);
                let (key, attempt) = (key.clone(), attempt.0);
                self.tell(space, || Happened::Granted { key, member, attempt, mode, token });
            }
            Effect::Freed(holder, how) => {
                self.holders_changed(space, key);
                self.tell(space, || freed(key, holder, *how));
            }
            Effect::Unqueued(waiter) => {
                // A call may be waiting for this turn right now, and learns that there is none.
                self.wakes.push(waiter.data.granted.clone());
                self.tell(space, || unqueued(key, waiter));
            }
        }
    }

    /// Hands the lock on.
    pub(super) fn advance(&mut self, space: &str, key: &LockKey) {
        let unseen = self.has(Fault::LostWakeup);
        self.change(space, key, |lock, grants| {
            lock.promote(grants.lives, |waiter| {
                waiter.data.unseen = unseen;
                (grants.token)(waiter)
            })
        });
        self.remove_idle(space, key);
    }

    /// Forgets a lock that nothing is left of.
    fn remove_idle(&mut self, space: &str, key: &LockKey) {
        if let Some(space) = self.spaces.get_mut(space)
            && space.locks.get(key).is_some_and(Lock::is_idle)
        {
            space.locks.remove(key);
        }
    }

    /// Counts a change of the holders and wakes the lock's watchers.
    fn holders_changed(&mut self, space: &str, key: &LockKey) {
        let watched = self.spaces.get_mut(space).and_then(|space| space.watched.get_mut(key));
        if let Some(watched) = watched {
            watched.version += 1;
            self.wakes.push(watched.changed.clone());
        }
    }

    /// Ends one attempt of a live session, remembers that, and hands the lock on.
    fn settle(
        &mut self,
        fate: &Fate,
        attempt: AttemptId,
        leave: impl FnOnce(&mut Lock) -> Vec<Effect<Asker>>,
    ) {
        let Some(session) = self.sessions.get_mut(&fate.id) else { return };
        session.ended.put(attempt, Ended::Settled);
        // The backend knows which lock the attempt is at; the caller's key is not trusted.
        let Some(key) = session.attempts.remove(&attempt) else { return };
        let space = session.space.clone();
        self.change(&space, &key, |lock, _| leave(lock));
        self.advance(&space, &key);
    }

    /// What the next holder is told of this end.
    pub(crate) fn mark_of(&self, end: End) -> Previous {
        if self.has(Fault::EndsUnmarked) { Previous::Clean } else { end.previous() }
    }

    /// Takes an attempt back without an end of its owner's, whether it holds or waits.
    pub(crate) fn withdraw(&mut self, fate: &Fate, attempt: AttemptId) {
        if !self.has(Fault::CancelLeaks) {
            self.settle(fate, attempt, |lock| lock.withdraw(fate.id, attempt));
        }
    }

    pub(crate) fn release(&mut self, fate: &Fate, grant: &Grant, end: End) -> Released {
        let holds = self.sessions.get(&fate.id).is_some_and(|session| {
            let holder = self.lock(&session.space, &grant.key).and_then(|lock| lock.holder(grant.attempt));
            holder.is_some_and(|holder| holder.session == fate.id)
        });
        if !holds {
            if self.has(Fault::StaleRelease) {
                self.release_any(fate, &grant.key);
            }
            return Released::WasNotHolder;
        }
        let how = self.mark_of(end);
        self.settle(fate, grant.attempt, |lock| lock.release(fate.id, grant.attempt, how));
        Released::Released
    }

    /// The planted fault of a release that compares nothing.
    fn release_any(&mut self, fate: &Fate, key: &LockKey) {
        let Some(space) = self.sessions.get(&fate.id).map(|session| session.space.clone()) else { return };
        let victim = self.lock(&space, key).and_then(|lock| lock.holders.first());
        let Some((attempt, session)) = victim.map(|holder| (holder.attempt, holder.session)) else { return };
        if let Some(session) = self.sessions.get_mut(&session) {
            session.attempts.remove(&attempt);
        }
        self.change(&space, key, |lock, _| lock.release(session, attempt, Previous::Clean));
        self.advance(&space, key);
    }

    /// Whether the waiter of this queue entry has been granted.
    pub(crate) fn turn(&self, fate: &Fate, entry: &QueueEntry) -> Step<Result<Turn>> {
        let Some(session) = self.sessions.get(&fate.id) else { return Step::Done(Err(fate.error())) };
        if let Some(lock) = self.lock(&session.space, &entry.key) {
            if let Some(waiter) = lock.waiter(entry.attempt) {
                return Step::Wait(waiter.data.granted.clone());
            }
            if let Some(holder) = lock.holder(entry.attempt) {
                if holder.data.unseen {
                    return Step::Wait(Arc::default());
                }
                return Step::Done(Ok(Turn::Granted(grant(&entry.key, holder))));
            }
        }
        if self.has(Fault::PlaceLost) {
            return Step::Wait(Arc::default());
        }
        Step::Done(Ok(Turn::Gone))
    }

    pub(crate) fn holders(&self, space: &str, key: &LockKey) -> Holders {
        let lock = self.lock(space, key);
        let holders = lock.map(|lock| lock.holders.iter().map(record).collect()).unwrap_or_default();
        let waiters = lock.map_or(0, |lock| lock.queue.len());
        Holders::new(holders, Some(u64::try_from(waiters).unwrap_or(u64::MAX)))
    }

    /// Frees a lock from outside and tells its holders who broke it and why (L10).
    pub(crate) fn break_lock(
        &mut self,
        space: &str,
        key: &LockKey,
        only: Option<FencingToken>,
        by: Option<&MemberId>,
        why: &str,
    ) -> Vec<HolderRecord> {
        let reason = LossReason::Broken { by: by.cloned(), why: why.to_owned() };
        let silent = self.has(Fault::SilentBreak);
        let mut victims = Vec::new();
        for effect in self.change(space, key, |lock, _| lock.break_grants(only)) {
            let Effect::Freed(holder, _) = effect else { continue };
            let attempt = holder.attempt;
            tracing::info!(%key, token = ?Some(holder.token), reason = %reason, "lock broken");
            victims.push(record(&holder));
            if let Some(session) = self.sessions.get_mut(&holder.session) {
                session.attempts.remove(&attempt);
                session
                    .ended
                    .put(attempt, if silent { Ended::Silenced } else { Ended::Broken(reason.clone()) });
                if !silent {
                    session.notify(Notice::GrantLost(attempt, reason.clone()), &mut self.wakes);
                }
            }
        }
        self.advance(space, key);
        victims
    }

    /// Deletes a lock's record as if by hand: no session is told, and holders find out at their next beat.
    pub(crate) fn forget_lock(&mut self, space: &str, key: &LockKey) -> usize {
        let Some(lock) = self.spaces.get_mut(space).and_then(|space| space.locks.remove(key)) else {
            return 0;
        };
        for holder in &lock.holders {
            if let Some(session) = self.sessions.get_mut(&holder.session) {
                session.attempts.remove(&holder.attempt);
                session.ended.put(holder.attempt, Ended::Settled);
            }
        }
        // A waiter's attempt is not over: a caller that finds its queue entry gone asks again.
        for waiter in &lock.queue {
            if let Some(session) = self.sessions.get_mut(&waiter.session) {
                session.attempts.remove(&waiter.attempt);
            }
        }
        self.lose_lock(space, key, &lock);
        lock.holders.len()
    }

    /// A lock's record was deleted with everything in it: its waiters and watches look again.
    fn lose_lock(&mut self, space: &str, key: &LockKey, lock: &Lock) {
        for holder in &lock.holders {
            self.tell(space, || freed(key, holder, Previous::Unknown));
        }
        for waiter in &lock.queue {
            self.tell(space, || unqueued(key, waiter));
            self.wakes.push(waiter.data.granted.clone());
        }
        self.holders_changed(space, key);
    }

    /// All locks of a namespace are gone with the backend's data, and the sessions with them.
    pub(super) fn lose_locks(&mut self, space: &str) {
        let Some(lost) = self.spaces.get_mut(space).map(|space| std::mem::take(&mut space.locks)) else {
            return;
        };
        for (key, lock) in lost {
            self.lose_lock(space, &key, &lock);
        }
    }

    /// Makes the next token at least this high.
    pub(crate) fn raise_tokens(&mut self, least: FencingToken) {
        if !self.has(Fault::RaiseIgnored) {
            self.fence = self.fence.max(least.get() - 1);
        }
    }
}

/// Whether a planted fault grants what the rule refuses.
fn is_admitted_by_fault(fault: Option<Fault>, lock: &Lock, mode: LockMode) -> bool {
    match fault {
        Some(Fault::TwoHolders) => mode == LockMode::Exclusive,
        Some(Fault::Barging) => fits(mode, lock.modes()),
        Some(Fault::ReaderBesideWriter) => {
            mode == LockMode::Shared && lock.modes().all(|mode| mode == LockMode::Exclusive)
        }
        Some(Fault::TooManyPermits) => matches!(mode, LockMode::Permit { limit }
            if lock.modes().all(|other| other == mode)
                && u32::try_from(lock.holders.len()).is_ok_and(|holders| holders <= limit.get())),
        _ => false,
    }
}
