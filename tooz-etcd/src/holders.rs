//! The holders of locks: list them, break their grants, follow them; and raise the tokens.

use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use tooz_core::driver::{BreakRequest, HolderRecord, HolderStream, Holders, LockKey, Locks, Previous};
use tooz_core::{Error, ErrorKind, FencingToken, Result};

use crate::driver::Etcd;
use crate::keys::LockKeys;
use crate::lock::record::{Holder, write_broken, write_mark};
use crate::lock::state::State;
use crate::lock::{Gate, GateKind, fence};
use crate::view::{holders, record};
use crate::watch;

/// The least retention of the record of who broke a grant: longer than the holder takes to ask.
const RETENTION: Duration = Duration::from_hours(1);

/// How many grants are broken in one step; etcd refuses transactions of more than 128 operations.
const AT_ONCE: usize = 24;

#[async_trait]
impl Locks for Etcd {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        Ok(holders(&self.client.look(&self.client.keys.lock(key)).await?))
    }

    async fn break_lock(&self, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
        let keys = self.client.keys.lock(&request.key);
        let mut broken = Vec::new();
        let (mut lease, mut asked_at) = (None, None);
        loop {
            let state = self.client.look(&keys).await?;
            // A holder that came later, perhaps by this very break, is not meant.
            let asked_at = *asked_at.get_or_insert(state.revision);
            let wanted = |holder: &&Holder| holder.created <= asked_at && request.means(record(holder).token);
            let victims: Vec<&Holder> = state.holders.iter().filter(wanted).take(AT_ONCE).collect();
            if victims.is_empty() {
                let foreign = broken.is_empty()
                    && state.holders.is_empty()
                    && request.means_foreign(&[])
                    && state.gate.is_some_and(|gate| gate.kind == GateKind::Foreign);
                return if foreign { Err(unresponsive(&keys, &request.key)) } else { Ok(broken) };
            }
            let lease = if let Some(lease) = lease {
                lease
            } else {
                // For the records of who broke a grant. It is never prolonged.
                let ttl = self.client.config.limits.ttl.saturating_mul(10).max(RETENTION);
                *lease.insert(self.client.connection.grant_lease(ttl).await?.id())
            };
            let mut compares = Vec::new();
            let mut operations = Vec::new();
            for victim in &victims {
                let own = keys.holder(victim.attempt);
                compares.push(Compare::mod_revision(own.clone(), CompareOp::Equal, victim.revision));
                operations.push(TxnOp::delete(own, None));
                operations.push(TxnOp::put(keys.mark(victim.attempt), write_mark(Previous::Broken), None));
                operations.push(TxnOp::put(
                    self.client.keys.broken(victim.session, victim.attempt),
                    write_broken(&request.by, &request.why),
                    Some(PutOptions::new().with_lease(lease)),
                ));
            }
            operations.extend(delete_gate(&keys, &state, &victims));
            let response =
                self.client.connection.send(false, Txn::new().when(compares).and_then(operations)).await?;
            if response.succeeded() {
                for victim in &victims {
                    tracing::info!(key = %request.key, token = victim.token, by = %request.by, why = %request.why, "lock broken");
                }
                broken.extend(victims.into_iter().map(record));
            }
        }
    }

    async fn raise_tokens(&self, least: FencingToken) -> Result<()> {
        let fence = &self.client.keys.fence;
        let found = self.client.connection.send(true, Txn::new().and_then([fence::look(fence)])).await?;
        match fence::raise_to(fence, least, &found) {
            Some(raise) => self.client.connection.send(true, raise).await.map(|_| ()),
            None => Ok(()),
        }
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        watch::holders(&self.client, self.client.keys.lock(key)).await
    }
}

/// Deletes the gate with its holder, or with the last of those that share it.
fn delete_gate(keys: &LockKeys, state: &State, victims: &[&Holder]) -> Option<TxnOp> {
    let gate = keys.gate.clone()?;
    let all = victims.len() == state.holders.len();
    let value = match state.gate?.kind {
        GateKind::Holder(attempt) if victims.iter().any(|victim| victim.attempt == attempt) => {
            Gate::holder(attempt)
        }
        GateKind::Shared if all => Gate::shared(),
        _ => return None,
    };
    // A holder that came to share the gate meanwhile would find out only at its next beat that the gate is gone. So the gate
    // stays unless the holders are those that were seen.
    let mut compares = vec![Compare::value(gate.clone(), CompareOp::Equal, value)];
    compares.push(Compare::mod_revision(keys.holders(), CompareOp::Less, state.revision + 1).with_prefix());
    Some(TxnOp::txn(Txn::new().when(compares).and_then([TxnOp::delete(gate, None)])))
}

fn unresponsive(keys: &LockKeys, key: &LockKey) -> Error {
    let gate = keys.gate.as_deref().unwrap_or_default().escape_ascii();
    Error::new(
        ErrorKind::HolderUnresponsive,
        format!(
            "{key} is held by a process of Python tooz, which the driver cannot tell to stop; end that \
             process, or delete the key \"{gate}\" with etcdctl once no process works under the lock"
        ),
    )
}
