//! The database thread: it runs the jobs, listens to the kernel, and tells this process what other processes did.
//!
//! One thread does it all, so that nothing of the database is ever looked at by two. It sleeps in one `ppoll` on
//! the bell of the queue and on the kernel's file events; there is no timer while nobody waits for anything.

pub(crate) mod batch;
pub(crate) mod dispatch;
pub(crate) mod fence;
pub(crate) mod inotify;
pub(crate) mod jobs;
pub(crate) mod log;
pub(crate) mod monitor;
pub(crate) mod paths;
pub(crate) mod predecessor;
pub(crate) mod presence;
pub(crate) mod schema;
pub(crate) mod session_file;
pub(crate) mod spin;
pub(crate) mod tx;
pub(crate) mod wakeup;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tooz_core::clock::Instant;
use tooz_core::{Error, ErrorKind, LossReason, Result};

use crate::engine::batch::MOST;
use crate::engine::dispatch::Hub;
use crate::engine::inotify::Ears;
use crate::engine::jobs::{Client, Level};
use crate::engine::predecessor::Ahead;
use crate::engine::schema::Database;
use crate::engine::spin::Spin;
use crate::engine::tx::{Probes, Site};
use crate::engine::wakeup::Bell;
use crate::error;
use crate::host::kernel::{self, FileId, Process};
use crate::keys::Lock;
use crate::reaper::{self, Recorded};

/// How long the thread looks for the next job before it sleeps: about what waking it costs, so that a caller who
/// releases what it has just acquired does not pay for two wake-ups.
const LINGER: Duration = Duration::from_micros(40);
/// A second look at everything while somebody waits, so that an event that was lost hangs nobody.
pub(crate) const SAFETY: Duration = Duration::from_secs(1);
/// Without events (too many inotify instances) the thread looks this often, with jitter.
pub(crate) const POLL_LOW: Duration = Duration::from_millis(5);
pub(crate) const POLL_HIGH: Duration = Duration::from_millis(50);
/// How long clearing away waits for another writer before jobs get their turn; it is tried again.
pub(crate) const REAP_LIMIT: Duration = Duration::from_millis(20);
/// How many batches run before the kernel is listened to although there is more to do.
const DEAF: u32 = 16;

