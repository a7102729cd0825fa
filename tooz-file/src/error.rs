//! The errors that several files of this driver return.

use std::io;
use std::path::Path;

use tooz_core::driver::LockKey;
use tooz_core::{Error, ErrorKind, GroupId};
use tooz_local::error::is_symlink;
pub(crate) use tooz_local::error::{existing, io};

/// A record that cannot be understood, or something else in its place: [`io`] makes it `Corrupt`.
pub(crate) fn unreadable(path: &Path, why: &str) -> io::Error {
    let what = format!("{} {why}; look at it, then remove it", path.display());
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
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
