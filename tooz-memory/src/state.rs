//! The whole state of one backend: plain data behind one lock, and the life and death of sessions.
//!
//! Nothing here waits or reads randomness. What is to be woken is noted in `wakes` and woken after the lock was
//! let go. Only ordered collections: a run must replay.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tooz_core::clock::{Clock, Instant};
use tooz_core::driver::{AttemptId, Epoch, LockKey, Notice, OpenSession, Previous, SessionId};
use tooz_core::{Error, ErrorKind, GroupId, LossReason, MemberId};

use crate::fault::Fault;
use crate::gate::Plan;
use crate::groups::Group;
use crate::locks::{Lock, Watched};
use crate::truth::{Happened, Listener};
use crate::watch::{Log, LogId};

/// Everything that a backend knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The backend's own clock: that of whoever connected first.
    pub(crate) clock: Option<Clock>,
    /// Random at the first connection; another one after the data was lost.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) fault: Option<Fault>,
    /// What the test kit wants to happen to calls.
    pub(crate) plan: Plan,
    /// How many drivers ever connected; numbers their random sequences.
    pub(crate) drivers: u64,
    /// The last fencing token. INVARIANT: never goes back while the backend lives, also when the data is lost.
    pub(crate) fence: u64,
    /// Where tokens began, for the fault that begins again.
    pub(crate) first_fence: u64,
    /// The last incarnation of a member.
    pub(crate) incarnation: u128,
    pub(crate) sessions: BTreeMap<SessionId, Live>,
    /// When sessions with a ttl end; the earliest is first.
    pub(crate) expiries: BTreeSet<(Instant, SessionId)>,
    pub(crate) spaces: BTreeMap<Arc<str>, Space>,
    /// Logs of watched groups. They stand outside the groups because they outlive them: a slow watcher still
    /// reads what happened before the deletion.
    pub(crate) logs: BTreeMap<LogId, Log>,
    pub(crate) next_log: LogId,
    /// Events that were offered to logs, counted for the fault that drops every second one.
    pub(crate) events: u64,
    /// Woken when a waiter must look again for another reason than its own: the kit's plan changed, a driver
    /// was closed, or a session came that ends earlier than all others.
    pub(crate) changed: Arc<Notify>,
    /// A test that wants to know what really happens.
    pub(crate) listener: Option<Listener>,
    /// To be woken when the lock is let go.
    pub(crate) wakes: Vec<Arc<Notify>>,
}

/// One namespace.
#[derive(Debug, Default)]
pub(crate) struct Space {
    pub(crate) locks: BTreeMap<LockKey, Lock>,
    pub(crate) watched: BTreeMap<LockKey, Watched>,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    /// Logs whose group went with the backend's data: a group that is created again takes its log over, so that
    /// a watcher survives the loss.
    pub(crate) orphans: BTreeMap<GroupId, LogId>,
    /// Which live session a member id belongs to, since its first join (S9).
    pub(crate) claims: BTreeMap<MemberId, SessionId>,
}

/// A session that lives.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) member: MemberId,
    pub(crate) space: Arc<str>,
    pub(crate) ttl: Option<Duration>,
    expires: Option<Instant>,
    /// What it holds or waits for.
    pub(crate) attempts: BTreeMap<AttemptId, LockKey>,
    pub(crate) ended: EndedAttempts,
    /// Where it is a member.
    pub(crate) groups: BTreeSet<GroupId>,
    notices: VecDeque<Notice>,
    fate: Arc<Fate>,
}

/// What a session's owner and the backend share beyond the session's end.
#[derive(Debug)]
pub(crate) struct Fate {
    pub(crate) id: SessionId,
    why: OnceLock<LossReason>,
    /// Woken for every notice.
    pub(crate) woken: Arc<Notify>,
}

impl Fate {
    pub(crate) fn new(id: SessionId) -> Arc<Self> {
        Arc::new(Self { id, why: OnceLock::new(), woken: Arc::default() })
    }

    /// Why the session ended.
    pub(crate) fn why(&self) -> LossReason {
        self.why.get().cloned().unwrap_or(LossReason::Vanished)
    }

    /// The answer to whoever still calls.
    pub(crate) fn error(&self) -> Error {
        Error::new(ErrorKind::SessionLost, format!("session {}: {}", self.id, self.why()))
    }
}

/// How an attempt that is over ended.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// Released or withdrawn.
    Settled,
    /// Broken by somebody.
    Broken(LossReason),
    /// Broken, and the planted fault hides it.
    Silenced,
}

