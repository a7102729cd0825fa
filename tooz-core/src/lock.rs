//! Locks: handles without I/O, and how a lock is acquired.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::contend::{Stage, Ticket};
use crate::driver::{
    Acquire, Acquired, AttemptId, BreakRequest, Grant, HolderRecord, Holders, LockKey, LockMode, Place,
    Session, Turn,
};
use crate::guard::LockGuard;
use crate::shared::{Backoff, Command, Life, Owned, Reads, Shared, read};
use crate::tenure::{GrantState, Tenure};
use crate::{Error, ErrorKind, FencingToken, LockName, Result};

/// A lock's name and the way to hold it; making one does no I/O.
///
/// ```
/// # use tooz_core as tooz;
/// # async fn example(c: tooz::Coordinator) -> tooz::Result<()> {
/// let guard = c.lock("reindex")?.acquire().await?;
/// println!("write with token {}", guard.token());
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Lock {
    life: Arc<Life>,
    name: LockName,
    mode: LockMode,
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("name", &self.name).field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Lock {
    pub(crate) fn new(life: Arc<Life>, name: LockName) -> Self {
        Self { life, name, mode: LockMode::Exclusive }
    }

    /// The lock's name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The same lock, held together with other shared holders and never beside an exclusive one.
    #[must_use]
    pub fn shared(&self) -> Self {
        Self { mode: LockMode::Shared, ..self.clone() }
    }

    /// The same name as a semaphore: at most `limit` holders at a time, the same limit for all who use it.
    ///
    /// # Errors
    /// `Invalid` for a limit of 0. Another limit than that of present holders or waiters is found by the acquire.
    pub fn permits(&self, limit: u32) -> Result<Self> {
        if limit == 0 {
            return Err(Error::new(ErrorKind::Invalid, "a semaphore needs a limit of at least 1"));
        }
        Ok(Self { mode: LockMode::Permit { limit }, ..self.clone() })
    }

    /// Waits until the lock is held.
    ///
    /// The wait has no limit and survives a restart of the backend. It is not reentrant: a second acquire by the
    /// same coordinator waits for the first.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if the backend did not answer the first request within the operation time
    /// limit; `Closed`; `Invalid` for permits of another limit; `Corrupt` if the backend's fencing tokens went
    /// back.
    ///
    /// # Cancel safety
    /// Dropping the future leaves neither a lock nor a place in the queue, within one more round trip, or with
    /// the session's end if the backend is away.
    pub async fn acquire(&self) -> Result<LockGuard> {
        let state = acquire(&self.life, self.key(), self.mode, Patience::Forever).await?;
        let state = state.ok_or_else(|| Error::from(ErrorKind::Backend))?;
        Ok(LockGuard::new(Arc::clone(&self.life), self.name.clone(), state))
    }

    /// Acquires the lock if nobody holds it or is before us; answers at once.
    ///
    /// # Errors
    /// As [`Lock::acquire`]. `None` is never an error in disguise: the backend said that it is held.
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`].
    pub async fn try_acquire(&self) -> Result<Option<LockGuard>> {
        self.acquire_by(Patience::None).await
    }

    /// Acquires the lock within `limit`. `None` only if the backend said that somebody else holds it or is
    /// before us.
    ///
    /// # Errors
    /// As [`Lock::acquire`]; `Unavailable`, indeterminate, if the backend's last word is missing when the time
    /// is over, or if it did not answer the last beat (liveness is `Suspended`), so that its word is old.
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`].
    pub async fn acquire_within(&self, limit: Duration) -> Result<Option<LockGuard>> {
        self.acquire_by(Patience::For(limit)).await
    }

    pub(crate) async fn acquire_by(&self, patience: Patience) -> Result<Option<LockGuard>> {
        let state = acquire(&self.life, self.key(), self.mode, patience).await?;
        Ok(state.map(|state| LockGuard::new(Arc::clone(&self.life), self.name.clone(), state)))
    }

    /// Who holds the lock, and how many wait where the backend can say.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn holders(&self) -> Result<Holders> {
        holders(self.life.reader(), self.key()).await
    }

    /// Frees the lock from outside and answers whom it was taken from; empty if nobody held it.
    ///
    /// The holder is told (`Broken`, with who and `why`) by push or at its next beat. Until then two guards may
    /// be valid: only the fencing token tells them apart.
    ///
    /// # Errors
    /// `HolderUnresponsive` where the holder's process must let go and does not; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// A break that was begun is driven to its end.
    pub async fn break_lock(&self, why: impl Into<String>) -> Result<Vec<HolderRecord>> {
        break_lock(&self.life, BreakRequest::new(self.key(), self.life.config.member.clone(), why)).await
    }

    /// As [`Lock::break_lock`], but only the grant with this token.
    ///
    /// # Errors
    /// As [`Lock::break_lock`].
    ///
    /// # Cancel safety
    /// As [`Lock::break_lock`].
    pub async fn break_token(
        &self,
        token: FencingToken,
        why: impl Into<String>,
    ) -> Result<Vec<HolderRecord>> {
        let request = BreakRequest::new(self.key(), self.life.config.member.clone(), why);
        break_lock(&self.life, request.only(token)).await
    }

    fn key(&self) -> LockKey {
        LockKey::Named(self.name.clone())
    }

    pub(crate) fn life(&self) -> &Arc<Life> {
        &self.life
    }

    pub(crate) fn mode(&self) -> LockMode {
        self.mode
    }
}

