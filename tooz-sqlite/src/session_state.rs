//! A session of this process, as the database thread and the caller share it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tooz_core::driver::support::attempts::EndedAttempts;
use tooz_core::driver::support::errors::session_ended;
use tooz_core::driver::support::notices::Notices;
use tooz_core::driver::{AttemptId, Grant, SessionId, Turn};
use tooz_core::{LossReason, MemberId, Result};
use tooz_local::file_id::FileId;

use crate::keys::Lock;

/// What the database thread knows of one session of this process.
#[derive(Debug)]
pub(crate) struct SessionState {
    pub(crate) seq: i64,
    pub(crate) id: SessionId,
    pub(crate) namespace: Arc<str>,
    pub(crate) member: MemberId,
    pub(crate) path: PathBuf,
    pub(crate) file: FileId,
    inner: Mutex<Inner>,
    pub(crate) notices: Notices,
}

#[derive(Debug, Default)]
struct Inner {
    /// The owner dropped the session without closing it.
    dropped: bool,
    /// The session's row was committed.
    recorded: bool,
    ended: Option<LossReason>,
    attempts: HashMap<AttemptId, Arc<Attempt>>,
    withdrawn: EndedAttempts<()>,
}

/// An attempt that waits.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) lock: Lock,
    /// How waiting ended.
    outcome: watch::Sender<Option<Turn>>,
}

impl Attempt {
    fn settle(&self, outcome: Turn) {
        self.outcome.send_replace(Some(outcome));
    }

    fn is_settled(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Cancel-safe: the outcome stays.
    pub(crate) async fn wait(&self) -> Turn {
        let mut outcome = self.outcome.subscribe();
        let settled = outcome.wait_for(Option::is_some).await;
        // The sender lives as long as `self`, so the channel cannot be closed.
        settled.ok().and_then(|outcome| outcome.clone()).unwrap_or(Turn::Gone)
    }
}

impl SessionState {
    pub(crate) fn new(
        seq: i64,
        id: SessionId,
        namespace: Arc<str>,
        member: MemberId,
        path: PathBuf,
        file: FileId,
    ) -> Self {
        Self { seq, id, namespace, member, path, file, inner: Mutex::default(), notices: Notices::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn abandon(&self) {
        self.inner().dropped = true;
    }

    pub(crate) fn record(&self) {
        self.inner().recorded = true;
    }

    pub(crate) fn is_recorded(&self) -> bool {
        self.inner().recorded
    }

    /// Whether this process itself knows that the session is over.
    pub(crate) fn is_over(&self) -> bool {
        let inner = self.inner();
        inner.dropped || inner.ended.is_some()
    }

    pub(crate) fn loss(&self) -> Option<LossReason> {
        self.inner().ended.clone()
    }

    /// Fails if the session ended.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.inner().ended {
            None => Ok(()),
            Some(reason) => Err(session_ended(reason)),
        }
    }

    /// Ends the session in this process. Tells every waiter, and the owner unless it closed the session itself.
    pub(crate) fn end(&self, reason: LossReason) {
        let attempts = {
            let mut inner = self.inner();
            if inner.ended.is_some() {
                return;
            }
            inner.ended = Some(reason.clone());
            std::mem::take(&mut inner.attempts)
        };
        for attempt in attempts.values() {
            attempt.settle(Turn::Gone);
        }
        self.notices.end(reason);
    }

    /// Adds an attempt that waits. An attempt that is known already stays as it is.
    pub(crate) fn add(&self, attempt: AttemptId, lock: Lock) {
        let mut inner = self.inner();
        if inner.ended.is_none() {
            let waiting = || Arc::new(Attempt { lock, outcome: watch::Sender::new(None) });
            inner.attempts.entry(attempt).or_insert_with(waiting);
        }
    }

    pub(crate) fn attempt(&self, attempt: AttemptId) -> Option<Arc<Attempt>> {
        self.inner().attempts.get(&attempt).cloned()
    }

    pub(crate) fn grant(&self, grant: Grant) {
        if let Some(attempt) = self.attempt(grant.attempt) {
            attempt.settle(Turn::Granted(grant));
        }
    }

    /// Removes an attempt that is over. A caller that still waits for it gets [`Turn::Gone`].
    pub(crate) fn forget(&self, attempt: AttemptId) {
        let attempt = self.inner().attempts.remove(&attempt);
        if let Some(attempt) = attempt {
            attempt.settle(Turn::Gone);
        }
    }

    /// Attempts that wait and were not granted yet.
    pub(crate) fn waiting(&self) -> Vec<(AttemptId, Arc<Attempt>)> {
        let inner = self.inner();
        let waits = inner.attempts.iter().filter(|(_, attempt)| !attempt.is_settled());
        waits.map(|(id, attempt)| (*id, attempt.clone())).collect()
    }

    pub(crate) fn has_waiting(&self) -> bool {
        self.inner().attempts.values().any(|attempt| !attempt.is_settled())
    }

    pub(crate) fn withdraw(&self, attempt: AttemptId) {
        self.inner().withdrawn.put(attempt, ());
    }

    pub(crate) fn is_withdrawn(&self, attempt: AttemptId) -> bool {
        self.inner().withdrawn.contains(attempt)
    }
}
