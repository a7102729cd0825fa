//! The database thread: it runs the jobs, listens to the kernel, and tells this process what other processes did.
//!
//! One thread does it all, so that nothing of the database is ever looked at by two. It sleeps in one `ppoll` on
//! the bell of the queue and on the kernel's file events; there is no timer while nobody waits for anything.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tooz_core::clock::Instant;
use tooz_core::driver::Notice;
use tooz_core::{Error, ErrorKind, LossReason, Result};

use crate::batch::MOST;
use crate::client::{Client, Level};
use crate::ears::{Ears, Heard};
use crate::kernel::{self, FileId, Process};
use crate::keys::Lock;
use crate::local::Local;
use crate::reaper::{self, Recorded};
use crate::schema::Database;
use crate::tx::{Effect, Probes, Site};
use crate::watch::{GroupWatch, LockWatch};
use crate::{error, events, fence, sessionfile};

/// How long the thread looks for the next job before it sleeps: about what waking it costs, so that a caller who
/// releases what it has just acquired does not pay for two wake-ups.
const LINGER: Duration = Duration::from_micros(40);
/// A second look at everything while somebody waits, so that an event that was lost hangs nobody.
const SAFETY: Duration = Duration::from_secs(1);
/// Without events (too many inotify instances) the thread looks this often, with jitter.
const POLL_LOW: Duration = Duration::from_millis(5);
const POLL_HIGH: Duration = Duration::from_millis(50);
/// While another process is between writing the log and publishing its commit, it is looked at again after this,
/// and then ever less often (a commit that syncs takes some 200 µs).
const COMMITTING: Duration = Duration::from_micros(100);
const COMMITTING_MOST: Duration = Duration::from_millis(5);
/// The kernel tells that a file was closed shortly before it drops its lock; after the first look, the file is
/// looked at again after these times. Later deaths are found by the safety look.
const AGAIN: [Duration; 5] = [
    Duration::from_micros(200),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(100),
];
/// How long clearing away waits for another writer before jobs get their turn; it is tried again.
const REAP_LIMIT: Duration = Duration::from_millis(20);
/// How many batches run before the kernel is listened to although there is more to do.
const DEAF: u32 = 16;

/// What this process waits for.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    pub(crate) locals: HashMap<i64, Arc<Local>>,
    groups: Vec<Weak<GroupWatch>>,
    locks: Vec<Weak<LockWatch>>,
}

/// The thread's state.
pub(crate) struct Engine {
    pub(crate) client: Arc<Client>,
    pub(crate) database: Option<Database>,
    pub(crate) site: Option<Arc<Site>>,
    pub(crate) hub: Hub,
    pub(crate) probes: Probes,
    ears: Option<Ears>,
    /// Up to which event this process has heard.
    cursor: i64,
    /// Other connections' commits that this process has heard of.
    version: i64,
    /// Events were logged by our own commit.
    logged: bool,
    /// Locks whose holders our own commits changed.
    touched: Vec<Lock>,
    /// Sessions that may be dead: when to look, and how often that was done.
    suspects: BTreeMap<i64, (Instant, usize)>,
    /// When to look again whether somebody has finished a commit, and after which wait.
    committing: Option<(Instant, Duration)>,
    safety: Instant,
}

/// Tells everybody that the thread is over, also when it panics.
struct Farewell<'a>(&'a Client);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The thread.
pub(crate) fn run(client: &Arc<Client>) {
    let farewell = Farewell(client);
    let now = client.clock.now();
    let mut engine = Engine {
        client: client.clone(),
        database: None,
        site: None,
        hub: Hub::default(),
        probes: Probes::default(),
        ears: None,
        cursor: 0,
        version: 0,
        logged: false,
        touched: Vec::new(),
        suspects: BTreeMap::new(),
        committing: None,
        safety: now + SAFETY,
    };
    engine.turn();
    let ended = Error::new(ErrorKind::Closed, "the connection to the database was closed");
    for local in engine.hub.locals.values() {
        local.end(LossReason::SessionClosed);
    }
    engine.hub.groups.iter().filter_map(Weak::upgrade).for_each(|watch| watch.end(ended.clone()));
    engine.hub.locks.iter().filter_map(Weak::upgrade).for_each(|watch| watch.end(ended.clone()));
    drop(engine); // closes the database before anybody is told that it is closed
    drop(farewell);
}

