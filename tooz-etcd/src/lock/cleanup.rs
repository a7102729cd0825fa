//! Deleting the keys of an attempt.

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use tooz_core::Result;
use tooz_core::driver::{AttemptId, End, LockKey};

use crate::keys::LockKeys;
use crate::lock::Gate;
use crate::lock::state::alone;
use crate::session_state::SessionState;

/// Deletes the mark of a grant that ends cleanly, if the holder's key is there. If it is not, the mark says who ended it.
pub(crate) fn unmark_held(keys: &LockKeys, attempt: AttemptId) -> TxnOp {
    let held = Compare::create_revision(keys.holder(attempt), CompareOp::Greater, 0);
    TxnOp::txn(Txn::new().when([held]).and_then([TxnOp::delete(keys.mark(attempt), None)]))
}

impl SessionState {
    /// The operations that delete all keys of an attempt but its mark, by which the next holder learns of an unclean end.
    pub(crate) fn clear_operations(&self, keys: &LockKeys, attempt: AttemptId) -> Vec<TxnOp> {
        let mut operations = vec![
            TxnOp::delete(keys.holder(attempt), None),
            TxnOp::delete(keys.waiter(attempt, false), None),
            TxnOp::delete(keys.waiter(attempt, true), None),
        ];
        operations.extend(self.delete_gate(keys, attempt));
        operations
    }

    /// Deletes the gate if it belongs to this attempt alone, or if this attempt is the last of those that share it.
    pub(crate) fn delete_gate(&self, keys: &LockKeys, attempt: AttemptId) -> Option<TxnOp> {
        let gate = keys.gate.clone()?;
        let delete = [TxnOp::delete(gate.clone(), None)];
        let compares = match self.gate_of(attempt) {
            Some(lease) => {
                let mut compares = alone(keys, attempt);
                compares.push(Compare::lease(gate.clone(), CompareOp::Equal, lease));
                compares.push(Compare::value(gate, CompareOp::Equal, Gate::shared()));
                compares
            }
            None => vec![Compare::value(gate, CompareOp::Equal, Gate::holder(attempt))],
        };
        Some(TxnOp::txn(Txn::new().when(compares).and_then(delete)))
    }

    /// Deletes the keys of an attempt, in the same session epoch.
    pub(crate) async fn clear(&self, key: &LockKey, attempt: AttemptId, end: End) -> Result<()> {
        let keys = self.client.keys.lock(key);
        let mut operations = self.clear_operations(&keys, attempt);
        if end == End::Clean {
            operations.push(unmark_held(&keys, attempt));
        }
        self.client.connection.send(true, Txn::new().and_then(operations)).await?;
        self.mark_ended(attempt);
        Ok(())
    }

    /// Deletes what is left of lost grants: half of a grant may still be there, and it would keep others out. What cannot be
    /// deleted now is deleted at the next beat.
    pub(crate) async fn clear_lost(&self) {
        for known in self.lost() {
            let operations = self.clear_operations(&self.client.keys.lock(&known.key), known.attempt);
            match self.client.connection.send(true, Txn::new().and_then(operations)).await {
                Ok(_) => self.mark_ended(known.attempt),
                Err(error) => {
                    tracing::debug!(%error, key = %known.key, "what is left of a lost grant is still there");
                }
            }
        }
    }
}