pub(crate) async fn holders(reader: &dyn Reads, key: LockKey) -> Result<Holders> {
    let driver = reader.driver();
    let call = Box::pin(async move { driver.locks().holders(&key).await });
    read(reader, call).await.map_err(|error| error.during("holders"))
}

pub(crate) async fn break_lock(life: &Shared, request: BreakRequest) -> Result<Vec<HolderRecord>> {
    let driver = Arc::clone(&life.driver);
    tracing::warn!(key = %request.key, by = %request.by, why = %request.why, "breaking a lock");
    let call = Box::pin(async move { driver.locks().break_lock(&request).await });
    life.plain_call(call).await.map_err(|error| error.during("break"))
}

/// How long an answer that is on its way is still waited for when a caller's limit is over: half of the 100 ms
/// that the contract allows beyond the limit, so that a limit shorter than a round trip gets an answer too.
const LAST_WORD: Duration = Duration::from_millis(50);

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
            return contend(shared, ticket, key, mode, patience).await;
        }
        Patience::None => {
            let asking = async {
                if !ticket.pass_or_taken(mode).await {
                    return Ok(None);
                }
                contend(shared, ticket, key, mode, patience).await
            };
            let answer = shared.limited(shared.config.operation_timeout, asking).await;
            return answer.unwrap_or_else(|| Err(shared.timed_out()));
        }
        Patience::For(limit) => limit,
    };
    let id = ticket.id();
    let mut contending = pin!(async {
        ticket.pass().await;
        contend(shared, ticket, key, mode, patience).await
    });
    if let Some(result) = shared.limited(limit, contending.as_mut()).await {
        return result;
    }
    // Asked while the contender still has its place: once it is dropped the keeper clears up after it.
    let answered = || match shared.contention.in_the_way(key, id) {
        Some(Stage::Granted) => true,
        // A place in a queue is as old as the last beat that was answered; somebody may have left since.
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
            format!("{key}: the backend has not said within {limit:?} whether it is held"),
        )
        .indeterminate()),
    }
}

/// Asks the backend, again after every loss of a session, until the lock is held. It is the ticket's turn.
async fn contend(
    shared: &Arc<Shared>,
    mut ticket: Ticket,
    key: &LockKey,
    mode: LockMode,
    patience: Patience,
) -> Result<Option<Arc<GrantState>>> {
    let limit = shared.clock.now() + shared.config.operation_timeout;
    let mut pause = Backoff::new(&shared.config);
    // Whether the backend has answered once: from then on the caller waits for it to come back.
    let mut heard = false;
    loop {
        ticket.set_stage(Stage::Asking);
        // Until the backend has answered once, a caller waits for it no longer than for any operation.
        let limit = match patience {
            Patience::For(_) => None,
            Patience::Forever if heard => None,
            _ => Some(limit.saturating_since(shared.clock.now())),
        };
        let tenure = match limit {
            None => shared.tenure().await?,
            Some(limit) => shared.tenure_within(limit).await?.0,
        };
        let Some(session) = tenure.session() else { continue };
        let request = Acquire::new(shared.attempt(), key.clone(), mode);
        let request = request.wait(!matches!(patience, Patience::None));
        let mut entry = Entry::new(shared, &tenure, session, ticket, request);
        let asked = match limit {
            None => tokio::select! {
                biased; // an answer says more than the news that the session ended
                asked = entry.ask() => asked,
                reason = tenure.lost() => Err(Error::new(ErrorKind::SessionLost, reason.to_string())),
            },
            Some(limit) => match shared.limited(limit, entry.ask()).await {
                Some(asked) => asked,
                None => return Err(shared.timed_out()),
            },
        };
        let granted = match asked {
            Ok(Acquired::Granted(grant)) => Ok(Some(grant)),
            Ok(Acquired::Queued(place)) => {
                heard = true;
                entry.turn(&place).await
            }
            Ok(Acquired::Held) => {
                entry.done();
                return Ok(None);
            }
            Err(error) if !error.is_retryable() && !error.is_indeterminate() => {
                entry.done(); // refused: nothing was written
                return Err(error);
            }
            Err(error) => Err(error),
        };
        let error = match granted {
            Ok(Some(grant)) => match entry.accept(grant).await? {
                Ok(state) => return Ok(Some(state)),
                Err(back) => {
                    ticket = back;
                    continue;
                }
            },
            Ok(None) => {
                ticket = entry.withdraw().await?;
                continue;
            }
            Err(error) => error,
        };
        if error.kind() == ErrorKind::SessionLost {
            shared.command(Command::Suspect);
        }
        let again = match patience {
            Patience::None => false,
            Patience::For(_) => error.is_retryable(),
            Patience::Forever => error.is_retryable() && (heard || error.kind() == ErrorKind::SessionLost),
        };
        if !again {
            // Also after a wait that was refused for good there is a place in the queue: the keeper withdraws it.
            return Err(error);
        }
        tracing::debug!(%error, %key, "asking for the lock again");
        ticket = entry.withdraw().await?;
        shared.spawner.sleep(pause.next(&shared.entropy)).await;
    }
}

