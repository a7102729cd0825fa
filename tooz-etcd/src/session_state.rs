//! What a session knows of itself: its key, its epoch, and the grants that it believes to have.
//!
//! The key is also the session's **fence**. Every request that writes compares the key's revision with the one that the
//! session knows. Withdrawing rewrites the key, so a request of before that is still on its way fails when it arrives,
//! through whichever member of the cluster. "Nothing is there" would prove nothing: a request that was sent to a member
//! that stood still is executed later.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, TxnOp, TxnResponse};
use tokio::sync::Notify;
use tooz_core::driver::{AttemptId, Grant, LockKey, LockMode, SessionId, Stamp};
use tooz_core::{Error, ErrorKind, MemberId, Result};

use crate::client::Client;
use crate::connection::answer;
use crate::keys::Keys;

/// What opening a session wrote.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) id: SessionId,
    /// What the session's key holds.
    pub(crate) value: Vec<u8>,
    pub(crate) lease: i64,
    /// The lease of the coordinator's earlier session.
    pub(crate) previous: Option<i64>,
    pub(crate) claimed: bool,
    pub(crate) stamp: Stamp,
    pub(crate) revision: i64,
}

/// One session: what its locks, groups and waiting tasks share.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) client: Arc<Client>,
    pub(crate) member: MemberId,
    pub(crate) opened: Opened,
    pub(crate) ttl: Duration,
    /// The revision of the session's key.
    fence: AtomicI64,
    /// Whether the member id is ours.
    pub(crate) claimed: AtomicBool,
    /// A write to a group may still be on its way: the next one moves the fence, so that it fails.
    pub(crate) ghosts: AtomicBool,
    standing: Mutex<Standing>,
    /// Told when a grant comes or goes.
    pub(crate) stands_changed: Notify,
}

impl Life {
    pub(crate) fn new(client: &Arc<Client>, member: MemberId, opened: Opened, ttl: Duration) -> Self {
        Self {
            client: Arc::clone(client),
            member,
            ttl,
            fence: AtomicI64::new(opened.revision),
            claimed: AtomicBool::new(opened.claimed),
            ghosts: AtomicBool::new(false),
            standing: Mutex::default(),
            stands_changed: Notify::new(),
            opened,
        }
    }

    pub(crate) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn key(&self) -> Vec<u8> {
        self.client.keys.session(self.opened.id)
    }

    #[allow(clippy::unnecessary_wraps)] // what every put takes
    pub(crate) fn with_lease(&self) -> Option<PutOptions> {
        Some(PutOptions::new().with_lease(self.opened.lease))
    }

    /// True only for requests that were sent after the last withdrawal, while the session lives (L14).
    pub(crate) fn fenced(&self) -> Compare {
        Compare::mod_revision(self.key(), CompareOp::Equal, self.fence.load(Ordering::Acquire))
    }

    /// True while the session lives.
    pub(crate) fn lives(&self) -> Compare {
        Compare::create_revision(self.key(), CompareOp::Equal, self.opened.revision)
    }

    /// Moves the fence: what was sent before and arrives later fails.
    pub(crate) fn move_fence(&self) -> TxnOp {
        TxnOp::put(self.key(), self.opened.value.clone(), self.with_lease())
    }

    /// A write that changes nothing: it makes a transaction go the way of everything that changes something. One that only
    /// reads may be answered from the past (etcd before 3.4.42 and 3.5.28), and proves nothing.
    pub(crate) fn change_nothing(&self) -> TxnOp {
        TxnOp::delete(self.client.keys.nothing(self.opened.id), None)
    }

    pub(crate) fn look_at_fence(&self) -> TxnOp {
        TxnOp::get(self.key(), None)
    }

    /// The fence stands at `revision`, or further.
    pub(crate) fn fence_is(&self, revision: i64) {
        self.fence.fetch_max(revision, Ordering::AcqRel);
    }

    /// Reads what [`Life::look_at_fence`] found at this place.
    ///
    /// # Errors
    /// The session is over.
    pub(crate) fn read_fence(&self, response: &TxnResponse, at: usize) -> Result<()> {
        match answer::found(response, at).first() {
            Some(kv) if kv.create_revision() == self.opened.revision => {
                self.fence_is(kv.mod_revision());
                Ok(())
            }
            _ => Err(self.over()),
        }
    }

    pub(crate) fn over(&self) -> Error {
        Error::new(ErrorKind::SessionLost, format!("session {}", self.opened.id))
    }

    /// Prolongs a lease; `false`: it is gone.
    pub(crate) async fn prolong(&self, lease: i64) -> Result<bool> {
        self.client.connection.prolong(lease, self.ttl).await
    }
}

/// How many attempts that are over a session remembers, to refuse them when they are asked for once more. The server
/// needs no memory for that: the fence is there.
const ENDED_ATTEMPTS: usize = 1_024;

