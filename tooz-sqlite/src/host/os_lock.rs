//! Locks on files.
//!
//! Session files use open-file-description locks. Such a lock belongs to the open file, also conflicts inside one process,
//! ends when the last copy of the descriptor is closed, and can be tested without being taken.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

#[allow(clippy::cast_possible_truncation)] // the constants of the C header are wider than its fields
fn region(kind: libc::c_int, start: libc::off_t, length: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// Takes the exclusive lock on an open file; `false` if another open file has it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    try_set(file, &region(libc::F_WRLCK, 0, 0))
}

/// SQLite's `SHARED_FIRST` and `SHARED_SIZE`: the bytes of a database on which its readers have a lock.
const READERS: (libc::off_t, libc::off_t) = (0x4000_0000 + 2, 510);

/// Locks a database as a reader, until the file is closed; `false` while another process has the database alone.
pub(crate) fn try_lock_as_reader(file: &File) -> io::Result<bool> {
    try_set(file, &region(libc::F_RDLCK, READERS.0, READERS.1))
}

fn try_set(file: &File, lock: &libc::flock) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(lock)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the file is locked. Takes no lock, and a file opened for reading will do.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    let mut lock = region(libc::F_WRLCK, 0, 0);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Another process's POSIX lock on one byte: its pid, 0 if it is not visible from our pid namespace.
pub(crate) fn posix_lock_holder(file: &File, byte: libc::off_t) -> Option<i32> {
    let mut lock = region(libc::F_WRLCK, byte, 1);
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).ok()?;
    (i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid.max(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_seen_through_a_descriptor_opened_for_reading() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let owner = File::create(&path).unwrap();
        let prober = File::open(&path).unwrap();
        assert!(!is_locked(&prober).unwrap());
        assert!(try_lock(&owner).unwrap());
        assert!(is_locked(&prober).unwrap());
        let other = File::options().write(true).open(&path).unwrap();
        assert!(!try_lock(&other).unwrap());
        drop(owner);
        assert!(!is_locked(&prober).unwrap() && try_lock(&other).unwrap());
    }
}
