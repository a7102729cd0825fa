//! The database's schema and identity: creating, checking and adopting it before the first use.

use std::cmp::Ordering;
use std::io::{self, Read, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::renameat;
use nix::unistd::{UnlinkatFlags, unlinkat};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior};
use tooz_core::driver::{Epoch, SessionId, earlier_layout_in_use, later_layout};
use tooz_core::{Error, ErrorKind, MemberId, Result};
use tooz_local::error::existing;
use tooz_local::fence::{STEP, first_token};
use tooz_local::file_id::{self, FileId};
use tooz_local::liveness::Look;
use tooz_local::ownership::{self, Rights};
use tooz_local::process::Process;

use crate::engine::paths::Paths;
use crate::engine::session_file;
use crate::engine::tx::Site;
use crate::error::{self, Work};
use crate::keys::Id;

/// "tooz" in ASCII, for the database to say which program it belongs to.
const APPLICATION: i32 = 0x746f_6f7a;

/// The layout of a database; 0: the database is new and has nothing in it.
///
/// # Errors
/// `Incompatible`: the layout is later than `ours`. `Corrupt`: the database belongs to another program.
pub(crate) fn check(connection: &Connection, shown: &dyn std::fmt::Display, ours: u32) -> Work<u32> {
    let layout = layout(connection)?;
    let application = number(connection, "application_id")?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (application, layout) {
        (0, 0) if tables == 0 => Ok(0),
        (APPLICATION, 1..) if layout <= ours => Ok(layout),
        (APPLICATION, later) if later > ours => Err(later_layout(shown, later, ours).into()),
        _ => {
            Err(error::corrupt(format!("{shown} is a database of another program; give another path")).into())
        }
    }
}

/// Checks which program the database belongs to before any change, then brings it up to this version.
pub(crate) fn prepare(connection: &mut Connection, paths: &Paths, site: &Site, file: FileId) -> Work<()> {
    let shown = paths.database.display();
    let check = |connection: &Connection| check(connection, &shown, site.layout);
    {
        // In one transaction: between two of its questions another process may create the schema.
        let seen = connection.unchecked_transaction()?;
        check(&seen)?;
        seen.commit()?;
    }
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if mode != "wal" {
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            let what = format!("{shown} cannot use a write-ahead log on this file system");
            return Err(Error::new(ErrorKind::Unsupported, what).into());
        }
    }
    // FULL until the schema exists: its creation must survive a power cut as a whole.
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY")?;
    paths.make_sessions()?;
    // Without the write lock where there is nothing to do: many processes may start together.
    let known = connection.unchecked_transaction()?;
    if check(&known)? == site.layout && is_marked(paths, read_epoch(&known, paths)?)? {
        return Ok(known.commit()?);
    }
    drop(known);
    if site.adopt {
        adopt(connection, paths, site)?;
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Again, now that no other process changes it.
    let found = check(&transaction)?;
    let fresh = found == 0;
    if fresh {
        create(&transaction, site)?;
    }
    let epoch = read_epoch(&transaction, paths)?;
    let ours = fresh || site.known == Some(file);
    if !ours && is_unmarked(paths)? && !find_elsewhere(&transaction, site)?.is_empty() {
        return Err(error::corrupt(format!(
            "{shown} has sessions that may live, but {} lacks them: it is in use elsewhere, or was moved; mount the \
             directory and not the file, or stop all its users and run `tooz doctor --adopt`",
            paths.sessions().display()
        ))
        .into());
    }
    if !fresh && found < site.layout {
        bring_up(&transaction, paths, site, found)?;
    }
    claim_directory(paths, epoch, fresh)?;
    transaction.commit()?;
    if fresh {
        paths.sync_directory()?;
    }
    Ok(())
}

/// Brings a database of an earlier layout to this version's, inside the write transaction. An earlier version reads the
/// layout in the transaction that opens a session.
fn bring_up(transaction: &Connection, paths: &Paths, site: &Site, found: u32) -> Work<()> {
    let living = sessions(transaction, site, |file| !matches!(file, Ok(Look::Free)))?;
    if let Some(seq) = living.first() {
        let member =
            transaction.query_row("SELECT member FROM sessions WHERE seq = ?1", [seq], |row| row.get(0));
        let member = MemberId::new(member.unwrap_or_else(|_| Vec::new()));
        let who = member.map_or_else(|_| "a session".to_owned(), |member| format!("member \"{member}\""));
        return Err(earlier_layout_in_use(&paths.database.display(), found, site.layout, &who).into());
    }
    // A layout that changes the schema changes it here.
    Ok(transaction.pragma_update(None, "user_version", site.layout)?)
}

/// Fails unless the layout is this version's: no session begins in another.
pub(crate) fn check_layout(connection: &Connection, site: &Site) -> Work<()> {
    let (found, database) = (layout(connection)?, connection.path().unwrap_or("the database"));
    match found.cmp(&site.layout) {
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(later_layout(&database, found, site.layout).into()),
        Ordering::Less => {
            let what = format!("{database} was replaced by that of an earlier version; connect again");
            Err(Error::new(ErrorKind::Unavailable, what).into())
        }
    }
}

fn layout(connection: &Connection) -> rusqlite::Result<u32> {
    // A negative number is no layout of ours.
    number(connection, "user_version").map(|number| u32::try_from(number).unwrap_or(0))
}