/// The thread's state.
pub(crate) struct Engine {
    pub(crate) client: Arc<Client>,
    pub(crate) database: Option<Database>,
    pub(crate) site: Option<Arc<Site>>,
    pub(crate) hub: Hub,
    pub(crate) probes: Probes,
    pub(crate) ears: Option<Ears>,
    /// Whether it was said that there are none.
    pub(crate) deaf: bool,
    /// What other processes ring.
    pub(crate) bell: Option<Bell>,
    /// Whose ends concern our waiters.
    pub(crate) ahead: Ahead,
    /// That may have changed.
    pub(crate) ahead_changed: bool,
    /// Up to which event this process has heard.
    pub(crate) cursor: i64,
    /// Other connections' commits that this process has heard of.
    pub(crate) version: i64,
    /// Events were logged by our own commit.
    pub(crate) logged: bool,
    /// Locks whose holders our own commits changed.
    pub(crate) touched: Vec<Lock>,
    /// Sessions that may be dead: when to look, and how often that was done.
    pub(crate) suspects: BTreeMap<i64, (Instant, usize)>,
    /// When to look again whether somebody has finished a commit, and after which wait.
    pub(crate) committing: Option<(Instant, Duration)>,
    pub(crate) safety: Instant,
    /// Whether waiting for the next job pays.
    spin: Spin,
    /// The database that was open last.
    known: Option<FileId>,
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
        deaf: false,
        bell: None,
        ahead: Ahead::default(),
        ahead_changed: false,
        cursor: 0,
        version: 0,
        logged: false,
        touched: Vec::new(),
        suspects: BTreeMap::new(),
        committing: None,
        safety: now + SAFETY,
        spin: Spin::default(),
        known: None,
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
                let one_caller = self.client.callers() <= 1;
                self.check_place();
                let done = self.run(jobs);
                self.dispatch_own();
                batches += 1;
                if done && batches % DEAF != 0 && self.linger(one_caller) {
                    continue;
                }
            }
            self.listen();
            self.look_after();
            if self.client.is_over() {
                return;
            }
            if self.client.waiting() == 0 {
                self.sleep();
            }
        }
    }

    /// Whether there are jobs; for the next job of a single caller the thread waits a little before it sleeps. Several
    /// callers are not waited for: while the thread wakes up, the jobs of the others join the first.
    fn linger(&self, one_caller: bool) -> bool {
        let look = || (self.client.waiting() > 0).then_some(());
        let found = if one_caller { self.spin.wait(&self.client.clock, LINGER, look) } else { look() };
        found.is_some()
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
        if let Some(bell) = &self.bell {
            files.push(PollFd::new(bell.file().as_fd(), PollFlags::POLLIN));
        }
        // Only their ends, which are told without being asked for.
        files.extend(self.ahead.files().map(|file| PollFd::new(file.as_fd(), PollFlags::empty())));
        // An interrupted sleep is a short one: everything is looked at again anyway.
        let _ = ppoll(&mut files, timeout, None);
        let rung = files.first().and_then(PollFd::any).unwrap_or(true);
        drop(files);
        self.client.awake();
        if rung {
            let _ = self.client.bell().read(); // empty only if nobody rang
        }
    }

    /// When the thread has to look by itself; `None` while there is no session and nobody waits for anything.
    fn next_look(&self) -> Option<Instant> {
        let mut next = self.suspects.values().map(|(at, _)| *at).min();
        let mut sooner = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        if let Some((at, _)) = self.committing {
            sooner(at);
        }
        // An unlinked name is told of before it is gone: who looks at once may still find it, and is told no more.
        if self.somebody_waits() || !self.hub.locals.is_empty() {
            sooner(self.safety);
        }
        if self.logged {
            sooner(self.client.clock.now() + POLL_LOW); // the log could not be read
        }
        next
    }

    pub(crate) fn somebody_waits(&self) -> bool {
        self.somebody_watches()
            || self.hub.locals.values().any(|local| local.is_over() || local.has_waiting())
            // Without them a session cannot hear of a break, or of the loss of its file, in any other way.
            || ((self.ears.is_none() || self.bell.is_none()) && !self.hub.locals.is_empty())
    }

    /// Whether every commit of every process may concern this one.
    pub(crate) fn somebody_watches(&self) -> bool {
        self.hub.groups.iter().any(|watch| watch.strong_count() > 0)
            || self.hub.locks.iter().any(|watch| watch.strong_count() > 0)
    }

    /// Whether changes that concern this process may come without any event.
    pub(crate) fn is_deaf(&self) -> bool {
        self.bell.is_none() || (self.ears.is_none() && self.somebody_watches())
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
        let mut site = Site {
            sessions: client.place.sessions(),
            process: Process::this(),
            boot_id,
            layout: client.layout,
            bell: None,
            known: self.known,
            adopt: client.adopts(),
            clock: client.clock.clone(),
            entropy: client.entropy.clone(),
        };
        let database = Database::open(&client.place, &site, deadline)?;
        self.known = Some(database.file);
        client.adopted();
        // Before anything is read: what happens from now on is heard of.
        self.probes = Probes::default();
        self.open_ears();
        self.bell = Bell::hang(&site.sessions, client.place.mode, || client.entropy.id())
            .inspect_err(|error| tracing::warn!(%error, "no FIFO can be had: changes are looked for instead"))
            .ok();
        site.bell = self.bell.as_ref().map(|bell| bell.id);
        let site = Arc::new(site);
        self.version = database.version().map_err(error::native)?;
        self.database = Some(database);
        self.site = Some(site.clone());
        while let Err(error) = self.prepare(&site, deadline) {
            // A read answers busy, too, while another process recovers the log or closes the database as the last.
            if !schema::is_busy(&error) || client.clock.now() >= deadline {
                self.database = None;
                return Err(error);
            }
            std::thread::park_timeout(client.entropy.between(schema::BUSY_LOW, schema::BUSY_HIGH));
        }
        if self.is_deaf() {
            self.safety = self.client.clock.now() + POLL_LOW;
        }
        // If it was open before, what happened meanwhile was not heard.
        self.resync(i64::MAX);
        Ok(())
    }

    /// After a reboot the counter jumps; then everything that died while nobody looked is cleared away.
    fn prepare(&mut self, site: &Site, deadline: Instant) -> Result<()> {
        // First without the write lock: of many that start together hardly one has anything to write.
        let (boot, dead) = self.write(Level::Read, deadline, |tx| {
            let boot: Option<String> = tx.first("SELECT boot_id FROM fence", [], |row| row.get(0))?;
            Ok((boot, reaper::find_dead(tx)?))
        })?;
        let same_boot = boot.as_ref() == Some(&site.boot_id);
        if !same_boot || !dead.is_empty() {
            let level = if same_boot { Level::Write } else { Level::Durable };
            self.write(level, deadline, |tx| {
                fence::rebooted(tx)?;
                reaper::reap_each(tx, &dead)
            })?;
        }
        let known = self.write(Level::Read, deadline, |tx| Recorded::all(tx))?;
        let (ids, bells): (HashSet<_>, HashSet<_>) = known.iter().map(|one| (one.id, one.bell)).unzip();
        let strays = session_file::remove_strays(&site.sessions, |id| ids.contains(&id))
            .and_then(|()| wakeup::remove_strays(&site.sessions, |bell| bells.contains(&Some(bell))));
        if let Err(error) = strays {
            tracing::debug!(%error, "leftover session files stay");
        }
        self.cursor = self.write(Level::Read, deadline, |tx| log::latest(tx))?;
        Ok(())
    }
}
