//! The errors of the operating system, as the contract has them.

use std::{fmt, io};

use tooz_core::driver::support::descriptors;
use tooz_core::{Error, ErrorKind};

/// `O_NOFOLLOW` met a symlink; the standard library's name for it is not stable yet.
pub fn is_symlink(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ELOOP)
}

/// An error of the operating system about `what`, by what the caller can do about it.
pub fn io(what: impl fmt::Display, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    if let Some(remedy) = descriptors::remedy(&error) {
        return Error::new(ErrorKind::Unavailable, format!("{what}: {remedy}")).caused_by(error);
    }
    let (kind, remedy) = match error.kind() {
        // A record that cannot be understood: the error itself says why.
        Io::InvalidData => return Error::new(ErrorKind::Corrupt, format!("{what}: {error}")),
        Io::PermissionDenied => (ErrorKind::Denied, ": give this user read and write permission"),
        Io::ReadOnlyFilesystem => (ErrorKind::Denied, ": the file system is read-only"),
        Io::StorageFull | Io::QuotaExceeded => {
            (ErrorKind::Unavailable, ": the disk is full; free some space")
        }
        Io::NotFound => (ErrorKind::Unavailable, ": it is missing"),
        Io::NotADirectory => {
            (ErrorKind::Denied, ": something that is not a directory is in the way; remove it")
        }
        Io::IsADirectory => {
            (ErrorKind::Corrupt, ": a directory stands where a file belongs; look at it, then remove it")
        }
        _ if is_symlink(&error) => (ErrorKind::Denied, ": it is a symlink, which is not followed; remove it"),
        _ => (ErrorKind::Unavailable, ""),
    };
    Error::new(kind, format!("{what}{remedy}")).caused_by(error)
}

/// `None` if there is no such file.
pub fn existing<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn what_the_caller_can_do() {
        for (errno, kind, word) in [
            (Errno::EACCES, ErrorKind::Denied, "permission"),
            (Errno::EROFS, ErrorKind::Denied, "read-only"),
            (Errno::ENOSPC, ErrorKind::Unavailable, "full"),
            (Errno::EDQUOT, ErrorKind::Unavailable, "full"),
            (Errno::ENOENT, ErrorKind::Unavailable, "missing"),
            (Errno::ENOTDIR, ErrorKind::Denied, "not a directory"),
            (Errno::EISDIR, ErrorKind::Corrupt, "remove it"),
            (Errno::ELOOP, ErrorKind::Denied, "symlink"),
            (Errno::EMFILE, ErrorKind::Unavailable, "ulimit -n"),
            (Errno::ENFILE, ErrorKind::Unavailable, "fs.file-max"),
            (Errno::EIO, ErrorKind::Unavailable, "x"),
        ] {
            let error = io("x", errno.into());
            assert_eq!(error.kind(), kind, "{errno}");
            assert!(error.to_string().contains(word) && !error.is_indeterminate(), "{error}");
        }
    }
}