/// One attempt from before it is sent. Dropping it hands the unfinished request over to the keeper, which drives
/// it to its end and withdraws what it left; the ticket is freed only then, so that no sibling asks meanwhile.
struct Entry<'a> {
    shared: &'a Arc<Shared>,
    tenure: &'a Arc<Tenure>,
    key: LockKey,
    attempt: AttemptId,
    asking: Option<Owned<Result<Acquired>>>,
    session: Arc<dyn Session>,
    ticket: Option<Ticket>,
}

impl<'a> Entry<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        tenure: &'a Arc<Tenure>,
        session: Arc<dyn Session>,
        ticket: Ticket,
        request: Acquire,
    ) -> Self {
        let (key, attempt) = (request.key.clone(), request.attempt);
        let asked = Arc::clone(&session);
        let asking: Owned<_> = Box::pin(async move { asked.locks().request(&request).await });
        Self { shared, tenure, key, attempt, asking: Some(asking), session, ticket: Some(ticket) }
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
    async fn turn(&mut self, place: &Place) -> Result<Option<Grant>> {
        let gone = self.tenure.wait(self.attempt, self.key.clone());
        let mut pause = Backoff::new(&self.shared.config);
        loop {
            let turn = tokio::select! {
                biased; // a grant that has come counts, even if the news of a loss has come too: accept() decides
                turn = self.session.locks().turn(place) => turn,
                _ = self.tenure.lost() => return Ok(None),
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

    /// Takes the grant in; the ticket back when its deadline has passed and it was withdrawn.
    async fn accept(mut self, grant: Grant) -> Result<Result<Arc<GrantState>, Ticket>> {
        let Some(ticket) = self.ticket.take() else { return Err(Error::from(ErrorKind::Closed)) };
        if let Err(error) = ticket.check_token(&grant) {
            self.ticket = Some(ticket); // the keeper withdraws it
            return Err(error);
        }
        ticket.set_stage(Stage::Granted);
        match self.tenure.accept(grant, ticket) {
            Ok(state) => {
                if state.grant.proved_at.is_some() {
                    // Its own deadline may be earlier than anything that the keeper waits for.
                    self.shared.command(Command::Wake);
                }
                Ok(Ok(state))
            }
            Err(ticket) => {
                self.ticket = Some(ticket);
                Ok(Err(self.withdraw().await?))
            }
        }
    }

    /// Withdraws the attempt and gives the ticket back for another one.
    async fn withdraw(mut self) -> Result<Ticket> {
        if let Some(ticket) = &self.ticket {
            ticket.set_leaving();
        }
        if self.asking.is_some() {
            let tenure = self.tenure;
            tokio::select! {
                biased; // an answer says more than the news that the session ended
                answer = self.ask() => drop(answer),
                _ = tenure.lost() => {}
            }
        }
        self.shared.withdraw(self.tenure, &self.key, self.attempt).await;
        // Only accept() and withdraw() take the ticket, and both consume the entry.
        self.ticket.take().ok_or_else(|| Error::from(ErrorKind::Closed))
    }

    /// Nothing was left behind, and it never waited.
    fn done(mut self) {
        self.ticket = None;
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let (shared, tenure) = (Arc::clone(self.shared), Arc::clone(self.tenure));
        let (key, attempt, unfinished) = (self.key.clone(), self.attempt, self.asking.take());
        tenure.stop_waiting(attempt);
        ticket.set_leaving();
        self.shared.settle(Box::pin(async move {
            if let Some(unfinished) = unfinished {
                // A request that never returns must not keep the name longer than its session lives.
                tenure.or_lost(unfinished).await;
            }
            shared.withdraw(&tenure, &key, attempt).await;
            drop(ticket);
        }));
    }
}
