//! Handing locks on: the queue of a lock's waiters, in order, without the dead.

use tooz_core::driver::support::rule::fits;
use tooz_core::driver::{AttemptId, Grant, LockMode};

use crate::engine::fence;
use crate::engine::lock_rows::{Held, first_waiter, holders_changed, holders_of};
use crate::engine::log::{self, Event};
use crate::engine::tx::{Effect, Tx};
use crate::error::Work;
use crate::keys::{Id, Lock, mode_to_number, number_to_previous};
use crate::reaper;

/// Hands on every lock that may have become free, until nothing changes any more. A dead waiter on the way is cleared
/// away, which may free further locks: they join the list and get their turn, without recursion.
pub(crate) fn settle(tx: &mut Tx<'_>) -> Work<()> {
    while let Some(lock) = tx.unsettled.pop() {
        match hand_on(tx, &lock) {
            // A request for that lock gets the error. The damage must not keep other locks from being handed on, or a
            // session from ending; waiters look again every second.
            Err(fail) if fail.is_unreadable() => {
                tracing::warn!(key = %lock.key, ?fail, "a lock cannot be handed on");
            }
            answer => answer?,
        }
    }
    Ok(())
}

/// Whether the first waiter could have the lock: then it should have been handed on.
pub(crate) fn is_overdue(tx: &Tx<'_>, lock: &Lock) -> Work<bool> {
    let Some(waiter) = first_waiter(tx, lock)? else { return Ok(false) };
    let holders = holders_of(tx, lock)?;
    Ok(fits(waiter.mode, holders.iter().map(|held| held.mode)))
}

/// Grants to the first waiters, in order, as long as they are admitted: one writer, or all readers up to the next.
/// INVARIANT: an unreadable record stops this before any change, or between two waiters.
fn hand_on(tx: &mut Tx<'_>, lock: &Lock) -> Work<()> {
    while let Some(waiter) = first_waiter(tx, lock)? {
        let holders = holders_of(tx, lock)?;
        if !fits(waiter.mode, holders.iter().map(|held| held.mode)) {
            // The waiter may be the first only now, and then has to listen for the holders' ends.
            if tx.own_session(waiter.session).is_none() {
                wake(tx, waiter.session)?;
            } else if holders.iter().any(|held| tx.own_session(held.session).is_none()) {
                tx.effect(Effect::FollowPredecessors);
            }
            break;
        }
        // A dead session never gets the lock: this looks now, whatever an earlier look has seen.
        let alive = match tx.own_session(waiter.session) {
            Some(own) if !own.is_over() => true,
            _ => !reaper::reap(tx, waiter.session)?,
        };
        let granted =
            if alive { Some(grant(tx, lock, waiter.session, waiter.attempt, waiter.mode)?) } else { None };
        // Also by number: a waiter without a session's record cannot be, but it must not make this loop endless.
        tx.run("DELETE FROM waiters WHERE place = ?1", [waiter.position])?;
        let Some(grant) = granted else { continue };
        if tx.own_session(waiter.session).is_some() {
            tx.effect(Effect::Granted(waiter.session, grant));
        } else {
            log::append(tx, &Event::Granted(waiter.session, waiter.attempt))?;
            wake(tx, waiter.session)?;
        }
    }
    Ok(())
}

pub(crate) fn grant(
    tx: &mut Tx<'_>,
    lock: &Lock,
    session: i64,
    attempt: AttemptId,
    mode: LockMode,
) -> Work<Grant> {
    let (namespace, kind, name) = lock.columns()?;
    let previous = tx
        .value::<i64>(
            "SELECT how FROM marks WHERE namespace = ?1 AND kind = ?2 AND name = ?3",
            (namespace, kind, name),
        )?
        .unwrap_or(0);
    let token = fence::take(tx)?;
    // INVARIANT (L14): the reference to the session's row makes this fail if the session is gone.
    tx.run(
        "INSERT INTO holders (namespace, kind, name, attempt, session, mode, token, previous, since) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        (
            namespace,
            kind,
            name,
            Id(attempt.0),
            session,
            mode_to_number(mode)?,
            token.get(),
            previous,
            tx.wall(),
        ),
    )?;
    holders_changed(tx, lock)?;
    Ok(Grant::new(attempt, lock.key.clone(), mode, token, number_to_previous(previous)))
}

/// Wakes the process of a session, after the commit.
pub(crate) fn wake(tx: &mut Tx<'_>, session: i64) -> Work<()> {
    let id = tx.value::<Option<Id>>("SELECT bell FROM sessions WHERE seq = ?1", [session])?;
    if let Some(id) = id.flatten() {
        tx.effect(Effect::Wake(id.0));
    }
    Ok(())
}

/// Whether a new waiter has to listen for the end of another process: of the last waiter's, or, if there is none, of a
/// holder's.
pub(crate) fn stands_behind_another_process(tx: &Tx<'_>, holders: &[Held], lock: &Lock) -> Work<bool> {
    let last = tx.value::<i64>(
        "SELECT session FROM waiters WHERE namespace = ?1 AND kind = ?2 AND name = ?3 ORDER BY place DESC LIMIT 1",
        lock.columns()?,
    )?;
    Ok(match last {
        Some(last) => tx.own_session(last).is_none(),
        None => holders.iter().any(|held| tx.own_session(held.session).is_none()),
    })
}

/// The sessions of other processes that stand immediately before this process's first waiter. This process has to clear away
/// the dead among them. Its later waiters have no part in that as long as the first stands.
pub(crate) fn immediately_before(tx: &Tx<'_>, lock: &Lock) -> Work<Vec<i64>> {
    let (namespace, kind, name) = lock.columns()?;
    let mut statement = tx.connection.prepare_cached(
        "SELECT session FROM waiters WHERE namespace = ?1 AND kind = ?2 AND name = ?3 ORDER BY place",
    )?;
    let mut waiters = statement.query((namespace, kind, name))?;
    let mut before = None;
    while let Some(row) = waiters.next()? {
        let session: i64 = row.get(0)?;
        if tx.own_session(session).is_some() {
            return Ok(match before {
                Some(before) => vec![before],
                None => holders_of(tx, lock)?
                    .iter()
                    .map(|held| held.session)
                    .filter(|session| tx.own_session(*session).is_none())
                    .collect(),
            });
        }
        before = Some(session);
    }
    Ok(Vec::new())
}
