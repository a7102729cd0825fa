//! Locks of one session: request, wait, withdraw, release.

use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use tooz_core::driver::support::errors::other_limit;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, Grant, LockKey, Previous, QueueEntry, Released, SessionLocks, Turn,
};
use tooz_core::{Error, ErrorKind, Result};

use crate::connection::answer;
use crate::error::closed;
use crate::keys::LockKeys;
use crate::lock::attempt::{Attempt, Step};
use crate::lock::record::write_mark;
use crate::lock::state::Verdict;
use crate::lock::turn;
use crate::session::EtcdSession;

/// How often a request tries to claim a free lock that another session takes between its look and its claim.
const TRIES: usize = 64;

/// Deletes the mark of an unused grant, unless the mark says how an earlier grant ended, or who ended this one.
fn unmark_unused(keys: &LockKeys, attempt: AttemptId) -> TxnOp {
    let mark = keys.mark(attempt);
    let held = Compare::value(mark.clone(), CompareOp::Equal, write_mark(Previous::Clean));
    TxnOp::txn(Txn::new().when([held]).and_then([TxnOp::delete(mark, None)]))
}

#[async_trait]
impl SessionLocks for EtcdSession {
    async fn request(&self, request: &Acquire) -> Result<Acquired> {
        let session = &*self.state;
        let attempt = Attempt::new(session, request.attempt, &request.key, request.mode);
        if session.is_ended(attempt.id) {
            let what =
                format!("attempt {} was withdrawn, released or lost; ask with a new attempt", attempt.id);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut step = session.ask(&attempt, request.wait).await?;
        for _ in 0..TRIES {
            let state = match step {
                Step::Granted(grant) => return Ok(Acquired::Granted(grant)),
                Step::Otherwise(state) => state,
            };
            if let Some(holder) = state.holder(attempt.id) {
                if let Some(grant) = session.confirm_grant(&attempt, holder).await? {
                    return Ok(Acquired::Granted(grant));
                }
                let what = "the Python key that it shares with other holders is about to expire; try again";
                return Err(Error::new(ErrorKind::Unavailable, what).indeterminate());
            }
            let waiter = state.waiter(attempt.id);
            match state.verdict(attempt.mode, waiter.map(|waiter| waiter.position)) {
                Verdict::Free => step = session.claim(&attempt, &state).await?,
                Verdict::OtherLimit { asked, other } => {
                    if waiter.is_some() {
                        session.clear(&attempt.key, attempt.id, End::Clean).await?;
                    }
                    return Err(other_limit(&attempt.key, asked, other));
                }
                _ if waiter.is_some() => {
                    session.set_position(attempt.id, waiter.map(|waiter| (waiter.mode, waiter.position)));
                    break;
                }
                _ => return Ok(Acquired::Held),
            }
        }
        if request.wait {
            return Ok(Acquired::Queued(QueueEntry::new(attempt.id, attempt.key)));
        }
        // Other sessions took the lock at every try.
        Ok(Acquired::Held)
    }

    async fn turn(&self, entry: &QueueEntry) -> Result<Turn> {
        // A task, so that waiting does not depend on how often it is polled. Dropped, it leaves the queue as it was.
        let (session, entry) = (Arc::clone(&self.state), entry.clone());
        let spawner = self.state.client.connection.context.spawner.clone();
        let waiting = spawner.spawn(async move { turn::wait(&session, &entry).await });
        waiting.await.unwrap_or_else(|| Err(closed()))
    }

    async fn withdraw(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        let session = &*self.state;
        let keys = session.client.keys.lock(key);
        session.mark_leaving(attempt);
        let mut operations = vec![session.advance_session_epoch(), unmark_unused(&keys, attempt)];
        operations.extend(session.clear_operations(&keys, attempt));
        // Only while the session lives: its key is never made again.
        let txn = Txn::new().when([session.lives()]).and_then(operations);
        match session.client.connection.send(true, txn).await {
            Ok(response) if response.succeeded() => session.set_session_epoch(answer::revision(&response)),
            Ok(_) => {}
            // The session is over, and without its key all its requests fail.
            Err(error) if error.kind() == ErrorKind::SessionLost => {}
            Err(error) => return Err(error),
        }
        session.mark_ended(attempt);
        Ok(())
    }

    /// Releases the grant if the holder's key and the gate are as they were granted. If the gate is another one, Python's
    /// `break_` deleted ours, and a Python process may hold the lock. Then its gate stays, and the holder's key is deleted,
    /// which would otherwise stay as long as the lease lives.
    async fn release(&self, grant: &Grant, end: End) -> Result<Released> {
        let session = &*self.state;
        let keys = session.client.keys.lock(&grant.key);
        let holder = keys.holder(grant.attempt);
        // An unknown grant is not of this session, or nothing of it is left on the server.
        let Some(known) = session.known_grant(grant.attempt) else { return Ok(Released::WasNotHolder) };
        session.mark_leaving(grant.attempt);
        let mut operations = vec![TxnOp::delete(holder.clone(), None)];
        if end == End::Clean {
            operations.push(TxnOp::delete(keys.mark(grant.attempt), None));
        }
        operations.extend(session.delete_gate(&keys, grant.attempt));
        let all = known.compares(&keys, session.opened.lease);
        let own = known.own_compares(&keys, session.opened.lease);
        let ungated = [
            TxnOp::delete(holder, None),
            TxnOp::put(keys.mark(grant.attempt), write_mark(Previous::Unknown), None),
        ];
        let ungated = TxnOp::txn(Txn::new().when(own).and_then(ungated));
        let txn = Txn::new().when(all).and_then(operations).or_else([ungated]);
        let response = session.client.connection.send(false, txn).await?;
        session.mark_ended(grant.attempt);
        Ok(if response.succeeded() { Released::Released } else { Released::WasNotHolder })
    }
}
