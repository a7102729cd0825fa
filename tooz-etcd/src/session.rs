//! A coordinator's life on the backend: one lease, and a key that hangs on it.
//!
//! The key is also the session's **fence**. Every request that writes compares the key's revision with the one that the
//! session knows. Withdrawing rewrites the key, so a request of before that is still on its way fails when it arrives,
//! through whichever member of the cluster. "Nothing is there" would prove nothing: a request that was sent to a member
//! that stood still is executed later.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnResponse};
use tokio::sync::{Notify, mpsc};
use tooz_core::clock::Instant;
use tooz_core::driver::{
    AttemptId, End, Epoch, Held, LockKey, LockMode, Notice, Renewal, Session, SessionGroups, SessionId,
    SessionLocks, Stamp,
};
use tooz_core::runtime::Task;
use tooz_core::{Error, ErrorKind, GroupId, LossReason, MemberId, Result};

use crate::client::Client;
use crate::connection::answer;
use crate::connection::call::MOST_OPERATIONS;
use crate::lock::attempt::unmark_held;
use crate::lock::monitor::{self, Post};
use crate::lock::record::{self, Gate, GateKind};
use crate::session_state::Standing;

/// The operations of a beat's transaction before those that check something.
const BESIDE_CHECKS: usize = 2;

/// What opening a session wrote.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) id: SessionId,
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

/// One session, as the core holds it.
pub(crate) struct EtcdSession {
    pub(crate) life: Arc<Life>,
    opened_at: Instant,
    notices: tokio::sync::Mutex<mpsc::Receiver<Notice>>,
    vigil: Mutex<Option<Task<()>>>,
    closed: AtomicBool,
}

impl fmt::Debug for EtcdSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdSession").field("id", &self.life.opened.id).finish_non_exhaustive()
    }
}

impl Life {
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
        TxnOp::put(self.key(), record::write_session(&self.member), self.with_lease())
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

    /// Whether what the core believes stands on the server, asked together with the prolonging.
    async fn compare(&self, held: &Held) -> Result<Renewal> {
        let mut checks = Vec::new();
        for (key, attempt) in &held.grants {
            checks.push(Check::grant(self, key, *attempt));
        }
        for (key, attempt) in &held.waiting {
            checks.push(Check::waiting(self, key, *attempt));
        }
        for group in &held.groups {
            checks.push(Check::group(self, group));
        }
        let mut renewal = Renewal::confirmed();
        let mut pages: Vec<Vec<Check>> = vec![Vec::new()];
        let mut size = BESIDE_CHECKS;
        for check in checks {
            if size + check.keys.len() > MOST_OPERATIONS {
                pages.push(Vec::new());
                size = BESIDE_CHECKS;
            }
            size += check.keys.len();
            if let Some(page) = pages.last_mut() {
                page.push(check);
            }
        }
        let mut asked = Vec::new();
        for page in &pages {
            let keys = page.iter().flat_map(|check| check.keys.iter().cloned());
            let gets = keys.map(|key| TxnOp::get(key, Some(GetOptions::new())));
            let operations = [self.change_nothing(), self.look_at_fence()].into_iter().chain(gets);
            let txn = Txn::new().when([self.lives()]).and_then(operations.collect::<Vec<_>>());
            let connection = Arc::clone(&self.client.connection);
            // All at once: however much there is, it is one round trip.
            asked.push(
                self.client
                    .connection
                    .context
                    .spawner
                    .spawn(async move { connection.send(false, txn).await }),
            );
        }
        for (page, asked) in pages.into_iter().zip(asked) {
            let response = asked.await.unwrap_or_else(|| Err(crate::error::closed()))?;
            if !response.succeeded() {
                return Ok(Renewal::lost(LossReason::Expired));
            }
            self.read_fence(&response, 1)?;
            let mut at = BESIDE_CHECKS;
            for check in page {
                let found: Vec<_> =
                    (at..at + check.keys.len()).map(|at| answer::one(&response, at)).collect();
                at += check.keys.len();
                self.judge(check, &found, &mut renewal);
            }
        }
        Ok(renewal)
    }

    fn judge(&self, check: Check, found: &[Option<etcd_client::KeyValue>], renewal: &mut Renewal) {
        let ours = |at: usize| {
            found.get(at).and_then(Option::as_ref).is_some_and(|kv| kv.lease() == self.opened.lease)
        };
        match check.what {
            What::Grant(attempt, shared_gate, has_gate) => {
                let gate = found.get(1).and_then(Option::as_ref).map(|kv| Gate::read(kv.into()));
                let gated = !has_gate
                    || gate.is_some_and(|gate| match shared_gate {
                        Some(lease) => gate.kind == GateKind::Shared && gate.lease == lease,
                        None => gate.kind == GateKind::Holder(attempt),
                    });
                if !ours(0) || !gated {
                    renewal.gone.push((attempt, LossReason::Vanished));
                }
            }
            What::Waiting(attempt) => {
                if !(ours(0) || ours(1) || ours(2)) {
                    renewal.unqueued.push(attempt);
                }
            }
            What::Group(group) => {
                let exists = found.get(1).is_some_and(Option::is_some);
                if !ours(0) || !exists {
                    renewal.evicted.push(group);
                }
            }
        }
    }
}

/// Keys to look at, and what they say.
struct Check {
    what: What,
    keys: Vec<Vec<u8>>,
}

