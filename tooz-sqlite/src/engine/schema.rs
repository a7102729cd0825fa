//! Opening the database: its identity, its schema and the files beside it.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::renameat;
use nix::libc;
use nix::unistd::{UnlinkatFlags, unlinkat};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, TransactionBehavior};
use tooz_core::clock::{Clock, Instant};
use tooz_core::driver::{Epoch, SessionId, earlier_layout_in_use, later_layout};
use tooz_core::entropy::Entropy;
use tooz_core::{Error, ErrorKind, MemberId, Result};

use crate::engine::fence;
use crate::engine::paths::Place;
use crate::engine::presence::{self, First, Last};
use crate::engine::session_file::{self, Look};
use crate::engine::tx::Site;
use crate::error::{self, native};
use crate::host::kernel::{self, FileId, Process};
use crate::host::ownership;
use crate::keys::Id;

/// "tooz" in ASCII; the database says whose it is.
const APPLICATION: i32 = 0x746f_6f7a;
/// Statements that are kept prepared: all of this crate's.
const STATEMENTS: usize = 128;
/// The byte of the shared-memory file on which a writer has its lock (`WAL_WRITE_LOCK`, "The WAL-Index File
/// Format" in SQLite's documentation), and that of recovery.
const WRITE_LOCK: libc::off_t = 120;
const RECOVERY_LOCK: libc::off_t = 122;
/// Jittered waits for another writer: SQLite's own back-off grows to 100 ms and was measured to starve a process
/// for 330 ms.
pub(crate) const BUSY_LOW: Duration = Duration::from_micros(50);
pub(crate) const BUSY_HIGH: Duration = Duration::from_micros(250);
/// After this many waits they grow, doubling with as many again: somebody's transaction takes about as long, so by
/// then several others are waiting, too, and asking more often would only take the processor from the writer.
const BUSY_STEADY: u32 = 4;
/// The longest wait. Some two hundred waiting writers then ask every 50 µs between them, so the write lock is not
/// left unused for longer than a transaction takes.
const BUSY_MOST: Duration = Duration::from_millis(16);

/// How this thread's connection waits for another writer.
#[derive(Debug)]
struct Patience {
    clock: Clock,
    entropy: Entropy,
    until: Instant,
    /// How often it has waited since it last wrote.
    waits: u32,
}

thread_local! {
    /// In the thread, since the handler of the oldest rusqlite that we build with is a plain function.
    static PATIENCE: RefCell<Option<Patience>> = const { RefCell::new(None) };
}

/// An open database, the only one of the thread that opened it, and of use to no other.
#[derive(Debug)]
pub(crate) struct Database {
    /// INVARIANT: the first field.
    _first: First,
    pub(crate) connection: Connection,
    pub(crate) file: FileId,
    /// For asking who has the write lock. INVARIANT: closed after the connection (fields are dropped in order):
    /// closing it earlier would drop SQLite's locks on the same file.
    shared_memory: File,
    full: bool,
    /// INVARIANT: it stays on its thread, where its patience is.
    stays: PhantomData<*const ()>,
    /// INVARIANT: the last field.
    _last: Last,
}

impl Database {
    /// Opens it, creating what is missing.
    pub(crate) fn open(place: &Place, site: &Site, deadline: Instant) -> Result<Self> {
        loop {
            match Self::try_open(place, site, deadline) {
                // Some steps (switching to the log, recovery) answer busy without asking the busy handler.
                Err(error) if is_busy(&error) && site.clock.now() < deadline => {
                    std::thread::park_timeout(site.entropy.between(BUSY_LOW, BUSY_HIGH));
                }
                outcome => return outcome,
            }
        }
    }

