//! What the database thread knows.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tooz_core::driver::Instant;
use tooz_local::file_id::FileId;

use crate::engine::database::Database;
use crate::engine::inotify::FileEvents;
use crate::engine::jobs::Jobs;
use crate::engine::predecessor::Predecessors;
use crate::engine::spin::Spin;
use crate::engine::tx::{Probes, Site};
use crate::engine::wakeup::Wakeup;
use crate::engine::watches::{GroupWatch, LockWatch};
use crate::keys::Lock;
use crate::session_state::SessionState;

/// How often the thread checks everything while a caller waits, so that a lost event delays a caller and never hangs it.
pub(crate) const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Without file events (too many inotify instances) the thread looks this often, with jitter.
pub(crate) const POLL_LOW: Duration = Duration::from_millis(5);
pub(crate) const POLL_HIGH: Duration = Duration::from_millis(50);
/// How long clearing away waits for another writer before jobs get their turn; it is tried again.
pub(crate) const REAP_LIMIT: Duration = Duration::from_millis(20);

/// The thread's state.
pub(crate) struct Engine {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) database: Option<Database>,
    pub(crate) site: Option<Arc<Site>>,
    /// The sessions of this process by number.
    pub(crate) sessions: HashMap<i64, Arc<SessionState>>,
    pub(crate) group_watches: Vec<Weak<GroupWatch>>,
    pub(crate) lock_watches: Vec<Weak<LockWatch>>,
    pub(crate) probes: Probes,
    pub(crate) events: Option<FileEvents>,
    /// The log has a warning that there are no file events.
    pub(crate) warned: bool,
    /// Where other processes wake this one.
    pub(crate) wakeup: Option<Wakeup>,
    /// The processes whose ends concern our waiters.
    pub(crate) predecessors: Predecessors,
    /// They may have changed.
    pub(crate) predecessors_changed: bool,
    /// The last event of the log that this process has read.
    pub(crate) cursor: i64,
    /// The last commit of another connection that this process has seen.
    pub(crate) version: i64,
    /// Our own commit added events to the log.
    pub(crate) logged: bool,
    /// Locks whose holders our own commits changed.
    pub(crate) changed_locks: Vec<Lock>,
    /// Sessions that may be dead: when to look, and how often the thread has looked.
    pub(crate) suspects: BTreeMap<i64, (Instant, usize)>,
    /// When to look again whether another process has finished a commit, and after which wait.
    pub(crate) committing: Option<(Instant, Duration)>,
    pub(crate) next_check: Instant,
    /// Whether waiting for the next job pays.
    pub(crate) spin: Spin,
    /// The database that was open last.
    pub(crate) known: Option<FileId>,
}

impl Engine {
    pub(crate) fn new(jobs: Arc<Jobs>) -> Self {
        let next_check = jobs.context.clock.now() + CHECK_EVERY;
        Self {
            jobs,
            database: None,
            site: None,
            sessions: HashMap::new(),
            group_watches: Vec::new(),
            lock_watches: Vec::new(),
            probes: Probes::default(),
            events: None,
            warned: false,
            wakeup: None,
            predecessors: Predecessors::default(),
            predecessors_changed: false,
            cursor: 0,
            version: 0,
            logged: false,
            changed_locks: Vec::new(),
            suspects: BTreeMap::new(),
            committing: None,
            next_check,
            spin: Spin::default(),
            known: None,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.jobs.context.clock.now()
    }

    /// Whether a caller of this process waits for something that another process may do.
    pub(crate) fn has_waiters(&self) -> bool {
        self.has_watches()
            || self.sessions.values().any(|session| session.is_over() || session.has_waiting())
            // Without them a session has no other way to learn of a break, or of the loss of its file.
            || ((self.events.is_none() || self.wakeup.is_none()) && !self.sessions.is_empty())
    }

    /// Whether every commit of every process may concern this one.
    pub(crate) fn has_watches(&self) -> bool {
        self.group_watches.iter().any(|watch| watch.strong_count() > 0)
            || self.lock_watches.iter().any(|watch| watch.strong_count() > 0)
    }

    /// Whether changes that concern this process may come without any event.
    pub(crate) fn misses_events(&self) -> bool {
        self.wakeup.is_none() || (self.events.is_none() && self.has_watches())
    }
}
