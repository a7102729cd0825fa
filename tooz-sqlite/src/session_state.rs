//! A session of this process, as the database thread and the caller share it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tooz_core::driver::{AttemptId, Grant, Notice, SessionId, Turn};
use tooz_core::{Error, ErrorKind, LossReason, MemberId, Result};

use crate::host::kernel::FileId;
use crate::keys::Lock;

/// How many withdrawn attempts a session remembers. An attempt has to be remembered only from its withdrawal to
/// the arrival of a request that was made earlier and comes late. The one queue of the database thread keeps the
/// order of calls, so such a request is one whose future was made but not polled before; nobody has this many.
const WITHDRAWN: usize = 4096;

/// What the database thread knows of one session of this process.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) seq: i64,
    pub(crate) id: SessionId,
    pub(crate) namespace: Arc<str>,
    pub(crate) member: MemberId,
    pub(crate) path: PathBuf,
    pub(crate) file: FileId,
    /// Its owner dropped it without closing it.
    dropped: AtomicBool,
    /// Its row was committed.
    recorded: AtomicBool,
    state: Mutex<State>,
    noticed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ended: Option<LossReason>,
    notices: VecDeque<Notice>,
    slots: HashMap<AttemptId, Arc<Slot>>,
    withdrawn: HashSet<AttemptId>,
    withdrawn_in_order: VecDeque<AttemptId>,
}

/// An attempt that waits.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) lock: Lock,
    outcome: Mutex<Option<Turn>>,
    changed: Notify,
}

impl Slot {
    fn new(lock: Lock) -> Self {
        Self { lock, outcome: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn settle(&self, outcome: Turn) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.changed.notify_waiters();
    }

    fn outcome(&self) -> Option<Turn> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Cancel-safe: the outcome stays.
    pub(crate) async fn wait(&self) -> Turn {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable(); // before the look, so that no change falls between
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            changed.await;
        }
    }
}

impl Local {
    pub(crate) fn new(
        seq: i64,
        id: SessionId,
        namespace: Arc<str>,
        member: MemberId,
        path: PathBuf,
        file: FileId,
    ) -> Self {
        Self {
            seq,
            id,
            namespace,
            member,
            path,
            file,
            dropped: AtomicBool::new(false),
            recorded: AtomicBool::new(false),
            state: Mutex::default(),
            noticed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn abandon(&self) {
        self.dropped.store(true, Ordering::SeqCst);
    }

    pub(crate) fn record(&self) {
        self.recorded.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_recorded(&self) -> bool {
        self.recorded.load(Ordering::SeqCst)
    }

    /// Whether this process itself knows that it is over.
    pub(crate) fn is_over(&self) -> bool {
        self.dropped.load(Ordering::SeqCst) || self.state().ended.is_some()
    }

    pub(crate) fn loss(&self) -> Option<LossReason> {
        self.state().ended.clone()
    }

    /// Fails if the session ended.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.state().ended {
            None => Ok(()),
            Some(LossReason::SessionClosed) => Err(Error::new(ErrorKind::Closed, "the session was closed")),
            Some(reason) => Err(Error::new(ErrorKind::SessionLost, reason.to_string())),
        }
    }

    /// Ends it here: every waiter is told, and the owner unless it closed the session itself.
    pub(crate) fn end(&self, reason: LossReason) {
        let slots = {
            let mut state = self.state();
            if state.ended.is_some() {
                return;
            }
            state.ended = Some(reason.clone());
            if reason != LossReason::SessionClosed {
                state.notices.clear(); // the end of the session says it all
                state.notices.push_back(Notice::SessionLost(reason));
            }
            std::mem::take(&mut state.slots)
        };
        for slot in slots.values() {
            slot.settle(Turn::Gone);
        }
        self.noticed.notify_waiters();
    }

    pub(crate) fn tell(&self, notice: Notice) {
        self.state().notices.push_back(notice);
        self.noticed.notify_waiters();
    }

    /// Cancel-safe: what is not returned stays.
    pub(crate) async fn notice(&self) -> Notice {
        loop {
            let mut noticed = pin!(self.noticed.notified());
            noticed.as_mut().enable(); // before the look, so that no notice falls between
            let notice = self.state().notices.pop_front();
            if let Some(notice) = notice {
                return notice;
            }
            noticed.await;
        }
    }

    /// Asked again, it keeps what it knows.
    pub(crate) fn queue(&self, attempt: AttemptId, lock: Lock) {
        let mut state = self.state();
        if state.ended.is_none() {
            state.slots.entry(attempt).or_insert_with(|| Arc::new(Slot::new(lock)));
        }
    }

    pub(crate) fn slot(&self, attempt: AttemptId) -> Option<Arc<Slot>> {
        self.state().slots.get(&attempt).cloned()
    }

    pub(crate) fn granted(&self, grant: Grant) {
        if let Some(slot) = self.slot(grant.attempt) {
            slot.settle(Turn::Granted(grant));
        }
    }

    /// The attempt is over; whoever still waits for it hears that its place is gone.
    pub(crate) fn forget(&self, attempt: AttemptId) {
        let slot = self.state().slots.remove(&attempt);
        if let Some(slot) = slot {
            slot.settle(Turn::Gone);
        }
    }

    /// Attempts that wait and were not granted yet.
    pub(crate) fn waiting(&self) -> Vec<(AttemptId, Arc<Slot>)> {
        let state = self.state();
        let waits = state.slots.iter().filter(|(_, slot)| slot.outcome().is_none());
        waits.map(|(attempt, slot)| (*attempt, slot.clone())).collect()
    }

    pub(crate) fn has_waiting(&self) -> bool {
        self.state().slots.values().any(|slot| slot.outcome().is_none())
    }

    pub(crate) fn withdraw(&self, attempt: AttemptId) {
        let mut state = self.state();
        if state.withdrawn.insert(attempt) {
            state.withdrawn_in_order.push_back(attempt);
            if state.withdrawn_in_order.len() > WITHDRAWN
                && let Some(oldest) = state.withdrawn_in_order.pop_front()
            {
                state.withdrawn.remove(&oldest);
            }
        }
    }

    pub(crate) fn is_withdrawn(&self, attempt: AttemptId) -> bool {
        self.state().withdrawn.contains(&attempt)
    }
}
