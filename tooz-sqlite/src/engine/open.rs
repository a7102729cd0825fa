//! Opening the database on its thread: from then on the thread hears of what other processes do.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tooz_core::Result;
use tooz_core::driver::Instant;

use crate::engine::database::{self, BUSY_HIGH, BUSY_LOW, Database};
use crate::engine::jobs::Level;
use crate::engine::state::{Engine, POLL_LOW};
use crate::engine::tx::{Probes, Site};
use crate::engine::wakeup::{self, Wakeup};
use crate::engine::{fence, log, session_file};
use crate::error;
use crate::reaper::{self, Recorded};

impl Engine {
    /// Opens the database if it is not open.
    pub(crate) fn open(&mut self, deadline: Instant) -> Result<()> {
        if self.database.is_some() {
            return Ok(());
        }
        let jobs = self.jobs.clone();
        let mut site = Site {
            known: self.known,
            adopt: jobs.adopt.load(Ordering::SeqCst),
            ..Site::new(&jobs.paths, jobs.boot_id.as_deref(), jobs.layout, &jobs.context)?
        };
        let database = Database::open(&jobs.paths, &site, deadline)?;
        self.known = Some(database.file);
        jobs.adopt.store(false, Ordering::SeqCst);
        // Before the first read, so that no event falls between the read and the listening.
        self.probes = Probes::default();
        self.open_file_events();
        self.wakeup = Wakeup::create(&site.sessions, jobs.paths.mode, || jobs.context.entropy.id())
            .inspect_err(|error| tracing::warn!(%error, "no FIFO can be had: changes are looked for instead"))
            .ok();
        site.wakeup = self.wakeup.as_ref().map(|wakeup| wakeup.id);
        let site = Arc::new(site);
        self.version = database.version().map_err(error::native)?;
        self.database = Some(database);
        self.site = Some(site.clone());
        while let Err(error) = self.prepare(&site, deadline) {
            // A read is busy, too, while another process recovers the log or closes the database as the last.
            if !database::is_busy(&error) || jobs.context.clock.now() >= deadline {
                self.database = None;
                return Err(error);
            }
            std::thread::park_timeout(jobs.context.entropy.between(BUSY_LOW, BUSY_HIGH));
        }
        if self.misses_events() {
            self.next_check = self.now() + POLL_LOW;
        }
        // If the database was open before, this process has missed what happened meanwhile.
        self.resync(i64::MAX);
        Ok(())
    }

    /// After a reboot the counter jumps. Then the thread clears away every session that died while no process looked.
    fn prepare(&mut self, site: &Site, deadline: Instant) -> Result<()> {
        // First without the write lock: of many that start together hardly one has anything to write.
        let (boot, dead) = self.write(Level::Read, deadline, |tx| {
            let boot: Option<String> = tx.value("SELECT boot_id FROM fence", [])?;
            Ok((boot, reaper::find_dead(tx)?))
        })?;
        let same_boot = boot.as_ref() == Some(&site.boot_id);
        if !same_boot || !dead.is_empty() {
            let level = if same_boot { Level::Write } else { Level::Durable };
            self.write(level, deadline, |tx| {
                fence::skip_after_reboot(tx)?;
                dead.iter().try_for_each(|seq| reaper::reap(tx, *seq).map(drop))
            })?;
        }
        let known = self.write(Level::Read, deadline, |tx| Recorded::all(tx))?;
        let (ids, wakeups): (HashSet<_>, HashSet<_>) = known.iter().map(|one| (one.id, one.wakeup)).unzip();
        let strays = session_file::remove_strays(&site.sessions, |id| ids.contains(&id))
            .and_then(|()| wakeup::remove_strays(&site.sessions, |id| wakeups.contains(&Some(id))));
        if let Err(error) = strays {
            tracing::debug!(%error, "leftover session files stay");
        }
        self.cursor = self.write(Level::Read, deadline, |tx| log::latest(tx))?;
        Ok(())
    }
}
