//! A session's file: the session lives as long as the file is locked.
//!
//! The file is created under a temporary name, locked, and renamed into place before the session's row is written. So no
//! process sees a file under its final name unlocked while its owner lives.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{UnlinkatFlags, unlinkat};
use tooz_core::driver::SessionId;
use tooz_local::error::existing;
use tooz_local::file_id::{self, FileId};
use tooz_local::liveness::{self, Look};
use tooz_local::os_lock::{Flavor, Hold};
use tooz_local::ownership::{self, Rights};

/// The names of files that are not in place yet begin with this.
const TEMPORARY: &str = ".new-";
/// The name of the file that says to which database the directory belongs.
pub(crate) const EPOCH: &str = ".epoch";
/// How often a temporary file that a cleaner took for a leftover is made anew.
const TRIES: usize = 8;

/// The file of a dead session, locked by this process so that no other process clears it away.
#[derive(Debug)]
pub(crate) struct DeadFile {
    path: PathBuf,
    id: FileId,
    /// `None` where a forked child of the dead owner still has the lock.
    _lock: Option<File>,
}

impl DeadFile {
    /// A file whose lock a child of its dead owner inherited.
    pub(crate) fn inherited(path: PathBuf, id: FileId) -> Self {
        Self { path, id, _lock: None }
    }

    /// Removes the file, then unlocks it. Session ids are never used again, so no other file can be there; this compares the
    /// files all the same.
    pub(crate) fn remove(self) {
        if FileId::at(&self.path).is_ok_and(|id| id == self.id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "a dead session's file stays");
        }
    }
}

pub(crate) fn path_of(directory: &Path, id: SessionId) -> PathBuf {
    directory.join(id.to_string())
}

/// Creates, locks and places the file of a new session.
pub(crate) fn create(directory: &Path, id: SessionId, mode: u32) -> io::Result<(File, FileId)> {
    let path = path_of(directory, id);
    let directory = ownership::open_directory(directory)?;
    let rights = Rights::within(&directory, mode)?;
    let (temporary, name) = (format!("{TEMPORARY}{id}"), id.to_string());
    for _ in 0..TRIES {
        // Opened for writing: only then does closing it make the event that tells of our death.
        let file = match ownership::create(&directory, temporary.as_ref(), rights) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                unlinkat(&directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir)?;
                continue;
            }
            answer => answer?,
        };
        let id = FileId::of(&file)?;
        // Both fail only if a cleaner took the file for a leftover between two of these lines.
        let placed = || ownership::rename(&directory, temporary.as_ref(), &directory, name.as_ref());
        if Flavor::OpenFile.try_lock(&file, Hold::Alone)? && placed().is_ok() {
            if FileId::at(&path)? == id {
                return Ok((file, id));
            }
            return Err(io::Error::other("another file stands under the session's name"));
        }
    }
    Err(io::Error::other("the session's file was removed again and again while it was made"))
}

/// Looks at a file. Opens it for reading, so that closing it makes no event that wakes every process.
pub(crate) fn look(path: &Path, inode: u64) -> io::Result<Look> {
    liveness::look(file_id::open(path), inode, Flavor::OpenFile)
}

/// Takes the lock of a dead session's file; `None` if its owner lives, or another process is clearing it away.
pub(crate) fn claim(path: &Path, inode: Option<u64>) -> io::Result<Option<DeadFile>> {
    let Some(file) = existing(file_id::open_write(path))? else { return Ok(None) };
    if !Flavor::OpenFile.try_lock(&file, Hold::Alone)? {
        return Ok(None);
    }
    let id = FileId::of(&file)?;
    let in_place = FileId::at(path).is_ok_and(|at| at == id) && inode.is_none_or(|inode| inode == id.inode);
    Ok(in_place.then(|| DeadFile { path: path.to_owned(), id, _lock: Some(file) }))
}

/// Removes files that belong to no session: their owners died before the sessions' rows were written, or after the rows were
/// deleted. `is_known` says which ids have a row.
pub(crate) fn remove_strays(directory: &Path, is_known: impl Fn(SessionId) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let Some(id) = SessionId::parse(name.strip_prefix(TEMPORARY).unwrap_or(name)) else { continue };
        let path = directory.join(name);
        // A locked file is a newcomer's. Opening it for writing would tell every process of an end.
        let free = || {
            File::open(&path).and_then(|file| Flavor::OpenFile.is_locked(&file)).is_ok_and(|locked| !locked)
        };
        if !is_known(id)
            && free()
            && let Some(dead) = claim(&path, None)?
        {
            dead.remove();
        }
    }
    Ok(())
}

/// Whether any session file of the directory is locked.
pub(crate) fn any_locked(directory: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(SessionId::parse).is_none() {
            continue;
        }
        match File::open(entry.path()) {
            Ok(file) if Flavor::OpenFile.is_locked(&file)? => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cleaners_and_a_newcomer() {
        let directory = tempfile::tempdir().unwrap();
        let id = SessionId(7);
        let path = path_of(directory.path(), id);
        let (file, made) = create(directory.path(), id, 0o600).unwrap();
        assert!(matches!(look(&path, made.inode).unwrap(), Look::Locked));
        assert!(claim(&path, Some(made.inode)).unwrap().is_none());
        drop(file);
        assert!(matches!(look(&path, made.inode).unwrap(), Look::Free));
        let first = claim(&path, Some(made.inode)).unwrap().unwrap();
        assert!(claim(&path, Some(made.inode)).unwrap().is_none(), "only one clears away");
        // The first was slow: another process removed the file, and there is a newcomer's file now.
        fs::remove_file(&path).unwrap();
        let (_newcomer, new) = create(directory.path(), id, 0o600).unwrap();
        first.remove();
        assert!(matches!(look(&path, new.inode).unwrap(), Look::Locked), "the newcomer's file stays");
        assert!(matches!(look(&path, made.inode).unwrap(), Look::Missing));
    }

    #[test]
    fn strays_go_and_living_files_stay() {
        let directory = tempfile::tempdir().unwrap();
        let (_alive, _) = create(directory.path(), SessionId(1), 0o600).unwrap();
        drop(create(directory.path(), SessionId(2), 0o600).unwrap());
        File::create(directory.path().join(format!("{TEMPORARY}{}", SessionId(3)))).unwrap();
        File::create(directory.path().join("foreign")).unwrap();
        assert!(any_locked(directory.path()).unwrap());
        remove_strays(directory.path(), |_| false).unwrap();
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [SessionId(1).to_string(), "foreign".to_owned()]);
    }
}
