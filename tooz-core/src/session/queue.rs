//! Tasks of one coordinator that want the same lock: they queue here, and one of them at a time speaks to the
//! backend, so a process with a thousand tasks on one name is one contender there.
//!
//! A **ticket** is a task's place in this queue. It passes when it is first and its mode fits beside the tickets
//! that have passed; it is dropped when its attempt has ended on the backend. A coordinator that releases goes to
//! the end of the backend's queue, since its next task asks anew.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::driver::support::rule::{Foreign, fits, verdict};
use crate::driver::{Grant, LockKey, LockMode};
use crate::platform::await_point::traced;
use crate::{Error, ErrorKind, FencingToken, Result};

/// Names that are no longer in use are kept with their last tokens until there are this many; it is what a token that
/// goes back is noticed by, and 4096 names cost less than a megabyte.
const REMEMBERED: usize = 4096;

/// The local queues of a coordinator.
#[derive(Debug, Default)]
pub(crate) struct Contention(Mutex<Queues>);

#[derive(Debug, Default)]
struct Queues {
    next: u64,
    keys: BTreeMap<LockKey, Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    passed: Vec<Passed>,
    /// For callers who do not wait: told when a ticket comes further or goes.
    changed: Arc<Notify>,
    /// The largest tokens seen: of an exclusive grant, and of any grant.
    exclusive: Option<FencingToken>,
    any: Option<FencingToken>,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    mode: LockMode,
    passed: Arc<Notify>,
}

#[derive(Debug)]
struct Passed {
    id: u64,
    mode: LockMode,
    stage: Stage,
    /// It is being released or withdrawn, and the backend has not answered: its stage says nothing any more about
    /// others' chances.
    leaving: bool,
}

/// How far a ticket that passed has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The backend has not answered yet.
    Asking,
    /// The backend said that others are before this one.
    Queued,
    /// It is held.
    Granted,
}

impl Queue {
    fn may_pass(&self, mode: LockMode) -> bool {
        // One at a time asks or waits at the backend.
        self.passed.iter().all(|passed| passed.stage == Stage::Granted)
            && fits(mode, self.passed.iter().map(|passed| passed.mode))
    }

    /// Whether the backend's word to those who have passed means that `mode` cannot be had now.
    fn is_taken(&self, mode: LockMode) -> bool {
        let staying = || self.passed.iter().filter(|passed| !passed.leaving);
        let granted = staying().filter(|passed| passed.stage == Stage::Granted).map(|passed| passed.mode);
        staying().any(|passed| passed.stage == Stage::Queued) || !fits(mode, granted)
    }

    fn let_pass(&mut self) {
        // At most one: none may pass beside one that asks.
        if self.waiting.front().is_some_and(|first| self.may_pass(first.mode))
            && let Some(first) = self.waiting.pop_front()
        {
            self.passed.push(Passed { id: first.id, mode: first.mode, stage: Stage::Asking, leaving: false });
            first.passed.notify_one();
        }
    }
}

impl Contention {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place at the end of the queue.
    ///
    /// # Errors
    /// `Invalid` if permits of another limit are in use here.
    pub(crate) fn enqueue(self: &Arc<Self>, key: &LockKey, mode: LockMode) -> Result<Ticket> {
        let mut queues = self.queues();
        queues.next += 1;
        let id = queues.next;
        let queue = queues.keys.entry(key.clone()).or_default();
        // One that is leaving is no lasting obstacle, though the backend may take its time to say so.
        let staying = queue.passed.iter().filter(|passed| !passed.leaving).map(|passed| passed.mode);
        let before = queue.waiting.iter().map(|waiting| (waiting.id, waiting.mode));
        verdict(mode, before, staying, Foreign::None).checked(key)?;
        let passed = Arc::new(Notify::new());
        queue.waiting.push_back(Waiting { id, mode, passed: Arc::clone(&passed) });
        queue.let_pass();
        Ok(Ticket { contention: Arc::clone(self), key: key.clone(), id, passed })
    }

