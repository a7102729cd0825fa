//! Whether a session is alive, by the rule of [`tooz_local::liveness`], and clearing away a dead one.

use rusqlite::Row;
use tooz_core::LossReason;
use tooz_core::driver::{End, SessionId};
use tooz_local::file_id::FileId;
use tooz_local::liveness;
use tooz_local::process::Process;

use crate::engine::lock_rows;
use crate::engine::log::{self, Event};
use crate::engine::session_file::{self, DeadFile};
use crate::engine::tx::{Effect, Site, Tx};
use crate::error::{self, Fail, Work};
use crate::keys::{Id, Lock, number_to_previous};

/// A session as it is recorded.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) seq: i64,
    pub(crate) id: SessionId,
    // A damaged column is `None`, and then says nothing against the session's life.
    inode: Option<u64>,
    process: Option<Process>,
    boot_id: Option<String>,
    pub(crate) wakeup: Option<u128>,
}

/// The columns that [`Recorded::read`] expects.
const COLUMNS: &str = "seq, id, inode, pid, started, pid_namespace, boot_id, bell";

impl Recorded {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: row.get(0)?,
            id: SessionId(row.get::<_, Id>(1)?.0),
            inode: row.get::<_, i64>(2).ok().map(i64::cast_unsigned),
            process: process(row).ok(),
            boot_id: row.get(6).ok(),
            wakeup: row.get::<_, Option<Id>>(7).ok().flatten().map(|id| id.0),
        })
    }

    /// Whether the session was recorded under another boot.
    fn is_of_another_boot(&self, site: &Site) -> bool {
        self.boot_id.as_ref().is_some_and(|boot_id| *boot_id != site.boot_id)
    }

    pub(crate) fn by_seq(tx: &Tx<'_>, seq: i64) -> Work<Option<Self>> {
        tx.first(&format!("SELECT {COLUMNS} FROM sessions WHERE seq = ?1"), [seq], Self::read)
    }

    pub(crate) fn by_id(tx: &Tx<'_>, id: SessionId) -> Work<Option<Self>> {
        tx.first(&format!("SELECT {COLUMNS} FROM sessions WHERE id = ?1"), [Id(id.0)], Self::read)
    }

    /// Every readable one.
    pub(crate) fn all(tx: &Tx<'_>) -> Work<Vec<Self>> {
        tx.readable(&format!("SELECT {COLUMNS} FROM sessions"), [], Self::read)
    }
}

/// The processes whose sessions hold locks, and how many each.
pub(crate) fn holding(tx: &Tx<'_>) -> Work<Vec<(Process, u64)>> {
    let sql = "SELECT 0, 0, 0, pid, started, pid_namespace, count(*) FROM sessions JOIN holders ON session = seq \
               GROUP BY pid, started, pid_namespace";
    tx.readable(sql, [], |row| Ok((process(row)?, row.get(6)?)))
}

fn process(row: &Row<'_>) -> rusqlite::Result<Process> {
    Ok(Process { pid: row.get(3)?, started: row.get(4)?, pid_namespace: row.get(5)? })
}

#[derive(Debug)]
enum Verdict {
    Alive,
    Dead(Option<DeadFile>),
}

/// Whether the recorded process is gone although the file is locked or missing: case (b).
fn process_is_gone(site: &Site, session: &Recorded) -> bool {
    session.process.as_ref().is_some_and(|process| process.is_gone(&site.process))
}

/// Whether a session looks dead. This look takes no lock.
pub(crate) fn looks_dead(site: &Site, session: &Recorded) -> bool {
    if session.is_of_another_boot(site) {
        return true;
    }
    let Some(inode) = session.inode else { return process_is_gone(site, session) };
    let path = session_file::path_of(&site.sessions, session.id);
    let look = session_file::look(&path, inode);
    liveness::is_dead(look, session.id, || process_is_gone(site, session))
}

/// Judges a session. Takes the lock of a dead one's file, so that only one process clears the session away.
fn judge(site: &Site, session: &Recorded) -> Verdict {
    if !looks_dead(site, session) {
        return Verdict::Alive;
    }
    let path = session_file::path_of(&site.sessions, session.id);
    match session_file::claim(&path, session.inode) {
        Ok(Some(file)) => Verdict::Dead(Some(file)),
        _ if session.is_of_another_boot(site) || process_is_gone(site, session) => Verdict::Dead(
            FileId::at(&path)
                .ok()
                .filter(|id| Some(id.inode) == session.inode)
                .map(|id| DeadFile::inherited(path, id)),
        ),
        // Another process took the file for a leftover; the thread looks at the session again later.
        Ok(None) => Verdict::Alive,
        Err(error) => {
            tracing::warn!(session = %session.id, %error, "a dead session's file cannot be locked");
            Verdict::Alive
        }
    }
}

