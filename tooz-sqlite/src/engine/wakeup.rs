//! The FIFO of a process: how other processes wake exactly the process that a commit concerns, and how those behind it in a
//! queue learn of its death.
//!
//! The owner has the FIFO open for reading and writing. A byte written to it wakes the owner and no other process. The kernel
//! tells a process that has it open for reading when its last writer, the owner, is gone. FIFOs are not counted as inotify
//! instances are, so any number of processes can wait. The owner's lock on the FIFO says whether there is an owner: the
//! kernel does not report an end before the file was opened.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use tooz_local::error::existing;
use tooz_local::file_id::{self, FileId};
use tooz_local::os_lock::{Flavor, Hold};
use tooz_local::ownership::{self, Rights, STAGING};

/// The FIFOs' directory inside that of the sessions. Opening and closing FIFOs there wakes no process that listens to the
/// sessions.
pub(crate) const DIRECTORY: &str = ".bells";

/// This process's own FIFO.
#[derive(Debug)]
pub(crate) struct Wakeup {
    pub(crate) id: u128,
    path: PathBuf,
    /// The descriptor to wait on.
    pub(crate) file: File,
}

/// How often a FIFO that a cleaner took for a leftover is made anew.
const TRIES: usize = 8;

fn name_of(id: u128) -> String {
    format!("{id:032x}")
}

fn path_of(sessions: &Path, id: u128) -> PathBuf {
    sessions.join(DIRECTORY).join(name_of(id))
}

impl Wakeup {
    /// Makes a FIFO under a new random id.
    pub(crate) fn create(sessions: &Path, mode: u32, mut id: impl FnMut() -> u128) -> io::Result<Self> {
        let directory = ownership::open_directory(&sessions.join(DIRECTORY))?;
        let rights = Rights::within(&directory, mode)?;
        let mut tried = Err(io::Error::other("the FIFO was removed again and again while it was made"));
        for _ in 0..TRIES {
            let id = id();
            let path = path_of(sessions, id);
            let fifo = ownership::make_fifo(&directory, name_of(id).as_ref(), rights);
            tried = fifo.and_then(|file| lock(file, &path)).map(|file| Self { id, path, file });
            if tried.is_ok() {
                break;
            }
        }
        tried
    }

    /// Whether another process has written to it since the last call.
    pub(crate) fn was_woken(&self) -> bool {
        let mut woken = false;
        let mut bytes = [0; 256];
        while (&self.file).read(&mut bytes).is_ok_and(|read| read > 0) {
            woken = true;
        }
        woken
    }
}

impl Drop for Wakeup {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // else the next process to open the database removes it
    }
}

/// Takes a FIFO's lock; fails if another process has the lock, or the FIFO is no longer in place.
fn lock(file: File, path: &Path) -> io::Result<File> {
    if Flavor::OpenFile.try_lock(&file, Hold::Alone)? && FileId::at(path)? == FileId::of(&file)? {
        Ok(file)
    } else {
        Err(io::Error::other("the FIFO belongs to another process"))
    }
}

/// Wakes another process. Writing fails if the FIFO is full, and then its owner wakes already, or if its owner is gone.
pub(crate) fn wake(sessions: &Path, id: u128) {
    // Nothing here may wait for another process, or leave the directory.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let fifo = File::options().write(true).custom_flags(flags).open(path_of(sessions, id));
    if let Err(error) = fifo.and_then(|mut fifo| fifo.write_all(&[1])) {
        tracing::trace!(%error, "a process cannot be woken");
    }
}

/// Opens another process's FIFO to learn of the owner's end; `None` if there is no owner any more.
pub(crate) fn watch_owner(sessions: &Path, id: u128) -> io::Result<Option<File>> {
    let Some(file) = existing(file_id::open(&path_of(sessions, id)))? else { return Ok(None) };
    Ok(Flavor::OpenFile.is_locked(&file)?.then_some(file))
}

/// Removes a FIFO whose owner is gone.
pub(crate) fn remove_dead(sessions: &Path, id: u128) {
    let path = path_of(sessions, id);
    // Locked, so that no process can use the FIFO while it is removed.
    if watch_owner(sessions, id).is_ok_and(|owned| owned.is_none())
        && let Ok(_lock) = file_id::open_write(&path).and_then(|file| lock(file, &path))
    {
        let _ = fs::remove_file(path); // what stays is removed by the next who looks
    }
}

/// Removes FIFOs whose owners died before they had a session. `is_known` says which have one.
pub(crate) fn remove_strays(sessions: &Path, is_known: impl Fn(u128) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(sessions.join(DIRECTORY))? {
        let name = entry?.file_name();
        let text = name.to_str().unwrap_or_default();
        if text.strip_prefix(STAGING).is_some_and(|rest| rest.starts_with('-')) {
            // A process died while it made a FIFO. A process that is making one there makes it anew.
            let _ = fs::remove_dir_all(sessions.join(DIRECTORY).join(text));
        }
        let id = Some(text).filter(|name| name.len() == 32);
        if let Some(id) = id.and_then(|name| u128::from_str_radix(name, 16).ok())
            && !is_known(id)
        {
            remove_dead(sessions, id);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn told(file: &File, flags: PollFlags) -> PollFlags {
        let mut files = [PollFd::new(file.as_fd(), flags)];
        poll(&mut files, PollTimeout::ZERO).unwrap();
        files[0].revents().unwrap()
    }

    #[test]
    fn it_wakes_its_owner_and_tells_of_its_end() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(DIRECTORY)).unwrap();
        let wakeup = Wakeup::create(directory.path(), 0o600, || 7).unwrap();
        let listener = watch_owner(directory.path(), 7).unwrap().unwrap();
        assert!(!wakeup.was_woken());
        wake(directory.path(), 7);
        assert_eq!(told(&wakeup.file, PollFlags::POLLIN), PollFlags::POLLIN);
        assert_eq!(told(&listener, PollFlags::empty()), PollFlags::empty(), "the byte was not for it");
        assert!(wakeup.was_woken() && !wakeup.was_woken());
        remove_strays(directory.path(), |_| false).unwrap();
        assert!(path_of(directory.path(), 7).exists(), "it has an owner");
        drop(wakeup);
        assert_eq!(told(&listener, PollFlags::empty()), PollFlags::POLLHUP);
        assert!(watch_owner(directory.path(), 7).unwrap().is_none());
        wake(directory.path(), 7); // it wakes no process, and does not wait
    }

    #[test]
    fn the_fifo_of_a_dead_owner_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(DIRECTORY)).unwrap();
        let path = path_of(directory.path(), 7);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(watch_owner(directory.path(), 7).unwrap().is_none());
        remove_strays(directory.path(), |id| id == 7).unwrap();
        assert!(path.exists(), "its session will be cleared away");
        remove_strays(directory.path(), |_| false).unwrap();
        assert!(!path.exists());
    }
}
