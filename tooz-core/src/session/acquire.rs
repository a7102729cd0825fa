//! How a lock is acquired: the local queue, the request, the wait for the grant.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::call::{Owned, Reads};
use super::cleanup::withdraw;
use super::limits::LAST_WORD;
use super::live::{GrantState, SessionLease};
use super::queue::{Stage, Ticket};
use super::state::{Command, Shared};
use crate::driver::support::backoff::Backoff;
use crate::driver::{Acquire, Acquired, AttemptId, Grant, LockKey, LockMode, QueueEntry, Session, Turn};
use crate::platform::clock::Instant;
use crate::{Error, ErrorKind, Result};

/// How long a caller waits for a lock.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    None,
    For(Duration),
    Forever,
}

pub(crate) async fn acquire(
    shared: &Arc<Shared>,
    key: LockKey,
    mode: LockMode,
    patience: Patience,
) -> Result<Option<Arc<GrantState>>> {
    acquire_key(shared, &key, mode, patience).await.map_err(|error| error.during("acquire"))
}

async fn acquire_key(
    shared: &Arc<Shared>,
    key: &LockKey,
    mode: LockMode,
    patience: Patience,
) -> Result<Option<Arc<GrantState>>> {
    shared.check()?;
    let ticket = shared.contention.enqueue(key, mode)?;
    let limit = match patience {
        Patience::Forever => {
            ticket.pass().await;
            return Contender::new(shared, key, mode, patience).contend(ticket).await;
        }
        Patience::None => {
            let asking = async {
                if !ticket.pass_or_taken(mode).await {
                    return Ok(None);
                }
                Contender::new(shared, key, mode, patience).contend(ticket).await
            };
            let answer = shared.limited(shared.config.limits.operation_timeout, asking).await;
            return answer.unwrap_or_else(|| Err(shared.timed_out()));
        }
        Patience::For(limit) => limit,
    };
    let id = ticket.id;
    let mut contending = pin!(async {
        ticket.pass().await;
        Contender::new(shared, key, mode, patience).contend(ticket).await
    });
    if let Some(result) = shared.limited(limit, contending.as_mut()).await {
        return result;
    }
    // Asked while the contender still has its place: once it is dropped the keeper clears up after it.
    let answered = || match shared.contention.in_the_way(key, id) {
        Some(Stage::Granted) => true,
        // A place in a queue is as old as the last beat that was answered; others may have left since.
        Some(Stage::Queued) => !shared.is_suspended(),
        Some(Stage::Asking) | None => false,
    };
    let last_word = std::future::poll_fn(|cx| match contending.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(result),
        Poll::Pending if answered() => Poll::Ready(Ok(None)),
        Poll::Pending => Poll::Pending,
    });
    match shared.limited(LAST_WORD, last_word).await {
        Some(result) => result,
        None => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{key}: the backend did not tell within {limit:?} whether the lock is held"),
        )
        .indeterminate()),
    }
}

/// What one attempt came to.
enum Outcome {
    Granted(Arc<GrantState>),
    /// It is held or waited for by others, and the caller does not wait.
    Taken,
    /// It left nothing behind; the ticket is good for another attempt.
    Again(Ticket),
}

/// A caller whose turn it is among the tasks of its coordinator: it asks the backend, again after every loss of a
/// session, until the lock is held.
struct Contender<'a> {
    shared: &'a Arc<Shared>,
    key: &'a LockKey,
    mode: LockMode,
    patience: Patience,
    /// Until when the backend has to answer for the first time.
    first_answer_by: Instant,
    /// Whether it has answered once: from then on the caller waits for it to come back.
    answered: bool,
    pause: Backoff,
}

impl<'a> Contender<'a> {
    fn new(shared: &'a Arc<Shared>, key: &'a LockKey, mode: LockMode, patience: Patience) -> Self {
        let first_answer_by = shared.clock.now() + shared.config.limits.operation_timeout;
        let pause = shared.config.backoff();
        Self { shared, key, mode, patience, first_answer_by, answered: false, pause }
    }