impl Engine {
    fn turn(&mut self) {
        let mut batches = 0;
        loop {
            let jobs = self.client.take(MOST);
            let worked = !jobs.is_empty();
            if worked {
                self.check_place();
                self.run(jobs);
                self.dispatch_own();
                batches += 1;
                if batches % DEAF != 0 && self.linger() {
                    continue;
                }
            }
            self.listen();
            self.look_after();
            if self.client.is_over() {
                return;
            }
            if !self.client.has_jobs() {
                self.sleep();
            }
        }
    }

    /// Looks for a job a little while before sleeping; whether there is one.
    fn linger(&self) -> bool {
        let until = self.client.clock.now() + LINGER;
        loop {
            if self.client.has_jobs() {
                return true;
            }
            if self.client.clock.now() >= until {
                return false;
            }
            std::thread::yield_now(); // whoever is ready goes first: it may be the caller
        }
    }

    fn sleep(&mut self) {
        let until = self.next_look();
        if !self.client.fall_asleep() {
            return;
        }
        let timeout =
            until.map(|until| TimeSpec::from_duration(until.saturating_since(self.client.clock.now())));
        let mut files = vec![PollFd::new(self.client.bell().as_fd(), PollFlags::POLLIN)];
        if let Some(ears) = &self.ears {
            files.push(PollFd::new(ears.as_fd(), PollFlags::POLLIN));
        }
        // An interrupted sleep is a short one: everything is looked at again anyway.
        let _ = ppoll(&mut files, timeout, None);
        let rung = files.first().and_then(PollFd::any).unwrap_or(true);
        drop(files);
        self.client.awake();
        if rung {
            let _ = self.client.bell().read(); // empty only if nobody rang
        }
    }

    /// When the thread has to look by itself; `None` while nobody waits for anything.
    fn next_look(&self) -> Option<Instant> {
        let mut next = self.suspects.values().map(|(at, _)| *at).min();
        let mut sooner = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        if let Some((at, _)) = self.committing {
            sooner(at);
        }
        if self.database.is_some() && self.somebody_waits() {
            sooner(self.safety);
        }
        next
    }

    fn somebody_waits(&self) -> bool {
        self.hub.groups.iter().any(|watch| watch.strong_count() > 0)
            || self.hub.locks.iter().any(|watch| watch.strong_count() > 0)
            || self.hub.locals.values().any(|local| local.is_over() || local.has_waiting())
            // Without events a session cannot hear of a break in any other way.
            || (self.ears.is_none() && !self.hub.locals.is_empty())
    }

    /// Opens the database if it is not open.
    pub(crate) fn open(&mut self, deadline: Instant) -> Result<()> {
        if self.database.is_some() {
            return Ok(());
        }
        let client = self.client.clone();
        let boot_id = match &client.boot_id {
            Some(boot_id) => boot_id.clone(),
            None => kernel::boot_id().map_err(|error| error::io("/proc/sys/kernel/random/boot_id", error))?,
        };
        let site = Arc::new(Site {
            sessions: client.place.sessions(),
            process: Process::this(),
            boot_id,
            clock: client.clock.clone(),
            entropy: client.entropy.clone(),
        });
        let database = Database::open(&client.place, &site, deadline)?;
        // Before anything is read: what happens from now on is heard of.
        self.ears = open_ears(&client);
        self.probes = Probes::new(self.ears.is_some());
        self.version = database.version().map_err(error::native)?;
        self.database = Some(database);
        self.site = Some(site.clone());
        let prepared = self.prepare(&site, deadline);
        if prepared.is_err() {
            self.database = None;
        }
        prepared
    }

    /// After a reboot the counter jumps; then everything that died while nobody looked is cleared away.
    fn prepare(&mut self, site: &Site, deadline: Instant) -> Result<()> {
        let boot: Option<String> = self
            .write(Level::Read, deadline, |tx| tx.first("SELECT boot_id FROM fence", [], |row| row.get(0)))?;
        let same_boot = boot.as_ref() == Some(&site.boot_id);
        let level = if same_boot { Level::Write } else { Level::Durable };
        let known = self.write(level, deadline, |tx| {
            fence::rebooted(tx)?;
            reaper::reap_all(tx)?;
            Recorded::all(tx)
        })?;
        let strays =
            sessionfile::remove_strays(&site.sessions, |id| known.iter().any(|known| known.id == id));
        if let Err(error) = strays {
            tracing::debug!(%error, "leftover session files stay");
        }
        self.cursor = self.write(Level::Read, deadline, |tx| events::latest(tx))?;
        Ok(())
    }