enum What {
    /// With the lease of its shared gate, and whether there is a gate.
    Grant(AttemptId, Option<i64>, bool),
    Waiting(AttemptId),
    Group(GroupId),
}

impl Check {
    fn grant(life: &Life, key: &LockKey, attempt: AttemptId) -> Self {
        let lock = life.client.keys.lock(key);
        let what = What::Grant(attempt, life.gate_of(attempt), lock.gate.is_some());
        Self { what, keys: std::iter::once(lock.holder(attempt)).chain(lock.gate).collect() }
    }

    fn waiting(life: &Life, key: &LockKey, attempt: AttemptId) -> Self {
        let lock = life.client.keys.lock(key);
        // It may just have been granted.
        let keys = vec![lock.waiter(attempt, false), lock.waiter(attempt, true), lock.holder(attempt)];
        Self { what: What::Waiting(attempt), keys }
    }

    fn group(life: &Life, group: &GroupId) -> Self {
        let keys = life.client.keys.group(group);
        Self {
            what: What::Group(group.clone()),
            keys: vec![keys.member(&life.member), keys.group().to_vec()],
        }
    }
}

impl EtcdSession {
    pub(crate) fn new(
        client: &Arc<Client>,
        member: MemberId,
        opened: Opened,
        ttl: Duration,
        opened_at: Instant,
    ) -> Self {
        let (post, notices): (Post, _) = mpsc::channel(monitor::POST);
        let life = Arc::new(Life {
            client: Arc::clone(client),
            member,
            ttl,
            fence: AtomicI64::new(opened.revision),
            claimed: AtomicBool::new(opened.claimed),
            ghosts: AtomicBool::new(false),
            standing: Mutex::default(),
            stands_changed: Notify::new(),
            opened,
        });
        let vigil = client.connection.context.spawner.spawn(monitor::keep_vigil(Arc::clone(&life), post));
        let notices = tokio::sync::Mutex::new(notices);
        Self { life, opened_at, notices, vigil: Mutex::new(Some(vigil)), closed: AtomicBool::new(false) }
    }
}

#[async_trait]
impl Session for EtcdSession {
    fn id(&self) -> SessionId {
        self.life.opened.id
    }

    fn epoch(&self) -> Epoch {
        self.life.opened.stamp.epoch
    }

    fn ttl(&self) -> Option<Duration> {
        Some(self.life.ttl)
    }

    fn opened_at(&self) -> Instant {
        self.opened_at
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        let life = &self.life;
        let mut gates: Vec<i64> =
            held.grants.iter().filter_map(|(_, attempt)| life.gate_of(*attempt)).collect();
        gates.sort_unstable();
        gates.dedup();
        let spawner = &life.client.connection.context.spawner;
        let keeping: Vec<_> = gates
            .into_iter()
            .map(|lease| {
                let life = Arc::clone(life);
                (lease, spawner.spawn(async move { life.prolong(lease).await }))
            })
            .collect();
        let (kept, compared) = tokio::join!(life.prolong(life.opened.lease), life.compare(held));
        if !kept? {
            return Ok(Renewal::lost(LossReason::Expired));
        }
        let mut renewal = compared?;
        for (lease, kept) in keeping {
            if kept.await.unwrap_or_else(|| Err(crate::error::closed()))? {
                continue;
            }
            let gone = held.grants.iter().map(|(_, attempt)| *attempt);
            let gone = gone.filter(|attempt| life.gate_of(*attempt) == Some(lease));
            let told: Vec<AttemptId> = renewal.gone.iter().map(|(attempt, _)| *attempt).collect();
            renewal.gone.extend(gone.filter(|a| !told.contains(a)).map(|a| (a, LossReason::Expired)));
        }
        for (attempt, reason) in &mut renewal.gone {
            if let Some(why) = life.who_broke(*attempt).await {
                *reason = why;
            }
            life.lose(*attempt);
        }
        life.clear_lost().await;
        Ok(renewal)
    }

    async fn notice(&self) -> Notice {
        match self.notices.lock().await.recv().await {
            Some(notice) => notice,
            None => std::future::pending().await,
        }
    }

    fn groups(&self) -> &dyn SessionGroups {
        self
    }

    fn locks(&self) -> &dyn SessionLocks {
        self
    }

    async fn close(&self, end: End) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        // The lease takes everything along but shared gates, and the marks by which the next holders know of an unclean end.
        let mut marks = Vec::new();
        for (attempt, stand) in self.life.all() {
            self.life.leave(attempt);
            if stand.gate.is_some() && stand.mode != LockMode::Exclusive {
                self.life.clear(&stand.key, attempt, end).await?;
            } else if end == End::Clean {
                marks.push(unmark_held(&self.life.client.keys.lock(&stand.key), attempt));
            }
        }
        for page in marks.chunks(MOST_OPERATIONS) {
            // Only while it lives: after its end the marks tell the truth.
            let txn = Txn::new().when([self.life.lives()]).and_then(page);
            self.life.client.connection.send(true, txn).await?;
        }
        // It would be told of every key that goes with the lease. Ten thousand locks are so many messages at once that HTTP/2
        // ends the connection, by which the answer would come.
        drop(self.vigil.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.life.client.connection.revoke(self.life.opened.lease).await?;
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}
