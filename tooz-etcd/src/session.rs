//! A session: one lease, and a key that hangs on it. How it begins, beats and ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, ResponseHeader, Txn, TxnOp};
use tooz_core::driver::{
    AttemptId, End, Epoch, Held, Instant, LockMode, Notice, OpenSession, Renewal, Session, SessionGroups,
    SessionId, SessionLocks, Stamp, Task, earlier_layout_in_use,
};
use tooz_core::{Error, ErrorKind, LossReason, Result};

use crate::client::Client;
use crate::connection::answer;
use crate::connection::call::MOST_OPERATIONS;
use crate::error::{closed, corrupt};
use crate::lock::cleanup::unmark_held;
use crate::lock::monitor;
use crate::lock::{fence, record};
use crate::session_state::{Opened, SessionState};

/// How often a session is opened if its lease ends before its key could be written.
const OPENINGS: u32 = 3;
/// How often a session is opened while others change the stamp. They change it once for each layout.
const STAMPINGS: u32 = 5;

/// How long a close may say that it leaves its groups. After that its lease ends, and with it its locks.
const LEAVING: Duration = Duration::from_secs(1);

/// One session, as the core holds it.
#[derive(Debug)]
pub(crate) struct EtcdSession {
    pub(crate) state: Arc<SessionState>,
    opened_at: Instant,
    monitor: Mutex<Option<Task<()>>>,
    closed: AtomicBool,
}

impl EtcdSession {
    /// Leaves all groups before the lease ends: of a member that goes with the lease, watches are told that it died. A failure
    /// costs no more than that word.
    async fn leave_all(&self) {
        let state = &self.state;
        let leaving = async {
            // The operations inside each count, too: etcd allows 128 in all, and 127 of these are refused.
            for page in state.leaving_all().chunks(MOST_OPERATIONS) {
                let txn = Txn::new().when([state.lives()]).and_then(page);
                state.client.connection.send(true, txn).await?;
            }
            Ok::<_, Error>(())
        };
        match state.client.connection.context.spawner.timeout(LEAVING, leaving).await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(%error, "a close did not say that it leaves its groups"),
            None => tracing::debug!("a close had no time to say that it leaves its groups"),
        }
    }

    pub(crate) async fn open(client: &Arc<Client>, request: &OpenSession) -> Result<Self> {
        let previous = request.previous.map(lease_of);
        let mut tries = OPENINGS;
        let (opened, ttl, opened_at) = loop {
            tries -= 1;
            let opened_at = client.connection.context.clock.now();
            let granted = client.connection.grant_lease(client.config.limits.ttl).await?;
            let lease = granted.id();
            let revision = granted.header().map_or(0, ResponseHeader::revision);
            let ttl = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or_default());
            let id = SessionId(
                (client.connection.context.entropy.id() >> 64 << 64) | u128::from(lease.cast_unsigned()),
            );
            match write_session(client, request, id, (lease, revision), previous).await {
                Ok(opened) => break (opened, ttl, opened_at),
                // The server took longer than the lease lives.
                Err(error) if error.kind() == ErrorKind::SessionLost && tries > 0 => {
                    tracing::debug!(%error, ?ttl, "a session ended before it began; it is opened anew");
                }
                Err(error) => {
                    // A user who may not write would leave a lease behind at every try. If this fails, too, it ends by
                    // itself.
                    let _ = client.connection.revoke(lease).await;
                    return Err(error);
                }
            }
        };
        if let Some(previous) = previous
            && let Err(error) = client.connection.revoke(previous).await
        {
            tracing::debug!(%error, "the earlier session could not be ended; it ends by its ttl");
        }
        let state = Arc::new(SessionState::new(client, request.member.clone(), opened, ttl));
        let monitor = client.connection.context.spawner.spawn(monitor::run(Arc::clone(&state)));
        Ok(Self { state, opened_at, monitor: Mutex::new(Some(monitor)), closed: AtomicBool::new(false) })
    }
}

/// What must hold on the server for a session to begin, and the writes that make it so.
struct Beginning {
    stamp: Stamp,
    compares: Vec<Compare>,
    /// Nothing, if the stamp is there.
    write: Vec<TxnOp>,
}

