//! What a session knows of itself: its key, its epoch, and the grants that it believes to have.
//!
//! The **session epoch** is the revision of the session's key. Every request that writes compares it. Withdrawing rewrites
//! the key and so begins a new epoch: an earlier request that is still on its way fails when it arrives, through any member
//! of the cluster. To find no key of an attempt would prove nothing: a member that stood still executes a request later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, TxnOp, TxnResponse};
use tokio::sync::Notify;
use tooz_core::driver::support::attempts::EndedAttempts;
use tooz_core::driver::support::notices::Notices;
use tooz_core::driver::{AttemptId, Grant, LockKey, LockMode, SessionId, Stamp};
use tooz_core::{Error, ErrorKind, GroupId, MemberId, Result};

use crate::client::Client;
use crate::connection::answer;
use crate::connection::watcher::Watcher;
use crate::keys::{Keys, Range};

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
pub(crate) struct SessionState {
    pub(crate) client: Arc<Client>,
    pub(crate) member: MemberId,
    pub(crate) opened: Opened,
    pub(crate) ttl: Duration,
    /// The revision of the session's key.
    session_epoch: AtomicI64,
    /// Whether the member id belongs to this session.
    pub(crate) claimed: AtomicBool,
    /// A write to a group may still be on its way: the next write begins a new session epoch, so that the late one fails.
    pub(crate) write_in_doubt: AtomicBool,
    /// The groups in which the session may be a member.
    joined: Mutex<BTreeSet<GroupId>>,
    pub(crate) notices: Notices,
    grants: Mutex<Grants>,
    /// Notified when a grant comes or goes.
    pub(crate) grants_changed: Notify,
}

impl SessionState {
    pub(crate) fn new(client: &Arc<Client>, member: MemberId, opened: Opened, ttl: Duration) -> Self {
        Self {
            client: Arc::clone(client),
            member,
            ttl,
            session_epoch: AtomicI64::new(opened.revision),
            claimed: AtomicBool::new(opened.claimed),
            write_in_doubt: AtomicBool::new(false),
            joined: Mutex::default(),
            notices: Notices::default(),
            grants: Mutex::default(),
            grants_changed: Notify::new(),
            opened,
        }
    }

    fn grants(&self) -> MutexGuard<'_, Grants> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn joined(&self) -> MutexGuard<'_, BTreeSet<GroupId>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn key(&self) -> Vec<u8> {
        self.client.keys.session(self.opened.id)
    }

    #[allow(clippy::unnecessary_wraps)] // what every put takes
    pub(crate) fn with_lease(&self) -> Option<PutOptions> {
        Some(PutOptions::new().with_lease(self.opened.lease))
    }

    /// True while the session lives, for requests that were sent after the last withdrawal (L14).
    pub(crate) fn in_session_epoch(&self) -> Compare {
        Compare::mod_revision(self.key(), CompareOp::Equal, self.session_epoch.load(Ordering::Acquire))
    }

    /// True while the session lives.
    pub(crate) fn lives(&self) -> Compare {
        Compare::create_revision(self.key(), CompareOp::Equal, self.opened.revision)
    }

    /// Begins a new session epoch: a request that was sent before and arrives later fails.
    pub(crate) fn advance_session_epoch(&self) -> TxnOp {
        TxnOp::put(self.key(), self.opened.value.clone(), self.with_lease())
    }

    /// A write that changes nothing: with it the transaction goes through the log like every write. One that only reads may
    /// be answered from the past (etcd before 3.4.42 and 3.5.28), and proves nothing.
    pub(crate) fn change_nothing(&self) -> TxnOp {
        TxnOp::delete(self.client.keys.nothing(self.opened.id), None)
    }

    pub(crate) fn get_session_epoch(&self) -> TxnOp {
        TxnOp::get(self.key(), None)
    }

    /// Records that the session epoch is at least `revision`.
    pub(crate) fn set_session_epoch(&self, revision: i64) {
        self.session_epoch.fetch_max(revision, Ordering::AcqRel);
    }

    /// Records the session epoch that [`SessionState::get_session_epoch`] found at this index.
    ///
    /// # Errors
    /// `SessionLost`: the session is over.
    pub(crate) fn read_session_epoch(&self, response: &TxnResponse, at: usize) -> Result<()> {
        match answer::found(response, at).first() {
            Some(kv) if kv.create_revision() == self.opened.revision => {
                self.set_session_epoch(kv.mod_revision());
                Ok(())
            }
            _ => Err(self.over()),
        }
    }

    /// The id of the data, as its key holds it.
    pub(crate) fn data_epoch(&self) -> Vec<u8> {
        self.opened.stamp.to_string().into_bytes()
    }

    /// Follows `ranges` after `revision`.
    pub(crate) fn watch(&self, ranges: Vec<Range>, revision: i64) -> Watcher {
        Watcher::new(&self.client.connection, &self.client.keys, self.data_epoch(), ranges, revision)
    }

    pub(crate) fn over(&self) -> Error {
        Error::new(ErrorKind::SessionLost, format!("session {}", self.opened.id))
    }