    async fn contend(mut self, mut ticket: Ticket) -> Result<Option<Arc<GrantState>>> {
        loop {
            match self.attempt(ticket).await? {
                Outcome::Granted(state) => return Ok(Some(state)),
                Outcome::Taken => return Ok(None),
                Outcome::Again(back) => ticket = back,
            }
        }
    }

    /// How long the next answer may take. Until the backend has answered once, a caller waits for it no longer than
    /// for any operation.
    fn limit(&self) -> Option<Duration> {
        match self.patience {
            Patience::For(_) => None,
            Patience::Forever if self.answered => None,
            _ => Some(self.first_answer_by.saturating_since(self.shared.clock.now())),
        }
    }

    async fn attempt(&mut self, ticket: Ticket) -> Result<Outcome> {
        ticket.set_stage(Stage::Asking);
        let limit = self.limit();
        let lease = match limit {
            None => self.shared.lease().await?,
            Some(limit) => self.shared.lease_within(limit).await?.0,
        };
        let Some(session) = lease.session() else { return Ok(Outcome::Again(ticket)) };
        let request = Acquire::new(AttemptId(self.shared.entropy.id()), self.key.clone(), self.mode);
        let request = request.wait(!matches!(self.patience, Patience::None));
        let mut attempt = Attempt::new(self.shared, &lease, session, ticket, request);
        let asked = match limit {
            None => lease.or_lost(attempt.ask()).await.unwrap_or_else(|reason| Err(reason.into())),
            Some(limit) => match self.shared.limited(limit, attempt.ask()).await {
                Some(asked) => asked,
                None => return Err(self.shared.timed_out()),
            },
        };
        let granted = match asked {
            Ok(Acquired::Granted(grant)) => Ok(Some(grant)),
            Ok(Acquired::Queued(entry)) => {
                self.answered = true;
                attempt.turn(&entry).await
            }
            Ok(Acquired::Held) => {
                attempt.done();
                return Ok(Outcome::Taken);
            }
            Err(error) if !error.is_retryable() && !error.is_indeterminate() => {
                attempt.done(); // refused: nothing was written
                return Err(error);
            }
            Err(error) => Err(error),
        };
        match granted {
            Ok(Some(grant)) => attempt.accept(grant).await,
            Ok(None) => attempt.withdraw().await.map(Outcome::Again),
            Err(error) => self.failed(attempt, error).await,
        }
    }

    /// Withdraws an attempt that failed, and pauses before the next; or fails, if the caller does not wait for that.
    async fn failed(&mut self, attempt: Attempt<'_>, error: Error) -> Result<Outcome> {
        if error.kind() == ErrorKind::SessionLost {
            self.shared.command(Command::Suspect);
        }
        let again = match self.patience {
            Patience::None => false,
            Patience::For(_) => error.is_retryable(),
            Patience::Forever => {
                error.is_retryable() && (self.answered || error.kind() == ErrorKind::SessionLost)
            }
        };
        if !again {
            // Also after a wait that was refused for good there is a place in the queue: the keeper withdraws it.
            return Err(error);
        }
        tracing::debug!(%error, key = %self.key, "asking for the lock again");
        let ticket = attempt.withdraw().await?;
        self.shared.spawner.sleep(self.pause.next(&self.shared.entropy)).await;
        Ok(Outcome::Again(ticket))
    }
}

/// One attempt from before it is sent. Dropping it hands the unfinished request over to the keeper, which drives
/// it to its end and withdraws what it left; the ticket is freed only then, so that no sibling asks meanwhile.
struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    lease: &'a Arc<SessionLease>,
    key: LockKey,
    id: AttemptId,
    asking: Option<Owned<Result<Acquired>>>,
    session: Arc<dyn Session>,
    ticket: Option<Ticket>,
}