    /// Why the ticket `id` has to wait, by the backend's last word: it is queued, or one of this coordinator before it
    /// is queued or holds the lock. `None`: there is no such word.
    pub(crate) fn in_the_way(&self, key: &LockKey, id: u64) -> Option<Stage> {
        let queues = self.queues();
        let staying =
            || queues.keys.get(key).into_iter().flat_map(|queue| &queue.passed).filter(|p| !p.leaving);
        match queues.keys.get(key)?.passed.iter().find(|passed| passed.id == id) {
            Some(own) => (own.stage == Stage::Queued && !own.leaving).then_some(Stage::Queued),
            None => staying().map(|passed| passed.stage).filter(|stage| *stage != Stage::Asking).max(),
        }
    }
}

/// A task's place among the tasks of its coordinator.
#[derive(Debug)]
pub(crate) struct Ticket {
    contention: Arc<Contention>,
    key: LockKey,
    pub(crate) id: u64,
    passed: Arc<Notify>,
}

impl Ticket {
    /// Whether no task of this coordinator is before it.
    fn has_passed(&self) -> bool {
        let queues = self.contention.queues();
        queues.keys.get(&self.key).is_some_and(|queue| queue.passed.iter().any(|passed| passed.id == self.id))
    }

    /// Waits until it is this task's turn to speak to the backend. Cancel-safe: dropping the ticket leaves the
    /// queue.
    pub(crate) async fn pass(&self) {
        while !self.has_passed() {
            traced(pin!(self.passed.notified())).await;
        }
    }

    /// For a caller who does not wait: `true` when it is its turn, `false` as soon as the backend's word to its
    /// siblings says that the lock cannot be had. What is still being asked, released or withdrawn says neither.
    /// Cancel-safe.
    pub(crate) async fn pass_or_taken(&self, mode: LockMode) -> bool {
        loop {
            let changed = {
                let queues = self.contention.queues();
                let Some(queue) = queues.keys.get(&self.key) else { return false };
                if queue.passed.iter().any(|passed| passed.id == self.id) {
                    return true;
                }
                if queue.is_taken(mode) {
                    return false;
                }
                // It counts from here, under the lock.
                Arc::clone(&queue.changed).notified_owned()
            };
            traced(pin!(changed)).await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Passed)) {
        let mut queues = self.contention.queues();
        if let Some(queue) = queues.keys.get_mut(&self.key) {
            if let Some(passed) = queue.passed.iter_mut().find(|passed| passed.id == self.id) {
                change(passed);
            }
            queue.let_pass();
            queue.changed.notify_waiters();
        }
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        self.change(|passed| (passed.stage, passed.leaving) = (stage, false));
    }

    /// Its attempt is being released or withdrawn.
    pub(crate) fn set_leaving(&self) {
        self.change(|passed| passed.leaving = true);
    }

    /// Refuses a token that is not larger than those before it: then two holders could not be told apart.
    pub(crate) fn check_token(&self, grant: &Grant) -> Result<()> {
        let mut queues = self.contention.queues();
        let Some(queue) = queues.keys.get_mut(&self.key) else { return Ok(()) };
        let alone = grant.mode == LockMode::Exclusive;
        let seen = if alone { queue.any } else { queue.exclusive };
        if let Some(seen) = seen.filter(|seen| grant.token <= *seen) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{}: the backend gave token {} after token {seen}; its token counter was lost or \
                     restored from a backup. Run `tooz tokens raise` with a larger number",
                    self.key, grant.token
                ),
            ));
        }
        queue.any = queue.any.max(Some(grant.token));
        if alone {
            queue.exclusive = Some(grant.token);
        }
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queues = self.contention.queues();
        let Some(queue) = queues.keys.get_mut(&self.key) else { return };
        queue.waiting.retain(|waiting| waiting.id != self.id);
        queue.passed.retain(|passed| passed.id != self.id);
        queue.let_pass();
        queue.changed.notify_waiters();
        let idle = |queue: &Queue| queue.waiting.is_empty() && queue.passed.is_empty();
        if idle(queue) && queues.keys.len() > REMEMBERED {
            queues.keys.remove(&self.key);
        }
    }
}