/// The sessions of this boot whose processes are not known to be gone and whose files are not here. Without this check, a
/// process that has the database alone, without its directory of sessions, would become a second holder.
fn find_elsewhere(connection: &Connection, site: &Site) -> rusqlite::Result<Vec<i64>> {
    sessions(connection, site, |file| matches!(file, Ok(Look::Missing)))
}

/// The sessions of this boot whose processes are not known to be gone, and whose files are like this.
fn sessions(
    connection: &Connection,
    site: &Site,
    wanted: impl Fn(&io::Result<Look>) -> bool,
) -> rusqlite::Result<Vec<i64>> {
    let sql = "SELECT pid, started, pid_namespace, id, inode, seq FROM sessions WHERE boot_id = ?1";
    let is_wanted = |row: &Row<'_>| -> rusqlite::Result<bool> {
        let process = Process { pid: row.get(0)?, started: row.get(1)?, pid_namespace: row.get(2)? };
        let path = session_file::path_of(&site.sessions, SessionId(row.get::<_, Id>(3)?.0));
        let inode = row.get::<_, i64>(4)?.cast_unsigned();
        Ok(!process.is_gone(&site.process) && wanted(&session_file::look(&path, inode)))
    };
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([&site.boot_id])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        // A damaged record says nothing against a life elsewhere.
        if is_wanted(row).unwrap_or(true) {
            found.push(row.get(5)?);
        }
    }
    Ok(found)
}

/// Declares the sessions that are elsewhere to be of an earlier boot. Then the directory may be marked, and the next process
/// to open the database clears them away. Committed before the mark, so that a crash between the two leaves no session
/// that seems to live.
fn adopt(connection: &mut Connection, paths: &Paths, site: &Site) -> Work<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if (1..=site.layout).contains(&layout(&transaction)?) && is_unmarked(paths)? {
        for session in find_elsewhere(&transaction, site)? {
            transaction.execute("UPDATE sessions SET boot_id = '' WHERE seq = ?1", [session])?;
        }
    }
    Ok(transaction.commit()?)
}

fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, pragma, |row| row.get(0))
}

fn read_epoch(connection: &Connection, paths: &Paths) -> Work<Epoch> {
    let epoch = connection.query_row("SELECT epoch FROM tooz", [], |row| row.get::<_, Id>(0)).optional()?;
    let missing = || error::corrupt(format!("{} has no epoch; restore it", paths.database.display()));
    Ok(Epoch(epoch.ok_or_else(missing)?.0))
}

fn create(transaction: &Connection, site: &Site) -> rusqlite::Result<()> {
    transaction.execute_batch(include_str!("schema.sql"))?;
    let first = first_token(site.context.clock.wall(), 0);
    transaction.execute("INSERT INTO tooz (one, epoch) VALUES (1, ?1)", [Id(site.context.entropy.id())])?;
    transaction.execute(
        "INSERT INTO fence (one, next, ceiling, boot_id) VALUES (1, ?1, ?2, ?3)",
        (first, first.saturating_add(STEP), &site.boot_id),
    )?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", site.layout)
}

/// The mark of the directory of sessions, which names its database; empty if there is none.
fn read_mark(paths: &Paths) -> Result<String> {
    let path = paths.sessions().join(session_file::EPOCH);
    let failed = |error| error::io(path.display(), error);
    let mut text = String::new();
    if let Some(file) = existing(file_id::open(&path)).map_err(failed)? {
        // A text longer than an id is no id.
        file.take(64).read_to_string(&mut text).map_err(failed)?;
    }
    Ok(text)
}

/// Whether the directory of sessions is missing, or has no mark.
pub(crate) fn is_unmarked(paths: &Paths) -> Result<bool> {
    Ok(read_mark(paths)?.is_empty())
}

fn is_marked(paths: &Paths, epoch: Epoch) -> Result<bool> {
    Ok(Epoch::parse(read_mark(paths)?.trim()) == Some(epoch))
}

/// Marks the directory of sessions with the epoch of its database: with another database's directory, this process would take
/// live sessions for dead. Called inside the write transaction, so no other process writes the mark.
fn claim_directory(paths: &Paths, epoch: Epoch, fresh: bool) -> Result<()> {
    let directory = paths.sessions();
    let path = directory.join(session_file::EPOCH);
    let failed = |error| error::io(path.display(), error);
    let text = read_mark(paths)?;
    if Epoch::parse(text.trim()) == Some(epoch) {
        return Ok(());
    }
    // A deleted database leaves its directory behind. A new database may have it once no session there lives.
    let abandoned = fresh && !session_file::any_locked(&directory).map_err(failed)?;
    if !text.is_empty() && !abandoned {
        return Err(error::corrupt(format!(
            "{} belongs to another database than {}; stop all users of both, then remove the directory",
            directory.display(),
            paths.database.display()
        )));
    }
    write_mark(&directory, epoch, paths.mode).map_err(failed)
}

fn write_mark(directory: &Path, epoch: Epoch, mode: u32) -> io::Result<()> {
    const TEMPORARY: &str = ".epoch-new";
    let directory = ownership::open_directory(directory)?;
    match unlinkat(&directory, TEMPORARY, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut file = ownership::create(&directory, TEMPORARY.as_ref(), Rights::within(&directory, mode)?)?;
    file.write_all(epoch.to_string().as_bytes())?;
    file.sync_all()?;
    Ok(renameat(&directory, TEMPORARY, &directory, session_file::EPOCH)?)
}
