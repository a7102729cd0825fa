//! Locks: a strictly fair queue, and how holders and queue change, each change in one step.

use std::sync::Arc;

use tooz_core::driver::{
    Acquire, Acquired, Admission, AttemptId, End, Grant, HolderRecord, Holders, LockKey, LockMode, Notice,
    Previous, QueueEntry, Released, Turn, admits,
};
use tooz_core::{Error, ErrorKind, FencingToken, LossReason, MemberId, Result};

use super::state::{Ended, Fate, Holder, Lock, State, Step, Waiter};
use crate::faults::oracle::Happened;
use crate::faults::planted::Fault;

fn attempt_over(attempt: AttemptId, how: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("attempt {attempt} {how}; ask with a new attempt"))
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
        let lock = self.spaces.entry(space.clone()).or_default().locks.entry(key.clone()).or_default();
        // Waiters count, too: two limits in one queue could never both be right.
        let contenders = lock.modes().chain(lock.queue.iter().map(|waiter| waiter.mode));
        let beside = admits(request.mode, contenders).and_then(|_| admits(request.mode, lock.modes()));
        let mut free = match beside {
            Ok(admission) => admission == Admission::Yes && lock.queue.is_empty(),
            Err(error) => {
                self.remove_idle(&space, key);
                return Err(Error::new(error.kind(), format!("{key}: {}", error.context())));
            }
        };
        free |= match self.fault {
            Some(Fault::TwoHolders) => request.mode == LockMode::Exclusive,
            Some(Fault::Barging) => matches!(admits(request.mode, lock.modes()), Ok(Admission::Yes)),
            Some(Fault::ReaderBesideWriter) => {
                request.mode == LockMode::Shared && lock.modes().all(|mode| mode == LockMode::Exclusive)
            }
            Some(Fault::TooManyPermits) => {
                matches!(request.mode, LockMode::Permit { limit }
                    if lock.modes().all(|mode| mode == request.mode)
                        && u32::try_from(lock.holders.len()).is_ok_and(|holders| holders <= limit.get()))
            }
            _ => false,
        };
        if !free && !request.wait {
            self.remove_idle(&space, key);
            return Ok(Acquired::Held);
        }
        let waiter = Waiter {
            attempt,
            session: fate.id,
            member: member.clone(),
            mode: request.mode,
            granted: Arc::default(),
        };
        if let Some(session) = self.sessions.get_mut(&fate.id) {
            session.attempts.insert(attempt, key.clone());
        }
        if free {
            self.grant(&space, key, waiter);
        } else if let Some(lock) = self.lock_mut(&space, key) {
            lock.queue.push_back(waiter);
            self.tell(&space, || Happened::Queued { key: key.clone(), member, attempt: attempt.0 });
        }
        Ok(self.report_attempt(&space, key, attempt))
    }

    fn lock_mut(&mut self, space: &str, key: &LockKey) -> Option<&mut Lock> {
        self.spaces.get_mut(space)?.locks.get_mut(key)
    }

    pub(super) fn lock(&self, space: &str, key: &LockKey) -> Option<&Lock> {
        self.spaces.get(space)?.locks.get(key)
    }

    /// The answer for an attempt that holds or waits.
    fn report_attempt(&self, space: &str, key: &LockKey, attempt: AttemptId) -> Acquired {
        match self.lock(space, key).and_then(|lock| lock.holder(attempt)) {
            Some(holder) => Acquired::Granted(holder.grant(key)),
            None => Acquired::Queued(QueueEntry::new(attempt, key.clone())),
        }
    }

    /// Makes a waiter a holder and wakes it.
    fn grant(&mut self, space: &str, key: &LockKey, waiter: Waiter) {
        if !(self.has(Fault::TokenRepeats) && self.fence > 0) {
            self.fence += 1;
        }
        let Some(token) = FencingToken::new(self.fence) else { return };
        let since = self.wall();
        let Some(lock) = self.lock_mut(space, key) else { return };
        lock.holders.push(Holder {
            attempt: waiter.attempt,
            session: waiter.session,
            member: waiter.member.clone(),
            mode: waiter.mode,
            token,
            since,
            previous: lock.previous.take().unwrap_or_default(),
            unseen: false,
        });
        self.wakes.push(waiter.granted);
        self.holders_changed(space, key);
        self.tell(space, || Happened::Granted {
            key: key.clone(),
            member: waiter.member,
            attempt: waiter.attempt.0,
            mode: waiter.mode,
            token,
        });
    }

    /// Hands the lock on: admits from the front of the queue while the grant rule says yes.
    pub(super) fn advance(&mut self, space: &str, key: &LockKey) {
        let (last_first, dead_too) = (self.has(Fault::LastFirst), self.has(Fault::DeadWaiter));
        loop {
            let Some(lock) = self.spaces.get_mut(space).and_then(|space| space.locks.get_mut(key)) else {
                return;
            };
            let next = if last_first { lock.queue.pop_back() } else { lock.queue.pop_front() };
            let Some(waiter) = next else { break };
            // INVARIANT: the queue has waiters of live sessions only, since a session takes its waiters with it.
            // Checked again here: a grant to a dead session would never be given back (L14).
            if !self.sessions.contains_key(&waiter.session) && !dead_too {
                continue;
            }
            if !matches!(admits(waiter.mode, lock.modes()), Ok(Admission::Yes)) {
                if last_first {
                    lock.queue.push_back(waiter);
                } else {
                    lock.queue.push_front(waiter);
                }
                break;
            }
            self.grant(space, key, waiter);
            if self.has(Fault::LostWakeup)
                && let Some(holder) = self.lock_mut(space, key).and_then(|lock| lock.holders.last_mut())
            {
                holder.unseen = true;
            }
        }
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

    /// Removes an attempt, whether it holds or waits; the caller hands the lock on.
    pub(super) fn remove_attempt(&mut self, space: &str, key: &LockKey, attempt: AttemptId, how: Previous) {
        let Some(lock) = self.lock_mut(space, key) else { return };
        if let Some(index) = lock.queue.iter().position(|waiter| waiter.attempt == attempt) {
            let Some(waiter) = lock.queue.remove(index) else { return };
            // A call may be waiting for this turn right now, and learns that there is none.
            self.wakes.push(waiter.granted);
            self.tell(space, || Happened::Unqueued {
                key: key.clone(),
                member: waiter.member,
                attempt: attempt.0,
            });
        } else if let Some(index) = lock.holders.iter().position(|holder| holder.attempt == attempt) {
            let holder = lock.holders.remove(index);
            // Of several ends the lock remembers the one that says most.
            if how != Previous::Clean && lock.previous != Some(Previous::Broken) {
                lock.previous = Some(how);
            }
            self.holders_changed(space, key);
            self.tell(space, || holder.freed(key, how));
        }
    }

    /// Ends one attempt of a live session, remembers that, and hands the lock on.
    /// `end`: how its owner gave it back. `None`: the grant was never used, and its `previous` passes on unread.
    fn settle(&mut self, fate: &Fate, attempt: AttemptId, end: Option<End>) {
        let Some(session) = self.sessions.get_mut(&fate.id) else { return };
        session.ended.put(attempt, Ended::Settled);
        // The backend knows which lock the attempt is at; the caller's key is not trusted.
        let Some(key) = session.attempts.remove(&attempt) else { return };
        let space = session.space.clone();
        let how = if let Some(end) = end {
            self.mark_of(end)
        } else {
            let holder = self.lock(&space, &key).and_then(|lock| lock.holder(attempt));
            holder.map_or(Previous::Clean, |holder| holder.previous)
        };
        self.remove_attempt(&space, &key, attempt, how);
        self.advance(&space, &key);
    }

    /// What the next holder is told of this end.
    pub(crate) fn mark_of(&self, end: End) -> Previous {
        if self.has(Fault::EndsUnmarked) { Previous::Clean } else { end.previous() }
    }

    /// Takes an attempt back without an end of its owner's, whether it holds or waits.
    pub(crate) fn withdraw(&mut self, fate: &Fate, attempt: AttemptId) {
        if !self.has(Fault::CancelLeaks) {
            self.settle(fate, attempt, None);
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
        self.settle(fate, grant.attempt, Some(end));
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
        self.remove_attempt(&space, key, attempt, Previous::Clean);
        self.advance(&space, key);
    }

    /// Whether the waiter of this queue entry has been granted.
    pub(crate) fn turn(&self, fate: &Fate, entry: &QueueEntry) -> Step<Result<Turn>> {
        let Some(session) = self.sessions.get(&fate.id) else { return Step::Done(Err(fate.error())) };
        if let Some(lock) = self.lock(&session.space, &entry.key) {
            if let Some(waiter) = lock.waiter(entry.attempt) {
                return Step::Wait(waiter.granted.clone());
            }
            if let Some(holder) = lock.holder(entry.attempt) {
                if holder.unseen {
                    return Step::Wait(Arc::default());
                }
                return Step::Done(Ok(Turn::Granted(holder.grant(&entry.key))));
            }
        }
        if self.has(Fault::PlaceLost) {
            return Step::Wait(Arc::default());
        }
        Step::Done(Ok(Turn::Gone))
    }

    pub(crate) fn holders(&self, space: &str, key: &LockKey) -> Holders {
        let lock = self.lock(space, key);
        let holders = lock.map(|lock| lock.holders.iter().map(Holder::record).collect()).unwrap_or_default();
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
        let Some(lock) = self.lock(space, key) else { return Vec::new() };
        let victims: Vec<_> = lock
            .holders
            .iter()
            .filter(|holder| only.is_none_or(|token| token == holder.token))
            .map(|holder| (holder.attempt, holder.session, holder.record()))
            .collect();
        let reason = LossReason::Broken { by: by.cloned(), why: why.to_owned() };
        for (attempt, session, record) in &victims {
            tracing::info!(%key, token = ?record.token, reason = %reason, "lock broken");
            self.remove_attempt(space, key, *attempt, Previous::Broken);
            let silent = self.has(Fault::SilentBreak);
            if let Some(session) = self.sessions.get_mut(session) {
                session.attempts.remove(attempt);
                session
                    .ended
                    .put(*attempt, if silent { Ended::Silenced } else { Ended::Broken(reason.clone()) });
                if !silent {
                    session.notify(Notice::GrantLost(*attempt, reason.clone()), &mut self.wakes);
                }
            }
        }
        self.advance(space, key);
        victims.into_iter().map(|(_, _, record)| record).collect()
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
        self.tell_gone(space, key, &lock);
        self.wakes.extend(lock.queue.into_iter().map(|waiter| waiter.granted));
        self.holders_changed(space, key);
        lock.holders.len()
    }

    /// A lock's record was deleted with everything in it.
    fn tell_gone(&mut self, space: &str, key: &LockKey, lock: &Lock) {
        for holder in &lock.holders {
            self.tell(space, || holder.freed(key, Previous::Unknown));
        }
        for waiter in &lock.queue {
            let (member, attempt) = (&waiter.member, waiter.attempt.0);
            self.tell(space, || Happened::Unqueued { key: key.clone(), member: member.clone(), attempt });
        }
    }

    /// All locks of a namespace are gone with the backend's data, and the sessions with them.
    pub(super) fn lose_locks(&mut self, space: &str) {
        let Some(lost) = self.spaces.get_mut(space).map(|space| std::mem::take(&mut space.locks)) else {
            return;
        };
        for (key, lock) in lost {
            self.tell_gone(space, &key, &lock);
            self.wakes.extend(lock.queue.into_iter().map(|waiter| waiter.granted));
            self.holders_changed(space, &key);
        }
    }

    /// Makes the next token at least this high.
    pub(crate) fn raise_tokens(&mut self, least: FencingToken) {
        if !self.has(Fault::RaiseIgnored) {
            self.fence = self.fence.max(least.get() - 1);
        }
    }
}
