//! Keeping watch over the files: who died, who committed, and whether everything is still where it was.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tooz_core::LossReason;
use tooz_core::driver::SessionId;

use crate::engine::inotify::{Ears, Heard};
use crate::engine::jobs::Level;
use crate::engine::wakeup::Bell;
use crate::engine::{Engine, POLL_HIGH, POLL_LOW, REAP_LIMIT, SAFETY};
use crate::host::kernel::FileId;
use crate::reaper::{self, Recorded};
use crate::session_state::Local;

/// While another process is between writing the log and publishing its commit, it is looked at again after this,
/// and then ever less often (a commit that syncs takes some 200 µs).
const COMMITTING: Duration = Duration::from_micros(100);
const COMMITTING_MOST: Duration = Duration::from_millis(5);
/// Those who hear of a death that they need not be the first to see to wait for a random part of this time for each
/// session: about what it takes one of them to look.
const TURNS: Duration = Duration::from_micros(100);
/// The kernel tells that a file was closed shortly before it drops its lock; after the first look, the file is
/// looked at again after these times. Later deaths are found by the safety look.
const AGAIN: [Duration; 5] = [
    Duration::from_micros(200),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(100),
];

impl Engine {
    /// Listens to the files, as far as the user may have another inotify instance.
    pub(crate) fn open_ears(&mut self) {
        match Ears::new(&self.client.place) {
            Ok(mut ears) => {
                for local in self.hub.locals.values() {
                    ears.watch_session(&local.path, local.id);
                }
                self.ears = Some(ears);
                self.deaf = false;
                self.hear_commits();
            }
            Err(error) if !self.deaf && self.somebody_watches() => {
                self.deaf = true;
                tracing::warn!(
                    %error,
                    "no file events (see /proc/sys/fs/inotify): changes are looked for every 5 to 50 ms instead"
                );
            }
            Err(error) => tracing::debug!(%error, "no file events"),
        }
    }

    /// Hears of every commit and every death as long as somebody watches.
    pub(crate) fn hear_commits(&mut self) {
        let watched = self.somebody_watches();
        let Some(ears) = &mut self.ears else {
            if watched {
                self.safety = self.safety.min(self.client.clock.now() + POLL_LOW);
            }
            return;
        };
        if watched == ears.hears_everybody() {
            return;
        }
        // Who was seen alive before may have died unheard since.
        self.probes.doubt_all();
        self.probes.trusted = watched;
        if !watched {
            ears.hear_nobody(&self.client.place);
            self.committing = None;
            return;
        }
        match ears.hear_everybody(&self.client.place) {
            Ok(()) => {
                // What came before.
                let now = self.client.clock.now();
                self.committing = Some((now, COMMITTING));
                self.safety = now;
            }
            Err(error) => {
                tracing::warn!(%error, "commits make no events (see /proc/sys/fs/inotify)");
                self.ears = None;
                self.probes.trusted = false;
            }
        }
    }

    pub(crate) fn listen(&mut self) {
        self.hear_ends();
        if self.bell.as_ref().is_some_and(Bell::was_rung) {
            self.check_commits(false);
            self.ahead_changed = true;
        }
        let heard = self.ears.as_ref().map(Ears::listen).unwrap_or_default();
        let mut written = false;
        for what in heard {
            match what {
                Heard::Written => written = true,
                Heard::Moved => self.check_place(),
                Heard::Closed(id) => self.suspect_by_id(id),
                Heard::Touched(id) => {
                    let local = self.hub.locals.values().find(|local| local.id == id).cloned();
                    if let Some(local) = local {
                        self.check_own_file(&local);
                    }
                }
                Heard::Overflow => {
                    written = true;
                    self.look_at_everything();
                }
            }
        }
        if written && self.somebody_watches() {
            self.check_commits(true);
        } else if written {
            self.hear_commits();
        }
    }

