//! The file of a lock that Python shares: an operating-system lock on it excludes Python's processes.
//!
//! It is never unlinked, since somebody may hold it; and since others do unlink it, the file that was locked is
//! compared with the one that stands under the name.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use nix::libc;
use tooz_core::driver::LockMode;
use tooz_core::{Error, ErrorKind, Result};

use crate::error;
use crate::host::os_lock::{FileId, Flavor, Hold, InTheWay};
use crate::tree::directory::Directory;
use crate::tree::inotify::{Area, Watch};
use crate::tree::open_tree::Site;

/// What a try gave.
#[derive(Debug)]
pub(crate) enum Tried {
    Locked(File),
    /// Somebody else has it; the file stays open for the next try.
    Busy(File),
    /// Python cannot have a file there: a directory is in the way, or a file where a directory would have to be.
    NoPlace,
}

/// How often the file is opened anew when somebody replaced it between opening and locking.
const TRIES: usize = 8;

/// Permits and readers share it: only Python is to be excluded, our own records do the rest.
pub(crate) fn hold(mode: LockMode) -> Hold {
    if mode == LockMode::Exclusive { Hold::Alone } else { Hold::Together }
}

/// The directory in which a lock's file stands; made if it is missing and `make` says so.
fn parent(site: &Site, path: &[&str], make: bool) -> io::Result<Option<Directory>> {
    let Some((_, parents)) = path.split_last() else { return Ok(None) };
    let mut directory: Option<Directory> = None;
    for name in parents {
        let here = directory.as_ref().unwrap_or(&site.base);
        let next = if make { here.make(name, site.directory_mode) } else { here.child(name) };
        directory = Some(next.map_err(|error| symlink(here, name, error))?);
    }
    Ok(directory)
}

/// Opening a symlink as a directory says that it is none; Python would follow it, so this must not pass as a place
/// that nobody can use.
fn symlink(directory: &Directory, name: &str, error: io::Error) -> io::Error {
    let is_link =
        directory.stat(name).ok().flatten().is_some_and(|data| data.st_mode & libc::S_IFMT == libc::S_IFLNK);
    if is_link { io::Error::from_raw_os_error(libc::ELOOP) } else { error }
}

fn is_no_place(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory)
}

/// Tries to lock the file, with one that is open already if it is still the right one.
pub(crate) fn try_lock(site: &Site, path: &[&str], hold: Hold, spare: Option<Arc<File>>) -> Result<Tried> {
    let failed =
        |cause| error::io(format!("the lock file {}/{}", site.base.path.display(), path.join("/")), cause);
    let directory = match parent(site, path, true) {
        Err(error) if is_no_place(&error) => return Ok(Tried::NoPlace),
        answer => answer.map_err(failed)?,
    };
    let directory = directory.as_ref().unwrap_or(&site.base);
    let Some(name) = path.last() else { return Ok(Tried::NoPlace) };
    let mut spare = spare.and_then(Arc::into_inner);
    for _ in 0..TRIES {
        let file = match spare.take() {
            Some(file) => file,
            None => match directory.open_or_create(name, site.mode) {
                Err(error) if is_no_place(&error) => return Ok(Tried::NoPlace),
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

/// Gives the locks back. Closing alone would not do while a child that was forked has copies of the files.
pub(crate) fn let_go(files: Vec<File>) {
    for file in files {
        // Closing does it, too.
        let _ = Flavor::OpenFile.unlock(&file);
    }
}

/// Whether this open file still stands under the lock's name.
pub(crate) fn is_in_place(site: &Site, path: &[&str], file: &File) -> bool {
    let (Ok(directory), Some(name), Ok(id)) = (parent(site, path, false), path.last(), FileId::of(file))
    else {
        return false;
    };
    directory.as_ref().unwrap_or(&site.base).has(name, id)
}

/// Who would be in the way of an exclusive lock; takes nothing.
pub(crate) fn in_the_way(site: &Site, path: &[&str]) -> Option<InTheWay> {
    let directory = parent(site, path, false).ok()?;
    let file = directory.as_ref().unwrap_or(&site.base).open(path.last()?).ok()?;
    Flavor::OpenFile.in_the_way(&file, Hold::Alone).ok()?
}

/// Hears when the file is closed or removed.
pub(crate) fn watch(site: &Site, path: &[&str]) -> Option<Watch> {
    let directory = parent(site, path, false).ok()?;
    let (_, parents) = path.split_last()?;
    let below = parents.iter().fold(String::new(), |text, part| text + part + "/");
    site.watch(directory.as_ref().unwrap_or(&site.base), Area::LockFiles(below))
}
