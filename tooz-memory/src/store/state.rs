//! The whole state of one backend: plain data behind one lock.
//!
//! This file has the data alone. The files beside it change the state, each change in one step: [`super::sessions`],
//! [`super::locks`], [`super::groups`], and [`super::feed`] for the watches. No step waits or reads randomness. A step
//! notes in `wakes` what to wake, and the wake-ups go out after the lock is released. All collections are ordered: a
//! run must replay.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tooz_core::driver::support::attempts::EndedAttempts;
use tooz_core::driver::support::lock_state::{self, LockState};
use tooz_core::driver::{
    AttemptId, Clock, Epoch, GroupChange, Instant, LockKey, MemberRecord, Notice, SessionId,
};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, LossReason, MemberId};

use crate::faults::gate::Plan;
use crate::faults::oracle::{Happened, Listener};
use crate::faults::planted::Fault;

/// Everything that a backend knows.
#[derive(Default)]
pub(crate) struct State {
    /// The backend's own clock: that of the first driver that connected.
    pub(super) clock: Option<Clock>,
    /// Random at the first connection; another one after the data was lost.
    pub(super) epoch: Option<Epoch>,
    pub(crate) fault: Option<Fault>,
    /// What the test kit wants to happen to calls.
    pub(crate) plan: Plan,
    /// How many drivers ever connected; numbers their random sequences.
    pub(super) drivers: u64,
    /// The last fencing token. INVARIANT: never goes back while the backend lives, also when the data is lost.
    pub(super) fence: u64,
    /// Where tokens began, for the fault that begins again.
    pub(super) first_fence: u64,
    /// The last incarnation of a member.
    pub(super) incarnation: u128,
    pub(crate) sessions: BTreeMap<SessionId, LiveSession>,
    /// When sessions with a ttl end; the earliest is first.
    pub(super) expiries: BTreeSet<(Instant, SessionId)>,
    pub(crate) spaces: BTreeMap<Arc<str>, Space>,
    /// Logs of watched groups. They stand outside the groups because they outlive them: a slow watcher still
    /// reads what happened before the deletion.
    pub(crate) logs: BTreeMap<LogId, Log>,
    pub(super) next_log: LogId,
    /// Events that were offered to logs, counted for the fault that drops every second one.
    pub(super) events: u64,
    /// Woken when a waiter must look again for another reason than its own: the kit's plan changed, a driver
    /// was closed, or a session came that ends earlier than all others.
    pub(crate) changed: Arc<Notify>,
    /// A test that records what really happens.
    pub(crate) listener: Option<Listener>,
    /// To be woken after the lock is released.
    pub(crate) wakes: Vec<Arc<Notify>>,
}

/// What a look at the state says to its caller.
pub(crate) enum Step<T> {
    /// The result.
    Done(T),
    /// Not yet; this is woken when the result may be there.
    Wait(Arc<Notify>),
}

impl State {
    /// Whether this fault was planted.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub(super) fn wall(&self) -> Option<SystemTime> {
        self.clock.as_ref().map(Clock::wall)
    }

    /// Tells the listener of this namespace what happened. Without a listener the event is not even built.
    pub(super) fn tell(&mut self, space: &str, happened: impl FnOnce() -> Happened) {
        if let Some(listener) = self.listener.as_mut().filter(|listener| &*listener.space == space) {
            (listener.tell)(&happened());
        }
    }
}

/// One namespace.
#[derive(Default)]
pub(crate) struct Space {
    pub(crate) locks: BTreeMap<LockKey, Lock>,
    pub(crate) watched: BTreeMap<LockKey, WatchedLock>,
    pub(super) groups: BTreeMap<GroupId, Group>,
    /// Logs whose group went with the backend's data: a group that is created again takes its log over, so that
    /// a watcher survives the loss.
    pub(super) orphans: BTreeMap<GroupId, LogId>,
    /// Which live session a member id belongs to, since its first join (S9).
    pub(super) claims: BTreeMap<MemberId, SessionId>,
}