    /// Prolongs a lease; `false`: it is gone.
    pub(crate) async fn prolong(&self, lease: i64) -> Result<bool> {
        self.client.connection.prolong(lease, self.ttl).await
    }
}

/// One grant of this session.
#[derive(Clone, Debug)]
pub(crate) struct KnownGrant {
    pub(crate) attempt: AttemptId,
    pub(crate) key: LockKey,
    pub(crate) mode: LockMode,
    /// The lease of the gate that the grant shares with other holders.
    pub(crate) gate: Option<i64>,
    /// The create revision of the holder's key.
    pub(crate) created: i64,
    phase: Phase,
}

/// How far a grant is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Held,
    /// The session is releasing it: that its keys go is no loss.
    Leaving,
    /// It is known to be lost; keys that are left of it may still keep others out.
    Lost,
}

impl KnownGrant {
    /// The keys without which the grant is lost.
    pub(crate) fn keys(&self, keys: &Keys) -> Vec<Vec<u8>> {
        let lock = keys.lock(&self.key);
        std::iter::once(lock.holder(self.attempt)).chain(lock.gate).collect()
    }
}

/// All grants and waiting attempts of this session, and attempts that ended.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    granted: BTreeMap<AttemptId, KnownGrant>,
    /// Waiting attempts, with their mode and position.
    queued: BTreeMap<AttemptId, (LockMode, i64)>,
    /// A request for one of them is refused. The server needs no memory for that: it compares the session epoch.
    ended: EndedAttempts<()>,
}

impl SessionState {
    pub(crate) fn is_ended(&self, attempt: AttemptId) -> bool {
        self.grants().ended.contains(attempt)
    }

    /// A new grant; `created`: the create revision of the holder's key; `gate`: the lease of the gate that it shares.
    pub(crate) fn granted(&self, grant: &Grant, created: i64, gate: Option<i64>) {
        let (attempt, key, mode) = (grant.attempt, grant.key.clone(), grant.mode);
        let mut grants = self.grants();
        grants.granted.insert(attempt, KnownGrant { attempt, key, mode, gate, created, phase: Phase::Held });
        grants.queued.remove(&attempt);
        drop(grants);
        self.grants_changed.notify_one();
    }

    /// The attempt waits at this position; `None`: it does not wait.
    pub(crate) fn set_position(&self, attempt: AttemptId, at: Option<(LockMode, i64)>) {
        let mut grants = self.grants();
        match at {
            // A turn that is being dropped may still set the position after the withdrawal.
            Some(at) if !grants.ended.contains(attempt) => drop(grants.queued.insert(attempt, at)),
            _ => drop(grants.queued.remove(&attempt)),
        }
    }

    /// The mode and the position of a waiting attempt, as far as they are known.
    pub(crate) fn position(&self, attempt: AttemptId) -> Option<(LockMode, i64)> {
        self.grants().queued.get(&attempt).copied()
    }

    /// What is known of a grant, unless nothing of it is left on the server.
    pub(crate) fn known_grant(&self, attempt: AttemptId) -> Option<KnownGrant> {
        self.grants().granted.get(&attempt).cloned()
    }

    /// The lease of the gate that this grant shares.
    pub(crate) fn gate_of(&self, attempt: AttemptId) -> Option<i64> {
        self.grants().granted.get(&attempt).and_then(|known| known.gate)
    }

    /// The session is about to release the grant.
    pub(crate) fn mark_leaving(&self, attempt: AttemptId) {
        self.change_phase(attempt, Phase::Leaving);
    }

    /// The grant is lost; `false`: that was known, or the session is releasing it.
    pub(crate) fn mark_lost(&self, attempt: AttemptId) -> bool {
        self.change_phase(attempt, Phase::Lost)
    }

    fn change_phase(&self, attempt: AttemptId, to: Phase) -> bool {
        match self.grants().granted.get_mut(&attempt) {
            Some(known) if known.phase == Phase::Held => {
                known.phase = to;
                true
            }
            _ => false,
        }
    }

    /// Nothing of the attempt is left on the server.
    pub(crate) fn mark_ended(&self, attempt: AttemptId) {
        let mut grants = self.grants();
        grants.granted.remove(&attempt);
        grants.queued.remove(&attempt);
        grants.ended.put(attempt, ());
        drop(grants);
        self.grants_changed.notify_one();
    }

    fn in_phase(&self, phase: Phase) -> Vec<KnownGrant> {
        self.grants().granted.values().filter(|known| known.phase == phase).cloned().collect()
    }

    /// The grants that are held.
    pub(crate) fn held(&self) -> Vec<KnownGrant> {
        self.in_phase(Phase::Held)
    }

    /// The grants that are lost and whose keys were not deleted yet.
    pub(crate) fn lost(&self) -> Vec<KnownGrant> {
        self.in_phase(Phase::Lost)
    }

    /// Every grant of which a key may be on the server.
    pub(crate) fn all(&self) -> Vec<KnownGrant> {
        self.grants().granted.values().cloned().collect()
    }
}
