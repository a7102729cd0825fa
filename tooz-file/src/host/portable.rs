//! `?backend=portable`: the standard library's file locks and polling, for systems without open-file-description
//! locks and inotify. It can be chosen on Linux too, so that it is tested.
//!
//! On Linux these are flock(2) locks, which Python's record locks do not see: locks are not shared with Python.

use std::fs::{File, TryLockError};
use std::io;
use std::time::Duration;

use crate::host::kernel::Hold;

/// How often a waiter looks when nobody tells it, at random between these: a tenth of a second after a release is
/// felt by people, and below 5 ms a hundred waiters would do nothing but look.
pub(crate) const LOCK_POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));
/// How often a watcher of a group or of a leader looks when nobody tells it: each look reads the whole group.
pub(crate) const WATCH_POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(200));
/// How often a session looks for requests to break its locks when nobody tells it: several times in the second
/// that whoever breaks waits.
pub(crate) const SESSION_POLL: Duration = Duration::from_millis(200);

pub(crate) fn try_lock(file: &File, hold: Hold) -> io::Result<bool> {
    let answer = match hold {
        Hold::Alone => file.try_lock(),
        Hold::Together => file.try_lock_shared(),
    };
    match answer {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// There is no test that takes nothing: this holds the lock shared for a moment, so whoever claims a dead file
/// exclusively just then finds it locked and tries again later.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    if try_lock(file, Hold::Together)? {
        file.unlock()?;
        return Ok(false);
    }
    Ok(true)
}
