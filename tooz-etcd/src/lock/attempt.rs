//! The steps of an attempt to get a lock: ask, look, claim. Each step is one transaction.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnResponse};
use tooz_core::driver::{AttemptId, End, Grant, Instant, LockKey, LockMode, Previous};
use tooz_core::{Error, ErrorKind, FencingToken, Result};

use crate::connection::answer;
use crate::error::corrupt;
use crate::keys::LockKeys;
use crate::lock::Gate;
use crate::lock::fence::{self, Raises};
use crate::lock::record::{Holder, Waiter, write_mark};
use crate::lock::state::{State, look, look_before};
use crate::session_state::SessionState;

/// An attempt, with the keys of its lock.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) id: AttemptId,
    pub(crate) key: LockKey,
    pub(crate) mode: LockMode,
    pub(crate) keys: LockKeys,
    /// Its position in the queue, as far as the session knows.
    pub(crate) position: Option<i64>,
}

/// The outcome of a step.
#[derive(Debug)]
pub(crate) enum Step {
    Granted(Grant),
    /// The lock was not in the expected state; this is its present state.
    Otherwise(State),
}

impl Attempt {
    pub(crate) fn new(session: &SessionState, id: AttemptId, key: &LockKey, mode: LockMode) -> Self {
        Self { id, key: key.clone(), mode, keys: session.client.keys.lock(key), position: None }
    }

    /// The operations that read the part of the lock that decides about this attempt; `position`: its known position.
    fn look_operations(&self, position: Option<i64>) -> Vec<TxnOp> {
        if self.mode == LockMode::Exclusive {
            look_before(&self.keys, self.waiter_key(), position)
        } else {
            look(&self.keys)
        }
    }

    /// Whether it would share the gate with other holders.
    fn shares_gate(&self) -> bool {
        self.keys.gate.is_some() && self.mode != LockMode::Exclusive
    }

    fn waiter_key(&self) -> Vec<u8> {
        self.keys.waiter(self.id, self.mode == LockMode::Shared)
    }
}

fn unknown_mode(mode: LockMode) -> Error {
    Error::new(ErrorKind::Unsupported, format!("this version does not know locks held as {mode:?}"))
}

/// The least ttl of a shared gate's lease. A session that shares the gate later may have a longer ttl than the first one,
/// and then it renews less often. If all holders crash, Python waits that long, as it does for a lock of its own (30 s by
/// default). Only Python looks at the gate of dead holders.
const LEAST_GATE: Duration = Duration::from_secs(30);

/// The gate of a grant that shares it with other holders.
#[derive(Clone, Copy, Debug)]
struct SharedGate {
    lease: i64,
    /// Whether the grant still has to write it.
    new: bool,
    /// Just before the request was sent that proved the gate's lease.
    proved_at: Instant,
}

impl SessionState {
    /// The operations of a grant. The first one reads the raises, from which the token is made.
    fn grant_operations(
        &self,
        attempt: &Attempt,
        previous: Previous,
        gate: Option<SharedGate>,
    ) -> Result<Vec<TxnOp>> {
        let keys = &attempt.keys;
        let holder = Holder {
            attempt: attempt.id,
            session: self.opened.id,
            member: self.member.clone(),
            mode: attempt.mode,
            shared_gate: gate.map(|gate| gate.lease),
            since: Some(self.client.connection.context.clock.wall()),
            previous,
            created: 0,
            token: 0,
            revision: 0,
        };
        let value = holder.write().ok_or_else(|| unknown_mode(attempt.mode))?;
        let mut operations = vec![
            fence::look(&keys.fence),
            TxnOp::put(keys.holder(attempt.id), value, self.with_lease()),
            TxnOp::put(keys.mark(attempt.id), write_mark(previous), None),
        ];
        match (&keys.gate, gate) {
            (Some(key), None) => {
                operations.push(TxnOp::put(key.clone(), Gate::holder(attempt.id), self.with_lease()));
            }
            (Some(key), Some(gate)) if gate.new => {
                let lease = Some(PutOptions::new().with_lease(gate.lease));
                operations.push(TxnOp::put(key.clone(), Gate::shared(), lease));
            }
            _ => {}
        }
        Ok(operations)
    }

    /// The grant that [`SessionState::grant_operations`] made, whose `answer` this is, at this revision.
    async fn grant_at(
        &self,
        attempt: &Attempt,
        answer: &TxnResponse,
        revision: i64,
        previous: Previous,
        gate: Option<SharedGate>,
    ) -> Result<Step> {
        let raises = Raises::read(&attempt.keys.fence, &answer::found(answer, 0));
        if raises.is_empty() {
            // There are keys in the range of raises, and none of them is a raise.
            self.clear(&attempt.key, attempt.id, End::Clean).await?;
            return Err(fence::is_gone(&attempt.keys.fence));
        }
        self.grant(attempt, (revision, raises.token(revision)), previous, gate).map(Step::Granted)
    }

