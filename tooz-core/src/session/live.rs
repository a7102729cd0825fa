//! One session of ours from its opening to its end: what it holds, and until when that may be believed.
//!
//! INVARIANT: nothing comes back from lost. The first to see that the deadline has passed latches the loss under the
//! same mutex under which a renewal moves the deadline, so a late answer cannot revive what a caller was told
//! is gone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::driver::support::fork::OwnerProcess;
use crate::driver::{AttemptId, End, Grant, Held, LockKey, Session, SessionId};
use crate::platform::clock::{Clock, Deadline, Instant};
use crate::session::latch::Latch;
use crate::session::limits::margin;
use crate::session::queue::Ticket;
use crate::{GroupId, LossReason};

#[derive(Debug)]
pub(crate) struct SessionLease {
    pub(crate) id: SessionId,
    pub(crate) ttl: Option<Duration>,
    clock: Clock,
    /// The process that opened it: a forked child holds nothing.
    owner: OwnerProcess,
    /// The sending of the request that last proved it, in nanoseconds of the clock. Written under `inner`.
    proved: AtomicU64,
    /// Whether the last beat failed.
    suspended: AtomicBool,
    ended: Latch,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Taken at the end: operating-system locks go with the session although guards still stand about.
    session: Option<Arc<dyn Session>>,
    grants: BTreeMap<AttemptId, Arc<GrantState>>,
    waiting: BTreeMap<AttemptId, (LockKey, Arc<Notify>)>,
    /// Grants that did not end cleanly and may still stand on the backend, until it has answered to their release.
    unclean: BTreeMap<AttemptId, Grant>,
}

/// A grant as the core believes it. Shared by the guard, its loss signals and the keeper.
#[derive(Debug)]
pub(crate) struct GrantState {
    pub(crate) grant: Grant,
    pub(crate) lease: Arc<SessionLease>,
    /// Where the backend keeps a ttl per lock: the sending of the request that last proved this grant.
    proved: Option<AtomicU64>,
    ended: Latch,
    /// Whether work that ran under it was dropped before it had ended.
    interrupted: AtomicBool,
    /// Our place among the tasks of this coordinator; freed when the grant has ended on the backend.
    ticket: Mutex<Option<Ticket>>,
}

