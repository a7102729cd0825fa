//! How ids and keys are stored: blobs as given, with the kind and the namespace in columns of their own, so that
//! two different keys never meet (G6, G7).

use std::sync::Arc;

use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use tooz_core::driver::{LockKey, LockMode, Previous};
use tooz_core::{Error, ErrorKind, GroupId, LockName};

use crate::error::{Fail, Work};

/// A lock in its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lock {
    pub(crate) namespace: Arc<str>,
    pub(crate) key: LockKey,
}

impl Lock {
    pub(crate) fn new(namespace: &Arc<str>, key: &LockKey) -> Self {
        Self { namespace: namespace.clone(), key: key.clone() }
    }

    /// The columns that name it. `LockKey` may grow; a kind that is not known here cannot be stored.
    pub(crate) fn columns(&self) -> Work<(&str, i64, &[u8])> {
        match &self.key {
            LockKey::Named(name) => Ok((&self.namespace, 0, name.as_bytes())),
            LockKey::Leader(group) => Ok((&self.namespace, 1, group.as_bytes())),
            other => Err(Fail::Tooz(Error::new(
                ErrorKind::Unsupported,
                format!("{other}: this driver does not know this kind of lock; upgrade tooz-sqlite"),
            ))),
        }
    }

    /// From its columns, the first of a row; `None` for a lock that cannot be.
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Option<Self>> {
        let (namespace, name): (Arc<str>, Vec<u8>) = (row.get(0)?, row.get(2)?);
        let key = match row.get::<_, i64>(1)? {
            0 => LockName::new(name).ok().map(LockKey::Named),
            1 => GroupId::new(name).ok().map(LockKey::Leader),
            _ => None,
        };
        Ok(key.map(|key| Self { namespace, key }))
    }
}

/// 128 bits as a blob of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) u128);

impl ToSql for Id {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.0.to_be_bytes().to_vec()))
    }
}

impl FromSql for Id {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let bytes = value.as_blob()?;
        let bytes = bytes
            .try_into()
            .map_err(|_| FromSqlError::InvalidBlobSize { expected_size: 16, blob_size: bytes.len() })?;
        Ok(Self(u128::from_be_bytes(bytes)))
    }
}

/// A mode as one number: 0 exclusive, -1 shared, n one of n permits.
pub(crate) fn mode_to_number(mode: LockMode) -> Work<i64> {
    match mode {
        LockMode::Exclusive => Ok(0),
        LockMode::Shared => Ok(-1),
        LockMode::Permit { limit } => Ok(limit.get().into()),
        other => Err(Fail::Tooz(Error::new(
            ErrorKind::Unsupported,
            format!("{other:?}: this driver does not know this mode; upgrade tooz-sqlite"),
        ))),
    }
}

/// The mode that a number stands for.
pub(crate) fn number_to_mode(number: i64) -> Option<LockMode> {
    match number {
        0 => Some(LockMode::Exclusive),
        -1 => Some(LockMode::Shared),
        limit => Some(LockMode::Permit { limit: u32::try_from(limit).ok()?.try_into().ok()? }),
    }
}

/// A mode in a column.
pub(crate) struct Mode(pub(crate) LockMode);

impl FromSql for Mode {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        number_to_mode(number).map(Self).ok_or(FromSqlError::OutOfRange(number))
    }
}

/// How the last holder ended, as a number.
pub(crate) fn previous_to_number(previous: Previous) -> i64 {
    match previous {
        Previous::Expired => 1,
        Previous::Broken => 2,
        // A foreign holder cannot come between: no other program writes here.
        _ => 0,
    }
}

/// How the last holder ended.
pub(crate) fn number_to_previous(number: i64) -> Previous {
    match number {
        1 => Previous::Expired,
        2 => Previous::Broken,
        _ => Previous::Clean,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn modes_and_keys_come_back() {
        for mode in [LockMode::Exclusive, LockMode::Shared, LockMode::Permit { limit: NonZeroU32::MAX }] {
            assert_eq!(number_to_mode(mode_to_number(mode).unwrap()), Some(mode));
        }
        assert_eq!((number_to_mode(-2), number_to_mode(1 << 32)), (None, None));
        let (namespace, rows): (Arc<str>, _) = ("n".into(), rusqlite::Connection::open_in_memory().unwrap());
        for key in [
            LockKey::Named(LockName::new(b"a\0/\xff").unwrap()),
            LockKey::Leader(GroupId::new(b"a\0/\xff").unwrap()),
        ] {
            let lock = Lock::new(&namespace, &key);
            let columns = lock.columns().unwrap();
            assert_eq!(rows.query_row("SELECT ?1, ?2, ?3", columns, Lock::read).unwrap(), Some(lock.clone()));
        }
    }
}
