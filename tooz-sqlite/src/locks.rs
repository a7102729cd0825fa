//! A session's locks: request, wait, withdraw, release.

use async_trait::async_trait;
use tooz_core::driver::support::rule::{Foreign, Verdict, verdict};
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, Grant, LockKey, LockMode, QueueEntry, Released, SessionLocks, Turn,
};
use tooz_core::{Error, ErrorKind, Result};

use crate::engine::jobs::Level;
use crate::engine::lock_rows::{self, Held, first_waiter, holders_of, is_waiting, record_end, remove_holder};
use crate::engine::queue::{grant, settle, stands_behind_another_process};
use crate::engine::tx::{Effect, Tx};
use crate::error::{self, Work};
use crate::keys::{Id, Lock, Mode, mode_to_number};
use crate::reaper;
use crate::session::SqliteSession;
use crate::session_state::SessionState;

#[async_trait]
impl SessionLocks for SqliteSession {
    async fn request(&self, request: &Acquire) -> Result<Acquired> {
        let (session, lock, request) =
            (self.session.clone(), self.client.lock(&request.key), request.clone());
        self.client.call(Level::Write, move |tx| request_lock(tx, &session, &request, &lock)).await
    }

    async fn turn(&self, entry: &QueueEntry) -> Result<Turn> {
        self.client.jobs.check_process()?;
        let attempt = entry.attempt;
        loop {
            if let Some(attempt) = self.session.attempt(attempt) {
                return Ok(attempt.wait().await);
            }
            self.session.check()?;
            // This process does not know the attempt: read its outcome, and wait from then on.
            let (session, lock) = (self.session.clone(), self.client.lock(&entry.key));
            let work = move |tx: &mut Tx<'_>| {
                session.check()?;
                let outcome = lock_rows::outcome(tx, session.seq, &lock, attempt)?;
                if outcome.is_none() {
                    tx.effect(Effect::Queued(session.seq, attempt, lock.clone()));
                }
                Ok(outcome)
            };
            let outcome = self.client.call(Level::Read, work).await?;
            if let Some(turn) = outcome {
                return Ok(turn);
            }
        }
    }

    async fn withdraw(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        // Before the job is queued: a request that comes later is refused even if it overtakes the job.
        self.session.withdraw(attempt);
        if self.session.loss().is_some() {
            self.client.jobs.check_process()?;
            return Ok(()); // everything of an ended session is gone
        }
        let (seq, lock) = (self.session.seq, self.client.lock(key));
        self.client.call(Level::Write, move |tx| withdraw(tx, seq, &lock, attempt)).await
    }

    async fn release(&self, grant: &Grant, end: End) -> Result<Released> {
        let (seq, lock, attempt) = (self.session.seq, self.client.lock(&grant.key), grant.attempt);
        self.client.call(Level::Write, move |tx| release(tx, seq, &lock, attempt, end)).await
    }
}