impl SessionLease {
    pub(crate) fn new(session: Arc<dyn Session>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            id: session.id(),
            ttl: session.ttl(),
            clock,
            owner: OwnerProcess::current(),
            proved: AtomicU64::new(session.opened_at().nanos()),
            suspended: AtomicBool::new(false),
            ended: Latch::default(),
            inner: Mutex::new(Inner {
                session: Some(session),
                grants: BTreeMap::new(),
                waiting: BTreeMap::new(),
                unclean: BTreeMap::new(),
            }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver's session; `None` once it has ended.
    pub(crate) fn session(&self) -> Option<Arc<dyn Session>> {
        self.inner().session.clone()
    }

    /// How long after a deadline of ours the backend itself may still keep what it is about.
    pub(crate) fn margin(&self) -> Duration {
        self.ttl.map_or(Duration::ZERO, margin)
    }

    fn deadline_from(&self, proved: u64) -> Option<Instant> {
        let ttl = self.ttl?;
        Some(Instant::from_nanos(proved) + ttl.saturating_sub(margin(ttl)))
    }

    pub(crate) fn deadline_at(&self) -> Option<Instant> {
        self.deadline_from(self.proved.load(Ordering::Acquire))
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.deadline_at().map(|at| Deadline::new(at, self.clock.clone()))
    }

    /// Whether it is lost by the clock, whatever else it may be lost by.
    pub(crate) fn is_past_deadline(&self) -> bool {
        self.passed(self.deadline_at())
    }

    /// From when on the backend gives to others what this session held, as far as we know: the deadline without its margin.
    pub(crate) fn over_at(&self) -> Option<Instant> {
        Some(Instant::from_nanos(self.proved.load(Ordering::Acquire)) + self.ttl?)
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Acquire)
    }

    /// Sets whether the last beat failed; answers what it was before.
    pub(crate) fn set_suspended(&self, suspended: bool) -> bool {
        self.suspended.swap(suspended, Ordering::AcqRel)
    }

    fn passed(&self, deadline: Option<Instant>) -> bool {
        deadline.is_some_and(|deadline| self.clock.now() >= deadline)
    }

    /// Why it is lost, computed from the clock now; latches what it finds.
    pub(crate) fn loss(&self) -> Option<LossReason> {
        if let Some(reason) = self.ended.get() {
            return Some(reason.clone());
        }
        if !self.owner.is_current() {
            return Some(LossReason::SessionClosed);
        }
        self.expired(|| self.is_past_deadline(), &self.ended)
    }

    /// Latches the loss of what has passed its deadline.
    fn expired(&self, passed: impl Fn() -> bool, ended: &Latch) -> Option<LossReason> {
        if passed() {
            let _inner = self.inner();
            // Once more under the mutex: a renewal may just have moved it.
            if passed() {
                ended.set(self.expiry());
            }
        }
        ended.get().cloned()
    }

    fn expiry(&self) -> LossReason {
        if self.is_suspended() { LossReason::Unreachable } else { LossReason::Expired }
    }

    /// A request that was sent at `sent` proved this session and the `listed` grants. `false`: too late.
    pub(crate) fn prove(&self, sent: Instant, listed: &[(LockKey, AttemptId)]) -> bool {
        let inner = self.inner();
        if self.passed(self.deadline_at()) {
            self.ended.set(self.expiry());
            return false;
        }
        self.proved.fetch_max(sent.nanos(), Ordering::AcqRel);
        for (_, attempt) in listed {
            // One whose own deadline has passed stays lost; the keeper takes it out.
            let proved = inner.grants.get(attempt).and_then(|state| state.proved.as_ref());
            if let Some(proved) = proved.filter(|proved| !self.passed_from(proved)) {
                proved.fetch_max(sent.nanos(), Ordering::AcqRel);
            }
        }
        true
    }

    /// Waits until it is lost. Cancel-safe.
    pub(crate) async fn lost(&self) -> LossReason {
        self.ended.wait().await
    }

    /// Drives a call of this session to its end, or to the session's: what is unanswered then went with it.
    pub(crate) async fn or_lost<T>(&self, call: impl Future<Output = T>) -> Result<T, LossReason> {
        tokio::select! {
            biased; // an answer says more than the news that the session ended
            output = call => Ok(output),
            reason = self.lost() => Err(reason),
        }
    }

    /// Ends it: every grant is lost for `reason`. The driver's session is handed out for the caller to close
    /// or drop.
    pub(crate) fn end(&self, reason: &LossReason) -> Option<Arc<dyn Session>> {
        let (session, grants) = {
            let mut inner = self.inner();
            self.ended.set(reason.clone());
            (inner.session.take(), std::mem::take(&mut inner.grants))
        };
        let reason = self.ended.get().unwrap_or(reason);
        for state in grants.into_values() {
            state.finish(reason.clone());
        }
        session
    }

    /// Grants that did not end cleanly and may still stand on the backend.
    pub(crate) fn unclean(&self) -> Vec<Grant> {
        self.inner().unclean.values().cloned().collect()
    }

    /// The backend answered to the release of this attempt.
    pub(crate) fn released(&self, attempt: AttemptId) {
        self.inner().unclean.remove(&attempt);
    }

    /// What a beat lists.
    pub(crate) fn held(&self, groups: Vec<GroupId>) -> Held {
        let inner = self.inner();
        Held {
            grants: inner.grants.values().map(|s| (s.grant.key.clone(), s.grant.attempt)).collect(),
            waiting: inner.waiting.iter().map(|(attempt, (key, _))| (key.clone(), *attempt)).collect(),
            groups,
        }
    }

    /// Takes a grant in. `None`, and the ticket back: its deadline has passed, it must be withdrawn.
    pub(crate) fn accept(self: &Arc<Self>, grant: Grant, ticket: Ticket) -> Result<Arc<GrantState>, Ticket> {
        let proved = grant.proved_at.map(|at| AtomicU64::new(at.nanos()));
        if self.loss().is_some() || proved.as_ref().is_some_and(|at| self.passed_from(at)) {
            return Err(ticket);
        }
        let mut inner = self.inner();
        if self.ended.get().is_some() {
            return Err(ticket);
        }
        inner.waiting.remove(&grant.attempt);
        let state = Arc::new(GrantState {
            lease: Arc::clone(self),
            proved,
            ended: Latch::default(),
            interrupted: AtomicBool::new(false),
            ticket: Mutex::new(Some(ticket)),
            grant,
        });
        inner.grants.insert(state.grant.attempt, Arc::clone(&state));
        Ok(state)
    }

    fn passed_from(&self, proved: &AtomicU64) -> bool {
        self.passed(self.deadline_from(proved.load(Ordering::Acquire)))
    }

    /// Notes that an attempt waits; the answer is notified when its place is gone.
    pub(crate) fn wait(&self, attempt: AttemptId, key: LockKey) -> Arc<Notify> {
        let gone = Arc::new(Notify::new());
        self.inner().waiting.insert(attempt, (key, Arc::clone(&gone)));
        gone
    }

    pub(crate) fn stop_waiting(&self, attempt: AttemptId) {
        self.inner().waiting.remove(&attempt);
    }

    /// The backend says that a waiting attempt has lost its place.
    pub(crate) fn unqueue(&self, attempt: AttemptId) {
        if let Some((_, gone)) = self.inner().waiting.remove(&attempt) {
            gone.notify_one();
        }
    }

    /// The backend says that a grant is gone.
    pub(crate) fn lose(&self, attempt: AttemptId, reason: LossReason) -> Option<Arc<GrantState>> {
        let mut inner = self.inner();
        let state = inner.grants.remove(&attempt)?;
        if reason == LossReason::Expired {
            // By its own deadline, which is earlier than the backend's.
            inner.unclean.insert(attempt, state.grant.clone());
        }
        drop(inner);
        state.finish(reason);
        Some(state)
    }

    /// The earliest deadline of grants that have one of their own.
    pub(crate) fn first_own_deadline(&self) -> Option<(Instant, AttemptId)> {
        let inner = self.inner();
        let own = |state: &Arc<GrantState>| {
            let proved = state.proved.as_ref()?.load(Ordering::Acquire);
            Some((self.deadline_from(proved)?, state.grant.attempt))
        };
        inner.grants.values().filter_map(own).min()
    }
}

impl GrantState {
    /// Why it is lost, computed from the clock now.
    pub(crate) fn loss(&self) -> Option<LossReason> {
        if let Some(reason) = self.ended.get() {
            return Some(reason.clone());
        }
        if let Some(reason) = self.lease.loss() {
            return Some(reason);
        }
        let passed = || self.proved.as_ref().is_some_and(|at| self.lease.passed_from(at));
        self.lease.expired(passed, &self.ended)
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        let own = self.proved.as_ref().and_then(|at| self.lease.deadline_from(at.load(Ordering::Acquire)));
        let at = match (self.lease.deadline_at(), own) {
            (Some(session), Some(own)) => session.min(own),
            (session, own) => session.or(own)?,
        };
        Some(Deadline::new(at, self.lease.clock.clone()))
    }