    fn try_open(place: &Place, site: &Site, deadline: Instant) -> Result<Self> {
        let opening = presence::enter(&place.database);
        let file = place.prepare()?.file;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX // one thread only
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut connection = Connection::open_with_flags(&place.database, flags).map_err(native)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        // Else SQLite, built with STAT4 as rusqlite's is, plans a kept statement anew whenever its parameters
        // change (seen in 3.54): several times the cost of running it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(native)?;
        PATIENCE.set(Some(Patience {
            clock: site.clock.clone(),
            entropy: site.entropy.clone(),
            until: deadline,
            waits: 0,
        }));
        connection.busy_handler(Some(wait_for_writer as fn(i32) -> bool)).map_err(native)?;
        if connection.is_readonly("main").map_err(native)? {
            return Err(Error::new(
                ErrorKind::Denied,
                format!("{} is read-only; give write permission", place.database.display()),
            ));
        }
        prepare(&mut connection, place, site, file)?;
        let shm = place.beside("-shm");
        let shared_memory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&shm)
            .map_err(|error| error::io(format!("{}", shm.display()), error))?;
        let (first, last) = opening.done();
        Ok(Self {
            _first: first,
            connection,
            file,
            shared_memory,
            full: true,
            stays: PhantomData,
            _last: last,
        })
    }

    /// Sets until when the next statements wait for another writer.
    pub(crate) fn wait_until(&self, deadline: Instant) {
        self.change_patience(|patience| patience.until = deadline);
    }

    /// The write lock was had: the next wait is for somebody else.
    pub(crate) fn had_its_turn(&self) {
        self.change_patience(|patience| patience.waits = 0);
    }

    // With `self`, although it needs nothing of it: who has it is on its thread.
    #[allow(clippy::unused_self)]
    fn change_patience(&self, change: impl FnOnce(&mut Patience)) {
        PATIENCE.with_borrow_mut(|patience| patience.as_mut().map(change));
    }

    /// Sets whether commits are synced. SQLite ignores it inside a transaction.
    pub(crate) fn set_full(&mut self, full: bool) -> rusqlite::Result<()> {
        if self.full != full {
            debug_assert!(self.connection.is_autocommit());
            self.connection.pragma_update(None, "synchronous", if full { "FULL" } else { "NORMAL" })?;
            self.full = full;
        }
        Ok(())
    }

    /// A number that changes with other connections' commits only.
    pub(crate) fn version(&self) -> rusqlite::Result<i64> {
        self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
    }

    /// Whether another process writes; with its pid, which is 0 if it lies in another pid namespace.
    pub(crate) fn writer(&self) -> Option<i32> {
        kernel::posix_lock_holder(&self.shared_memory, WRITE_LOCK)
            .or_else(|| kernel::posix_lock_holder(&self.shared_memory, RECOVERY_LOCK))
    }
}

/// Whether another process had the database for itself.
pub(crate) fn is_busy(error: &Error) -> bool {
    use std::error::Error as _;
    error.source().and_then(|source| source.downcast_ref()).is_some_and(error::is_busy)
}

/// SQLite's busy handler: waits a moment for another writer, and says whether to ask again.
fn wait_for_writer(_: i32) -> bool {
    let wait = PATIENCE.with_borrow_mut(|patience| {
        let patience = patience.as_mut()?;
        patience.waits = patience.waits.saturating_add(1);
        let left = patience.until.saturating_since(patience.clock.now());
        let most = BUSY_HIGH.saturating_mul(1 << (patience.waits / BUSY_STEADY).min(16)).min(BUSY_MOST);
        (!left.is_zero()).then(|| patience.entropy.between(BUSY_LOW, most).min(left))
    });
    wait.map(std::thread::park_timeout).is_some()
}

/// The layout of a database; 0: it is a new one, without anything in it.
///
/// # Errors
/// `Incompatible`: it is a later one than `ours`. `Corrupt`: it is a database of another program.
pub(crate) fn check(connection: &Connection, shown: &dyn std::fmt::Display, ours: u32) -> Result<u32> {
    let layout = layout(connection)?;
    let application = number(connection, "application_id")?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(native)?;
    match (application, layout) {
        (0, 0) if tables == 0 => Ok(0),
        (APPLICATION, 1..) if layout <= ours => Ok(layout),
        (APPLICATION, later) if later > ours => Err(later_layout(shown, later, ours)),
        _ => Err(Error::new(
            ErrorKind::Corrupt,
            format!("{shown} is a database of another program; give another path"),
        )),
    }
}

