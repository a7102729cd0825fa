//! The steps of locks inside a transaction: request, release, hand on, break.

use rusqlite::Row;
use tooz_core::driver::{
    Acquire, Acquired, Admission, AttemptId, BreakRequest, End, Grant, HolderRecord, Holders, LockMode,
    Place, Previous, Released, Turn, admits,
};
use tooz_core::{Error, ErrorKind, FencingToken, LossReason, MemberId};

use crate::engine::fence;
use crate::engine::log::{self, Event};
use crate::engine::tx::{Effect, Tx, from_micros};
use crate::error::Work;
use crate::keys::{Id, Lock, Mode, mode_to_number, number_to_previous, previous_to_number};
use crate::reaper;
use crate::session_state::Local;

/// How long a record of who broke a grant is kept.
const BREAKS_KEPT_MICROS: i64 = 3_600_000_000;

struct Held {
    attempt: AttemptId,
    session: i64,
    mode: LockMode,
    token: u64,
    previous: i64,
}

fn token(number: u64) -> Work<FencingToken> {
    FencingToken::new(number).ok_or_else(|| Error::new(ErrorKind::Corrupt, "a holder's token is 0").into())
}

fn holders_of(tx: &Tx<'_>, lock: &Lock) -> Work<Vec<Held>> {
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

struct Waiter {
    place: i64,
    attempt: AttemptId,
    session: i64,
    mode: LockMode,
}

fn first_waiter(tx: &Tx<'_>, lock: &Lock) -> Work<Option<Waiter>> {
    tx.first(
        "SELECT place, attempt, session, mode FROM waiters \
         WHERE namespace = ?1 AND kind = ?2 AND name = ?3 ORDER BY place LIMIT 1",
        lock.columns()?,
        |row| {
            Ok(Waiter {
                place: row.get(0)?,
                attempt: AttemptId(row.get::<_, Id>(1)?.0),
                session: row.get(2)?,
                mode: row.get::<_, Mode>(3)?.0,
            })
        },
    )
    .map_err(|fail| fail.about(&lock.key))
}

/// Remembers that a holder ended uncleanly (L12); of several ends the one that says most. It is news to those who hold the
/// lock beside it: what they were told when they were granted is not all any more, so their release leaves the mark.
fn mark(tx: &Tx<'_>, lock: &Lock, how: Previous) -> Work<()> {
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

/// A clean release: what its holder was told when it was granted is over. A holder that was told nothing leaves
/// the mark that somebody else left meanwhile.
fn unmark(tx: &Tx<'_>, lock: &Lock, told: Previous) -> Work<()> {
    if told != Previous::Clean {
        tx.run("DELETE FROM marks WHERE namespace = ?1 AND kind = ?2 AND name = ?3", lock.columns()?)?;
    }
    Ok(())
}

/// Remembers for the next holder how a grant ended; `told`: how the one before it had.
pub(crate) fn ended(tx: &Tx<'_>, lock: &Lock, told: Previous, end: End) -> Work<()> {
    match end {
        End::Clean => unmark(tx, lock, told),
        End::Unclean => mark(tx, lock, end.previous()),
    }
}

/// Tells those who watch the lock.
pub(crate) fn holders_changed(tx: &mut Tx<'_>, lock: &Lock) -> Work<()> {
    log::leader_changed(tx, lock)?;
    tx.effect(Effect::Holders(lock.clone()));
    Ok(())
}

fn grant(tx: &mut Tx<'_>, lock: &Lock, session: i64, attempt: AttemptId, mode: LockMode) -> Work<Grant> {
    let (namespace, kind, name) = lock.columns()?;
    let previous = tx
        .first(
            "SELECT how FROM marks WHERE namespace = ?1 AND kind = ?2 AND name = ?3",
            (namespace, kind, name),
            |row| row.get::<_, i64>(0),
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

/// Asks for a lock; one atomic step. The same attempt again is answered by what stands.
pub(crate) fn request(tx: &mut Tx<'_>, session: &Local, request: &Acquire, lock: &Lock) -> Work<Acquired> {
    session.check()?;
    if session.is_withdrawn(request.attempt) {
        return Err(Error::new(ErrorKind::Invalid, "this attempt was withdrawn; make a new one").into());
    }
    let mode = mode_to_number(request.mode)?;
    let mut holders = holders_of(tx, lock)?;
    let ours = |held: &&Held| held.attempt == request.attempt && held.session == session.seq;
    if let Some(held) = holders.iter().find(ours) {
        let previous = number_to_previous(held.previous);
        let grant = Grant::new(request.attempt, request.key.clone(), held.mode, token(held.token)?, previous);
        return Ok(Acquired::Granted(grant));
    }
    let mut queue = first_waiter(tx, lock)?;
    if queue.is_some() && is_waiting(tx, session.seq, request.attempt)? {
        return Ok(queued(tx, session, request, lock));
    }
    // Whoever is in the way may be dead without anybody having noticed.
    let in_the_way: Vec<i64> =
        holders.iter().map(|held| held.session).chain(queue.iter().map(|waiter| waiter.session)).collect();
    let mut gone = Vec::new();
    for other in in_the_way {
        if tx.local(other).is_none_or(|local| local.is_over()) && reaper::reap_stale(tx, other)? {
            gone.push(other);
        }
    }
    if !gone.is_empty() {
        settle(tx)?;
        holders = holders_of(tx, lock)?;
        queue = first_waiter(tx, lock)?;
        let stands = holders.iter().map(|held| held.session).chain(queue.iter().map(|waiter| waiter.session));
        if let Some(orphan) = stands.into_iter().find(|session| gone.contains(session)) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{}: a record in table holders or waiters of the database belongs to session {orphan}, of which \
                     there is no record; look at it, then delete it",
                    lock.key
                ),
            )
            .into());
        }
    }
    if let LockMode::Permit { limit } = request.mode {
        refuse_other_limit(tx, lock, limit)?;
    }
    let admission = admits(request.mode, holders.iter().map(|held| held.mode))?;
    if queue.is_none() && admission == Admission::Yes {
        return Ok(Acquired::Granted(grant(tx, lock, session.seq, request.attempt, request.mode)?));
    }
    if !request.wait {
        return Ok(Acquired::Held);
    }
    let (namespace, kind, name) = lock.columns()?;
    if stands_behind_another_process(tx, &holders, lock)? {
        tx.effect(Effect::LookAhead);
    }
    tx.run(
        "INSERT INTO waiters (namespace, kind, name, attempt, session, mode) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        (namespace, kind, name, Id(request.attempt.0), session.seq, mode),
    )?;
    Ok(queued(tx, session, request, lock))
}

