//! Which databases this process has open for writing. A look at one of them (see [`view`](crate::read_only)) opens and closes files
//! of its own, and closing any descriptor of a file drops all POSIX locks that the process has on it. So a look and the opening
//! or closing of a database take turns.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

type Open = BTreeSet<PathBuf>;

static OPEN: RwLock<Open> = RwLock::new(Open::new());

thread_local! {
    /// From before the connection is closed until the last of its files is.
    static CLOSING: RefCell<Option<RwLockWriteGuard<'static, Open>>> = const { RefCell::new(None) };
}

fn alone() -> RwLockWriteGuard<'static, Open> {
    OPEN.write().unwrap_or_else(PoisonError::into_inner)
}

/// A database that is being opened.
#[derive(Debug)]
pub(crate) struct Opening(PathBuf);

/// Stands first in what holds an open database: from its drop on no look is under way.
#[derive(Debug)]
pub(crate) struct First(());

/// Stands last: it is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Last(PathBuf);

/// Once no look is under way.
pub(crate) fn enter(database: &Path) -> Opening {
    alone().insert(database.to_owned());
    Opening(database.to_owned())
}

impl Opening {
    /// It is open.
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

/// As long as it is kept no database is opened or closed by this process.
pub(crate) struct Look(RwLockReadGuard<'static, Open>);

pub(crate) fn look() -> Look {
    Look(OPEN.read().unwrap_or_else(PoisonError::into_inner))
}

impl Look {
    /// Whether this process has it open.
    pub(crate) fn has(&self, database: &Path) -> bool {
        self.0.contains(database)
    }
}