    /// Does what follows from a commit.
    pub(crate) fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Opened(local) => {
                    local.record();
                    self.hub.locals.insert(local.seq, local);
                }
                Effect::Ended(seq, reason) => {
                    self.suspects.remove(&seq);
                    if let Some(local) = self.hub.locals.remove(&seq) {
                        local.end(reason);
                    }
                }
                Effect::Queued(seq, attempt, lock) => {
                    if let Some(local) = self.hub.locals.get(&seq) {
                        local.queue(attempt, lock);
                    }
                }
                Effect::Granted(seq, grant) => {
                    if let Some(local) = self.hub.locals.get(&seq) {
                        local.granted(grant);
                    }
                }
                Effect::Forgotten(seq, attempt) => {
                    if let Some(local) = self.hub.locals.get(&seq) {
                        local.forget(attempt);
                    }
                }
                Effect::Broken(seq, attempt) => self.broken(seq, attempt),
                Effect::Clear(file) => file.remove(),
                Effect::Suspect(seq) => self.suspect(seq),
                Effect::WatchGroup(watch, seq, change) => {
                    watch.view(seq, change);
                    let known = self.hub.groups.iter().any(|known| known.as_ptr() == Arc::as_ptr(&watch));
                    if !known {
                        self.hub.groups.retain(|watch| watch.strong_count() > 0);
                        self.hub.groups.push(Arc::downgrade(&watch));
                    }
                }
                Effect::WatchLock(watch, holders) => {
                    watch.set(holders);
                    self.hub.locks.retain(|watch| watch.strong_count() > 0);
                    self.hub.locks.push(Arc::downgrade(&watch));
                }
                Effect::Holders(lock) => {
                    if !self.hub.locks.is_empty() {
                        self.touched.push(lock);
                    }
                }
                Effect::Logged => self.logged = true,
            }
        }
    }

    pub(crate) fn broken(&mut self, seq: i64, attempt: tooz_core::driver::AttemptId) {
        let Some(local) = self.hub.locals.get(&seq).cloned() else { return };
        let deadline = self.client.clock.now() + REAP_LIMIT;
        let reason = self.write(Level::Read, deadline, |tx| crate::locks::why_gone(tx, attempt));
        local.forget(attempt);
        local.tell(Notice::GrantLost(attempt, reason.unwrap_or(LossReason::Vanished)));
    }

    /// Looks at a session as soon as possible.
    pub(crate) fn suspect(&mut self, seq: i64) {
        self.probes.doubt(seq);
        let now = self.client.clock.now();
        self.suspects.entry(seq).or_insert((now, 0)).0 = now;
    }

    fn listen(&mut self) {
        let heard = self.ears.as_ref().map(Ears::listen).unwrap_or_default();
        let mut written = false;
        for what in heard {
            match what {
                Heard::Written => written = true,
                Heard::Moved => self.check_place(),
                Heard::Closed(id) => self.suspect_by_id(id),
                Heard::Removed(id) => {
                    // Only the owner cares; a session of this process that was not closed by us is over.
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
        if written {
            self.check_commits();
        }
    }

    fn suspect_by_id(&mut self, id: tooz_core::driver::SessionId) {
        if let Some(local) = self.hub.locals.values().find(|local| local.id == id) {
            if local.is_over() {
                let seq = local.seq;
                self.suspect(seq);
            }
            return;
        }
        let deadline = self.client.clock.now() + REAP_LIMIT;
        match self.write(Level::Read, deadline, |tx| Recorded::by_id(tx, id)) {
            Ok(Some(session)) => self.suspect(session.seq),
            Ok(None) => {} // cleared away already
            Err(error) => tracing::debug!(%error, "a session that may be dead is looked at later"),
        }
    }

    /// Ends a session of ours whose file was taken away.
    fn check_own_file(&mut self, local: &Arc<Local>) {
        if !FileId::at(&local.path).is_ok_and(|id| id == local.file) {
            if local.loss().is_none() {
                tracing::warn!(session = %local.id, "the session's file was removed: the session ends");
                local.end(LossReason::Vanished);
            }
            self.suspect(local.seq);
        }
    }

    /// Lets go of a database that is no longer at its path.
    fn check_place(&mut self) {
        let Some(database) = &self.database else { return };
        let in_place = FileId::at(&self.client.place.database).is_ok_and(|id| id == database.file);
        if in_place {
            if !self.client.place.sessions().is_dir() {
                for local in self.hub.locals.values().cloned().collect::<Vec<_>>() {
                    self.check_own_file(&local);
                }
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

    fn let_go(&mut self) {
        self.ears = None;
        self.database = None;
        self.suspects.clear();
        self.committing = None;
    }

    /// Looks whether another process has committed, and again later while one is about to.
    fn check_commits(&mut self) {
        let Some(database) = &self.database else { return };
        // In this order: who was done before the question has published what it wrote.
        let writing = database.writer().is_some();
        match database.version() {
            Ok(version) if version != self.version => {
                self.version = version;
                self.dispatch(true);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "other processes' commits are looked for later"),
        }
        let now = self.client.clock.now();
        self.committing = writing.then(|| {
            let wait = self.committing.map_or(COMMITTING, |(_, wait)| (wait * 2).min(COMMITTING_MOST));
            (now + wait, wait)
        });
    }

    /// Everything that is due.
    fn look_after(&mut self) {
        if self.client.take_abandoned() {
            let over: Vec<_> =
                self.hub.locals.values().filter(|local| local.is_over()).map(|local| local.seq).collect();
            over.into_iter().for_each(|seq| self.suspect(seq));
        }
        let now = self.client.clock.now();
        if self.committing.is_some_and(|(at, _)| at <= now) {
            self.check_commits();
        }
        if self.suspects.values().any(|(at, _)| *at <= now) {
            self.clear_suspects();
        }
        if self.safety <= now {
            let wait =
                if self.ears.is_some() { SAFETY } else { self.client.entropy.between(POLL_LOW, POLL_HIGH) };
            self.safety = now + wait;
            if self.somebody_waits() {
                self.check_place();
                if self.ears.is_none() && self.database.is_some() {
                    self.ears = open_ears(&self.client);
                    self.probes.trusted = self.ears.is_some();
                }
                self.look_at_everything();
                self.check_commits();
            }
        }
    }

    fn look_at_everything(&mut self) {
        for local in self.hub.locals.values().cloned().collect::<Vec<_>>() {
            self.check_own_file(&local);
        }
        let deadline = self.client.clock.now() + REAP_LIMIT;
        match self.write(Level::Read, deadline, reaper::find_dead) {
            Ok(dead) => dead.into_iter().for_each(|seq| self.suspect(seq)),
            Err(error) => tracing::debug!(%error, "dead sessions are looked for later"),
        }
    }

    /// Clears away the suspects that are dead, and looks at the others again a few times.
    fn clear_suspects(&mut self) {
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
            let mut dead = Vec::new();
            for seq in &due {
                if reaper::is_dead(tx, *seq)? {
                    dead.push(*seq);
                }
            }
            // They are looked at below; the reads' own suspicion would only repeat that.
            tx.effects.clear();
            Ok(dead)
        });
        let cleared = dead.and_then(|dead| {
            if dead.is_empty() {
                return Ok(Vec::new());
            }
            self.write(Level::Write, now + REAP_LIMIT, |tx| {
                let mut cleared = Vec::new();
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

    /// Tells this process what its own commits changed.
    fn dispatch_own(&mut self) {
        if self.logged {
            self.dispatch(false);
        }
        let touched = std::mem::take(&mut self.touched);
        if !touched.is_empty() {
            self.refresh(|lock| touched.contains(lock));
        }
    }

    /// Reads the log from where it was left; `foreign`: after another process's commit.
    fn dispatch(&mut self, foreign: bool) {
        self.logged = false;
        let cursor = self.cursor;
        let deadline = self.client.clock.now() + REAP_LIMIT;
        let entries = match self.write(Level::Read, deadline, |tx| events::after(tx, cursor)) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::debug!(%error, "the log of events is read later");
                self.logged = true;
                return;
            }
        };
        if entries.first().is_some_and(|(seq, _)| *seq > cursor + 1) {
            self.resync();
        }
        let mut leaders = Vec::new();
        for (seq, entry) in entries {
            self.cursor = seq;
            self.tell(seq, entry, &mut leaders);
        }
        // Another process's acquire of a named lock is in no log: it would cost every acquire an entry.
        self.refresh(|lock| match &lock.key {
            tooz_core::driver::LockKey::Leader(group) => leaders
                .iter()
                .any(|(namespace, name)| **namespace == *lock.namespace && name == group.as_bytes()),
            _ => foreign,
        });
    }

    fn tell(&mut self, seq: i64, entry: events::Entry, leaders: &mut Vec<(String, Vec<u8>)>) {
        use events::Entry;
        match entry {
            Entry::Member(change, namespace, name, row) => {
                let Some(record) = row.record() else { return };
                self.tell_group(seq, &namespace, &name, &events::to_change(change, record));
            }
            Entry::GroupDeleted(namespace, name) => {
                self.tell_group(seq, &namespace, &name, &tooz_core::driver::GroupChange::Deleted);
            }
            Entry::LeaderChanged(namespace, name) => leaders.push((namespace, name)),
            Entry::Granted(session, attempt) => {
                let local = self.hub.locals.get(&session).cloned();
                if let Some((local, slot)) =
                    local.and_then(|local| Some((local.clone(), local.slot(attempt)?)))
                {
                    self.settle(&local, attempt, &slot.lock);
                }
            }
            Entry::Broken(session, attempt) => self.broken(session, attempt),
            Entry::SessionEnded(session) => {
                if let Some(local) = self.hub.locals.remove(&session) {
                    tracing::warn!(session = %local.id, "another process took this session for dead");
                    local.end(LossReason::Vanished);
                }
            }
            Entry::Unknown => {}
        }
    }

    fn tell_group(&self, seq: i64, namespace: &str, name: &[u8], change: &tooz_core::driver::GroupChange) {
        for watch in self.hub.groups.iter().filter_map(Weak::upgrade) {
            if *watch.namespace == *namespace && watch.group.as_bytes() == name {
                watch.change(seq, change.clone());
            }
        }
    }

    /// Looks what stands for an attempt that waits.
    fn settle(&mut self, local: &Arc<Local>, attempt: tooz_core::driver::AttemptId, lock: &Lock) {
        let deadline = self.client.clock.now() + REAP_LIMIT;
        let seq = local.seq;
        match self.write(Level::Read, deadline, |tx| crate::locks::outcome(tx, seq, lock, attempt)) {
            Ok(Some(tooz_core::driver::Turn::Granted(grant))) => local.granted(grant),
            Ok(Some(_)) => local.forget(attempt),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "a grant is looked at with the next beat"),
        }
    }

    /// Events were cut off before they were read: looks at the state instead.
    fn resync(&mut self) {
        for local in self.hub.locals.values().cloned().collect::<Vec<_>>() {
            for (attempt, slot) in local.waiting() {
                self.settle(&local, attempt, &slot.lock);
            }
        }
        for watch in self.hub.groups.iter().filter_map(Weak::upgrade) {
            watch.fall_behind(false);
        }
        self.refresh(|_| true);
    }

    /// Shows the present holders to those who watch one of these locks.
    fn refresh(&mut self, concerns: impl Fn(&Lock) -> bool) {
        let watches: Vec<_> = self.hub.locks.iter().filter_map(Weak::upgrade).collect();
        for watch in watches.into_iter().filter(|watch| concerns(&watch.lock)) {
            let deadline = self.client.clock.now() + REAP_LIMIT;
            match self.write(Level::Read, deadline, |tx| crate::locks::holders(tx, &watch.lock)) {
                Ok(holders) => watch.set(holders),
                Err(error) => tracing::debug!(%error, "the holders of a lock are shown later"),
            }
        }
    }
}

fn open_ears(client: &Client) -> Option<Ears> {
    Ears::new(&client.place)
        .inspect_err(|error| {
            tracing::warn!(
                %error,
                "no file events (see /proc/sys/fs/inotify): changes are looked for every 5 to 50 ms instead"
            );
        })
        .ok()
}