/// Whether a new waiter has to listen for the end of another process: of that which asked before it, or, if it is
/// the first, of a holder.
fn stands_behind_another_process(tx: &Tx<'_>, holders: &[Held], lock: &Lock) -> Work<bool> {
    let last = tx.first(
        "SELECT session FROM waiters WHERE namespace = ?1 AND kind = ?2 AND name = ?3 ORDER BY place DESC LIMIT 1",
        lock.columns()?,
        |row| row.get::<_, i64>(0),
    )?;
    Ok(match last {
        Some(last) => tx.local(last).is_none(),
        None => holders.iter().any(|held| tx.local(held.session).is_none()),
    })
}

/// The sessions of other processes that stand immediately before this process's first waiter: whoever is dead among
/// them is for this process to clear away. It does not concern its later waiters as long as the first stands.
pub(crate) fn immediately_before(tx: &Tx<'_>, lock: &Lock) -> Work<Vec<i64>> {
    let (namespace, kind, name) = lock.columns()?;
    let mut statement = tx.connection.prepare_cached(
        "SELECT session FROM waiters WHERE namespace = ?1 AND kind = ?2 AND name = ?3 ORDER BY place",
    )?;
    let mut waiters = statement.query((namespace, kind, name))?;
    let mut before = None;
    while let Some(row) = waiters.next()? {
        let session: i64 = row.get(0)?;
        if tx.local(session).is_some() {
            return Ok(match before {
                Some(before) => vec![before],
                None => holders_of(tx, lock)?
                    .iter()
                    .map(|held| held.session)
                    .filter(|session| tx.local(*session).is_none())
                    .collect(),
            });
        }
        before = Some(session);
    }
    Ok(Vec::new())
}

fn queued(tx: &mut Tx<'_>, session: &Local, request: &Acquire, lock: &Lock) -> Acquired {
    tx.effect(Effect::Queued(session.seq, request.attempt, lock.clone()));
    Acquired::Queued(Place::new(request.attempt, request.key.clone()))
}

