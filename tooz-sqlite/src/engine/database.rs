//! The open database: SQLite's connection, and how the connection waits for the writers of other processes.

use std::cell::RefCell;
use std::fs::File;
use std::marker::PhantomData;
use std::time::Duration;

use nix::libc;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tooz_core::driver::{Context, Instant};
use tooz_core::{Error, ErrorKind, Result};
use tooz_local::file_id::{self, FileId};
use tooz_local::os_lock::posix_lock_holder;

use crate::engine::paths::Paths;
use crate::engine::presence::{self, First, Last};
use crate::engine::schema;
use crate::engine::tx::Site;
use crate::error::{self, Fail, Work};

/// How many statements stay prepared: all of this crate's.
const STATEMENTS: usize = 128;
/// The byte of the shared-memory file on which a writer has its lock (`WAL_WRITE_LOCK`, "The WAL-Index File Format" in
/// SQLite's documentation), and the byte of recovery.
const WRITE_LOCK: libc::off_t = 120;
const RECOVERY_LOCK: libc::off_t = 122;
/// Jittered waits for another writer: SQLite's own back-off grows to 100 ms and was measured to starve a process
/// for 330 ms.
pub(crate) const BUSY_LOW: Duration = Duration::from_micros(50);
pub(crate) const BUSY_HIGH: Duration = Duration::from_micros(250);
/// After this many waits they grow, and double with as many again. One transaction takes about as long. So by then several
/// others are waiting, too, and asking more often would only take the processor from the writer.
const BUSY_STEADY: u32 = 4;
/// The longest wait. Some two hundred waiting writers then ask every 50 µs between them, so the write lock is not left
/// unused for longer than a transaction takes.
const BUSY_MOST: Duration = Duration::from_millis(16);

/// How this thread's connection waits for another writer.
#[derive(Debug)]
struct BusyWait {
    context: Context,
    until: Instant,
    /// How often the connection has waited since it last wrote.
    waits: u32,
}

thread_local! {
    /// Local to the thread, since the busy handler of the oldest rusqlite that we build with is a plain function.
    static BUSY_WAIT: RefCell<Option<BusyWait>> = const { RefCell::new(None) };
}

/// An open database, the only one of the thread that opened it, and of use to no other.
#[derive(Debug)]
pub(crate) struct Database {
    /// INVARIANT: the first field.
    _first: First,
    pub(crate) connection: Connection,
    pub(crate) file: FileId,
    /// For asking which process has the write lock. INVARIANT: closed after the connection (fields are dropped in order),
    /// since closing it earlier would drop SQLite's locks on the same file.
    shared_memory: File,
    full: bool,
    /// INVARIANT: the database stays on its thread, where its [`BusyWait`] is.
    stays: PhantomData<*const ()>,
    /// INVARIANT: the last field.
    _last: Last,
}

impl Database {
    /// Opens the database, creating what is missing.
    pub(crate) fn open(paths: &Paths, site: &Site, deadline: Instant) -> Result<Self> {
        loop {
            match Self::try_open(paths, site, deadline).map_err(Fail::into_error) {
                // Some steps (switching to the log, recovery) return busy without asking the busy handler.
                Err(error) if is_busy(&error) && site.context.clock.now() < deadline => {
                    std::thread::park_timeout(site.context.entropy.between(BUSY_LOW, BUSY_HIGH));
                }
                outcome => return outcome,
            }
        }
    }

    fn try_open(paths: &Paths, site: &Site, deadline: Instant) -> Work<Self> {
        let opening = presence::enter(&paths.database);
        let file = paths.prepare()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX // one thread only
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut connection = Connection::open_with_flags(&paths.database, flags)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        // Otherwise SQLite, built with STAT4 as rusqlite's is, plans a prepared statement anew whenever its parameters
        // change (seen in 3.54): several times the cost of running it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        let context = site.context.clone();
        BUSY_WAIT.set(Some(BusyWait { context, until: deadline, waits: 0 }));
        connection.busy_handler(Some(wait_for_writer as fn(i32) -> bool))?;
        if connection.is_readonly("main")? {
            let what = format!("{} is read-only; give write permission", paths.database.display());
            return Err(Error::new(ErrorKind::Denied, what).into());
        }
        schema::prepare(&mut connection, paths, site, file)?;
        let shm = paths.beside("-shm");
        let shared_memory = file_id::open(&shm).map_err(|error| error::io(shm.display(), error))?;
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
        self.change_wait(|wait| wait.until = deadline);
    }

    /// Forgets the waits so far: this process had the write lock, and the next wait is for another transaction.
    pub(crate) fn reset_wait(&self) {
        self.change_wait(|wait| wait.waits = 0);
    }

    // With `self`, although it uses no field: code that has the database is on its thread.
    #[allow(clippy::unused_self)]
    fn change_wait(&self, change: impl FnOnce(&mut BusyWait)) {
        BUSY_WAIT.with_borrow_mut(|wait| wait.as_mut().map(change));
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

    /// The pid of another process that writes; 0 if the process is in another pid namespace.
    pub(crate) fn writer(&self) -> Option<i32> {
        posix_lock_holder(&self.shared_memory, WRITE_LOCK)
            .or_else(|| posix_lock_holder(&self.shared_memory, RECOVERY_LOCK))
    }
}

/// Whether another process had the database alone.
pub(crate) fn is_busy(error: &Error) -> bool {
    use std::error::Error as _;
    error.source().and_then(|source| source.downcast_ref()).is_some_and(error::is_busy)
}

/// SQLite's busy handler: waits a moment for another writer, and says whether to ask again.
fn wait_for_writer(_: i32) -> bool {
    let wait = BUSY_WAIT.with_borrow_mut(|wait| {
        let wait = wait.as_mut()?;
        wait.waits = wait.waits.saturating_add(1);
        let left = wait.until.saturating_since(wait.context.clock.now());
        let most = BUSY_HIGH.saturating_mul(1 << (wait.waits / BUSY_STEADY).min(16)).min(BUSY_MOST);
        (!left.is_zero()).then(|| wait.context.entropy.between(BUSY_LOW, most).min(left))
    });
    wait.map(std::thread::park_timeout).is_some()
}