    pub(crate) fn suspect_by_id(&mut self, id: SessionId) {
        if let Some(local) = self.hub.locals.values().find(|local| local.id == id) {
            if local.is_over() {
                let seq = local.seq;
                self.suspect(seq);
            }
            return;
        }
        let deadline = self.client.clock.now() + REAP_LIMIT;
        let found = self.write(Level::Read, deadline, |tx| {
            let sessions = tx.first("SELECT count(*) FROM sessions", [], |row| row.get::<_, u32>(0))?;
            Ok(Recorded::by_id(tx, id)?.map(|session| (session.seq, sessions.unwrap_or(0))))
        });
        match found {
            Ok(Some((seq, sessions))) => {
                self.probes.doubt(seq);
                // Everybody who watches hears it at once: one is enough to clear it away, and the rest find it done.
                let wait = self.client.entropy.between(Duration::ZERO, TURNS * sessions);
                let at = self.client.clock.now() + wait.min(SAFETY);
                self.suspects.entry(seq).or_insert((at, 0));
            }
            Ok(None) => {} // cleared away already
            Err(error) => tracing::debug!(%error, "a session that may be dead is looked at later"),
        }
    }

    /// Ends a session of ours whose file was taken away.
    pub(crate) fn check_own_file(&mut self, local: &Arc<Local>) {
        if !FileId::at(&local.path).is_ok_and(|id| id == local.file) {
            if local.loss().is_none() {
                tracing::warn!(session = %local.id, "the session's file was removed: the session ends");
                local.end(LossReason::Vanished);
            }
            self.suspect(local.seq);
        }
    }

    fn check_own_files(&mut self) {
        for local in self.hub.locals.values().cloned().collect::<Vec<_>>() {
            self.check_own_file(&local);
        }
    }

    /// Lets go of a database that is no longer at its path.
    pub(crate) fn check_place(&mut self) {
        let Some(database) = &self.database else { return };
        let in_place = FileId::at(&self.client.place.database).is_ok_and(|id| id == database.file);
        if in_place {
            if !self.client.place.sessions().is_dir() {
                self.check_own_files();
                // Opened again, it makes the directory anew and listens to that.
                self.clear_suspects();
                self.let_go();
            }
            return;
        }
        tracing::warn!(
            database = %self.client.place.database.display(),
            "the database was deleted or replaced while in use: its sessions end"
        );
        for local in self.hub.locals.values() {
            local.end(LossReason::Vanished);
        }
        // As far as others still use the old file, they see that we are gone.
        for seq in self.hub.locals.keys().copied().collect::<Vec<_>>() {
            self.suspect(seq);
        }
        self.clear_suspects();
        self.hub.locals.clear();
        self.let_go();
        for watch in self.hub.groups.iter().filter_map(Weak::upgrade) {
            watch.fall_behind(true);
        }
    }

    pub(crate) fn let_go(&mut self) {
        self.ears = None;
        self.database = None;
        self.suspects.clear();
        self.committing = None;
        self.bell = None;
        self.ahead.clear();
    }

    /// Looks whether another process has committed, and, if a write to the log was heard, again later while one is
    /// about to: it writes first and publishes then. A bell is rung after both.
    pub(crate) fn check_commits(&mut self, written: bool) {
        let Some(database) = &self.database else { return };
        // In this order: who was done before the question has published what it wrote.
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
        let now = self.client.clock.now();
        self.committing = writing.then(|| {
            let wait = self.committing.map_or(COMMITTING, |(_, wait)| (wait * 2).min(COMMITTING_MOST));
            (now + wait, wait)
        });
    }