/// Whether a session is dead, as far as a read may say. Leaves the dead for the thread to clear away.
pub(crate) fn is_dead(tx: &mut Tx<'_>, seq: i64) -> Work<bool> {
    let now = tx.site.context.clock.now();
    if let Some(own) = tx.own_session(seq) {
        return Ok(own.is_over());
    }
    if tx.probes.is_fresh(seq, now) {
        return Ok(false);
    }
    let dead = match Recorded::by_seq(tx, seq) {
        Ok(Some(session)) => looks_dead(tx.site, &session),
        Ok(None) => return Ok(true),
        // A session that cannot be examined is not dead.
        Err(fail) if fail.is_unreadable() => {
            tracing::warn!(seq, ?fail, "a session's record cannot be understood");
            return Ok(false);
        }
        Err(fail) => return Err(fail),
    };
    if dead {
        tx.effect(Effect::Suspect(seq));
    } else {
        tx.probes.alive(seq, now);
    }
    Ok(dead)
}

/// Ends a session of another process if it is dead; returns whether it is gone now. Relies on a recent look.
pub(crate) fn reap_stale(tx: &mut Tx<'_>, seq: i64) -> Work<bool> {
    if tx.probes.is_fresh(seq, tx.site.context.clock.now()) {
        return Ok(false);
    }
    reap(tx, seq)
}

/// Ends a session if it is dead; returns whether it is gone now.
pub(crate) fn reap(tx: &mut Tx<'_>, seq: i64) -> Work<bool> {
    let Some(session) = Recorded::by_seq(tx, seq)? else { return Ok(true) };
    if let Some(own) = tx.own_session(seq) {
        // This process knows its own sessions without asking the kernel.
        let is_over = own.is_over();
        if is_over {
            end(tx, &session, None)?;
        }
        return Ok(is_over);
    }
    match judge(tx.site, &session) {
        Verdict::Alive => {
            let now = tx.site.context.clock.now();
            tx.probes.alive(seq, now);
            Ok(false)
        }
        Verdict::Dead(file) => {
            tracing::debug!(session = %session.id, pid = session.process.as_ref().map(|process| process.pid), "a dead session is cleared away");
            end(tx, &session, None)?;
            if let Some(file) = file {
                tx.effect(Effect::Clear(file));
            }
            if let Some(id) = session.wakeup {
                tx.effect(Effect::RemoveWakeup(id));
            }
            Ok(true)
        }
    }
}

/// Other processes' sessions that look dead.
pub(crate) fn find_dead(tx: &mut Tx<'_>) -> Work<Vec<i64>> {
    let now = tx.site.context.clock.now();
    let mut dead = Vec::new();
    for session in Recorded::all(tx)? {
        match tx.own_session(session.seq) {
            Some(own) if !own.is_over() => {}
            None if !looks_dead(tx.site, &session) => tx.probes.alive(session.seq, now),
            _ => dead.push(session.seq),
        }
    }
    Ok(dead)
}

/// Deletes all records of a session, and the file of one of this process; another process is told. Its locks are handed on
/// when the job settles. `closed`: how its owner closed it; `None`: the owner died.
pub(crate) fn end(tx: &mut Tx<'_>, session: &Recorded, closed: Option<End>) -> Work<()> {
    let seq = session.seq;
    // One damaged record must not keep the others from being freed.
    let held = tx.readable(
        "SELECT namespace, kind, name, previous FROM holders WHERE session = ?1",
        [seq],
        |row| Ok((Lock::read(row)?, row.get::<_, i64>(3).unwrap_or_default())),
    )?;
    let sql = "SELECT DISTINCT namespace, kind, name FROM waiters WHERE session = ?1";
    let waited = tx.readable(sql, [seq], Lock::read)?;
    tx.run("DELETE FROM holders WHERE session = ?1", [seq])?;
    tx.run("DELETE FROM waiters WHERE session = ?1", [seq])?;
    for (lock, previous) in held {
        let Some(lock) = lock else { continue };
        let end = closed.unwrap_or(End::Unclean);
        lock_rows::record_end(tx, &lock, number_to_previous(previous), end)?;
        lock_rows::holders_changed(tx, &lock)?;
        tx.unsettled.push(lock);
    }
    tx.unsettled.extend(waited.into_iter().flatten());
    log::members_left(tx, seq, closed == Some(End::Clean))?;
    tx.run("DELETE FROM members WHERE session = ?1", [seq])?;
    tx.run("DELETE FROM claims WHERE session = ?1", [seq])?;
    match tx.run("DELETE FROM sessions WHERE seq = ?1", [seq]) {
        // SQLite does not find a damaged row whose key has another type. The record that such a row refers to stays, and
        // the rest is freed.
        Err(Fail::Sql(error)) if error::is_foreign_key(&error) => {
            tracing::warn!(session = %session.id, "a record of an ended session cannot be deleted; run PRAGMA integrity_check");
        }
        answer => drop(answer?),
    }
    tx.probes.doubt(seq);
    if let Some(own) = tx.own_session(seq) {
        let file = DeadFile::inherited(own.path.clone(), own.file);
        let reason = if closed.is_none() { LossReason::Vanished } else { LossReason::SessionClosed };
        tx.effect(Effect::Ended(seq, reason));
        tx.effect(Effect::Clear(file));
    } else if closed.is_none() && !session.is_of_another_boot(tx.site) {
        // The session looks dead; should it be alive after all, it has to know.
        log::append(tx, &Event::SessionEnded(seq))?;
        if let Some(id) = session.wakeup {
            tx.effect(Effect::Wake(id));
        }
    }
    Ok(())
}
