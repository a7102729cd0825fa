//! Verifying that what a session believes to have is on the server: its grants, its places in queues, its memberships.
//!
//! It is done by transactions that write. A member that was away may answer a read from the past (etcd-io/etcd#20418), and a
//! renewal may succeed on a lease that is about to end.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp};
use tooz_core::driver::{AttemptId, Held, Renewal};
use tooz_core::{ErrorKind, GroupId, LossReason, Result};

use crate::connection::answer;
use crate::connection::call::MOST_OPERATIONS;
use crate::error::closed;
use crate::keys::LockKeys;
use crate::lock::{Gate, GateKind, record};
use crate::session_state::{KnownGrant, SessionState};

/// The operations of a beat's transaction before those that check something.
const BESIDE_CHECKS: usize = 2;

/// The outcome for a session that lives.
#[derive(Debug)]
pub(crate) struct Verified {
    /// The revision at which every grant was there that is not gone.
    pub(crate) revision: i64,
    pub(crate) gone: Vec<(AttemptId, LossReason)>,
}

impl KnownGrant {
    /// True while the holder's key is there as this session made it. The server decides whose key it is, not the caller.
    pub(crate) fn own_compares(&self, keys: &LockKeys, lease: i64) -> Vec<Compare> {
        let holder = keys.holder(self.attempt);
        vec![
            Compare::create_revision(holder.clone(), CompareOp::Equal, self.created),
            Compare::lease(holder, CompareOp::Equal, lease),
        ]
    }

    /// True while the holder's key and the gate are there.
    pub(crate) fn compares(&self, keys: &LockKeys, lease: i64) -> Vec<Compare> {
        let mut compares = self.own_compares(keys, lease);
        match (&keys.gate, self.gate) {
            (Some(gate), Some(lease)) => {
                compares.push(Compare::value(gate.clone(), CompareOp::Equal, Gate::shared()));
                compares.push(Compare::lease(gate.clone(), CompareOp::Equal, lease));
            }
            (Some(gate), None) => {
                compares.push(Compare::value(gate.clone(), CompareOp::Equal, Gate::holder(self.attempt)));
            }
            (None, _) => {}
        }
        compares
    }
}

impl SessionState {
    /// Verifies that these grants are there. `None`: the session is over.
    pub(crate) async fn verify(&self, held: &[KnownGrant]) -> Result<Option<Verified>> {
        let mut verified = Verified { revision: i64::MAX, gone: Vec::new() };
        let mut rest = held;
        loop {
            // One operation less, for the one that makes the transaction a write.
            let (page, after) = rest.split_at(rest.len().min(MOST_OPERATIONS - 1));
            let checks = page.iter().map(|known| self.check(known));
            let operations: Vec<TxnOp> = std::iter::once(self.change_nothing()).chain(checks).collect();
            let txn = Txn::new().when([self.lives()]).and_then(operations);
            let response = match self.client.connection.send(true, txn).await {
                Ok(response) if response.succeeded() => response,
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::SessionLost => return Ok(None),
                Err(error) => return Err(error),
            };
            verified.revision = verified.revision.min(answer::revision(&response));
            for (at, known) in (1..).zip(page) {
                let Some(check) = answer::nested(&response, at).filter(|check| !check.succeeded()) else {
                    continue;
                };
                let told = answer::one(&check, 0).and_then(|kv| record::read_broken(kv.value()));
                verified.gone.push((known.attempt, told.unwrap_or(LossReason::Vanished)));
            }
            rest = after;
            if rest.is_empty() {
                return Ok(Some(verified));
            }
        }
    }

    /// An operation that succeeds while the grant is there, and else reads who broke it.
    fn check(&self, known: &KnownGrant) -> TxnOp {
        let keys = self.client.keys.lock(&known.key);
        let broken = TxnOp::get(self.client.keys.broken(self.opened.id, known.attempt), None);
        TxnOp::txn(Txn::new().when(known.compares(&keys, self.opened.lease)).or_else([broken]))
    }

    /// Who broke a grant of this session, if there is a record of it.
    pub(crate) async fn who_broke(&self, attempt: AttemptId) -> Option<LossReason> {
        let look = Txn::new().and_then([TxnOp::get(self.client.keys.broken(self.opened.id, attempt), None)]);
        let response = self.client.connection.send(true, look).await.ok()?;
        record::read_broken(answer::one(&response, 0)?.value())
    }

    /// Compares what the core believes with what the server has; a beat does so while it prolongs the lease.
    pub(crate) async fn compare(&self, held: &Held) -> Result<Renewal> {
        let mut renewal = Renewal::confirmed();
        let mut pages: Vec<Vec<Check>> = vec![Vec::new()];
        let mut size = BESIDE_CHECKS;
        for check in self.checks(held) {
            if size + check.keys.len() > MOST_OPERATIONS {
                pages.push(Vec::new());
                size = BESIDE_CHECKS;
            }
            size += check.keys.len();
            if let Some(page) = pages.last_mut() {
                page.push(check);
            }
        }
        let (mut asked, spawner) = (Vec::new(), &self.client.connection.context.spawner);
        for page in &pages {
            let keys = page.iter().flat_map(|check| check.keys.iter().cloned());
            let gets = keys.map(|key| TxnOp::get(key, None));
            let operations = [self.change_nothing(), self.get_session_epoch()].into_iter().chain(gets);
            let txn = Txn::new().when([self.lives()]).and_then(operations.collect::<Vec<_>>());
            let connection = Arc::clone(&self.client.connection);
            // All pages at once, so that a beat is one round trip.
            asked.push(spawner.spawn(async move { connection.send(false, txn).await }));
        }
        for (page, asked) in pages.into_iter().zip(asked) {
            let response = asked.await.unwrap_or_else(|| Err(closed()))?;
            if !response.succeeded() {
                return Ok(Renewal::lost(LossReason::Expired));
            }
            self.read_session_epoch(&response, 1)?;
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

    fn checks(&self, held: &Held) -> Vec<Check> {
        let keys = &self.client.keys;
        let grants = held.grants.iter().map(|(key, attempt)| {
            let lock = keys.lock(key);
            let what = What::Grant(*attempt, self.gate_of(*attempt), lock.gate.is_some());
            Check { what, keys: std::iter::once(lock.holder(*attempt)).chain(lock.gate).collect() }
        });
        let waiting = held.waiting.iter().map(|(key, attempt)| {
            let lock = keys.lock(key);
            // The attempt may just have been granted.
            let keys = vec![lock.waiter(*attempt, false), lock.waiter(*attempt, true), lock.holder(*attempt)];
            Check { what: What::Waiting(*attempt), keys }
        });
        let groups = held.groups.iter().map(|group| {
            let keys = keys.group(group);
            let (member, key) = (keys.member(&self.member), keys.group().to_vec());
            Check { what: What::Group(group.clone()), keys: vec![member, key] }
        });
        grants.chain(waiting).chain(groups).collect()
    }

    fn judge(&self, check: Check, found: &[Option<KeyValue>], renewal: &mut Renewal) {
        let ours = |at: usize| {
            found.get(at).and_then(Option::as_ref).is_some_and(|kv| kv.lease() == self.opened.lease)
        };
        match check.what {
            What::Grant(attempt, shared_gate, has_gate) => {
                let gate = found.get(1).and_then(Option::as_ref).map(Gate::read);
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

/// Keys to read, and what they decide about.
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