impl Client {
    /// Prepares a session beside a stamp that need not change; `None`: the stamp is missing, or of an earlier layout.
    ///
    /// # Errors
    /// `Incompatible`: the stamp is of a later layout; `Corrupt`: it cannot be read.
    fn prepare_beside(&self, seen: &[u8]) -> Result<Option<Beginning>> {
        if seen.is_empty() {
            return Ok(None);
        }
        let stamp = self.parse(seen)?;
        let compares = vec![Compare::value(self.keys.epoch(), CompareOp::Equal, seen)];
        let same = stamp.compare(&self.described(), self.config.layout)?.is_eq();
        Ok(same.then(|| Beginning { stamp, compares, write: Vec::new() }))
    }

    /// Prepares a session; `seen`: the stamp as it was last seen; `revision`: the present one, or a little before.
    ///
    /// # Errors
    /// `Incompatible`: the data is of a later layout, or of an earlier one in which a session lives. `Corrupt`: a session lives
    /// in a layout that is not known.
    async fn prepare(&self, seen: &[u8], revision: i64) -> Result<Beginning> {
        if let Some(beginning) = self.prepare_beside(seen)? {
            return Ok(beginning);
        }
        let (layout, key, (from, end)) = (self.config.layout, self.keys.epoch(), self.keys.sessions());
        let list = TxnOp::get(from.clone(), Some(GetOptions::new().with_range(end.clone())));
        let look = Txn::new().and_then([TxnOp::get(key.clone(), None), list]);
        let response = self.connection.send(true, look).await?;
        let present = answer::value(&response, 0);
        if let Some(beginning) = self.prepare_beside(&present)? {
            return Ok(beginning);
        }
        let found = (!present.is_empty()).then(|| self.parse(&present)).transpose()?;
        let mut living = answer::found(&response, 1).into_iter().filter(|kv| self.keys.is_session(kv.key()));
        if let Some(kv) = living.next() {
            let who = record::read_session(kv.value())
                .map_or_else(|| "a session".to_owned(), |member| format!("member \"{member}\""));
            return Err(match found {
                Some(found) => earlier_layout_in_use(&self.described(), found.layout, layout, &who),
                None => {
                    corrupt(&key, &format!("is missing, although {who} lives; end all programs that use it"))
                }
            });
        }
        let stamp = match found {
            Some(found) => Stamp { layout, ..found },
            None => Stamp { layout, epoch: Epoch(self.connection.context.entropy.id()) },
        };
        let mut write = vec![TxnOp::put(key.clone(), stamp.to_string(), None)];
        // Layout 1 had no raises.
        let raised = found.is_some_and(|found| found.layout > 1);
        write.extend(
            (!raised).then(|| fence::first(&self.keys.fence, &self.connection.context.clock, revision)),
        );
        let unchanged = match found {
            Some(_) => Compare::value(key, CompareOp::Equal, present),
            None => Compare::version(key, CompareOp::Equal, 0),
        };
        // No session has begun since.
        let next = answer::revision(&response).saturating_add(1);
        let none = Compare::mod_revision(from, CompareOp::Less, next).with_range(end);
        Ok(Beginning { stamp, compares: vec![unchanged, none], write })
    }
}

/// The lease of a session, which is a part of its id.
fn lease_of(id: SessionId) -> i64 {
    let low = u64::try_from(id.0 & u128::from(u64::MAX)).unwrap_or_default();
    low.cast_signed()
}