/// A session that lives.
pub(crate) struct LiveSession {
    pub(crate) member: MemberId,
    pub(super) space: Arc<str>,
    pub(super) ttl: Option<Duration>,
    pub(super) expires: Option<Instant>,
    /// The attempts that hold a lock or wait for one.
    pub(super) attempts: BTreeMap<AttemptId, LockKey>,
    /// A late request of one of them fails.
    pub(super) ended: EndedAttempts<Ended>,
    /// The groups that its member joined.
    pub(super) groups: BTreeSet<GroupId>,
    pub(crate) notices: VecDeque<Notice>,
    pub(super) fate: Arc<Fate>,
}

/// How many notices wait for a session that does not fetch them. A session that falls behind by more learns the rest
/// at its next beat.
const NOTICES: usize = 4_096;

impl LiveSession {
    /// Queues a notice for the session's owner.
    pub(super) fn notify(&mut self, notice: Notice, wakes: &mut Vec<Arc<Notify>>) {
        if self.notices.len() == NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
        wakes.push(self.fate.woken.clone());
    }
}

/// What a session's owner and the backend share beyond the session's end.
#[derive(Debug)]
pub(crate) struct Fate {
    pub(crate) id: SessionId,
    pub(super) why: OnceLock<LossReason>,
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

    /// The error of a call that came after the session's end.
    pub(super) fn error(&self) -> Error {
        Error::new(ErrorKind::SessionLost, format!("session {}: {}", self.id, self.why()))
    }
}

/// How an attempt that is over ended.
#[derive(Clone)]
pub(super) enum Ended {
    /// Released or withdrawn.
    Settled,
    /// Broken from outside.
    Broken(LossReason),
    /// Broken, and the planted fault hides it.
    Silenced,
}

/// One lock; it exists while it is held, waited for, or remembers an unclean end.
pub(crate) type Lock = LockState<Asker>;
pub(super) type Holder = lock_state::Holder<Asker>;
pub(super) type Waiter = lock_state::Waiter<Asker>;

/// What else this backend records of an attempt.
pub(crate) struct Asker {
    pub(super) member: MemberId,
    /// Since when it holds the lock.
    pub(super) since: Option<SystemTime>,
    /// Granted, but a planted fault hides it from the waiter.
    pub(super) unseen: bool,
    /// One for each waiter: a release wakes exactly the waiters that it grants.
    pub(super) granted: Arc<Notify>,
}

/// A lock with watchers.
#[derive(Default)]
pub(crate) struct WatchedLock {
    pub(crate) watchers: usize,
    /// Grows with every change of the holders.
    pub(super) version: u64,
    pub(super) changed: Arc<Notify>,
}

/// One group.
#[derive(Default)]
pub(crate) struct Group {
    pub(super) members: BTreeMap<MemberId, Member>,
    /// The log of its changes, while it has watchers.
    pub(super) log: Option<LogId>,
}

pub(crate) struct Member {
    pub(super) record: MemberRecord,
    pub(super) session: SessionId,
    /// The last update, where a planted fault lets it arrive again.
    pub(super) late: Option<Capabilities>,
}

impl Group {
    pub(crate) fn view(&self) -> Vec<MemberRecord> {
        self.members.values().map(|member| member.record.clone()).collect()
    }
}

/// Identifies a log.
pub(super) type LogId = u64;

/// The changes of one group, or what is left of it.
pub(crate) struct Log {
    pub(super) space: Arc<str>,
    pub(super) group: GroupId,
    pub(super) changes: VecDeque<GroupChange>,
    /// The number of the oldest change that is still here.
    pub(super) first: u64,
    pub(crate) watchers: usize,
    pub(super) woken: Arc<Notify>,
}

impl Log {
    pub(super) fn end(&self) -> u64 {
        self.first + u64::try_from(self.changes.len()).unwrap_or(u64::MAX)
    }

    pub(super) fn get(&self, number: u64) -> Option<&GroupChange> {
        self.changes.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}