    /// Everything that is due.
    pub(crate) fn look_after(&mut self) {
        if self.client.take_abandoned() {
            let over: Vec<_> =
                self.hub.locals.values().filter(|local| local.is_over()).map(|local| local.seq).collect();
            for seq in over {
                self.suspect(seq);
            }
        }
        let now = self.client.clock.now();
        if self.committing.is_some_and(|(at, _)| at <= now) {
            self.check_commits(true);
        }
        if self.suspects.values().any(|(at, _)| *at <= now) {
            self.clear_suspects();
        }
        self.dispatch_own();
        if self.safety <= now {
            let deaf = self.is_deaf();
            let wait = if deaf { self.client.entropy.between(POLL_LOW, POLL_HIGH) } else { SAFETY };
            self.safety = now + wait;
            self.check_place();
            self.check_own_files();
            if self.somebody_waits() {
                if let Err(error) = self.open(now + REAP_LIMIT) {
                    tracing::debug!(%error, "the database is opened again later");
                    return;
                }
                if self.ears.is_none() && self.database.is_some() {
                    self.open_ears();
                }
                self.hear_commits();
                if self.somebody_watches() {
                    self.look_at_everything();
                }
                self.check_commits(false);
                self.look_ahead();
            }
        }
    }

    pub(crate) fn look_at_everything(&mut self) {
        self.check_own_files();
        let deadline = self.client.clock.now() + REAP_LIMIT;
        match self.write(Level::Read, deadline, reaper::find_dead) {
            Ok(dead) => dead.into_iter().for_each(|seq| self.suspect(seq)),
            Err(error) => tracing::debug!(%error, "dead sessions are looked for later"),
        }
    }

    /// Clears away the suspects that are dead, and looks at the others again a few times.
    pub(crate) fn clear_suspects(&mut self) {
        let now = self.client.clock.now();
        let due: Vec<i64> =
            self.suspects.iter().filter(|(_, (at, _))| *at <= now).map(|(seq, _)| *seq).collect();
        if due.is_empty() || self.database.is_none() {
            return;
        }
        for seq in &due {
            self.probes.doubt(*seq);
        }
        // First without the write lock: most suspects live, or somebody else was faster.
        let dead = self.write(Level::Read, now + REAP_LIMIT, |tx| {
            let (mut dead, mut gone) = (Vec::new(), Vec::new());
            for seq in &due {
                let stands = tx.first("SELECT 1 FROM sessions WHERE seq = ?1", [*seq], |_| Ok(()))?.is_some();
                if !stands {
                    gone.push(*seq);
                } else if reaper::is_dead(tx, *seq)? {
                    dead.push(*seq);
                }
            }
            // They are looked at below; the reads' own suspicion would only repeat that.
            tx.effects.clear();
            Ok((dead, gone))
        });
        let cleared = dead.and_then(|(dead, gone)| {
            if dead.is_empty() {
                return Ok(gone);
            }
            self.write(Level::Write, now + REAP_LIMIT, |tx| {
                let mut cleared = gone.clone();
                for seq in &dead {
                    if reaper::reap(tx, *seq)? {
                        cleared.push(*seq);
                    }
                }
                Ok(cleared)
            })
        });
        let now = self.client.clock.now();
        match cleared {
            Ok(cleared) => {
                // Somebody else stands before us then.
                self.ahead_changed |= !cleared.is_empty();
                for seq in due {
                    let looked = self.suspects.get(&seq).map_or(0, |(_, looked)| *looked);
                    if cleared.contains(&seq) {
                        self.suspects.remove(&seq);
                    } else if let Some(wait) = AGAIN.get(looked) {
                        self.suspects.insert(seq, (now + *wait, looked + 1));
                    } else {
                        self.suspects.remove(&seq);
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "dead sessions are cleared away later");
                for seq in due {
                    self.suspects.insert(seq, (now + POLL_HIGH, 0));
                }
            }
        }
        self.dispatch_own();
    }

    /// Looks at a session as soon as possible.
    pub(crate) fn suspect(&mut self, seq: i64) {
        self.probes.doubt(seq);
        let now = self.client.clock.now();
        self.suspects.entry(seq).or_insert((now, 0)).0 = now;
    }
}