/// Checks whose database it is before anything is changed, then brings it up to this version.
fn prepare(connection: &mut Connection, place: &Place, site: &Site, file: FileId) -> Result<()> {
    let shown = place.database.display();
    let check = |connection: &Connection| check(connection, &shown, site.layout);
    {
        // In one transaction: between two of its questions another process may create the schema.
        let seen = connection.unchecked_transaction().map_err(native)?;
        check(&seen)?;
        seen.commit().map_err(native)?;
    }
    let mode: String =
        connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).map_err(native)?;
    if mode != "wal" {
        let mode: String = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
            .map_err(native)?;
        if mode != "wal" {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{shown} cannot use a write-ahead log on this file system"),
            ));
        }
    }
    // FULL until the schema stands: its creation must survive a power cut as a whole.
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY")
        .map_err(native)?;
    place.make_sessions()?;
    // Without the write lock where nothing is to be done: many may start together.
    let known = connection.unchecked_transaction().map_err(native)?;
    if check(&known)? == site.layout && is_marked(place, epoch(&known, place)?)? {
        return known.commit().map_err(native);
    }
    drop(known);
    if site.adopt {
        adopt(connection, place, site)?;
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(native)?;
    // Again, now that nobody else changes it.
    let found = check(&transaction)?;
    let fresh = found == 0;
    if fresh {
        create(&transaction, site)?;
    }
    let epoch = epoch(&transaction, place)?;
    let ours = fresh || site.known == Some(file);
    if !ours && is_unmarked(place)? && !elsewhere(&transaction, site)?.is_empty() {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{shown} has sessions that may live, and {} does not know them: it is in use at another place, or was \
                 moved; mount the directory and not the file, or stop all its users and run `tooz doctor --adopt`",
                place.sessions().display()
            ),
        ));
    }
    if !fresh && found < site.layout {
        bring_up(&transaction, place, site, found)?;
    }
    belongs(place, epoch, fresh)?;
    transaction.commit().map_err(native)?;
    if fresh {
        place.sync_directory()?;
    }
    Ok(())
}

/// Brings a database of an earlier layout to this version's, inside the write transaction: the earlier version reads the
/// number in the transaction that opens a session.
fn bring_up(transaction: &Connection, place: &Place, site: &Site, found: u32) -> Result<()> {
    let living = sessions(transaction, site, |file| !matches!(file, Ok(Look::Free)))?;
    if let Some(seq) = living.first() {
        let member =
            transaction.query_row("SELECT member FROM sessions WHERE seq = ?1", [seq], |row| row.get(0));
        let member = MemberId::new(member.unwrap_or_else(|_| Vec::new()));
        let who = member.map_or_else(|_| "a session".to_owned(), |member| format!("member \"{member}\""));
        return Err(earlier_layout_in_use(&place.database.display(), found, site.layout, &who));
    }
    // A layout that changes the schema changes it here.
    transaction.pragma_update(None, "user_version", site.layout).map_err(native)
}

/// No session begins in another layout than its own version's.
pub(crate) fn check_layout(connection: &Connection, site: &Site) -> Result<()> {
    let (found, database) = (layout(connection)?, connection.path().unwrap_or("the database"));
    match found.cmp(&site.layout) {
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(later_layout(&database, found, site.layout)),
        Ordering::Less => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{database} was replaced by that of an earlier version; connect again"),
        )),
    }
}

fn layout(connection: &Connection) -> Result<u32> {
    // A negative number is no layout of ours.
    number(connection, "user_version").map(|number| u32::try_from(number).unwrap_or(0))
}

/// The sessions of this boot whose processes are not known to be gone and whose files are not here. Who has the database
/// alone, without the directory of sessions that its users have, would else become a second holder.
fn elsewhere(connection: &Connection, site: &Site) -> Result<Vec<i64>> {
    sessions(connection, site, |file| matches!(file, Ok(Look::Missing)))
}

/// The sessions of this boot whose processes are not known to be gone, and whose files are like this.
fn sessions(
    connection: &Connection,
    site: &Site,
    wanted: impl Fn(&std::io::Result<Look>) -> bool,
) -> Result<Vec<i64>> {
    let sql = "SELECT pid, started, pid_namespace, id, inode, seq FROM sessions WHERE boot_id = ?1";
    let is_wanted = |row: &Row<'_>| -> rusqlite::Result<bool> {
        let process = Process { pid: row.get(0)?, started: row.get(1)?, pid_namespace: row.get(2)? };
        let path = session_file::path_of(&site.sessions, SessionId(row.get::<_, Id>(3)?.0));
        let inode = row.get::<_, i64>(4)?.cast_unsigned();
        Ok(!process.is_gone(&site.process) && wanted(&session_file::look(&path, inode)))
    };
    let find = || -> rusqlite::Result<Vec<i64>> {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([&site.boot_id])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            // What somebody damaged says nothing against a life elsewhere.
            if is_wanted(row).unwrap_or(true) {
                found.push(row.get(5)?);
            }
        }
        Ok(found)
    };
    find().map_err(native)
}

