//! Locks of a session.

use std::time::Duration;

use async_trait::async_trait;
use tooz_core::Result;
use tooz_core::driver::support::backoff::Backoff;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, Grant, LockKey, Previous, QueueEntry, Released, SessionLocks, Turn,
};

use crate::connection::command::{Batch, Look, Store, Stored};
use crate::error::unknown_end;
use crate::lock::give_back::{Ending, end_mark, give_back, give_back_rest};
use crate::lock::mark::Mark;
use crate::lock::take::{Taken, drop_gate, take};
use crate::session::MemcachedSession;
use crate::session_state::Hold;

/// Pauses between two looks of a waiter. There is no queue: the first one that looks after a release is the next holder.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));
/// How often a waiter looks whether the holder of a lock that does not change still lives.
const HOLDER_LIVES: Duration = Duration::from_millis(250);

impl MemcachedSession {
    /// Gives back a lock that no other session shares, in one exchange.
    async fn release_alone(&self, hold: &Hold, grant: &Grant, end: End) -> Result<Alone> {
        let client = &self.state.client;
        let link = client.link(0, client.config.limits.operation_timeout).await?;
        let Some((_, mark)) = hold.mark.as_ref().filter(|_| hold.alone) else { return Ok(Alone::Changed) };
        let (Some(gate), Some(mark)) = (hold.gate_version.on(link.number), mark.on(link.number)) else {
            return Ok(Alone::Changed);
        };
        let keys = client.keys.lock(&grant.key);
        let mut batch = Batch::new();
        match end.previous() {
            Previous::Clean => batch.delete(&keys.mark, mark),
            // What this holder was told was told.
            previous => batch.cas(Store::bytes(&keys.mark, 0, &Mark::Ended(previous).write()), mark),
        };
        batch.delete(&keys.gate, gate).get_in(&keys.gate, Look::Presence, Ending::Release(end).call());
        let Some(mut reply) = client.exchange(&link, &batch).await else { return Ok(Alone::Unknown) };
        let marked = reply.answers.stored();
        if reply.answers.stored()? != Stored::Done {
            let is_led = matches!(grant.key, LockKey::Leader(_)) && matches!(marked, Ok(Stored::Done));
            return Ok(if is_led { Alone::HalfLed } else { Alone::Changed });
        }
        if !matches!(marked, Ok(Stored::Done)) {
            let ended =
                end_mark(client, &mut client.tries(), &grant.key, grant.attempt, end.previous()).await;
            if let Err(error) = ended {
                tracing::debug!(%error, key = %grant.key, "how a lock ended could not be noted");
            }
        }
        Ok(Alone::Released)
    }

    /// One look of a waiter; `seen`: the gate as it was, and when its holder was last looked at.
    async fn look(&self, request: &Acquire, seen: &mut Option<Seen>) -> Result<Option<Grant>> {
        let client = &self.state.client;
        let keys = client.keys.lock(&request.key);
        let mut batch = Batch::new();
        batch.get(&keys.gate, Look::Cas).get(&keys.mark, Look::Presence);
        let mut reply = client.ask(&batch).await?;
        let gate = reply.answers.item()?.map(|gate| (reply.link.number, gate.cas));
        // A leader's gate is to be stored together with its mark: without it nobody can tell whose the gate is.
        let is_marked = reply.answers.item()?.is_some() && matches!(request.key, LockKey::Leader(_));
        let now = client.context.clock.now();
        let is_held =
            |seen: &Seen| Some(seen.gate) == gate && now.saturating_since(seen.looked) < HOLDER_LIVES;
        if seen.as_ref().is_some_and(is_held) {
            return Ok(None);
        }
        match take(&self.state, request, gate.is_none() && !is_marked).await? {
            Taken::Granted(grant) => Ok(Some(grant)),
            Taken::Held => {
                *seen = gate.map(|gate| Seen { gate, looked: now });
                Ok(None)
            }
        }
    }
}

/// What became of the release of a lock that no other session shares.
enum Alone {
    Released,
    /// What was known of the lock does not hold any more.
    Changed,
    /// The mark of a leader is gone, and its gate changed: a beat wrote it again.
    HalfLed,
    /// There was no answer.
    Unknown,
}

/// A gate that was held.
struct Seen {
    gate: (u64, u64),
    looked: tooz_core::driver::Instant,
}

#[async_trait]
impl SessionLocks for MemcachedSession {
    async fn request(&self, request: &Acquire) -> Result<Acquired> {
        let state = &self.state;
        // What an earlier request of this attempt may have left is looked for.
        let blind = state.request_of(request.attempt).is_none();
        state.register(request)?;
        match take(state, request, blind).await {
            Ok(Taken::Granted(grant)) => Ok(Acquired::Granted(grant)),
            Ok(Taken::Held) if request.wait => {
                Ok(Acquired::Queued(QueueEntry::new(request.attempt, request.key.clone())))
            }
            Ok(Taken::Held) if state.is_doubtful(request.attempt) => {
                Err(unknown_end("another attempt holds the lock; the first request may come late"))
            }
            Ok(Taken::Held) => {
                state.forget(request.attempt, false);
                Ok(Acquired::Held)
            }
            Err(error) => {
                if !error.is_indeterminate() && !state.is_doubtful(request.attempt) {
                    state.forget(request.attempt, false);
                }
                Err(error)
            }
        }
    }

    async fn turn(&self, entry: &QueueEntry) -> Result<Turn> {
        let (state, context) = (&self.state, &self.state.client.context);
        let (mut pauses, mut seen) = (Backoff::new(PAUSES.0, PAUSES.1), None);
        loop {
            // An earlier wait may have been dropped when it was just granted.
            if let Some(grant) = state.granted(entry.attempt) {
                return Ok(Turn::Granted(grant));
            }
            let Some(request) = state.request_of(entry.attempt) else { return Ok(Turn::Gone) };
            context.spawner.sleep(pauses.next(&context.entropy)).await;
            // Dropping this loses nothing: what was stored is found by the next look, or by a withdrawal.
            if let Some(grant) = self.look(&request, &mut seen).await? {
                return Ok(Turn::Granted(grant));
            }
        }
    }

    async fn withdraw(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        let (state, client) = (&self.state, &self.state.client);
        if state.is_doubtful(attempt) {
            let mut tries = client.tries();
            // A store may be on its way over a link that ended.
            tries.unsure = true;
            give_back(client, &mut tries, key, (state.id, attempt), Ending::Withdraw).await?;
            drop_gate(state, key, attempt).await;
        }
        state.forget(attempt, true);
        Ok(())
    }

    async fn release(&self, grant: &Grant, end: End) -> Result<Released> {
        let (state, client) = (&self.state, &self.state.client);
        let (mut tries, mut led) = (client.tries(), None);
        if let Some(hold) = state.hold(grant.attempt) {
            match self.release_alone(&hold, grant, end).await? {
                Alone::Released => {
                    state.forget(grant.attempt, true);
                    return Ok(Released::Released);
                }
                Alone::Changed => {}
                Alone::HalfLed => {
                    led = Some(state.member.clone());
                    tries.unsure = true;
                }
                Alone::Unknown => tries.unsure = true,
            }
        }
        let own = (state.id, grant.attempt);
        let found = give_back_rest(client, &mut tries, &grant.key, own, Ending::Release(end), led).await?;
        if !found && tries.unsure {
            // The first exchange may have found it.
            let what = format!("{} is not held now", grant.key);
            return Err(unknown_end(&what));
        }
        state.forget(grant.attempt, true);
        Ok(if found { Released::Released } else { Released::WasNotHolder })
    }
}
