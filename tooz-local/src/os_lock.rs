//! Locks of the operating system on open files.
//!
//! An open-file-description lock belongs to the open file. It conflicts inside one process too, and with the POSIX record
//! locks of other programs, such as Python's and SQLite's. It goes when the last copy of the descriptor is closed, and can
//! be tested without being taken.
//!
//! [`Flavor::Portable`] uses the standard library's file locks instead. On Linux, the only system that this crate
//! builds on, these are flock(2) locks. POSIX record locks do not see them, so locks are not shared with Python.

use std::fs::{File, TryLockError};
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// How a file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// By one open file.
    Alone,
    /// By any number of open files that all hold it so.
    Together,
}

/// What is in the way of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InTheWay {
    /// A process that uses record locks, as Python does; 0 where it is not visible from our pid namespace.
    Process(u32),
    /// An open file, which names no process.
    OpenFile,
}

/// Which locks of the operating system are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavor {
    /// Open-file-description locks: they exclude Python.
    OpenFile,
    /// The standard library's file locks: they do not exclude Python.
    Portable,
}

/// Bytes of a file: where they begin, and how many. They need not exist.
pub type Range = (libc::off_t, libc::off_t);

/// The length 0 goes to the end of the file, wherever that is.
const WHOLE_FILE: Range = (0, 0);

#[allow(clippy::cast_possible_truncation)] // the constants of the C header are wider than its fields
fn region(kind: libc::c_int, (l_start, l_len): Range) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start, l_len, l_pid: 0 }
}

fn kind(hold: Hold) -> libc::c_int {
    match hold {
        Hold::Alone => libc::F_WRLCK,
        Hold::Together => libc::F_RDLCK,
    }
}

impl Flavor {
    /// Takes a lock on an open file; `false` if another open file or process is in the way.
    pub fn try_lock(self, file: &File, hold: Hold) -> io::Result<bool> {
        if self == Self::Portable {
            return try_lock_portably(file, hold);
        }
        try_lock_range(file, hold, WHOLE_FILE)
    }

    /// Unlocks without closing the file, which makes no event.
    pub fn unlock(self, file: &File) -> io::Result<()> {
        if self == Self::Portable {
            return file.unlock();
        }
        fcntl(file, FcntlArg::F_OFD_SETLK(&region(libc::F_UNLCK, WHOLE_FILE)))?;
        Ok(())
    }

    /// Whether anything is in the way of a lock that is held alone; see [`Flavor::in_the_way`].
    pub fn is_locked(self, file: &File) -> io::Result<bool> {
        self.in_the_way(file, Hold::Alone).map(|found| found.is_some())
    }

    /// What would be in the way; takes nothing, and a file opened for reading suffices.
    pub fn in_the_way(self, file: &File, hold: Hold) -> io::Result<Option<InTheWay>> {
        if self == Self::Portable {
            return Ok(is_locked_portably(file)?.then_some(InTheWay::OpenFile));
        }
        let mut lock = region(kind(hold), WHOLE_FILE);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        if i32::from(lock.l_type) == libc::F_UNLCK {
            return Ok(None);
        }
        // The kernel writes -1 for a lock of an open file.
        Ok(Some(u32::try_from(lock.l_pid).map_or(InTheWay::OpenFile, InTheWay::Process)))
    }
}

/// Takes an open-file-description lock on some bytes of an open file, until the file is closed; `false` if another open file
/// or process is in the way.
pub fn try_lock_range(file: &File, hold: Hold, range: Range) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&region(kind(hold), range))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Another process's POSIX record lock on one byte: its pid, 0 if the process is not visible from our pid namespace.
pub fn posix_lock_holder(file: &File, byte: libc::off_t) -> Option<i32> {
    let mut lock = region(libc::F_WRLCK, (byte, 1));
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).ok()?;
    (i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid.max(0))
}

fn try_lock_portably(file: &File, hold: Hold) -> io::Result<bool> {
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

/// The standard library has no test that takes nothing: this holds the lock shared for a moment. A process that locks
/// a dead session's file exclusively in that moment finds it locked and tries again later.
fn is_locked_portably(file: &File) -> io::Result<bool> {
    if try_lock_portably(file, Hold::Together)? {
        file.unlock()?;
        return Ok(false);
    }
    Ok(true)
}

/// How often a lock that is only ever held for microseconds is tried before something else is done meanwhile.
const TRIES: usize = 40;
/// As many of these tries follow each other at once: one takes less than a µs.
const AT_ONCE: usize = 16;
/// The pause before each of the others lets the holder run if it has no processor. `sched_yield` would do so, too, but
/// beside a busy process it gives a whole time slice away.
const PAUSE: Duration = Duration::from_micros(20);

/// Not `park_timeout`: the thread may be another executor's, and parking would swallow the wake-up it waits for.
#[allow(clippy::disallowed_methods)] // the kernel makes no event when a lock becomes free
fn pause() {
    std::thread::sleep(PAUSE);
}

/// Tries for a moment to take a lock; `false` if it was free at no try.
pub fn spin(mut attempt: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    for tried in 1..=TRIES {
        if attempt()? {
            return Ok(true);
        }
        if tried < AT_ONCE {
            std::hint::spin_loop();
        } else if tried < TRIES {
            pause();
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_flavors_exclude_and_can_be_looked_at_by_readers() {
        for flavor in [Flavor::OpenFile, Flavor::Portable] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            let owner = File::create(&path).unwrap();
            let prober = File::open(&path).unwrap();
            assert_eq!(flavor.in_the_way(&prober, Hold::Alone).unwrap(), None, "{flavor:?}");
            assert!(flavor.try_lock(&owner, Hold::Alone).unwrap());
            assert_eq!(flavor.in_the_way(&prober, Hold::Alone).unwrap(), Some(InTheWay::OpenFile));
            let other = File::options().read(true).write(true).open(&path).unwrap();
            assert!(!flavor.try_lock(&other, Hold::Alone).unwrap());
            assert!(!flavor.try_lock(&other, Hold::Together).unwrap());
            flavor.unlock(&owner).unwrap();
            assert!(flavor.try_lock(&other, Hold::Together).unwrap());
            drop(other);
            assert!(!flavor.is_locked(&prober).unwrap() && flavor.try_lock(&owner, Hold::Alone).unwrap());
        }
    }

    #[test]
    fn a_range_is_locked_beside_other_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let (one, other) = (open(), open());
        assert!(try_lock_range(&one, Hold::Alone, (10, 5)).unwrap());
        assert!(!try_lock_range(&other, Hold::Together, (14, 1)).unwrap());
        assert!(try_lock_range(&other, Hold::Alone, (15, 1)).unwrap());
        assert!(!try_lock_range(&one, Hold::Alone, WHOLE_FILE).unwrap());
        drop(one);
        assert!(try_lock_range(&other, Hold::Alone, (10, 5)).unwrap());
    }
}