/// How many ended attempts a session remembers. A request can only be late while it hangs at the gate, where the
/// test kit held it; so many attempts of one session ending meanwhile is beyond any test, and 4096 cost 100 KiB.
const ENDED_ATTEMPTS: usize = 4_096;

/// Notices that nobody fetched. Whoever falls behind by more learns the rest at its next beat.
const NOTICES: usize = 4_096;

/// Attempts of one session that are over: a late request of theirs must fail.
#[derive(Debug, Default)]
pub(crate) struct EndedAttempts {
    how: BTreeMap<AttemptId, Ended>,
    order: VecDeque<AttemptId>,
}

impl EndedAttempts {
    pub(crate) fn get(&self, attempt: AttemptId) -> Option<&Ended> {
        self.how.get(&attempt)
    }

    pub(crate) fn put(&mut self, attempt: AttemptId, how: Ended) {
        if self.how.contains_key(&attempt) {
            return; // the first end is the one that counts: a withdrawal after a break does not hide the break
        }
        self.how.insert(attempt, how);
        self.order.push_back(attempt);
        if self.order.len() > ENDED_ATTEMPTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.how.remove(&oldest);
        }
    }
}

impl Live {
    /// Says something to the session's owner.
    pub(crate) fn tell(&mut self, notice: Notice, wakes: &mut Vec<Arc<Notify>>) {
        if self.notices.len() == NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
        wakes.push(self.fate.woken.clone());
    }

    pub(crate) fn next_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }
}

impl State {
    /// Whether this fault was planted.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub(crate) fn wall(&self) -> Option<SystemTime> {
        self.clock.as_ref().map(Clock::wall)
    }

    /// Ends the sessions whose time is over.
    pub(crate) fn reap(&mut self) {
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
    pub(crate) fn until_expiry(&self) -> Option<Duration> {
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
            // The claim passes on without a gap, so that nobody takes the id from a coordinator that reconnects.
            if claimed && let Some(space) = self.spaces.get_mut(space) {
                space.claims.insert(request.member.clone(), id);
            }
        }
        self.sessions.insert(
            id,
            Live {
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
        // Set at the first connection, without which nobody gets here.
        self.epoch.unwrap_or(Epoch(0))
    }

    /// Counts a session's ttl from now.
    pub(crate) fn prolong(&mut self, id: SessionId) {
        let (Some(session), Some(clock)) = (self.sessions.get_mut(&id), &self.clock) else { return };
        let Some(ttl) = session.ttl else { return };
        let moment = clock.now() + ttl;
        // Whoever sleeps until the earliest expiry would sleep too long.
        if self.expiries.first().is_none_or(|(earliest, _)| moment < *earliest) {
            self.wakes.push(self.changed.clone());
        }
        if let Some(earlier) = session.expires.replace(moment) {
            self.expiries.remove(&(earlier, id));
        }
        self.expiries.insert((moment, id));
    }

    /// Ends a session and everything that hangs on it, in one step. Nothing happens if it is over already.
    pub(crate) fn end_session(&mut self, id: SessionId, why: &LossReason, how: Previous) {
        let Some(session) = self.sessions.remove(&id) else { return };
        if let Some(moment) = session.expires {
            self.expiries.remove(&(moment, id));
        }
        // Only the first reason is kept; this is the first.
        let _ = session.fate.why.set(why.clone());
        self.wakes.push(session.fate.woken.clone());
        // All attempts go before anything is handed on: a place of the dead session must not be granted.
        let keys: BTreeSet<LockKey> = session.attempts.values().cloned().collect();
        for (attempt, key) in &session.attempts {
            if self.outlives(&session.space, key, *attempt) {
                continue;
            }
            self.remove_attempt(&session.space, key, *attempt, how);
        }
        for key in &keys {
            self.advance(&session.space, key);
        }
        if !self.has(Fault::DeadMember) {
            for group in &session.groups {
                self.remove_member(&session.space, group, &session.member);
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

    /// Whether a planted fault keeps an attempt of a session that ended.
    fn outlives(&self, space: &str, key: &LockKey, attempt: AttemptId) -> bool {
        let Some(lock) = self.spaces.get(space).and_then(|space| space.locks.get(key)) else { return false };
        match self.fault {
            Some(Fault::DeadWaiter) => lock.waits(attempt),
            Some(Fault::OrphanLock) => lock.holds(attempt),
            _ => false,
        }
    }

    /// Forgets everything but the fencing token, as a backend that lost its disk.
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