    /// Waits until it is lost. Cancel-safe.
    pub(crate) async fn lost(&self) -> LossReason {
        if let Some(reason) = self.loss() {
            return reason;
        }
        tokio::select! {
            biased; // the grant's own reason says more than the session's
            reason = self.ended.wait() => reason,
            reason = self.lease.lost() => reason,
        }
    }

    /// It has ended on the backend: tells the guard and lets the next task of this coordinator contend.
    fn finish(&self, reason: LossReason) {
        self.ended.set(reason);
        drop(self.take_ticket());
    }

    /// Work that ran under it was dropped before it had ended.
    pub(crate) fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Release);
    }

    /// How a guard ends that is dropped: its owner says nothing about what the lock protects.
    pub(crate) fn end_of_drop(&self) -> End {
        let cut_short = self.interrupted.load(Ordering::Acquire) || std::thread::panicking();
        if cut_short { End::Unclean } else { End::Clean }
    }

    /// Begins a release: from now on it is not held. The release frees the ticket when it is answered.
    /// `None`: it had ended before.
    pub(crate) fn begin_release(&self, end: End) -> Option<(Arc<dyn Session>, Ticket, End)> {
        let lost = self.loss().is_some();
        let end = if lost { End::Unclean } else { end };
        let mut inner = self.lease.inner();
        let was_ours = inner.grants.remove(&self.grant.attempt).is_some();
        if was_ours && end == End::Unclean {
            inner.unclean.insert(self.grant.attempt, self.grant.clone());
        }
        let session = inner.session.clone();
        drop(inner);
        let ticket = self.take_ticket();
        if !was_ours {
            return None;
        }
        // A guard that was lost by its deadline may still stand on the backend: it is released all the same, so
        // that the next holder need not wait for the session's end, but the answer is not that it was ours.
        if !lost {
            self.ended.set(LossReason::Released);
        }
        Some((session?, ticket?, end))
    }

    fn take_ticket(&self) -> Option<Ticket> {
        self.ticket.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
