//! The databases that this process has open for writing.
//!
//! A look without a session (see [`read_only`](crate::read_only)) opens and closes files of its own. Closing any descriptor of a
//! file drops all POSIX locks that the process has on the file. So a look and the opening or closing of a database take turns.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) type Open = BTreeSet<PathBuf>;

static OPEN: RwLock<Open> = RwLock::new(Open::new());

thread_local! {
    /// Held from before the connection is closed until the last of its files is closed.
    static CLOSING: RefCell<Option<RwLockWriteGuard<'static, Open>>> = const { RefCell::new(None) };
}

fn alone() -> RwLockWriteGuard<'static, Open> {
    OPEN.write().unwrap_or_else(PoisonError::into_inner)
}

/// A database that is being opened.
#[derive(Debug)]
pub(crate) struct Opening(PathBuf);

/// The first field of an open database: from its drop on, no look is under way.
#[derive(Debug)]
pub(crate) struct First(());

/// The last field: when it is dropped, the database is closed.
#[derive(Debug)]
pub(crate) struct Last(PathBuf);

/// Announces a database, once no look is under way.
pub(crate) fn enter(database: &Path) -> Opening {
    alone().insert(database.to_owned());
    Opening(database.to_owned())
}

impl Opening {
    /// The database is open.
    pub(crate) fn done(mut self) -> (First, Last) {
        (First(()), Last(std::mem::take(&mut self.0)))
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            alone().remove(&self.0);
        }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        CLOSING.set(Some(alone()));
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        let mut open = CLOSING.take().unwrap_or_else(alone);
        open.remove(&self.0);
    }
}

/// As long as the guard lives, this process opens or closes no database. The guard names the open ones.
pub(crate) fn look() -> RwLockReadGuard<'static, Open> {
    OPEN.read().unwrap_or_else(PoisonError::into_inner)
}
