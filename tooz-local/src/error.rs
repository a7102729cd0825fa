//! The errors of the operating system, as the contract has them.

use std::io;

use tooz_core::{Error, ErrorKind};

/// An error of the operating system about `what`, by what the caller can do about it.
pub fn io(what: impl Into<String>, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let (kind, remedy) = match error.kind() {
        Io::PermissionDenied => (ErrorKind::Denied, ": permission denied; give read and write permission"),
        Io::ReadOnlyFilesystem => (ErrorKind::Denied, ": the file system is read-only"),
        Io::StorageFull | Io::QuotaExceeded => {
            (ErrorKind::Unavailable, ": the disk is full; free some space")
        }
        Io::NotFound => (ErrorKind::Unavailable, ": it is missing"),
        _ => (ErrorKind::Unavailable, ""),
    };
    Error::new(kind, what.into() + remedy).caused_by(error)
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
            (Errno::EIO, ErrorKind::Unavailable, "x"),
        ] {
            let error = io("x", errno.into());
            assert_eq!(error.kind(), kind, "{errno}");
            assert!(error.to_string().contains(word) && !error.is_indeterminate(), "{error}");
        }
    }
}