    fn grant(
        &self,
        attempt: &Attempt,
        (created, token): (i64, i64),
        previous: Previous,
        gate: Option<SharedGate>,
    ) -> Result<Grant> {
        let token = u64::try_from(token).ok().and_then(FencingToken::new);
        let token = token.ok_or_else(|| corrupt(&attempt.keys.holder(attempt.id), "has no revision"))?;
        let mut grant = Grant::new(attempt.id, attempt.key.clone(), attempt.mode, token, previous);
        grant.proved_at = gate.map(|gate| gate.proved_at);
        self.granted(&grant, created, gate.map(|gate| gate.lease));
        Ok(grant)
    }

    /// The gate of an attempt that shares one: the present gate, after its lease was prolonged, or a new one. `None`: the
    /// present gate is about to end, so look again.
    ///
    /// # Errors
    /// `Unsupported`: the gate might end before this session's next beat.
    async fn shared_gate(&self, attempt: &Attempt, state: &State) -> Result<Option<SharedGate>> {
        let proved_at = self.client.connection.context.clock.now();
        if let Some(lease) = state.shared_gate() {
            let (prolonged, granted) =
                tokio::join!(self.prolong(lease), self.client.connection.granted_ttl(lease));
            let granted = granted?;
            if !prolonged? || granted.is_zero() {
                return Ok(None);
            }
            if granted < self.ttl {
                // An attempt that ends with an error must not stay in the queue.
                self.clear(&attempt.key, attempt.id, End::Clean).await?;
                let why = format!(
                    "other holders of this lock renew its Python key for {granted:?}, less than this \
                     session's ttl of {:?}; give all holders the same ttl, or at most {LEAST_GATE:?}",
                    self.ttl
                );
                return Err(Error::new(ErrorKind::Unsupported, why));
            }
            return Ok(Some(SharedGate { lease, new: false, proved_at }));
        }
        let granted = self.client.connection.grant_lease(self.ttl.max(LEAST_GATE)).await?;
        Ok(Some(SharedGate { lease: granted.id(), new: true, proved_at }))
    }

    /// Takes the lock, which is free in `state`, if it still is free.
    pub(crate) async fn claim(&self, attempt: &Attempt, state: &State) -> Result<Step> {
        let (keys, connection) = (&attempt.keys, &self.client.connection);
        let mut gate = None;
        if attempt.shares_gate() {
            gate = self.shared_gate(attempt, state).await?;
            if gate.is_none() {
                return self.look(attempt).await.map(Step::Otherwise);
            }
        }
        let position = state.waiter(attempt.id).map(|waiter| waiter.position);
        // A guessed state has revision 0 and knows no raises.
        if state.revision > 0 && state.raises.is_empty() {
            self.clear(&attempt.key, attempt.id, End::Clean).await?;
            return Err(fence::is_gone(&keys.fence));
        }
        let (unclean, previous) = state.unclean();
        let mut operations = self.grant_operations(attempt, previous, gate)?;
        operations.extend(unclean.iter().map(|id| TxnOp::delete(keys.mark(*id), None)));
        let mut compares = state.compares(keys, attempt.mode, position);
        compares.push(self.in_session_epoch());
        compares.push(fence::exists(&keys.fence));
        if let Some(position) = position {
            // The step can be done only once: a late copy of the request finds no waiter at this position.
            compares.push(Compare::create_revision(attempt.waiter_key(), CompareOp::Equal, position));
            operations.push(TxnOp::delete(attempt.waiter_key(), None));
        }
        let otherwise: Vec<TxnOp> =
            std::iter::once(self.get_session_epoch()).chain(attempt.look_operations(position)).collect();
        let txn = Txn::new().when(compares).and_then(operations).or_else(otherwise);
        let response = connection.send(false, txn).await?;
        if response.succeeded() {
            let revision = answer::revision(&response);
            return self.grant_at(attempt, &response, revision, previous, gate).await;
        }
        if let Some(SharedGate { lease, new: true, .. }) = gate
            && let Err(error) = connection.revoke(lease).await
        {
            tracing::debug!(%error, "an unused lease ends by itself");
        }
        self.read_session_epoch(&response, 0)?;
        State::read(keys, &response, 1).map(Step::Otherwise)
    }

    /// The present state of the lock, as far as it decides about this attempt.
    ///
    /// # Errors
    /// `SessionLost`: the session is over.
    pub(crate) async fn look(&self, attempt: &Attempt) -> Result<State> {
        let looking = if attempt.position.is_some() {
            attempt.look_operations(attempt.position)
        } else {
            look(&attempt.keys)
        };
        let operations: Vec<TxnOp> = std::iter::once(self.get_session_epoch()).chain(looking).collect();
        let response = self.client.connection.send(true, Txn::new().and_then(operations)).await?;
        self.read_session_epoch(&response, 0)?;
        State::read(&attempt.keys, &response, 1)
    }