/// Declares the sessions that are elsewhere to be of an earlier boot: then the place may be marked, and whoever opens
/// the database clears them away. Committed before the mark, so that a crash between the two leaves no session that
/// seems to live.
fn adopt(connection: &mut Connection, place: &Place, site: &Site) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(native)?;
    if (1..=site.layout).contains(&layout(&transaction)?) && is_unmarked(place)? {
        for session in elsewhere(&transaction, site)? {
            transaction
                .execute("UPDATE sessions SET boot_id = '' WHERE seq = ?1", [session])
                .map_err(native)?;
        }
    }
    transaction.commit().map_err(native)
}

fn number(connection: &Connection, pragma: &str) -> Result<i32> {
    connection.pragma_query_value(None, pragma, |row| row.get(0)).map_err(native)
}

fn epoch(connection: &Connection, place: &Place) -> Result<Epoch> {
    let epoch = connection
        .query_row("SELECT epoch FROM tooz", [], |row| row.get::<_, Id>(0))
        .optional()
        .map_err(native)?;
    epoch.map(|epoch| Epoch(epoch.0)).ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, format!("{} has no epoch; restore it", place.database.display()))
    })
}

fn create(transaction: &Connection, site: &Site) -> Result<()> {
    transaction.execute_batch(include_str!("schema.sql")).map_err(native)?;
    let first = fence::first(&site.clock);
    let filled = || -> rusqlite::Result<()> {
        transaction.execute("INSERT INTO tooz (one, epoch) VALUES (1, ?1)", [Id(site.entropy.id())])?;
        transaction.execute(
            "INSERT INTO fence (one, next, ceiling, boot_id) VALUES (1, ?1, ?2, ?3)",
            (first, first.saturating_add(fence::STEP), &site.boot_id),
        )?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", site.layout)
    };
    filled().map_err(native)
}

/// What the directory of sessions says about whose it is; empty if it says nothing.
fn mark(place: &Place) -> Result<String> {
    let path = place.sessions().join(session_file::EPOCH);
    let failed = |error| error::io(format!("{}", path.display()), error);
    let mut text = String::new();
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
        Ok(file) => {
            // Longer than an id is none.
            file.take(64).read_to_string(&mut text).map_err(failed)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(text)
}

/// Whether the directory of sessions is missing, or says of no database that it belongs to it.
pub(crate) fn is_unmarked(place: &Place) -> Result<bool> {
    Ok(mark(place)?.is_empty())
}

fn is_marked(place: &Place, epoch: Epoch) -> Result<bool> {
    Ok(Epoch::parse(mark(place)?.trim()) == Some(epoch))
}

/// The directory of sessions says to which database it belongs: with another one's, the living would be taken for
/// dead. Called inside the write transaction, so nobody else writes the file.
fn belongs(place: &Place, epoch: Epoch, fresh: bool) -> Result<()> {
    let directory = place.sessions();
    let path = directory.join(session_file::EPOCH);
    let failed = |error| error::io(format!("{}", path.display()), error);
    let text = mark(place)?;
    if Epoch::parse(text.trim()) == Some(epoch) {
        return Ok(());
    }
    // A database that was deleted leaves its directory behind; a new one may have it once nobody lives there.
    let abandoned = fresh && !session_file::any_locked(&directory).map_err(failed)?;
    if !text.is_empty() && !abandoned {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{} belongs to another database than {}; stop all users of both, then remove the directory",
                directory.display(),
                place.database.display()
            ),
        ));
    }
    write_mark(&directory, epoch, place.mode).map_err(failed)
}

fn write_mark(directory: &Path, epoch: Epoch, mode: u32) -> io::Result<()> {
    const TEMPORARY: &str = ".epoch-new";
    let directory = ownership::open_directory(directory)?;
    match unlinkat(&directory, TEMPORARY, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut file =
        ownership::create(&directory, TEMPORARY.as_ref(), ownership::Rights::within(&directory, mode)?)?;
    file.write_all(epoch.to_string().as_bytes())?;
    file.sync_all()?;
    Ok(renameat(&directory, TEMPORARY, &directory, session_file::EPOCH)?)
}
