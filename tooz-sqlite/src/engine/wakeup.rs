//! A process's bell: how others wake exactly the process that a commit concerns, and how those behind it hear of
//! its death.
//!
//! It is a FIFO of its owner, who has it open for reading and writing. A byte written to it wakes the owner and
//! nobody else, and whoever has it open for reading is told by the kernel when its last writer, the owner, is gone.
//! Unlike inotify instances FIFOs are not counted, so any number of processes can wait. The owner's lock on it says
//! whether there is an owner: an end that was there before the file was opened is not told.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::host::kernel::{self, FileId};
use crate::host::ownership::{self, Rights, STAGING};

/// Their directory in that of the sessions; opening and closing them there wakes none who listens to the latter.
pub(crate) const DIRECTORY: &str = ".bells";
/// Nothing here may wait for another process, or leave the directory.
const FLAGS: libc::c_int = libc::O_NONBLOCK | libc::O_NOFOLLOW;

/// Our own bell.
#[derive(Debug)]
pub(crate) struct Bell {
    pub(crate) id: u128,
    path: PathBuf,
    file: File,
}

/// How often a bell that a cleaner took for a leftover is made anew.
const TRIES: usize = 8;

fn name_of(id: u128) -> String {
    format!("{id:032x}")
}

fn path_of(sessions: &Path, id: u128) -> PathBuf {
    sessions.join(DIRECTORY).join(name_of(id))
}

impl Bell {
    /// Hangs up a bell under a new random id.
    pub(crate) fn hang(sessions: &Path, mode: u32, mut id: impl FnMut() -> u128) -> io::Result<Self> {
        let directory = ownership::open_directory(&sessions.join(DIRECTORY))?;
        let rights = Rights::within(&directory, mode)?;
        let mut tried = Err(io::Error::other("the bell was removed again and again while it was made"));
        for _ in 0..TRIES {
            let id = id();
            let path = path_of(sessions, id);
            let fifo = ownership::make_fifo(&directory, name_of(id).as_ref(), rights);
            tried = fifo.and_then(|file| locked(file, &path)).map(|file| Self { id, path, file });
            if tried.is_ok() {
                break;
            }
        }
        tried
    }

    /// The descriptor to wait on.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether it was rung since the last call.
    pub(crate) fn was_rung(&self) -> bool {
        let mut rung = false;
        let mut bytes = [0; 256];
        while (&self.file).read(&mut bytes).is_ok_and(|read| read > 0) {
            rung = true;
        }
        rung
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // else whoever clears away leftovers removes it
    }
}

/// Opens a bell and takes its lock; an error if somebody has it, or it is no longer in place.
fn open_locked(path: &Path) -> io::Result<File> {
    locked(OpenOptions::new().read(true).write(true).custom_flags(FLAGS).open(path)?, path)
}

fn locked(file: File, path: &Path) -> io::Result<File> {
    if kernel::try_lock(&file)? && FileId::at(path)? == FileId::of(&file)? {
        Ok(file)
    } else {
        Err(io::Error::other("the bell belongs to somebody else"))
    }
}

/// Rings somebody's bell. One that does not answer is full, and rings already, or its owner is gone.
pub(crate) fn ring(sessions: &Path, id: u128) {
    let bell = OpenOptions::new().write(true).custom_flags(FLAGS).open(path_of(sessions, id));
    if let Err(error) = bell.and_then(|mut bell| bell.write_all(&[1])) {
        tracing::trace!(%error, "a bell does not ring");
    }
}

/// Opens somebody's bell to hear of its owner's end; `None` if there is no owner any more.
pub(crate) fn overhear(sessions: &Path, id: u128) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(FLAGS).open(path_of(sessions, id)) {
        Ok(file) => Ok(kernel::is_locked(&file)?.then_some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a bell whose owner is gone.
pub(crate) fn remove_dead(sessions: &Path, id: u128) {
    let path = path_of(sessions, id);
    // Locked, so that nobody can take it into use while it is removed.
    if overhear(sessions, id).is_ok_and(|owned| owned.is_none())
        && let Ok(_lock) = open_locked(&path)
    {
        let _ = fs::remove_file(path); // what stays is removed by the next who looks
    }
}

/// Removes bells whose owners died before they had a session. `is_known` says which have one.
pub(crate) fn remove_strays(sessions: &Path, is_known: impl Fn(u128) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(sessions.join(DIRECTORY))? {
        let name = entry?.file_name();
        let text = name.to_str().unwrap_or_default();
        if text.starts_with(STAGING) {
            // Somebody died while a bell was made; whoever is making one there makes it anew.
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
    fn it_rings_for_its_owner_and_tells_of_its_end() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(DIRECTORY)).unwrap();
        let bell = Bell::hang(directory.path(), 0o600, || 7).unwrap();
        let listener = overhear(directory.path(), 7).unwrap().unwrap();
        assert!(!bell.was_rung());
        ring(directory.path(), 7);
        assert_eq!(told(bell.file(), PollFlags::POLLIN), PollFlags::POLLIN);
        assert_eq!(told(&listener, PollFlags::empty()), PollFlags::empty(), "the ring was not for it");
        assert!(bell.was_rung() && !bell.was_rung());
        remove_strays(directory.path(), |_| false).unwrap();
        assert!(path_of(directory.path(), 7).exists(), "it has an owner");
        drop(bell);
        assert_eq!(told(&listener, PollFlags::empty()), PollFlags::POLLHUP);
        assert!(overhear(directory.path(), 7).unwrap().is_none());
        ring(directory.path(), 7); // nobody hears it, and nobody is kept waiting
    }

    #[test]
    fn the_bell_of_a_dead_owner_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(DIRECTORY)).unwrap();
        let path = path_of(directory.path(), 7);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(overhear(directory.path(), 7).unwrap().is_none());
        remove_strays(directory.path(), |id| id == 7).unwrap();
        assert!(path.exists(), "its session will be cleared away");
        remove_strays(directory.path(), |_| false).unwrap();
        assert!(!path.exists());
    }
}
