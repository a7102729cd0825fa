//! A connected driver: the way of every call to the directory.
//!
//! Calls to the file system are made where the call is polled: on a local file system each takes microseconds, less
//! than handing it to another thread. What may take long, waiting for other processes, is asynchronous.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::clock::Instant;
use tooz_core::driver::{Connect, Context, Driver, Epoch, Groups, Locks, OpenSession, Session};
use tooz_core::{Characteristics, Error, ErrorKind, Result};

use crate::config::{self, Config};
use crate::error;
use crate::host::os_lock::Hold;
use crate::keys::KeyHash;
use crate::reaper;
use crate::session::FileSession;
use crate::tree::directory::Directory;
use crate::tree::open_tree::{Access, DriverLock, Moment, Site};

/// Between two tries for what another process holds for a moment: about the length of that moment and a bit, at
/// random, so that several who wait do not walk in step.
const PAUSE: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(4));

/// What a driver, its sessions and its streams share.
pub(crate) struct Client {
    pub(crate) config: Config,
    pub(crate) context: Context,
    characteristics: Characteristics,
    pid: u32,
    /// `None`: for a view, where nothing is yet.
    site: Mutex<Option<Arc<Site>>>,
    closed: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) async fn connect(request: Connect) -> Result<Arc<Self>> {
        let Connect { url, context, view, .. } = request;
        let mut config = Config::read(&url)?;
        config.view = view;
        let site = match Site::open(&config, Epoch(context.entropy.id())) {
            Err(error) if view && error::is_nothing_here(&error) => None,
            opened => Some(opened?),
        };
        let known = site.as_ref().is_none_or(|site| site.known_file_system);
        let mut characteristics =
            if known { config::characteristics(&url) } else { config::on_unknown_file_system() };
        if site.as_ref().is_some_and(|site| !site.hears()) {
            characteristics -= Characteristics::PUSH_WATCHES;
        }
        let client = Arc::new(Self {
            config,
            context,
            characteristics,
            pid: std::process::id(),
            site: Mutex::new(site),
            closed: AtomicBool::new(false),
        });
        if view {
            return Ok(client);
        }
        let site = client.site()?;
        reaper::tidy(&client, &site)?;
        reaper::reap_in_turn(&client, &site).await?;
        Ok(client)
    }

    /// Fails in a forked child, whose copies of descriptors are not its own.
    pub(crate) fn check_process(&self) -> Result<()> {
        if std::process::id() == self.pid { Ok(()) } else { Err(error::forked(self.pid)) }
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.check_process()?;
        if self.is_closed() { Err(error::closed()) } else { Ok(()) }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The directory as it is now: made anew if it was deleted or replaced, with a new epoch.
    ///
    /// # Errors
    /// [`error::nothing_here`] for a view, which makes nothing.
    pub(crate) fn site(&self) -> Result<Arc<Site>> {
        self.check_process()?;
        let mut site = self.site.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(site) = site.as_ref().filter(|site| site.is_in_place()) {
            return Ok(site.clone());
        }
        let opened = Site::open(&self.config, Epoch(self.context.entropy.id()))?;
        Ok(site.insert(opened).clone())
    }

    /// For a call.
    pub(crate) fn enter(&self) -> Result<Arc<Site>> {
        self.check()?;
        self.site()
    }

    /// Until when a call may take: a little less than the core allows, so that the error says who is in the way.
    pub(crate) fn deadline(&self) -> Instant {
        self.context.clock.now() + early(self.config.operation_timeout)
    }

    pub(crate) fn close_deadline(&self) -> Instant {
        self.context.clock.now() + early(self.config.close_timeout)
    }

    pub(crate) async fn pause(&self, deadline: Instant, what: &str, who: Option<u32>) -> Result<()> {
        if self.context.clock.now() >= deadline {
            let who = match who {
                Some(pid) => format!(
                    "process {pid} holds it and does not let go; see whether it is stopped, continue it or end it"
                ),
                None => "other processes held it the whole time; try again".to_owned(),
            };
            return Err(Error::new(ErrorKind::Unavailable, format!("{what}: {who}")));
        }
        self.context.spawner.sleep(self.context.entropy.between(PAUSE.0, PAUSE.1)).await;
        Ok(())
    }

    /// Does something while nobody else changes this lock's records.
    pub(crate) async fn in_stripe<T>(
        &self,
        site: &Site,
        hash: &KeyHash,
        deadline: Instant,
        work: impl FnMut(&Directory) -> Result<Moment<T>>,
    ) -> Result<T> {
        self.in_stripe_number(site, hash.stripe(), Access::Change, deadline, work).await
    }

    pub(crate) async fn in_stripe_number<T>(
        &self,
        site: &Site,
        number: usize,
        access: Access,
        deadline: Instant,
        mut work: impl FnMut(&Directory) -> Result<Moment<T>>,
    ) -> Result<T> {
        loop {
            match site.try_in_stripe(number, access, &mut work)? {
                Moment::Done(answer) => return Ok(answer),
                Moment::Busy(who) => self.pause(deadline, "the mutex of a lock's records", who).await?,
            }
        }
    }

    /// Python's lock around everything that changes groups. Nothing may be awaited while it is held.
    pub(crate) async fn driver_lock(&self, site: &Site, hold: Hold, deadline: Instant) -> Result<DriverLock> {
        loop {
            let tried = site.try_driver_lock(hold);
            match tried
                .map_err(|cause| error::io(format!("{}/.driver_lock", site.base.path.display()), cause))?
            {
                Moment::Done(lock) => return Ok(lock),
                Moment::Busy(who) => self.pause(deadline, "the directory's .driver_lock", who).await?,
            }
        }
    }
}

fn early(limit: Duration) -> Duration {
    limit.saturating_sub((limit / 10).min(Duration::from_millis(500)))
}

/// The driver.
#[derive(Debug)]
pub(crate) struct FileDriver(pub(crate) Arc<Client>);

#[async_trait]
impl Driver for FileDriver {
    fn characteristics(&self) -> Characteristics {
        self.0.characteristics
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        let opened =
            FileSession::open(&self.0, request).await.map_err(|error| error.during("open session"))?;
        Ok(Arc::new(opened))
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.0.check_process()?;
        self.0.closed.store(true, Ordering::Release);
        // Streams and waiters look again and end.
        if let Some(site) = &*self.0.site.lock().unwrap_or_else(PoisonError::into_inner) {
            site.hub.say_all(false);
        }
        Ok(())
    }
}