    /// Asks in one transaction: takes a lock that has no keys at all, else queues the attempt if it wants to `wait`.
    pub(crate) async fn ask(&self, attempt: &Attempt, wait: bool) -> Result<Step> {
        let (keys, connection) = (&attempt.keys, &self.client.connection);
        let mut elsewhere = connection.endpoints.len() - 1;
        loop {
            let queue = Txn::new()
                .when([
                    Compare::create_revision(keys.holder(attempt.id), CompareOp::Equal, 0),
                    Compare::create_revision(attempt.waiter_key(), CompareOp::Equal, 0),
                ])
                .and_then([TxnOp::put(
                    attempt.waiter_key(),
                    Waiter::value(attempt.mode, self.opened.id, &self.member)
                        .ok_or_else(|| unknown_mode(attempt.mode))?,
                    self.with_lease(),
                )]);
            let queue = if wait { queue } else { Txn::new() };
            let otherwise: Vec<TxnOp> =
                std::iter::once(TxnOp::txn(queue)).chain(attempt.look_operations(None)).collect();
            let step = if attempt.shares_gate() {
                // The gate needs a lease, which is granted only when the lock is known to be free.
                otherwise
            } else {
                let mut free = vec![
                    fence::exists(&keys.fence),
                    Compare::create_revision(keys.prefix.clone(), CompareOp::Equal, 0).with_prefix(),
                ];
                let gate = keys.gate.clone();
                free.extend(gate.map(|gate| Compare::create_revision(gate, CompareOp::Equal, 0)));
                let granting = self.grant_operations(attempt, Previous::Clean, None)?;
                vec![TxnOp::txn(Txn::new().when(free).and_then(granting).or_else(otherwise))]
            };
            let txn =
                Txn::new().when([self.in_session_epoch()]).and_then(step).or_else([self.get_session_epoch()]);
            let sending = connection.send(false, txn);
            let asked = if elsewhere > 0 {
                // A member of the cluster may stand still for long. This request can be made void, so with another endpoint
                // left it is not waited for. The wait is a little longer than the connection's limit, so that the
                // connection is given up before the next request goes out.
                let limit = connection.limit + connection.limit / 8;
                let sent = connection.context.spawner.timeout(limit, sending).await;
                sent.unwrap_or_else(|| Err(connection.silent()))
            } else {
                sending.await
            };
            let response = match asked {
                // A new session epoch makes the hanging request void; then another member may be asked.
                Err(error) if error.is_indeterminate() && elsewhere > 0 => {
                    elsewhere -= 1;
                    tracing::debug!(%error, key = %attempt.key, "asking another member of the cluster");
                    self.begin_session_epoch().await?;
                    continue;
                }
                asked => asked?,
            };
            if !response.succeeded() {
                // A withdrawal of this session moved its epoch meanwhile, so nothing was done: ask again.
                self.read_session_epoch(&response, 0)?;
                continue;
            }
            if attempt.shares_gate() {
                return State::read(keys, &response, 1).map(Step::Otherwise);
            }
            let Some(inner) = answer::nested(&response, 0) else {
                return Err(Error::new(ErrorKind::Backend, "the server left a part of a transaction out"));
            };
            if inner.succeeded() {
                let revision = answer::revision(&response);
                return self.grant_at(attempt, &inner, revision, Previous::Clean, None).await;
            }
            let mut state = State::read(keys, &inner, 1)?;
            state.revision = answer::revision(&response);
            return Ok(Step::Otherwise(state));
        }
    }

    /// Begins a new session epoch: requests that were sent before have either been done or fail.
    async fn begin_session_epoch(&self) -> Result<()> {
        let txn = Txn::new().when([self.lives()]).and_then([self.advance_session_epoch()]);
        let response = self.client.connection.send(true, txn).await?;
        if !response.succeeded() {
            return Err(self.over());
        }
        self.set_session_epoch(answer::revision(&response));
        Ok(())
    }

    /// The grant of a holder's key that a look found, if it is still there: a look may be answered from the past.
    pub(crate) async fn confirm_grant(&self, attempt: &Attempt, holder: &Holder) -> Result<Option<Grant>> {
        let mut gate = None;
        if let Some(lease) = holder.shared_gate {
            let proved_at = self.client.connection.context.clock.now();
            if !self.prolong(lease).await? {
                return Ok(None);
            }
            gate = Some(SharedGate { lease, new: false, proved_at });
        }
        let grant = self.grant(attempt, (holder.created, holder.token), holder.previous, gate)?;
        let held: Vec<_> = self.held().into_iter().filter(|known| known.attempt == attempt.id).collect();
        let verified = self.verify(&held).await?.ok_or_else(|| self.over())?;
        if verified.gone.is_empty() {
            return Ok(Some(grant));
        }
        self.mark_lost(attempt.id);
        self.clear_lost().await;
        Ok(None)
    }
}