fn is_waiting(tx: &Tx<'_>, session: i64, attempt: AttemptId) -> Work<bool> {
    let found = tx.first(
        "SELECT 1 FROM waiters WHERE attempt = ?1 AND session = ?2",
        (Id(attempt.0), session),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Holders are compared by the grant rule; permits that only wait here (L15).
fn refuse_other_limit(tx: &Tx<'_>, lock: &Lock, limit: u32) -> Work<()> {
    let (namespace, kind, name) = lock.columns()?;
    let other = tx.first(
        "SELECT mode FROM waiters WHERE namespace = ?1 AND kind = ?2 AND name = ?3 AND mode > 0 AND mode <> ?4 \
         LIMIT 1",
        (namespace, kind, name, limit),
        |row| row.get::<_, Mode>(0),
    )?;
    if let Some(Mode(other)) = other {
        admits(LockMode::Permit { limit }, [other])?;
    }
    Ok(())
}

/// Hands on every lock that may have become free, until nothing changes any more. A dead waiter met on the way is
/// cleared away, which may free further locks: they are added and taken in turn, without recursion.
pub(crate) fn settle(tx: &mut Tx<'_>) -> Work<()> {
    while let Some(lock) = tx.unsettled.pop() {
        match hand_on(tx, &lock) {
            // Whoever asks for that lock is told. It must not keep others from being handed on, or its holder from
            // ending; those who wait look again every second.
            Err(fail) if fail.is_unreadable() => {
                tracing::warn!(key = %lock.key, ?fail, "a lock cannot be handed on");
            }
            answer => answer?,
        }
    }
    Ok(())
}

/// Whether the lock's first waiter could have it: then it should have been handed on.
pub(crate) fn is_overdue(tx: &Tx<'_>, lock: &Lock) -> Work<bool> {
    let Some(waiter) = first_waiter(tx, lock)? else { return Ok(false) };
    let holders = holders_of(tx, lock)?;
    Ok(admits(waiter.mode, holders.iter().map(|held| held.mode))
        .is_ok_and(|admission| admission == Admission::Yes))
}

/// Grants to the first waiters, in order, as long as they are admitted: one writer, or all readers up to the next.
/// INVARIANT: what cannot be read is met before anything is changed, or between two waiters.
fn hand_on(tx: &mut Tx<'_>, lock: &Lock) -> Work<()> {
    while let Some(waiter) = first_waiter(tx, lock)? {
        let holders = holders_of(tx, lock)?;
        // Permits of another limit wait until those in use are returned.
        let admission = admits(waiter.mode, holders.iter().map(|held| held.mode)).unwrap_or(Admission::No);
        if admission == Admission::No {
            // It may be the first only now, and then has to listen for the holders' ends.
            if tx.local(waiter.session).is_none() {
                ring(tx, waiter.session)?;
            } else if holders.iter().any(|held| tx.local(held.session).is_none()) {
                tx.effect(Effect::LookAhead);
            }
            break;
        }
        // The lock is never given to a session that is dead: looked at now, whatever was seen before.
        let alive = match tx.local(waiter.session) {
            Some(local) if !local.is_over() => true,
            _ => !reaper::reap(tx, waiter.session)?,
        };
        let granted =
            if alive { Some(grant(tx, lock, waiter.session, waiter.attempt, waiter.mode)?) } else { None };
        // By number too: a row of a session without a row cannot stand, but it must not make this endless.
        tx.run("DELETE FROM waiters WHERE place = ?1", [waiter.place])?;
        let Some(grant) = granted else { continue };
        if tx.local(waiter.session).is_some() {
            tx.effect(Effect::Granted(waiter.session, grant));
        } else {
            log::log(tx, &Event::Granted(waiter.session, waiter.attempt))?;
            ring(tx, waiter.session)?;
        }
    }
    Ok(())
}

/// Wakes the process of a session, after the commit.
fn ring(tx: &mut Tx<'_>, session: i64) -> Work<()> {
    let bell =
        tx.first("SELECT bell FROM sessions WHERE seq = ?1", [session], |row| row.get::<_, Option<Id>>(0))?;
    if let Some(bell) = bell.flatten() {
        tx.effect(Effect::Ring(bell.0));
    }
    Ok(())
}

fn remove_holder(tx: &mut Tx<'_>, session: i64, lock: &Lock, attempt: AttemptId) -> Work<Option<Previous>> {
    let (namespace, kind, name) = lock.columns()?;
    let told = tx.first(
        "DELETE FROM holders WHERE namespace = ?1 AND kind = ?2 AND name = ?3 AND attempt = ?4 AND session = ?5 \
         RETURNING previous",
        (namespace, kind, name, Id(attempt.0), session),
        // Giving back what is ours does not fail because somebody damaged what stands beside it.
        |row| Ok(row.get::<_, i64>(0).unwrap_or_default()),
    )?;
    if told.is_some() {
        holders_changed(tx, lock)?;
        tx.unsettled.push(lock.clone());
    }
    Ok(told.map(number_to_previous))
}

/// Gives a grant back, compared on attempt and session.
pub(crate) fn release(
    tx: &mut Tx<'_>,
    session: i64,
    lock: &Lock,
    attempt: AttemptId,
    end: End,
) -> Work<Released> {
    tx.effect(Effect::Forgotten(session, attempt));
    match remove_holder(tx, session, lock, attempt)? {
        Some(told) => {
            ended(tx, lock, told, end)?;
            Ok(Released::Released)
        }
        None => Ok(Released::WasNotHolder),
    }
}

/// The attempt neither holds nor waits afterwards. A grant that nobody used leaves the mark: its reader has not
/// seen how the holder before it ended.
pub(crate) fn withdraw(tx: &mut Tx<'_>, session: i64, lock: &Lock, attempt: AttemptId) -> Work<()> {
    tx.effect(Effect::Forgotten(session, attempt));
    let gone = tx.run("DELETE FROM waiters WHERE attempt = ?1 AND session = ?2", (Id(attempt.0), session))?;
    if gone > 0 {
        tx.unsettled.push(lock.clone()); // it may have stood before others that fit
    }
    remove_holder(tx, session, lock, attempt)?;
    Ok(())
}

/// What stands for an attempt whose outcome this process does not know; `None` while it waits.
pub(crate) fn outcome(tx: &Tx<'_>, session: i64, lock: &Lock, attempt: AttemptId) -> Work<Option<Turn>> {
    let held = holders_of(tx, lock)?;
    if let Some(held) = held.iter().find(|held| held.attempt == attempt && held.session == session) {
        let previous = number_to_previous(held.previous);
        let grant = Grant::new(attempt, lock.key.clone(), held.mode, token(held.token)?, previous);
        return Ok(Some(Turn::Granted(grant)));
    }
    Ok(if is_waiting(tx, session, attempt)? { None } else { Some(Turn::Gone) })
}

/// The grant of an attempt, wherever it holds: for the events of other processes, which name only the attempt.
pub(crate) fn is_held(tx: &Tx<'_>, session: i64, lock: &Lock, attempt: AttemptId) -> Work<bool> {
    let (namespace, kind, name) = lock.columns()?;
    let found = tx.first(
        "SELECT 1 FROM holders WHERE namespace = ?1 AND kind = ?2 AND name = ?3 AND attempt = ?4 AND session = ?5",
        (namespace, kind, name, Id(attempt.0), session),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
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

struct Shown {
    session: i64,
    attempt: AttemptId,
    record: HolderRecord,
}

fn shown(tx: &Tx<'_>, lock: &Lock) -> Work<Vec<Shown>> {
    tx.all(
        "SELECT h.session, h.attempt, s.member, h.token, h.mode, h.since FROM holders h \
         JOIN sessions s ON s.seq = h.session \
         WHERE h.namespace = ?1 AND h.kind = ?2 AND h.name = ?3 ORDER BY h.token",
        lock.columns()?,
        |row: &Row<'_>| {
            let record = HolderRecord::new(
                MemberId::new(row.get::<_, Vec<u8>>(2)?).ok(),
                FencingToken::new(row.get(3)?),
                row.get::<_, Mode>(4)?.0,
                from_micros(row.get(5)?),
            );
            Ok(Shown { session: row.get(0)?, attempt: AttemptId(row.get::<_, Id>(1)?.0), record })
        },
    )
    .map_err(|fail| fail.about(&lock.key))
}

/// Who holds it and how many wait, without those that are dead.
pub(crate) fn holders(tx: &mut Tx<'_>, lock: &Lock) -> Work<Holders> {
    let mut holders = Vec::new();
    for shown in shown(tx, lock)? {
        if !reaper::is_dead(tx, shown.session)? {
            holders.push(shown.record);
        }
    }
    let waiters = tx.first(
        "SELECT count(*) FROM waiters WHERE namespace = ?1 AND kind = ?2 AND name = ?3",
        lock.columns()?,
        |row| row.get::<_, u64>(0),
    )?;
    Ok(Holders::new(holders, waiters))
}

/// Frees the lock, leaves a record for the victims, and hands on.
pub(crate) fn break_lock(tx: &mut Tx<'_>, lock: &Lock, request: &BreakRequest) -> Work<Vec<HolderRecord>> {
    let now = tx.wall();
    let mut broken = Vec::new();
    for Shown { session, attempt, record } in shown(tx, lock)? {
        let Some(token) = record.token else { continue };
        if request.token.is_some_and(|only| only != token) {
            continue;
        }
        tx.run("DELETE FROM breaks WHERE at < ?1", [now.saturating_sub(BREAKS_KEPT_MICROS)])?;
        tx.run(
            "INSERT OR REPLACE INTO breaks (attempt, token, by, why, at) VALUES (?1, ?2, ?3, ?4, ?5)",
            (Id(attempt.0), token.get(), request.by.as_bytes(), &request.why, now),
        )?;
        remove_holder(tx, session, lock, attempt)?;
        mark(tx, lock, Previous::Broken)?;
        if tx.local(session).is_some() {
            tx.effect(Effect::Broken(session, attempt));
        } else {
            log::log(tx, &Event::Broken(session, attempt))?;
            ring(tx, session)?;
        }
        broken.push(record);
    }
    Ok(broken)
}
