//! A connected driver: every call to the directory goes through it.
//!
//! Calls to the file system are made where the call is polled: on a local file system each takes microseconds, less
//! than handing it to another thread. Waiting for other processes may take long, and is asynchronous.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tooz_core::driver::support::fork::OwnerProcess;
use tooz_core::driver::{Connect, Context, Epoch, Instant};
use tooz_core::{Characteristics, Error, ErrorKind, Result};
use tooz_local::filesystem;
use tooz_local::os_lock::Hold;

use crate::config::{self, Config};
use crate::error;
use crate::keys;
use crate::tree::{Access, Directory, DriverLock, Moment, Tree, registry};

/// Between two tries for what another process holds for a moment: a little longer than that moment, at random, so that
/// several processes that wait do not try in step.
const PAUSE: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(4));

/// What a driver, its sessions and its streams share.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) config: Config,
    pub(crate) context: Context,
    pub(crate) characteristics: Characteristics,
    owner: OwnerProcess,
    /// `None`: for a view, while nothing is there.
    tree: Mutex<Option<Arc<Tree>>>,
    closed: AtomicBool,
}

/// The driver.
#[derive(Debug)]
pub(crate) struct FileDriver(pub(crate) Arc<Client>);

impl Client {
    pub(crate) fn open(request: Connect) -> Result<Arc<Self>> {
        let Connect { url, limits, context, view, .. } = request;
        let mut config = Config::read(&url, limits)?;
        config.view = view;
        let tree = match registry::open(&config, Epoch(context.entropy.id())) {
            Err(error) if view && error::is_nothing_here(&error) => None,
            opened => Some(opened?),
        };
        let known = tree.as_ref().is_none_or(|tree| tree.known_file_system);
        let mut characteristics = filesystem::guarantees(config::characteristics(&url), known);
        if tree.as_ref().is_some_and(|tree| !tree.pushes_changes()) {
            characteristics -= Characteristics::PUSH_WATCHES;
        }
        Ok(Arc::new(Self {
            config,
            context,
            characteristics,
            owner: OwnerProcess::current(),
            tree: Mutex::new(tree),
            closed: AtomicBool::new(false),
        }))
    }

    /// Fails in a forked child, whose copies of descriptors are not its own.
    pub(crate) fn check_process(&self) -> Result<()> {
        self.owner.check("connection")
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.check_process()?;
        if self.is_closed() {
            return Err(Error::new(ErrorKind::Closed, "this driver was closed; connect a new one"));
        }
        Ok(())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) -> Result<()> {
        self.check_process()?;
        self.closed.store(true, Ordering::Release);
        // Streams and waiters look again and end.
        if let Some(tree) = &*self.tree.lock().unwrap_or_else(PoisonError::into_inner) {
            tree.topics.notify_all(false);
        }
        Ok(())
    }

    /// The directory as it is now: made anew if it was deleted or replaced, with a new epoch.
    ///
    /// # Errors
    /// [`error::nothing_here`] for a view, which makes nothing.
    pub(crate) fn tree(&self) -> Result<Arc<Tree>> {
        self.check_process()?;
        let mut tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = tree.as_ref().filter(|tree| tree.is_in_place()) {
            return Ok(tree.clone());
        }
        let opened = registry::open(&self.config, Epoch(self.context.entropy.id()))?;
        Ok(tree.insert(opened).clone())
    }

    /// The directory, for a call.
    pub(crate) fn enter(&self) -> Result<Arc<Tree>> {
        self.check()?;
        self.tree()
    }

    /// When a call ends: a little earlier than the core allows, so that the error names the process in the way.
    pub(crate) fn deadline(&self) -> Instant {
        self.context.clock.now() + early(self.config.limits.operation_timeout)
    }

    pub(crate) async fn pause(&self, deadline: Instant, what: &str, holder: Option<u32>) -> Result<()> {
        if self.context.clock.now() >= deadline {
            let why = match holder {
                Some(pid) => format!(
                    "process {pid} holds it and does not release it; check whether it is stopped, then \
                     continue or end it"
                ),
                None => "other processes held it the whole time; try again".to_owned(),
            };
            return Err(Error::new(ErrorKind::Unavailable, format!("{what}: {why}")));
        }
        self.context.spawner.sleep(self.context.entropy.between(PAUSE.0, PAUSE.1)).await;
        Ok(())
    }

    /// Does something while no other thread or process changes the records of these locks.
    pub(crate) async fn in_stripe<T>(
        &self,
        tree: &Tree,
        number: usize,
        access: Access,
        deadline: Instant,
        mut work: impl FnMut(&Directory) -> Result<Moment<T>>,
    ) -> Result<T> {
        loop {
            match tree.mutexes.try_in_stripe(number, access, &mut work)? {
                Moment::Done(answer) => return Ok(answer),
                Moment::Busy(pid) => self.pause(deadline, "the mutex of a lock's records", pid).await?,
            }
        }
    }

    /// Python's lock around everything that changes groups. Nothing may be awaited while it is held.
    pub(crate) async fn driver_lock(&self, tree: &Tree, hold: Hold) -> Result<DriverLock> {
        let (deadline, directory) = (self.deadline(), tree.driver_lock_directory());
        let failed = |cause| error::io(directory.path.join(keys::DRIVER_LOCK).display(), cause);
        loop {
            match tree.mutexes.try_driver_lock(directory, hold).map_err(failed)? {
                Moment::Done(lock) => return Ok(lock),
                Moment::Busy(pid) => self.pause(deadline, "the directory's .driver_lock", pid).await?,
            }
        }
    }
}

pub(crate) fn early(limit: Duration) -> Duration {
    limit.saturating_sub((limit / 10).min(Duration::from_millis(500)))
}
