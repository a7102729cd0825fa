//! The steps of an attempt: asking, looking, claiming what is free. Each is one transaction.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnResponse};
use tooz_core::clock::Instant;
use tooz_core::driver::{AttemptId, End, Grant, LockKey, LockMode, Previous};
use tooz_core::{Error, ErrorKind, FencingToken, Result};

use crate::connection::answer;
use crate::error::corrupt;
use crate::keys::LockKeys;
use crate::lock::Gate;
use crate::lock::fence::{self, Raises};
use crate::lock::record::{Holder, Waiter, write_mark};
use crate::lock::state::{State, look, look_before};
use crate::session_state::SessionState;

/// A wish, with its keys.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) id: AttemptId,
    pub(crate) key: LockKey,
    pub(crate) mode: LockMode,
    pub(crate) keys: LockKeys,
    /// Where it waits, as far as is known.
    pub(crate) position: Option<i64>,
}

/// What came of a step.
#[derive(Debug)]
pub(crate) enum Step {
    Granted(Grant),
    /// It was not as believed; this is how it is.
    Otherwise(State),
}

impl Attempt {
    pub(crate) fn new(session: &SessionState, id: AttemptId, key: &LockKey, mode: LockMode) -> Self {
        Self { id, key: key.clone(), mode, keys: session.client.keys.lock(key), position: None }
    }

    /// The operations that read what concerns it; `position`: where it is known to wait.
    fn look_operations(&self, position: Option<i64>) -> Vec<TxnOp> {
        if self.mode == LockMode::Exclusive {
            look_before(&self.keys, self.waiter_key(), position)
        } else {
            look(&self.keys)
        }
    }

