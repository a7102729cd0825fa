//! Sessions: how they open, are renewed, and end, each in one step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tooz_core::driver::support::attempts::EndedAttempts;
use tooz_core::driver::{Clock, Departure, Epoch, Held, LockKey, OpenSession, Previous, Renewal, SessionId};
use tooz_core::{GroupId, LossReason};

use super::state::{Ended, Fate, LiveSession, State};
use crate::faults::oracle::Happened;
use crate::faults::planted::Fault;

impl State {
    /// Ends the sessions whose time is over.
    pub(super) fn reap(&mut self) {
        let Some(now) = self.clock.as_ref().map(Clock::now) else { return };
        while let Some(&(moment, id)) = self.expiries.first() {
            if now < moment {
                return;
            }
            self.expiries.pop_first();
            self.end_session(id, &LossReason::Expired, Previous::Expired);
        }
    }

    /// How long until the next session ends unless it is renewed.
    pub(super) fn until_expiry(&self) -> Option<Duration> {
        let (moment, _) = self.expiries.first()?;
        Some(moment.saturating_since(self.clock.as_ref()?.now()))
    }

    /// Opens a session and ends the coordinator's earlier one.
    pub(crate) fn open_session(
        &mut self,
        fate: &Arc<Fate>,
        space: &Arc<str>,
        request: &OpenSession,
        ttl: Option<Duration>,
    ) -> Epoch {
        let id = fate.id;
        if let Some(previous) = request.previous {
            let claimed =
                self.spaces.get(space).is_some_and(|s| s.claims.get(&request.member) == Some(&previous));
            self.end_session(previous, &LossReason::Expired, Previous::Expired);
            // The claim passes on without a gap, so that no other takes the id of a coordinator that reconnects.
            if claimed && let Some(space) = self.spaces.get_mut(space) {
                space.claims.insert(request.member.clone(), id);
            }
        }
        self.sessions.insert(
            id,
            LiveSession {
                member: request.member.clone(),
                space: space.clone(),
                ttl,
                expires: None,
                attempts: BTreeMap::new(),
                ended: EndedAttempts::default(),
                groups: BTreeSet::new(),
                notices: VecDeque::new(),
                fate: fate.clone(),
            },
        );
        self.tell(space, || Happened::Opened(request.member.clone()));
        self.prolong(id);
        // Set at the first connection, and only a connected driver opens sessions.
        self.epoch.unwrap_or(Epoch(0))
    }

    /// Counts a session's ttl from now.
    fn prolong(&mut self, id: SessionId) {
        let (Some(session), Some(clock)) = (self.sessions.get_mut(&id), &self.clock) else { return };
        let Some(ttl) = session.ttl else { return };
        let moment = clock.now() + ttl;
        // A call that sleeps until the earliest expiry would sleep too long.
        if self.expiries.first().is_none_or(|(earliest, _)| moment < *earliest) {
            self.wakes.push(self.changed.clone());
        }
        if let Some(earlier) = session.expires.replace(moment) {
            self.expiries.remove(&(earlier, id));
        }
        self.expiries.insert((moment, id));
    }

    /// The ttl that a new session reports.
    pub(crate) fn reported_ttl(&self, ttl: Option<Duration>) -> Option<Duration> {
        if self.has(Fault::DeadlineLate) { ttl.map(|ttl| ttl * 2) } else { ttl }
    }

    /// One beat.
    pub(crate) fn renew(&mut self, fate: &Fate, held: &Held) -> Renewal {
        self.prolong(fate.id);
        let Some(session) = self.sessions.get(&fate.id) else {
            return if self.has(Fault::RenewsTheDead) {
                Renewal::confirmed()
            } else {
                Renewal::lost(fate.why())
            };
        };
        let space = self.spaces.get(&session.space);
        let mut renewal = Renewal::confirmed();
        for (key, attempt) in &held.grants {
            let lock = space.and_then(|space| space.locks.get(key));
            if lock.is_some_and(|lock| lock.holder(*attempt).is_some()) {
                continue;
            }
            match session.ended.get(*attempt) {
                Some(Ended::Silenced) => {}
                Some(Ended::Broken(why)) => renewal.gone.push((*attempt, why.clone())),
                Some(Ended::Settled) | None => renewal.gone.push((*attempt, LossReason::Vanished)),
            }
        }
        let waiting = held.waiting.iter().map(|(_, attempt)| *attempt);
        renewal.unqueued = waiting.filter(|attempt| !session.attempts.contains_key(attempt)).collect();
        if self.has(Fault::PlaceLost) {
            renewal.unqueued.clear();
        }
        let member = |group: &GroupId| session.groups.contains(&self.folded(group));
        renewal.evicted = held.groups.iter().filter(|group| !member(group)).cloned().collect();
        renewal
    }

    /// Ends a session with its attempts and memberships, in one step. Does nothing if the session has ended already.
    pub(crate) fn end_session(&mut self, id: SessionId, why: &LossReason, how: Previous) {
        let Some(session) = self.sessions.remove(&id) else { return };
        if let Some(moment) = session.expires {
            self.expiries.remove(&(moment, id));
        }
        // Only the first reason is kept; this is the first.
        let _ = session.fate.why.set(why.clone());
        self.wakes.push(session.fate.woken.clone());
        // All attempts go before anything is handed on: a waiter of the dead session must not be granted.
        let keys: BTreeSet<LockKey> = session.attempts.values().cloned().collect();
        for key in session.attempts.values() {
            let fault = self.fault;
            self.change(&session.space, key, |lock, _| match fault {
                Some(Fault::DeadWaiter) => {
                    let queue = std::mem::take(&mut lock.queue);
                    let ended = lock.session_ended(id, how);
                    lock.queue = queue;
                    ended
                }
                Some(Fault::OrphanLock) => {
                    let holders = std::mem::take(&mut lock.holders);
                    let ended = lock.session_ended(id, how);
                    lock.holders = holders;
                    ended
                }
                _ => lock.session_ended(id, how),
            });
        }
        for key in &keys {
            self.advance(&session.space, key);
        }
        if !self.has(Fault::DeadMember) {
            let closed = *why == LossReason::SessionClosed && how == Previous::Clean;
            let gone = if closed { Departure::Left } else { Departure::Died };
            for group in &session.groups {
                self.remove_member(&session.space, group, &session.member, gone);
            }
        }
        if let Some(space) = self.spaces.get_mut(&session.space)
            && space.claims.get(&session.member) == Some(&id)
        {
            space.claims.remove(&session.member);
        }
        self.tell(&session.space, || Happened::Ended(session.member.clone()));
        tracing::debug!(session = %id, member = %session.member, reason = %why, "session ended");
    }

    /// Forgets everything but the fencing token, as does a backend that lost its disk.
    pub(crate) fn lose_data(&mut self) {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in sessions {
            if let Some(session) = self.sessions.remove(&id) {
                let _ = session.fate.why.set(LossReason::Vanished);
                self.wakes.push(session.fate.woken.clone());
                self.tell(&session.space, || Happened::Ended(session.member.clone()));
            }
        }
        self.expiries.clear();
        let spaces: Vec<Arc<str>> = self.spaces.keys().cloned().collect();
        for name in spaces {
            self.lose_groups(&name);
            self.lose_locks(&name);
        }
        if self.has(Fault::TokensRestart) {
            self.fence = self.first_fence;
        }
        // Derived, not random: a run must replay.
        self.epoch = self.epoch.map(|Epoch(epoch)| Epoch(epoch.wrapping_add(1)));
    }
}
