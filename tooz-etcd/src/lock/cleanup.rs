//! Taking away what stands for an attempt.

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use tooz_core::Result;
use tooz_core::driver::{AttemptId, End, LockKey};

use crate::keys::LockKeys;
use crate::lock::Gate;
use crate::lock::state::alone;
use crate::session_state::SessionState;

/// Takes the mark of a grant away that ends cleanly, if it is there: else the mark says who ended it.
pub(crate) fn unmark_held(keys: &LockKeys, attempt: AttemptId) -> TxnOp {
    let held = Compare::create_revision(keys.holder(attempt), CompareOp::Greater, 0);
    TxnOp::txn(Txn::new().when([held]).and_then([TxnOp::delete(keys.mark(attempt), None)]))
}

impl SessionState {
    /// The operations that take away all that stands for an attempt, but that it was not given back.
    pub(crate) fn clear_operations(&self, keys: &LockKeys, attempt: AttemptId) -> Vec<TxnOp> {
        let mut operations = vec![
            TxnOp::delete(keys.holder(attempt), None),
            TxnOp::delete(keys.waiter(attempt, false), None),
            TxnOp::delete(keys.waiter(attempt, true), None),
        ];
        operations.extend(self.delete_gate(keys, attempt));
        operations
    }

    /// Takes the gate away if it is this attempt's, or if this attempt is the last of those who share it.
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

    /// Takes away what stands for an attempt, without moving the fence.
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

    /// What we do not hold any more must not keep others out: half of it may still be there. What cannot be taken away
    /// now is so at the next beat.
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
