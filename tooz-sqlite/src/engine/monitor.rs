//! Following the files: which process committed, and whether everything is still where it was.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tooz_core::LossReason;
use tooz_core::driver::{Instant, SessionId};
use tooz_local::file_id::FileId;

use crate::engine::inotify::FileEvents;
use crate::engine::state::{CHECK_EVERY, Engine, POLL_HIGH, POLL_LOW, REAP_LIMIT};
use crate::session_state::SessionState;

/// While another process is between writing the log and publishing its commit, the thread looks again after this,
/// and then ever less often (a commit that syncs takes some 200 µs).
const COMMITTING: Duration = Duration::from_micros(100);
const COMMITTING_MOST: Duration = Duration::from_millis(5);

impl Engine {
    /// Listens to the files, as far as the user may have another inotify instance.
    pub(crate) fn open_file_events(&mut self) {
        match FileEvents::new(&self.jobs.paths) {
            Ok(mut events) => {
                for session in self.sessions.values() {
                    events.watch_session(&session.path, session.id);
                }
                self.events = Some(events);
                self.warned = false;
                self.follow_commits();
            }
            Err(error) if !self.warned && self.has_watches() => {
                self.warned = true;
                tracing::warn!(
                    %error,
                    "no file events (see /proc/sys/fs/inotify): changes are looked for every 5 to 50 ms instead"
                );
            }
            Err(error) => tracing::debug!(%error, "no file events"),
        }
    }

    /// Listens for every commit and every death as long as this process has a watch.
    pub(crate) fn follow_commits(&mut self) {
        let watched = self.has_watches();
        let now = self.now();
        let Some(events) = &mut self.events else {
            if watched {
                self.next_check = self.next_check.min(now + POLL_LOW);
            }
            return;
        };
        if watched == events.watches_all() {
            return;
        }
        // A session that was seen alive before may have died since without an event.
        self.probes.doubt_all();
        self.probes.trusted = watched;
        if !watched {
            events.watch_own(&self.jobs.paths);
            self.committing = None;
            return;
        }
        match events.watch_all(&self.jobs.paths) {
            Ok(()) => {
                // For what came before.
                self.committing = Some((now, COMMITTING));
                self.next_check = now;
            }
            Err(error) => {
                tracing::warn!(%error, "commits make no events (see /proc/sys/fs/inotify)");
                self.events = None;
                self.probes.trusted = false;
            }
        }
    }

    /// Looks whether another process has committed. If the log was written, looks again later while a process is about to
    /// commit: it writes first and publishes then. A process wakes others only after both.
    pub(crate) fn check_commits(&mut self, written: bool) {
        let Some(database) = &self.database else { return };
        // In this order: a process that was done before the first question has published what it wrote.
        let writing = written && database.writer().is_some();
        match database.version() {
            Ok(version) if version != self.version => {
                self.version = version;
                self.dispatch(true);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "other processes' commits are looked for later"),
        }
        if !written {
            return;
        }
        let now = self.now();
        self.committing = writing.then(|| {
            let wait = self.committing.map_or(COMMITTING, |(_, wait)| (wait * 2).min(COMMITTING_MOST));
            (now + wait, wait)
        });
    }

    /// Ends a session of this process whose file was taken away.
    pub(crate) fn check_own_file(&mut self, session: &Arc<SessionState>) {
        if !FileId::at(&session.path).is_ok_and(|id| id == session.file) {
            if session.loss().is_none() {
                tracing::warn!(session = %session.id, "the session's file was removed: the session ends");
                session.end(LossReason::Vanished);
            }
            self.suspect(session.seq);
        }
    }

    pub(crate) fn check_file_of(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.values().find(|session| session.id == id).cloned() {
            self.check_own_file(&session);
        }
    }

    pub(crate) fn check_own_files(&mut self) {
        for session in self.sessions.values().cloned().collect::<Vec<_>>() {
            self.check_own_file(&session);
        }
    }

    /// Closes a database that is no longer at its path.
    pub(crate) fn check_database_file(&mut self) {
        let Some(database) = &self.database else { return };
        let in_place = FileId::at(&self.jobs.paths.database).is_ok_and(|id| id == database.file);
        if in_place {
            if !self.jobs.paths.sessions().is_dir() {
                self.check_own_files();
                // Opening it again makes the directory anew and listens to that.
                self.clear_suspects();
                self.close_database();
            }
            return;
        }
        tracing::warn!(
            database = %self.jobs.paths.database.display(),
            "the database was deleted or replaced while in use: its sessions end"
        );
        for session in self.sessions.values() {
            session.end(LossReason::Vanished);
        }
        // Processes that still use the old file see that our sessions are gone.
        for seq in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.suspect(seq);
        }
        self.clear_suspects();
        self.sessions.clear();
        self.close_database();
        for watch in self.group_watches.iter().filter_map(Weak::upgrade) {
            watch.fall_behind(true);
        }
    }

    fn close_database(&mut self) {
        self.events = None;
        self.database = None;
        self.suspects.clear();
        self.committing = None;
        self.wakeup = None;
        self.predecessors.0.clear();
    }

    /// The look at everything that finds what no event has told.
    pub(crate) fn check_everything(&mut self, now: Instant) {
        let wait = if self.misses_events() {
            self.jobs.context.entropy.between(POLL_LOW, POLL_HIGH)
        } else {
            CHECK_EVERY
        };
        self.next_check = now + wait;
        self.check_database_file();
        self.check_own_files();
        if !self.has_waiters() {
            return;
        }
        if let Err(error) = self.open(now + REAP_LIMIT) {
            tracing::debug!(%error, "the database is opened again later");
            return;
        }
        if self.events.is_none() && self.database.is_some() {
            self.open_file_events();
        }
        self.follow_commits();
        if self.has_watches() {
            self.check_all_sessions();
        }
        self.check_commits(false);
        self.follow_predecessors();
    }
}
