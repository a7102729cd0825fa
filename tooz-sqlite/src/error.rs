//! The one table from SQLite's errors to ours.

use rusqlite::ErrorCode;
use rusqlite::ffi;
use tooz_core::driver::support::descriptors;
use tooz_core::{Error, ErrorKind};
pub(crate) use tooz_local::error::io;

/// Why work inside a transaction failed.
#[derive(Debug)]
pub(crate) enum Fail {
    /// SQLite refused.
    Sql(rusqlite::Error),
    /// The contract's own answer.
    Tooz(Error),
    /// The durable ceiling of tokens is reached; raise it in a transaction of its own and run the job again.
    NeedCeiling,
}

/// The result of work inside a transaction.
pub(crate) type Work<T> = Result<T, Fail>;

impl From<rusqlite::Error> for Fail {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::Tooz(error)
    }
}

impl Fail {
    /// Whether one damaged record has failed, and not the whole transaction.
    pub(crate) fn is_unreadable(&self) -> bool {
        match self {
            Self::Sql(error) => is_unreadable(error),
            Self::Tooz(error) => error.kind() == ErrorKind::Corrupt,
            Self::NeedCeiling => false,
        }
    }

    /// Names what a damaged record belongs to.
    pub(crate) fn about(self, what: impl std::fmt::Display) -> Self {
        match self {
            Self::Tooz(error) if error.kind() == ErrorKind::Corrupt => {
                Error::new(ErrorKind::Corrupt, format!("{what}: {}", error.context())).caused_by(error).into()
            }
            other => other,
        }
    }

    /// As the caller sees it. What failed inside a transaction was rolled back: never indeterminate.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Sql(error) => native(error),
            Self::Tooz(error) => error,
            Self::NeedCeiling => {
                Error::new(ErrorKind::Unavailable, "the range of fencing tokens is being extended")
            }
        }
    }
}

/// Whether another process holds the database's write lock, or recovers the database.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Whether a row would have referred to one that is not there.
pub(crate) fn is_foreign_key(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

/// Whether the record that was read is damaged.
pub(crate) fn is_unreadable(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as Sql;
    matches!(
        error,
        Sql::FromSqlConversionFailure(..)
            | Sql::IntegralValueOutOfRange(..)
            | Sql::InvalidColumnType(..)
            | Sql::Utf8Error(..)
    )
}

/// The error of a statement; names the table of a record that cannot be understood.
pub(crate) fn reading(error: rusqlite::Error, sql: &str) -> Fail {
    if !is_unreadable(&error) {
        return Fail::Sql(error);
    }
    let mut words = sql.split_ascii_whitespace();
    let table =
        words.find(|word| matches!(*word, "FROM" | "UPDATE")).and_then(|_| words.next()).unwrap_or("?");
    let what = format!(
        "a record in table {table} of the database cannot be understood; look at it, then correct or delete it"
    );
    Error::new(ErrorKind::Corrupt, what).caused_by(error).into()
}

/// An SQLite error by what the caller can do about it.
pub(crate) fn native(error: rusqlite::Error) -> Error {
    // A row that refers to a session that is no longer there: the session was ended.
    if is_foreign_key(&error) {
        return Error::new(ErrorKind::SessionLost, "the session's record is gone from the database");
    }
    // SQLite does not tell a limit from a missing permission.
    let shortage =
        || descriptors::shortage().filter(|_| error.sqlite_error_code() == Some(ErrorCode::CannotOpen));
    if let Some(remedy) = shortage() {
        return Error::new(
            ErrorKind::Unavailable,
            format!("the database or a file beside it cannot be opened: {remedy}"),
        )
        .caused_by(error);
    }
    let (kind, context) = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (ErrorKind::Unavailable, "another process holds the database's write lock")
        }
        Some(ErrorCode::DiskFull) => (ErrorKind::Unavailable, "the disk is full; free some space"),
        Some(ErrorCode::ReadOnly) => {
            (ErrorKind::Denied, "the database is read-only; give write permission on it and on its directory")
        }
        Some(ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied) => {
            (ErrorKind::Denied, "no permission on the database; give read and write permission")
        }
        Some(ErrorCode::CannotOpen) => (
            ErrorKind::Denied,
            "the database or a file beside it cannot be opened; check the permissions of its directory",
        ),
        Some(ErrorCode::NotADatabase) => {
            (ErrorKind::Corrupt, "the file is not an SQLite database; give another path")
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            (ErrorKind::Corrupt, "the database is damaged; stop all users, then delete or restore it")
        }
        Some(ErrorCode::SystemIoFailure) => {
            (ErrorKind::Unavailable, "reading or writing the database failed; look at the disk")
        }
        Some(ErrorCode::OutOfMemory) => (ErrorKind::Unavailable, "out of memory"),
        _ if is_unreadable(&error) => (
            ErrorKind::Corrupt,
            "a record of the database cannot be understood; look at it, then correct or delete it",
        ),
        _ => (ErrorKind::Backend, "SQLite failed"),
    };
    Error::new(kind, context).caused_by(error)
}

/// The error of a COMMIT. Everything was rolled back in memory, but a failed sync may have left a complete
/// transaction in the write-ahead log, which the next recovery would find: that alone is indeterminate.
pub(crate) fn commit(error: rusqlite::Error) -> Error {
    let unknown = error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure);
    let error = native(error);
    if unknown { error.indeterminate() } else { error }
}

/// The error of a record or file that makes no sense.
pub(crate) fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_can_do() {
        let sql = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        for (code, kind) in [
            (ffi::SQLITE_BUSY, ErrorKind::Unavailable),
            (ffi::SQLITE_FULL, ErrorKind::Unavailable),
            (ffi::SQLITE_READONLY, ErrorKind::Denied),
            (ffi::SQLITE_NOTADB, ErrorKind::Corrupt),
            (ffi::SQLITE_CORRUPT, ErrorKind::Corrupt),
            (ffi::SQLITE_CONSTRAINT_FOREIGNKEY, ErrorKind::SessionLost),
            (ffi::SQLITE_MISUSE, ErrorKind::Backend),
        ] {
            let error = native(sql(code));
            assert_eq!(error.kind(), kind, "{code}");
            assert!(!error.is_indeterminate());
        }
        assert!(commit(sql(ffi::SQLITE_IOERR_FSYNC)).is_indeterminate());
        assert!(!commit(sql(ffi::SQLITE_FULL)).is_indeterminate());
    }
}
