//! The file of a lock that Python shares: an operating-system lock on it excludes Python's processes.
//!
//! This driver never unlinks it, since a process may hold it. Since others do unlink it, the file that was locked is
//! compared with the one that stands under the name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use nix::libc;
use tooz_core::driver::LockMode;
use tooz_core::{Error, ErrorKind, Result};
use tooz_local::file_id::FileId;
use tooz_local::os_lock::{Flavor, Hold, InTheWay};

use crate::error;
use crate::tree::directory::Directory;
use crate::tree::inotify::{Area, Watch};
use crate::tree::open_tree::Tree;

/// What a try to lock the file gave.
#[derive(Debug)]
pub(crate) enum Tried {
    Locked(File),
    /// Another process has it; the file stays open for the next try.
    Busy(File),
    /// Python cannot have a file there: a directory is in the way, or a file where a directory would have to be.
    Impossible,
}

/// How often the file is opened anew when it was replaced between opening and locking.
const TRIES: usize = 8;

/// Permits and readers share it: it only has to exclude Python, and the records exclude the rest.
pub(crate) fn hold_for(mode: LockMode) -> Hold {
    if mode == LockMode::Exclusive { Hold::Alone } else { Hold::Together }
}

/// The directory in which a lock's file stands; made if it is missing and `make` says so.
fn parent(tree: &Tree, path: &[&str], make: bool) -> io::Result<Option<Directory>> {
    let Some((_, parents)) = path.split_last() else { return Ok(None) };
    let mut directory: Option<Directory> = None;
    for name in parents {
        let here = directory.as_ref().unwrap_or(&tree.base);
        let next = if make { here.make(name) } else { here.child(name) };
        directory = Some(next.map_err(|error| name_symlink(here, name, error))?);
    }
    Ok(directory)
}

/// Opening a symlink as a directory fails as if it were a file. Python would follow it, so this must not pass as a
/// path at which Python can have no file.
fn name_symlink(directory: &Directory, name: &str, error: io::Error) -> io::Error {
    let is_link =
        directory.stat(name).ok().flatten().is_some_and(|data| data.st_mode & libc::S_IFMT == libc::S_IFLNK);
    if is_link { io::Error::from_raw_os_error(libc::ELOOP) } else { error }
}

fn is_impossible(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory)
}

/// Tries to lock the file, with one that is open already if it is still the right one.
pub(crate) fn try_lock(tree: &Tree, path: &[&str], hold: Hold, spare: Option<Arc<File>>) -> Result<Tried> {
    let failed =
        |cause| error::io(format!("the lock file {}/{}", tree.base.path.display(), path.join("/")), cause);
    let directory = match parent(tree, path, true) {
        Err(error) if is_impossible(&error) => return Ok(Tried::Impossible),
        answer => answer.map_err(failed)?,
    };
    let directory = directory.as_ref().unwrap_or(&tree.base);
    let Some(name) = path.last() else { return Ok(Tried::Impossible) };
    let mut spare = spare.and_then(Arc::into_inner);
    for _ in 0..TRIES {
        let file = match spare.take() {
            Some(file) => file,
            None => match directory.open_or_create(name) {
                Err(error) if is_impossible(&error) => return Ok(Tried::Impossible),
                answer => answer.map_err(failed)?,
            },
        };
        let id = FileId::of(&file).map_err(failed)?;
        if file.metadata().map_err(failed)?.file_type().is_fifo() {
            return Err(Error::new(
                ErrorKind::Denied,
                format!("the lock file {} is a pipe; remove it", directory.path.join(name).display()),
            ));
        }
        let locked = Flavor::OpenFile.try_lock(&file, hold).map_err(failed)?;
        if directory.has(name, id) {
            return Ok(if locked { Tried::Locked(file) } else { Tried::Busy(file) });
        }
    }
    Err(Error::new(
        ErrorKind::Unavailable,
        format!("the lock file {} is replaced again and again", directory.path.join(name).display()),
    ))
}

/// Unlocks the files. Closing alone would not do while a child that was forked has copies of them.
pub(crate) fn unlock(files: Vec<File>) {
    for file in files {
        let _ = Flavor::OpenFile.unlock(&file); // closing does it, too
    }
}

/// Whether this open file still stands under the lock's name.
pub(crate) fn is_in_place(tree: &Tree, path: &[&str], file: &File) -> bool {
    let (name, id) = (path.last(), FileId::of(file));
    matches!((parent(tree, path, false), name, id), (Ok(directory), Some(name), Ok(id))
        if directory.as_ref().unwrap_or(&tree.base).has(name, id))
}

/// What would be in the way of an exclusive lock; takes nothing.
pub(crate) fn in_the_way(tree: &Tree, path: &[&str]) -> Option<InTheWay> {
    let directory = parent(tree, path, false).ok()?;
    let file = directory.as_ref().unwrap_or(&tree.base).open(path.last()?).ok()?;
    Flavor::OpenFile.in_the_way(&file, Hold::Alone).ok()?
}

/// Watches for the closing or removal of the file.
pub(crate) fn watch(tree: &Tree, path: &[&str]) -> Option<Watch> {
    let directory = parent(tree, path, false).ok()?;
    let (_, parents) = path.split_last()?;
    let below = parents.iter().fold(String::new(), |text, part| text + part + "/");
    tree.watch(directory.as_ref().unwrap_or(&tree.base), Area::LockFiles(below))
}