impl<'a> Attempt<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        lease: &'a Arc<SessionLease>,
        session: Arc<dyn Session>,
        ticket: Ticket,
        request: Acquire,
    ) -> Self {
        let (key, id) = (request.key.clone(), request.attempt);
        let asked = Arc::clone(&session);
        let asking: Owned<_> = Box::pin(async move { asked.locks().request(&request).await });
        Self { shared, lease, key, id, asking: Some(asking), session, ticket: Some(ticket) }
    }

    async fn ask(&mut self) -> Result<Acquired> {
        let answer = std::future::poll_fn(|cx| match &mut self.asking {
            Some(asking) => asking.as_mut().poll(cx),
            None => Poll::Ready(Err(Error::from(ErrorKind::Closed))),
        });
        let answer = answer.await;
        self.asking = None;
        if let (Some(ticket), Ok(answer)) = (&self.ticket, &answer) {
            match answer {
                Acquired::Granted(_) => ticket.set_stage(Stage::Granted),
                Acquired::Queued(_) => ticket.set_stage(Stage::Queued),
                Acquired::Held => {}
            }
        }
        answer
    }

    /// Waits for the grant; `None`: the place or the session is gone.
    async fn turn(&mut self, entry: &QueueEntry) -> Result<Option<Grant>> {
        let gone = self.lease.wait(self.id, self.key.clone());
        let mut pause = self.shared.config.backoff();
        loop {
            let turn = tokio::select! {
                biased; // a grant that has come counts, even if the news of a loss has come too: accept() decides
                turn = self.session.locks().turn(entry) => turn,
                _ = self.lease.lost() => return Ok(None),
                () = gone.notified() => return Ok(None),
            };
            match turn {
                Ok(Turn::Granted(grant)) => return Ok(Some(grant)),
                Ok(Turn::Gone) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::SessionLost => return Ok(None),
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%error, key = %self.key, "waiting for the lock again");
                    self.shared.spawner.sleep(pause.next(&self.shared.entropy)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the grant in; where its deadline has passed already, it is withdrawn.
    async fn accept(mut self, grant: Grant) -> Result<Outcome> {
        let Some(ticket) = self.ticket.take() else { return Err(Error::from(ErrorKind::Closed)) };
        if let Err(error) = ticket.check_token(&grant) {
            self.ticket = Some(ticket); // the keeper withdraws it
            return Err(error);
        }
        ticket.set_stage(Stage::Granted);
        match self.lease.accept(grant, ticket) {
            Ok(state) => {
                if state.grant.proved_at.is_some() {
                    // Its own deadline may be earlier than anything that the keeper waits for.
                    self.shared.command(Command::Wake);
                }
                Ok(Outcome::Granted(state))
            }
            Err(ticket) => {
                self.ticket = Some(ticket);
                self.withdraw().await.map(Outcome::Again)
            }
        }
    }

    /// Withdraws the attempt and gives the ticket back for another one.
    async fn withdraw(mut self) -> Result<Ticket> {
        if let Some(ticket) = &self.ticket {
            ticket.set_leaving();
        }
        if self.asking.is_some() {
            let _ = self.lease.or_lost(self.ask()).await;
        }
        withdraw(self.shared, self.lease, &self.key, self.id).await;
        // Only accept() and withdraw() take the ticket, and both consume the entry.
        self.ticket.take().ok_or_else(|| Error::from(ErrorKind::Closed))
    }

    /// Nothing was left behind, and it never waited.
    fn done(mut self) {
        self.ticket = None;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let (shared, lease) = (Arc::clone(self.shared), Arc::clone(self.lease));
        let (key, id, unfinished) = (self.key.clone(), self.id, self.asking.take());
        lease.stop_waiting(id);
        ticket.set_leaving();
        self.shared.settle(Box::pin(async move {
            if let Some(unfinished) = unfinished {
                // A request that never returns must not keep the name longer than its session lives.
                let _ = lease.or_lost(unfinished).await;
            }
            withdraw(&shared, &lease, &key, id).await;
            drop(ticket);
        }));
    }
}
