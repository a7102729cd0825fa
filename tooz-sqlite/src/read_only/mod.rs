//! Looking without a session: a database that is read and never written. The user may only have read permission, and the disk
//! may be full.
//!
//! Each look opens the database, reads in one transaction and closes it. So nothing stays open that could keep other processes
//! from removing the log, and a database that is deleted or comes later needs no care. A look takes turns with the
//! opening and closing of the database by this process ([`presence`]). A watch looks again and again, since a FIFO to wake it
//! would have to be written.
//!
//! SQLite creates a log where there is none, also for a reader. So a look locks the database as a reader does before it looks
//! for the log. Then the last writer to close the database leaves the log, and the changes in it, where they are.

pub(crate) mod driver;
mod groups;
mod holders;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rusqlite::{Connection, OpenFlags};
use tooz_core::driver::earlier_layout;
use tooz_core::{Characteristics, Error, ErrorKind, Result};
use tooz_local::file_id;
use tooz_local::os_lock::{Hold, Range, try_lock_range};

use crate::config::Config;
use crate::engine::database::{BUSY_HIGH, BUSY_LOW};
use crate::engine::paths::Paths;
use crate::engine::tx::{Probes, Site, Tx};
use crate::engine::{presence, schema};
use crate::error::{self, Fail, Work};

/// SQLite's `SHARED_FIRST` and `SHARED_SIZE`: the bytes of a database on which its readers have a lock.
const READERS: Range = (0x4000_0000 + 2, 510);

/// How often the watch of a group or a lock looks.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// How long a look waits for a process that recovers the log or closes the database as the last.
const BUSY: Duration = Duration::from_secs(5);

/// The database for looks.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) paths: Paths,
    pub(crate) site: Site,
    pub(crate) config: Config,
    pub(crate) characteristics: Characteristics,
    pub(crate) closed: AtomicBool,
}

/// The database as a URI with parameters for SQLite, for a database that no process changes meanwhile.
fn immutable(path: &Path) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'_').remove(b'-');
    format!("file:{}?immutable=1", percent_encode(path.as_os_str().as_bytes(), RESERVED))
}

impl Reader {
    /// Reads in one transaction; `None`: there is no database, or nothing in it.
    pub(crate) async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnMut(&mut Tx<'_>) -> Work<T> + Send + 'static,
    ) -> Result<Option<T>> {
        if self.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "connect a new view"));
        }
        let reader = Arc::clone(self);
        self.site.context.spawner.blocking(move || reader.look_here(work)).await?.map_err(Fail::into_error)
    }

    fn look_here<T>(&self, mut work: impl FnMut(&mut Tx<'_>) -> Work<T>) -> Work<Option<T>> {
        let missing =
            |path: &Path| path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if missing(&self.paths.database) {
            return Ok(None);
        }
        self.paths.check()?;
        let look = presence::look();
        if look.contains(&self.paths.database) {
            // The log stays as long as this process has the database open.
            return self.read(false, &mut work);
        }
        let reader = self.lock()?;
        let (log, shared_memory) = (self.paths.beside("-wal"), self.paths.beside("-shm"));
        let mut looked = None;
        if missing(&log) {
            // No process has the database open.
            looked = Some(self.read(true, &mut work));
        }
        // Otherwise a writer has opened the database meanwhile, and its changes are in the log.
        if !missing(&log) {
            if missing(&shared_memory) {
                let what = format!(
                    "{} is missing beside {}; connect once with a program that may write",
                    shared_memory.display(),
                    log.display()
                );
                return Err(Error::new(ErrorKind::Unavailable, what).into());
            }
            looked = Some(self.read(false, &mut work));
        }
        drop(reader);
        let replaced = || Err(Error::new(ErrorKind::Unavailable, "the log was replaced; try again").into());
        looked.unwrap_or_else(replaced)
    }

    /// Locks the database as a reader does. INVARIANT: this process has the database open in no other way than by looks, since
    /// closing the file drops all POSIX locks of the process on it.
    fn lock(&self) -> Result<File> {
        let path = &self.paths.database;
        let failed = |error| error::io(path.display(), error);
        let file = file_id::open(path).map_err(failed)?;
        let limit = self.site.context.clock.now() + BUSY.min(self.config.limits.operation_timeout);
        while !try_lock_range(&file, Hold::Together, READERS).map_err(failed)? {
            if self.site.context.clock.now() >= limit {
                let what =
                    format!("{} is being closed or recovered by another process; try again", path.display());
                return Err(Error::new(ErrorKind::Unavailable, what));
            }
            std::thread::park_timeout(self.site.context.entropy.between(BUSY_LOW, BUSY_HIGH));
        }
        Ok(file)
    }

    fn read<T>(&self, alone: bool, work: &mut impl FnMut(&mut Tx<'_>) -> Work<T>) -> Work<Option<T>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX // one thread only
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = if alone {
            let uri = immutable(&self.paths.database);
            Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)
        } else {
            Connection::open_with_flags(&self.paths.database, flags)
        };
        let connection = connection?;
        connection.busy_timeout(BUSY.min(self.config.limits.operation_timeout))?;
        let transaction = connection.unchecked_transaction()?;
        let (shown, ours) = (self.paths.database.display(), self.site.layout);
        match schema::check(&transaction, &shown, ours)? {
            0 => return Ok(None),
            earlier if earlier < ours => return Err(earlier_layout(&shown, earlier, ours).into()),
            _ => {}
        }
        let (own_sessions, mut probes) = (HashMap::new(), Probes::default());
        // Leaves out sessions that look dead, and leaves them for others to clear away.
        work(&mut Tx::new(&transaction, &self.site, &own_sessions, &mut probes)).map(Some)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_of_a_path_is_a_parameter() {
        let uri = immutable(Path::new("/a b/c?mode=rw#%25.db"));
        assert_eq!(uri, "file:/a%20b/c%3Fmode%3Drw%23%2525.db?immutable=1");
    }
}
