//! The transaction that a job works in.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension, Params, Row};
use tooz_core::driver::{AttemptId, Context, Grant, GroupChange, Holders, Instant};
use tooz_core::{LossReason, Result};
use tooz_local::file_id::FileId;
use tooz_local::process::{self, Process};

use crate::engine::paths::Paths;
use crate::engine::session_file::DeadFile;
use crate::engine::watches::{GroupWatch, LockWatch};
use crate::error::{self, Work};
use crate::keys::{Id, Lock};
use crate::session_state::SessionState;

/// What stays the same as long as the database is open.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) sessions: PathBuf,
    pub(crate) process: Process,
    pub(crate) boot_id: String,
    pub(crate) layout: u32,
    /// Where other processes wake this one.
    pub(crate) wakeup: Option<u128>,
    /// The database that this process had open at this path before.
    pub(crate) known: Option<FileId>,
    /// An operator says that no process uses the database at another path any more.
    pub(crate) adopt: bool,
    pub(crate) context: Context,
}

impl Site {
    pub(crate) fn new(paths: &Paths, boot_id: Option<&str>, layout: u32, context: &Context) -> Result<Self> {
        let boot_id =
            process::boot_id(boot_id).map_err(|error| error::io("/proc/sys/kernel/random/boot_id", error))?;
        Ok(Self {
            sessions: paths.sessions(),
            process: Process::this(),
            boot_id,
            layout,
            wakeup: None,
            known: None,
            adopt: false,
            context: context.clone(),
        })
    }
}

/// What is done outside the database after the commit, and not at all after a rollback.
#[derive(Debug)]
pub(crate) enum Effect {
    /// A session of this process was opened.
    Opened(Arc<SessionState>),
    /// A session of this process has no rows any more.
    Ended(i64, LossReason),
    /// An attempt of this process waits.
    Queued(i64, AttemptId, Lock),
    /// An attempt of this process was granted after waiting.
    Granted(i64, Grant),
    /// A grant of this process was broken.
    Broken(i64, AttemptId),
    /// An attempt of this process neither holds nor waits any more.
    Forgotten(i64, AttemptId),
    /// A dead session's file can be removed.
    Clear(DeadFile),
    /// A session looks dead; a read found it and cannot clear it away.
    Suspect(i64),
    /// A watch of a group starts, or starts again, with the state as of an event.
    WatchGroup(Arc<GroupWatch>, i64, GroupChange),
    /// A watch of a lock starts with this state.
    WatchLock(Arc<LockWatch>, Holders),
    /// The holders of a lock changed.
    Holders(Lock),
    /// Rows were added to the log of events.
    Logged,
    /// The commit concerns another process, which has to be woken.
    Wake(u128),
    /// The FIFO of a session that was cleared away can be removed if its process is gone, too.
    RemoveWakeup(u128),
    /// The sessions before a waiter of this process may have changed.
    FollowPredecessors,
}

/// How long a session that was seen alive counts as alive without another look, as long as events tell of deaths. A death
/// without an event (a child of the dead owner inherited the file) is noticed after this time, which is half of the second
/// that the contract grants.
const BELIEVED: Duration = Duration::from_millis(500);

/// When other processes' sessions were last seen alive.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    seen: HashMap<i64, Instant>,
    /// Whether events tell of deaths.
    pub(crate) trusted: bool,
}

impl Probes {
    pub(crate) fn is_fresh(&self, session: i64, now: Instant) -> bool {
        self.trusted && self.seen.get(&session).is_some_and(|seen| now.saturating_since(*seen) < BELIEVED)
    }

    pub(crate) fn alive(&mut self, session: i64, now: Instant) {
        // Sessions come and go; an entry that is no longer fresh has no use.
        if self.seen.len() >= 1024 {
            self.seen.retain(|_, seen| now.saturating_since(*seen) < BELIEVED);
        }
        self.seen.insert(session, now);
    }

    pub(crate) fn doubt(&mut self, session: i64) {
        self.seen.remove(&session);
    }

    pub(crate) fn doubt_all(&mut self) {
        self.seen.clear();
    }
}

/// The counter of fencing tokens as a transaction has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fence {
    pub(crate) next: i64,
    pub(crate) ceiling: i64,
}

/// A transaction, what it knows of this process, and what follows from it.
pub(crate) struct Tx<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) site: &'a Site,
    /// The sessions of this process by number.
    pub(crate) own_sessions: &'a HashMap<i64, Arc<SessionState>>,
    pub(crate) probes: &'a mut Probes,
    pub(crate) fence: Option<Fence>,
    pub(crate) effects: Vec<Effect>,
    /// Locks that may have become free for waiters.
    pub(crate) unsettled: Vec<Lock>,
}

impl<'a> Tx<'a> {
    pub(crate) fn new(
        connection: &'a Connection,
        site: &'a Site,
        own_sessions: &'a HashMap<i64, Arc<SessionState>>,
        probes: &'a mut Probes,
    ) -> Self {
        Self {
            connection,
            site,
            own_sessions,
            probes,
            fence: None,
            effects: Vec::new(),
            unsettled: Vec::new(),
        }
    }

    /// Runs a statement that returns nothing; returns how many rows it changed.
    pub(crate) fn run(&self, sql: &str, params: impl Params) -> Work<usize> {
        Ok(self.connection.prepare_cached(sql)?.execute(params)?)
    }

    /// The first row, if there is one.
    pub(crate) fn first<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Work<Option<T>> {
        let row = self.connection.prepare_cached(sql)?.query_row(params, read).optional();
        row.map_err(|error| error::reading(error, sql))
    }

    /// The first column of the first row, if there is one.
    pub(crate) fn value<T: FromSql>(&self, sql: &str, params: impl Params) -> Work<Option<T>> {
        self.first(sql, params, |row| row.get(0))
    }

    /// Whether there is a row.
    pub(crate) fn exists(&self, sql: &str, params: impl Params) -> Work<bool> {
        Ok(self.first(sql, params, |_| Ok(()))?.is_some())
    }

    /// The epoch of the data; 0 if there is none.
    pub(crate) fn epoch(&self) -> Work<u128> {
        let epoch = self.value::<Id>("SELECT epoch FROM tooz", [])?;
        Ok(epoch.map_or(0, |epoch| epoch.0))
    }

    /// Every row.
    pub(crate) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Work<Vec<T>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(params, read)?.collect::<rusqlite::Result<_>>();
        rows.map_err(|error| error::reading(error, sql))
    }

    /// Every readable row; the others are skipped and logged.
    pub(crate) fn readable<T>(
        &self,
        sql: &str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Work<Vec<T>> {
        let rows = self.all(sql, params, |row| match read(row) {
            Err(error) if error::is_unreadable(&error) => {
                tracing::warn!(%error, sql, "a record that cannot be understood is skipped");
                Ok(None)
            }
            answer => answer.map(Some),
        })?;
        Ok(rows.into_iter().flatten().collect())
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// A session of this process that has not ended.
    pub(crate) fn own_session(&self, session: i64) -> Option<&Arc<SessionState>> {
        self.own_sessions.get(&session)
    }

    /// Now, in microseconds since 1970, for people to read; 0 for what lies before.
    pub(crate) fn wall(&self) -> i64 {
        let since = self.site.context.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }
}

/// The time that a record names; `None` if it cannot be represented.
pub(crate) fn from_micros(micros: i64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_micros(u64::try_from(micros).ok()?))
}