/// Writes the session's key, writes the stamp where it is missing, and takes the member id over from the coordinator's
/// earlier session, so that no other coordinator gets it meanwhile. All of it only beside the stamp that was seen.
async fn write_session(
    client: &Client,
    request: &OpenSession,
    id: SessionId,
    (lease, revision): (i64, i64),
    previous: Option<i64>,
) -> Result<Opened> {
    let value = record::write_session(&request.member);
    let with_lease = || Some(PutOptions::new().with_lease(lease));
    let mut seen = client.seen().clone();
    for _ in 0..STAMPINGS {
        let Beginning { stamp, compares, write } = client.prepare(&seen, revision).await?;
        let mut operations = vec![TxnOp::put(client.keys.session(id), value.clone(), with_lease())];
        if let Some(previous) = previous {
            let claim = client.keys.claim(&request.member);
            operations.push(TxnOp::txn(
                Txn::new()
                    .when([Compare::lease(claim.clone(), CompareOp::Equal, previous)])
                    .and_then([TxnOp::put(claim, id.to_string(), with_lease())]),
            ));
        }
        operations.extend(write);
        let look = [TxnOp::get(client.keys.epoch(), None)];
        let txn = Txn::new().when(compares).and_then(operations).or_else(look);
        let response = client.connection.send(false, txn).await?;
        if response.succeeded() {
            *client.seen() = stamp.to_string().into_bytes();
            let claimed =
                previous.is_some() && answer::nested(&response, 1).is_some_and(|nested| nested.succeeded());
            let revision = answer::revision(&response);
            return Ok(Opened { id, value, lease, previous, claimed, stamp, revision });
        }
        seen = answer::value(&response, 0);
    }
    Err(Error::new(
        ErrorKind::Unavailable,
        format!("the stamp of {} keeps changing; connect again", client.described()),
    ))
}

#[async_trait]
impl Session for EtcdSession {
    fn id(&self) -> SessionId {
        self.state.opened.id
    }

    fn epoch(&self) -> Epoch {
        self.state.opened.stamp.epoch
    }

    fn ttl(&self) -> Option<Duration> {
        Some(self.state.ttl)
    }

    fn opened_at(&self) -> Instant {
        self.opened_at
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        let state = &self.state;
        let mut gates: Vec<i64> =
            held.grants.iter().filter_map(|(_, attempt)| state.gate_of(*attempt)).collect();
        gates.sort_unstable();
        gates.dedup();
        let spawner = &state.client.connection.context.spawner;
        let prolonging: Vec<_> = gates
            .into_iter()
            .map(|lease| {
                let state = Arc::clone(state);
                (lease, spawner.spawn(async move { state.prolong(lease).await }))
            })
            .collect();
        let (prolonged, compared) = tokio::join!(state.prolong(state.opened.lease), state.compare(held));
        if !prolonged? {
            return Ok(Renewal::lost(LossReason::Expired));
        }
        let mut renewal = compared?;
        for (lease, prolonged) in prolonging {
            if prolonged.await.unwrap_or_else(|| Err(closed()))? {
                continue;
            }
            let gone = held.grants.iter().map(|(_, attempt)| *attempt);
            let gone = gone.filter(|attempt| state.gate_of(*attempt) == Some(lease));
            let told: Vec<AttemptId> = renewal.gone.iter().map(|(attempt, _)| *attempt).collect();
            renewal.gone.extend(gone.filter(|a| !told.contains(a)).map(|a| (a, LossReason::Expired)));
        }
        for (attempt, reason) in &mut renewal.gone {
            if let Some(why) = state.who_broke(*attempt).await {
                *reason = why;
            }
            state.mark_lost(*attempt);
        }
        state.clear_lost().await;
        Ok(renewal)
    }

    async fn notice(&self) -> Notice {
        self.state.notices.next().await
    }

    fn groups(&self) -> &dyn SessionGroups {
        &*self.state
    }

    fn locks(&self) -> &dyn SessionLocks {
        self
    }

    async fn close(&self, end: End) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        // All keys go with the lease but shared gates, and the marks by which the next holders know of an unclean end.
        let mut marks = Vec::new();
        for known in self.state.all() {
            self.state.mark_leaving(known.attempt);
            if known.gate.is_some() && known.mode != LockMode::Exclusive {
                self.state.clear(&known.key, known.attempt, end).await?;
            } else if end == End::Clean {
                marks.push(unmark_held(&self.state.client.keys.lock(&known.key), known.attempt));
            }
        }
        for page in marks.chunks(MOST_OPERATIONS) {
            // Only while the session lives: after its end the marks are true, for its grants ended uncleanly.
            let txn = Txn::new().when([self.state.lives()]).and_then(page);
            self.state.client.connection.send(true, txn).await?;
        }
        if end == End::Clean {
            self.leave_all().await;
        }
        // The monitor would get an event for every key that goes with the lease. Ten thousand locks are so many messages at
        // once that HTTP/2 ends the connection, on which the answer would come.
        drop(self.monitor.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.state.client.connection.revoke(self.state.opened.lease).await?;
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}