/// One grant.
#[derive(Clone, Debug)]
pub(crate) struct Stand {
    pub(crate) key: LockKey,
    pub(crate) mode: LockMode,
    /// The lease of the gate that it shares with other holders.
    pub(crate) gate: Option<i64>,
    /// The create revision of its key.
    pub(crate) created: i64,
    course: Course,
}

/// Where a grant is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Held,
    /// It is being given back: that its keys go says nothing new.
    Leaving,
    /// It is known to be lost; what is left of it may still be in others' way.
    Lost,
}

impl Stand {
    /// A grant that is held, with the create revision of its key; `gate`: the lease of the gate that it shares.
    fn new(grant: &Grant, created: i64, gate: Option<i64>) -> Self {
        Self { key: grant.key.clone(), mode: grant.mode, gate, created, course: Course::Held }
    }

    /// The keys that it stands on.
    pub(crate) fn keys(&self, keys: &Keys, attempt: AttemptId) -> Vec<Vec<u8>> {
        let lock = keys.lock(&self.key);
        std::iter::once(lock.holder(attempt)).chain(lock.gate).collect()
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    grants: BTreeMap<AttemptId, Stand>,
    /// Who waits, how, and where.
    places: BTreeMap<AttemptId, (LockMode, i64)>,
    ended: VecDeque<AttemptId>,
}

impl Standing {
    fn end(&mut self, attempt: AttemptId) {
        self.grants.remove(&attempt);
        self.places.remove(&attempt);
        if !self.ended.contains(&attempt) {
            self.ended.push_back(attempt);
            if self.ended.len() > ENDED_ATTEMPTS {
                self.ended.pop_front();
            }
        }
    }
}

impl Life {
    pub(crate) fn is_ended(&self, attempt: AttemptId) -> bool {
        self.standing().ended.contains(&attempt)
    }

    pub(crate) fn granted(&self, grant: &Grant, created: i64, gate: Option<i64>) {
        let stand = Stand::new(grant, created, gate);
        let mut standing = self.standing();
        standing.grants.insert(grant.attempt, stand);
        standing.places.remove(&grant.attempt);
        drop(standing);
        self.stands_changed.notify_one();
    }

    /// It waits, at this place; `None`: not any more.
    pub(crate) fn waits(&self, attempt: AttemptId, at: Option<(LockMode, i64)>) {
        let mut standing = self.standing();
        match at {
            // A turn that is being dropped may still say so after the withdrawal.
            Some(at) if !standing.ended.contains(&attempt) => drop(standing.places.insert(attempt, at)),
            _ => drop(standing.places.remove(&attempt)),
        }
    }

    /// Where it waits, as far as is known.
    pub(crate) fn place(&self, attempt: AttemptId) -> Option<(LockMode, i64)> {
        self.standing().places.get(&attempt).copied()
    }

    /// What is known of a grant, unless nothing of it is left on the server.
    pub(crate) fn stand(&self, attempt: AttemptId) -> Option<Stand> {
        self.standing().grants.get(&attempt).cloned()
    }

    /// The lease of the gate that this grant shares.
    pub(crate) fn gate_of(&self, attempt: AttemptId) -> Option<i64> {
        self.standing().grants.get(&attempt).and_then(|stand| stand.gate)
    }

    /// It is about to be given back.
    pub(crate) fn leave(&self, attempt: AttemptId) {
        self.pass(attempt, Course::Leaving);
    }

    /// It is known to be lost; `false`: that was known, or it was being given back.
    pub(crate) fn lose(&self, attempt: AttemptId) -> bool {
        self.pass(attempt, Course::Lost)
    }

    fn pass(&self, attempt: AttemptId, to: Course) -> bool {
        match self.standing().grants.get_mut(&attempt) {
            Some(stand) if stand.course == Course::Held => {
                stand.course = to;
                true
            }
            _ => false,
        }
    }

    /// Nothing of it is left on the server.
    pub(crate) fn end(&self, attempt: AttemptId) {
        self.standing().end(attempt);
        self.stands_changed.notify_one();
    }

    fn on_course(&self, course: Course) -> Vec<(AttemptId, Stand)> {
        let standing = self.standing();
        let on_course = standing.grants.iter().filter(|(_, stand)| stand.course == course);
        on_course.map(|(attempt, stand)| (*attempt, stand.clone())).collect()
    }

    /// What is held.
    pub(crate) fn held(&self) -> Vec<(AttemptId, Stand)> {
        self.on_course(Course::Held)
    }

    /// What is lost and was not cleared away.
    pub(crate) fn lost(&self) -> Vec<(AttemptId, Stand)> {
        self.on_course(Course::Lost)
    }

    /// Everything of which something may be on the server.
    pub(crate) fn all(&self) -> Vec<(AttemptId, Stand)> {
        self.standing().grants.iter().map(|(attempt, stand)| (*attempt, stand.clone())).collect()
    }
}