/// Requests a lock in one atomic step. The same attempt again gets the recorded outcome.
fn request_lock(tx: &mut Tx<'_>, session: &SessionState, request: &Acquire, lock: &Lock) -> Work<Acquired> {
    session.check()?;
    if session.is_withdrawn(request.attempt) {
        return Err(Error::new(ErrorKind::Invalid, "this attempt was withdrawn; make a new one").into());
    }
    let mode = mode_to_number(request.mode)?;
    let mut holders = holders_of(tx, lock)?;
    let ours = |held: &&Held| held.attempt == request.attempt && held.session == session.seq;
    if let Some(held) = holders.iter().find(ours) {
        return Ok(Acquired::Granted(held.grant(lock)?));
    }
    let mut queue = first_waiter(tx, lock)?;
    if queue.is_some() && is_waiting(tx, session.seq, request.attempt)? {
        return Ok(enqueue(tx, session, request, lock));
    }
    // A holder or waiter in the way may be dead, and no process has noticed yet.
    let in_the_way: Vec<_> = holders
        .iter()
        .map(|held| (held.session, held.mode))
        .chain(queue.iter().map(|waiter| (waiter.session, waiter.mode)))
        .collect();
    let mut gone = Vec::new();
    for (other, its) in in_the_way {
        let refuses =
            matches!(verdict::<()>(request.mode, [], [its], Foreign::None), Verdict::OtherLimit { .. });
        if is_gone(tx, other, refuses)? {
            gone.push(other);
        }
    }
    if !gone.is_empty() {
        settle(tx)?;
        holders = holders_of(tx, lock)?;
        queue = first_waiter(tx, lock)?;
        let stands = holders.iter().map(|held| held.session).chain(queue.iter().map(|waiter| waiter.session));
        if let Some(orphan) = stands.into_iter().find(|session| gone.contains(session)) {
            return Err(error::corrupt(format!(
                    "{}: a record in table holders or waiters of the database belongs to session {orphan}, of which \
                     there is no record; look at it, then delete it",
                    lock.key
                ))
            .into());
        }
    }
    // Of the waiters only the first one and one with another limit are read, or a thousand waiters would cost each request a
    // thousand rows.
    let before = queue.iter().map(|waiter| waiter.mode).chain(other_limit_waiting(tx, lock, request.mode)?);
    let before = before.map(|mode| ((), mode));
    let verdict = verdict(request.mode, before, holders.iter().map(|held| held.mode), Foreign::None);
    // A reader does not pass the first reader: a writer may stand between them.
    if verdict.checked(&lock.key)? == Verdict::Free && queue.is_none() {
        return Ok(Acquired::Granted(grant(tx, lock, session.seq, request.attempt, request.mode)?));
    }
    if !request.wait {
        return Ok(Acquired::Held);
    }
    let (namespace, kind, name) = lock.columns()?;
    if stands_behind_another_process(tx, &holders, lock)? {
        tx.effect(Effect::FollowPredecessors);
    }
    tx.run(
        "INSERT INTO waiters (namespace, kind, name, attempt, session, mode) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (namespace, kind, name, Id(request.attempt.0), session.seq, mode),
    )?;
    Ok(enqueue(tx, session, request, lock))
}

fn enqueue(tx: &mut Tx<'_>, session: &SessionState, request: &Acquire, lock: &Lock) -> Acquired {
    tx.effect(Effect::Queued(session.seq, request.attempt, lock.clone()));
    Acquired::Queued(QueueEntry::new(request.attempt, request.key.clone()))
}

/// A living waiter's permit whose limit differs from that of a request (L15).
fn other_limit_waiting(tx: &mut Tx<'_>, lock: &Lock, mode: LockMode) -> Work<Option<LockMode>> {
    let LockMode::Permit { limit } = mode else { return Ok(None) };
    let (namespace, kind, name) = lock.columns()?;
    let mut last = None;
    loop {
        let found = tx.first(
            "SELECT session, mode FROM waiters WHERE namespace = ?1 AND kind = ?2 AND name = ?3 AND mode > 0 \
             AND mode <> ?4 LIMIT 1",
            (namespace, kind, name, limit.get()),
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Mode>(1)?.0)),
        )?;
        let Some((session, other)) = found else { return Ok(None) };
        // A session without a record cannot be cleared away, and must not make this loop endless.
        if last.replace(session) == Some(session) || !is_gone(tx, session, true)? {
            return Ok(Some(other));
        }
    }
}

/// Ends a session that stands in the way, if it is dead and no process has noticed yet. `refuses`: the request would be
/// refused because of it, so that a look of a moment ago does not do.
fn is_gone(tx: &mut Tx<'_>, session: i64, refuses: bool) -> Work<bool> {
    let reap = if refuses { reaper::reap } else { reaper::reap_stale };
    Ok(tx.own_session(session).is_none_or(|own| own.is_over()) && reap(tx, session)?)
}

/// Gives back the grant of this attempt and session.
fn release(tx: &mut Tx<'_>, session: i64, lock: &Lock, attempt: AttemptId, end: End) -> Work<Released> {
    tx.effect(Effect::Forgotten(session, attempt));
    let Some(told) = remove_holder(tx, session, lock, attempt)? else { return Ok(Released::WasNotHolder) };
    record_end(tx, lock, told, end)?;
    Ok(Released::Released)
}

/// Ends an attempt, whether it waits or holds. A grant that its caller has not seen leaves the mark: the caller was not told
/// how the holder before it ended.
fn withdraw(tx: &mut Tx<'_>, session: i64, lock: &Lock, attempt: AttemptId) -> Work<()> {
    tx.effect(Effect::Forgotten(session, attempt));
    let gone = tx.run("DELETE FROM waiters WHERE attempt = ?1 AND session = ?2", (Id(attempt.0), session))?;
    if gone > 0 {
        tx.unsettled.push(lock.clone()); // it may have stood before waiters that fit
    }
    remove_holder(tx, session, lock, attempt)?;
    Ok(())
}
