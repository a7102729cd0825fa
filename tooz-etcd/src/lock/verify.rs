//! Proving that what is held is there: by a transaction, because a read may be answered from the past by a member that was
//! away (etcd-io/etcd#20418), and a renewal may succeed on a lease that is about to go.

use etcd_client::{Txn, TxnOp};
use tooz_core::driver::AttemptId;
use tooz_core::{ErrorKind, LossReason, Result};

use crate::connection::answer;
use crate::connection::call::MOST_OPERATIONS;
use crate::lock::record;
use crate::session::Life;
use crate::session_state::Stand;

/// What a proof found, of a session that lives.
#[derive(Debug)]
pub(crate) struct Proof {
    /// The revision at which all that is not gone was there.
    pub(crate) revision: i64,
    pub(crate) gone: Vec<(AttemptId, LossReason)>,
}

impl Life {
    /// Whether these are there. `None`: the session is over.
    pub(crate) async fn prove(&self, held: Vec<(AttemptId, Stand)>) -> Result<Option<Proof>> {
        let mut proof = Proof { revision: i64::MAX, gone: Vec::new() };
        let mut rest = held.as_slice();
        loop {
            // One for what makes it a write.
            let (page, after) = rest.split_at(rest.len().min(MOST_OPERATIONS - 1));
            let (attempts, checks): (Vec<_>, Vec<_>) =
                page.iter().map(|(at, stand)| self.check(*at, stand)).unzip();
            let operations: Vec<TxnOp> = std::iter::once(self.change_nothing()).chain(checks).collect();
            let txn = Txn::new().when([self.lives()]).and_then(operations);
            let response = match self.client.connection.send(true, txn).await {
                Ok(response) if response.succeeded() => response,
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::SessionLost => return Ok(None),
                Err(error) => return Err(error),
            };
            proof.revision = proof.revision.min(answer::revision(&response));
            for (at, attempt) in (1..).zip(attempts) {
                let Some(check) = answer::nested(&response, at).filter(|check| !check.succeeded()) else {
                    continue;
                };
                let told = answer::one(&check, 0).and_then(|kv| record::read_broken(kv.value()));
                proof.gone.push((attempt, told.unwrap_or(LossReason::Vanished)));
            }
            rest = after;
            if rest.is_empty() {
                return Ok(Some(proof));
            }
        }
    }

    /// Succeeds while it is there; else it reads who broke it.
    fn check(&self, attempt: AttemptId, stand: &Stand) -> (AttemptId, TxnOp) {
        let keys = self.client.keys.lock(&stand.key);
        let broken = TxnOp::get(self.client.keys.broken(self.opened.id, attempt), None);
        let check = Txn::new().when(stand.compares(&keys, attempt, self.opened.lease)).or_else([broken]);
        (attempt, TxnOp::txn(check))
    }

    /// Who broke a grant of ours, if somebody left word.
    pub(crate) async fn who_broke(&self, attempt: AttemptId) -> Option<LossReason> {
        let look = Txn::new().and_then([TxnOp::get(self.client.keys.broken(self.opened.id, attempt), None)]);
        let response = self.client.connection.send(true, look).await.ok()?;
        record::read_broken(answer::found(&response, 0).first()?.value())
    }
}
