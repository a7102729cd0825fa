//! The records of one lock: its holders, its first waiters, and the mark that an unclean end leaves.

use tooz_core::driver::{AttemptId, End, Grant, LockKey, LockMode, Previous, Turn};
use tooz_core::{FencingToken, LossReason, MemberId};

use crate::engine::log::{self, Event};
use crate::engine::tx::{Effect, Tx};
use crate::error::{self, Work};
use crate::keys::{Id, Lock, Mode, number_to_previous, previous_to_number};

pub(crate) struct Held {
    pub(crate) attempt: AttemptId,
    pub(crate) session: i64,
    pub(crate) mode: LockMode,
    pub(crate) token: u64,
    pub(crate) previous: i64,
}

impl Held {
    pub(crate) fn grant(&self, lock: &Lock) -> Work<Grant> {
        let token = FencingToken::new(self.token);
        let token = token.ok_or_else(|| error::corrupt("a holder's token is 0"))?;
        let previous = number_to_previous(self.previous);
        Ok(Grant::new(self.attempt, lock.key.clone(), self.mode, token, previous))
    }
}

pub(crate) fn holders_of(tx: &Tx<'_>, lock: &Lock) -> Work<Vec<Held>> {
    tx.all(
        "SELECT attempt, session, mode, token, previous FROM holders \
         WHERE namespace = ?1 AND kind = ?2 AND name = ?3",
        lock.columns()?,
        |row| {
            Ok(Held {
                attempt: AttemptId(row.get::<_, Id>(0)?.0),
                session: row.get(1)?,
                mode: row.get::<_, Mode>(2)?.0,
                token: row.get(3)?,
                previous: row.get(4)?,
            })
        },
    )
    .map_err(|fail| fail.about(&lock.key))
}

pub(crate) struct Waiter {
    pub(crate) position: i64,
    pub(crate) attempt: AttemptId,
    pub(crate) session: i64,
    pub(crate) mode: LockMode,
}

pub(crate) fn first_waiter(tx: &Tx<'_>, lock: &Lock) -> Work<Option<Waiter>> {
    tx.first(
        "SELECT place, attempt, session, mode FROM waiters \
         WHERE namespace = ?1 AND kind = ?2 AND name = ?3 ORDER BY place LIMIT 1",
        lock.columns()?,
        |row| {
            Ok(Waiter {
                position: row.get(0)?,
                attempt: AttemptId(row.get::<_, Id>(1)?.0),
                session: row.get(2)?,
                mode: row.get::<_, Mode>(3)?.0,
            })
        },
    )
    .map_err(|fail| fail.about(&lock.key))
}

pub(crate) fn is_waiting(tx: &Tx<'_>, session: i64, attempt: AttemptId) -> Work<bool> {
    tx.exists("SELECT 1 FROM waiters WHERE attempt = ?1 AND session = ?2", (Id(attempt.0), session))
}

/// Records that a holder ended uncleanly (L12); of several ends the one that says most. A holder beside it was told
/// less when it was granted, so the release of that holder leaves the mark.
pub(crate) fn mark(tx: &Tx<'_>, lock: &Lock, how: Previous) -> Work<()> {
    let (namespace, kind, name) = lock.columns()?;
    tx.run(
        "INSERT INTO marks (namespace, kind, name, how) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (namespace, kind, name) DO UPDATE SET how = max(how, excluded.how)",
        (namespace, kind, name, previous_to_number(how)),
    )?;
    tx.run(
        "UPDATE holders SET previous = 0 WHERE namespace = ?1 AND kind = ?2 AND name = ?3 AND previous <> 0",
        (namespace, kind, name),
    )?;
    Ok(())
}

/// Records for the next holder how a grant ended; `told`: what its holder was told of the grant before.
pub(crate) fn record_end(tx: &Tx<'_>, lock: &Lock, told: Previous, end: End) -> Work<()> {
    match (end, told) {
        (End::Unclean, _) => mark(tx, lock, end.previous())?,
        // A holder that was told nothing leaves the mark that another holder has left meanwhile.
        (End::Clean, Previous::Clean) => {}
        // A clean release ends what its holder was told when it was granted.
        (End::Clean, _) => {
            tx.run("DELETE FROM marks WHERE namespace = ?1 AND kind = ?2 AND name = ?3", lock.columns()?)?;
        }
    }
    Ok(())
}

/// Tells the watches of the lock.
pub(crate) fn holders_changed(tx: &mut Tx<'_>, lock: &Lock) -> Work<()> {
    if let LockKey::Leader(group) = &lock.key {
        let (namespace, name) = (lock.namespace.to_string(), group.as_bytes().to_vec());
        log::append(tx, &Event::LeaderChanged(namespace, name))?;
    }
    tx.effect(Effect::Holders(lock.clone()));
    Ok(())
}

pub(crate) fn remove_holder(
    tx: &mut Tx<'_>,
    session: i64,
    lock: &Lock,
    attempt: AttemptId,
) -> Work<Option<Previous>> {
    let (namespace, kind, name) = lock.columns()?;
    let told = tx.first(
        "DELETE FROM holders WHERE namespace = ?1 AND kind = ?2 AND name = ?3 AND attempt = ?4 AND session = ?5 \
         RETURNING previous",
        (namespace, kind, name, Id(attempt.0), session),
        // A damaged column beside the key must not keep a holder from giving the lock back.
        |row| Ok(row.get::<_, i64>(0).unwrap_or_default()),
    )?;
    if told.is_some() {
        holders_changed(tx, lock)?;
        tx.unsettled.push(lock.clone());
    }
    Ok(told.map(number_to_previous))
}

/// The recorded outcome of an attempt, for a process that does not know it; `None` while the attempt waits.
pub(crate) fn outcome(tx: &Tx<'_>, session: i64, lock: &Lock, attempt: AttemptId) -> Work<Option<Turn>> {
    let held = holders_of(tx, lock)?;
    if let Some(held) = held.iter().find(|held| held.attempt == attempt && held.session == session) {
        return Ok(Some(Turn::Granted(held.grant(lock)?)));
    }
    Ok(if is_waiting(tx, session, attempt)? { None } else { Some(Turn::Gone) })
}

/// Whether an attempt of this session holds the lock.
pub(crate) fn is_held(tx: &Tx<'_>, session: i64, lock: &Lock, attempt: AttemptId) -> Work<bool> {
    let (namespace, kind, name) = lock.columns()?;
    tx.exists(
        "SELECT 1 FROM holders WHERE namespace = ?1 AND kind = ?2 AND name = ?3 AND attempt = ?4 AND session = ?5",
        (namespace, kind, name, Id(attempt.0), session))
}

/// Why a grant is gone.
pub(crate) fn why_gone(tx: &Tx<'_>, attempt: AttemptId) -> Work<LossReason> {
    let broken = tx.readable("SELECT by, why FROM breaks WHERE attempt = ?1", [Id(attempt.0)], |row| {
        Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?))
    })?;
    Ok(match broken.into_iter().next() {
        Some((by, why)) => LossReason::Broken { by: MemberId::new(by).ok(), why },
        None => LossReason::Vanished,
    })
}
