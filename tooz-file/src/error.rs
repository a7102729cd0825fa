//! The errors of this driver: the one table for those of the operating system, and the others that several files
//! return.

use std::io;
use std::path::Path;

use tooz_core::driver::LockKey;
use tooz_core::{Error, ErrorKind, GroupId};

/// A record that cannot be understood, or something else in its place: [`io`] makes it `Corrupt`.
pub(crate) fn unreadable(path: &Path, why: &str) -> io::Error {
    let what = format!("{} {why}; look at it, then remove it", path.display());
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// `O_NOFOLLOW` met a symlink; the standard library's name for it is not stable yet.
fn is_symlink(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ELOOP)
}

/// An error of the operating system about `what`, which names the file.
pub(crate) fn io(what: impl Into<String>, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    if is_unreadable(&error) {
        return Error::new(ErrorKind::Corrupt, format!("{}: {error}", what.into()));
    }
    let (kind, remedy) = match error.kind() {
        Io::NotADirectory => {
            (ErrorKind::Denied, ": something that is not a directory is in the way; remove it")
        }
        Io::IsADirectory => {
            (ErrorKind::Corrupt, ": a directory stands where a file belongs; look at it, then remove it")
        }
        _ if is_symlink(&error) => (ErrorKind::Denied, ": it is a symlink, which is not followed; remove it"),
        _ => return tooz_local::error::io(what, error),
    };
    Error::new(kind, what.into() + remedy).caused_by(error)
}

/// What a view finds where no session ever was: no group, and no lock that is held.
pub(crate) fn nothing_here(path: &Path) -> Error {
    Error::new(ErrorKind::GroupNotFound, format!("nothing was ever stored in {}", path.display()))
}

/// Whether it is [`nothing_here`].
pub(crate) fn is_nothing_here(error: &Error) -> bool {
    error.kind() == ErrorKind::GroupNotFound
}

/// `None`, and a line in the log, for what cannot be understood: one such file must not keep the others from being cleared
/// away.
pub(crate) fn skip_unreadable<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Err(error) if is_unreadable(&error) || is_symlink(&error) => {
            tracing::warn!(%error, "skipped");
            Ok(None)
        }
        answer => answer.map(Some),
    }
}

pub(crate) fn lock_records(key: &LockKey, cause: io::Error) -> Error {
    io(format!("the records of {key}"), cause)
}

pub(crate) fn group_files(group: &GroupId, cause: io::Error) -> Error {
    io(format!("the files of group \"{group}\""), cause)
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this driver was closed; connect a new one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_can_do() {
        for (errno, kind, word) in [
            (nix::libc::EACCES, ErrorKind::Denied, "permission"),
            (nix::libc::ELOOP, ErrorKind::Denied, "symlink"),
            (nix::libc::EISDIR, ErrorKind::Corrupt, "remove it"),
        ] {
            let error = io("x", io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind(), kind, "{errno}");
            assert!(error.to_string().contains(word), "{error}");
            assert!(!error.is_indeterminate());
        }
    }
}