    /// Whether it shares the gate with other holders.
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

/// The lease of a shared gate is granted for so long at least: whoever shares it later may have a longer ttl than who came
/// first, and beats as seldom. Python waits that long if all of them crash, as it does for one of its own (30 s unless
/// it is told otherwise); nobody else looks at the gate of the dead.
const LEAST_GATE: Duration = Duration::from_secs(30);

/// A gate that a grant shares with others.
#[derive(Clone, Copy, Debug)]
struct SharedGate {
    lease: i64,
    /// Whether it is still to be put.
    new: bool,
    /// Just before the request was sent that proved its lease.
    proved_at: Instant,
}

impl SessionState {
    /// What is written for a grant, and first of all the raises that are read for its token.
    fn grant_operations(
        &self,
        attempt: &Attempt,
        previous: Previous,
        gate: Option<SharedGate>,
    ) -> Result<Vec<TxnOp>> {
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
            fence::look(&attempt.keys.fence),
            TxnOp::put(attempt.keys.holder(attempt.id), value, self.with_lease()),
            TxnOp::put(attempt.keys.mark(attempt.id), write_mark(previous), None),
        ];
        match (&attempt.keys.gate, gate) {
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

    /// A grant that was made by the operations of [`SessionState::grant_operations`], in this answer, at this revision.
    async fn grant_at(
        &self,
        attempt: &Attempt,
        answer: &TxnResponse,
        revision: i64,
        previous: Previous,
        gate: Option<SharedGate>,
    ) -> Result<Grant> {
        let raises = Raises::read(&attempt.keys.fence, &answer::found(answer, 0));
        if raises.is_empty() {
            // What stands there is no raise.
            self.clear(&attempt.key, attempt.id, End::Clean).await?;
            return Err(fence::is_gone(&attempt.keys.fence));
        }
        self.grant(attempt, (revision, raises.token(revision)), previous, gate)
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

    /// The gate for a wish that shares one: the one that stands, proven to live on, or a new one. `None`: it is about to
    /// go, look again. One that might go before this session's next beat is refused.
    async fn shared_gate(&self, attempt: &Attempt, state: &State) -> Result<Option<Option<SharedGate>>> {
        if !attempt.shares_gate() {
            return Ok(Some(None));
        }
        let proved_at = self.client.connection.context.clock.now();
        if let Some(lease) = state.shared_gate() {
            let (prolonged, granted) =
                tokio::join!(self.prolong(lease), self.client.connection.granted_ttl(lease));
            let granted = granted?;
            if !prolonged? || granted.is_zero() {
                return Ok(None);
            }
            if granted < self.ttl {
                // An error leaves no place in the queue.
                self.clear(&attempt.key, attempt.id, End::Clean).await?;
                let why = format!(
                    "who shares this lock has its key for Python for {granted:?} at a time, less than this session's ttl of \
                     {:?}; give all of them the same ttl, or one of at most {LEAST_GATE:?}",
                    self.ttl
                );
                return Err(Error::new(ErrorKind::Unsupported, why));
            }
            return Ok(Some(Some(SharedGate { lease, new: false, proved_at })));
        }
        let granted = self.client.connection.grant_lease(self.ttl.max(LEAST_GATE)).await?;
        Ok(Some(Some(SharedGate { lease: granted.id(), new: true, proved_at })))
    }

    /// Takes what `state` says is free, if it still is.
    pub(crate) async fn claim(&self, attempt: &Attempt, state: &State) -> Result<Step> {
        let Some(gate) = self.shared_gate(attempt, state).await? else {
            return self.look(attempt).await.map(Step::Otherwise);
        };
        let position = state.waiter(attempt.id).map(|waiter| waiter.position);
        // What is guessed knows of none.
        if state.revision > 0 && state.raises.is_empty() {
            self.clear(&attempt.key, attempt.id, End::Clean).await?;
            return Err(fence::is_gone(&attempt.keys.fence));
        }
        let (unclean, previous) = state.unclean();
        let mut operations = self.grant_operations(attempt, previous, gate)?;
        operations.extend(unclean.iter().map(|id| TxnOp::delete(attempt.keys.mark(*id), None)));
        let mut compares = state.compares(&attempt.keys, attempt.mode, position);
        compares.push(self.in_session_epoch());
        compares.push(fence::exists(&attempt.keys.fence));
        if let Some(position) = position {
            // It makes the step one that can be done once only: a second one, late, finds no place to come from.
            compares.push(Compare::create_revision(attempt.waiter_key(), CompareOp::Equal, position));
            operations.push(TxnOp::delete(attempt.waiter_key(), None));
        }
        let otherwise: Vec<TxnOp> =
            std::iter::once(self.get_session_epoch()).chain(attempt.look_operations(position)).collect();
        let txn = Txn::new().when(compares).and_then(operations).or_else(otherwise);
        let claimed = self.client.connection.send(false, txn).await;
        let granted = claimed.as_ref().is_ok_and(TxnResponse::succeeded);
        if let Some(SharedGate { lease, new: true, .. }) = gate.filter(|_| !granted)
            && claimed.is_ok()
            && let Err(error) = self.client.connection.revoke(lease).await
        {
            tracing::debug!(%error, "an unused lease ends by itself");
        }
        let response = claimed?;
        if response.succeeded() {
            let revision = answer::revision(&response);
            return self.grant_at(attempt, &response, revision, previous, gate).await.map(Step::Granted);
        }
        self.read_session_epoch(&response, 0)?;
        State::read(&attempt.keys, &response, 1).map(Step::Otherwise)
    }

    /// What concerns the wish as it is now, if the session lives.
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

    /// Asks in one transaction: grants a lock that is as nobody ever used it, else queues if that is wanted.
    pub(crate) async fn ask(&self, attempt: &Attempt, wait: bool) -> Result<Step> {
        let mut elsewhere = self.client.connection.endpoints() - 1;
        loop {
            let queue = Txn::new()
                .when([
                    Compare::create_revision(attempt.keys.holder(attempt.id), CompareOp::Equal, 0),
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
                // A lease is needed for the gate, which is not worth granting before it is known that it is free.
                otherwise
            } else {
                let mut free = vec![
                    fence::exists(&attempt.keys.fence),
                    Compare::create_revision(attempt.keys.prefix.clone(), CompareOp::Equal, 0).with_prefix(),
                ];
                let gate = attempt.keys.gate.clone();
                free.extend(gate.map(|gate| Compare::create_revision(gate, CompareOp::Equal, 0)));
                let granting = self.grant_operations(attempt, Previous::Clean, None)?;
                vec![TxnOp::txn(Txn::new().when(free).and_then(granting).or_else(otherwise))]
            };
            let txn =
                Txn::new().when([self.in_session_epoch()]).and_then(step).or_else([self.get_session_epoch()]);
            let connection = &self.client.connection;
            let sending = connection.send(false, txn);
            let asked = if elsewhere > 0 {
                // The request can be made void, so where there is another endpoint it is not waited for as long as a member
                // of the cluster may stand still. A little longer, so that the connection is given up when the next
                // request goes out.
                let limit = connection.limit() + connection.limit() / 8;
                let sent = connection.context.spawner.timeout(limit, sending).await;
                sent.unwrap_or_else(|| Err(connection.silent()))
            } else {
                sending.await
            };
            let response = match asked {
                // What hangs there is made void, so that it may be asked for over another member.
                Err(error) if error.is_indeterminate() && elsewhere > 0 => {
                    elsewhere -= 1;
                    tracing::debug!(%error, key = %attempt.key, "asking another member of the cluster");
                    self.begin_session_epoch().await?;
                    continue;
                }
                asked => asked?,
            };
            if !response.succeeded() {
                // A withdrawal of ours came between; it was not done, so it is sent again.
                self.read_session_epoch(&response, 0)?;
                continue;
            }
            if attempt.shares_gate() {
                return State::read(&attempt.keys, &response, 1).map(Step::Otherwise);
            }
            let Some(inner) = answer::nested(&response, 0) else {
                return Err(Error::new(ErrorKind::Backend, "the server left a part of a transaction out"));
            };
            if inner.succeeded() {
                let revision = answer::revision(&response);
                return self
                    .grant_at(attempt, &inner, revision, Previous::Clean, None)
                    .await
                    .map(Step::Granted);
            }
            let mut state = State::read(&attempt.keys, &inner, 1)?;
            state.revision = answer::revision(&response);
            return Ok(Step::Otherwise(state));
        }
    }

    /// Moves the fence: what was sent before fails, or was done.
    async fn begin_session_epoch(&self) -> Result<()> {
        let txn = Txn::new().when([self.lives()]).and_then([self.advance_session_epoch()]);
        let response = self.client.connection.send(true, txn).await?;
        if !response.succeeded() {
            return Err(self.over());
        }
        self.set_session_epoch(answer::revision(&response));
        Ok(())
    }

    /// What stands for an attempt that was granted before, if it stands now: what a look shows may be past.
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
