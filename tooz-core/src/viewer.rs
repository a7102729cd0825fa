//! A look at a backend without a session.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::driver::support::fork::OwnerProcess;
use crate::driver::{Driver, Holders, Limits, LockKey, MemberRecord};
use crate::election::{self, Leader, Observer};
use crate::platform::runtime::Spawner;
use crate::session::call::{Kept, Owned, Reads, closed, groups, holders, members};
use crate::session::limits::Config;
use crate::watch::GroupWatch;
use crate::{BackendUrl, Characteristics, Error, ErrorKind, GroupId, LockName, Result};

/// Shows groups, members, holders and leaders without a session; a cheap clone. [`Builder::view`] connects it.
///
/// A view writes nothing to the backend. So it works where nothing can be written: on a full store, and for a user who
/// may only read. It is no member, holds nothing and needs no heart.
///
/// The connection lasts until [`Viewer::close`], or until the last clone and watch is gone.
///
/// [`Builder::view`]: crate::Builder::view
///
/// # Examples
/// ```
/// # use tooz_core::{self as tooz, Coordinator};
/// # use tooz_memory as _;
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// let c = Coordinator::builder("memory://shown", "host-1").connect().await?;
/// let guard = c.lock("reindex")?.acquire().await?;
///
/// let viewer = Coordinator::builder("memory://shown", "operator").view().await?;
/// let found = viewer.holders("reindex").await?;
/// assert_eq!(found.holders[0].token, Some(guard.token()));
/// viewer.close().await?;
/// # guard.release().await?;
/// # c.close().await
/// # }
/// ```
#[derive(Clone)]
pub struct Viewer {
    view: Arc<View>,
}

impl fmt::Debug for Viewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Viewer").field("url", &self.view.url).finish_non_exhaustive()
    }
}

impl Viewer {
    pub(crate) fn new(config: &Config, driver: Arc<dyn Driver>, spawner: Spawner) -> Self {
        let view = View {
            url: config.url.clone(),
            driver,
            spawner,
            limits: config.limits,
            closed: AtomicBool::new(false),
            owner: OwnerProcess::current(),
        };
        Self { view: Arc::new(view) }
    }

    /// The backend's URL with all options; showing it shows no secret.
    pub fn url(&self) -> &BackendUrl {
        &self.view.url
    }

    /// What this backend keeps, as it said when it was connected to.
    pub fn characteristics(&self) -> Characteristics {
        self.view.driver.characteristics()
    }

    /// Every group, sorted by bytes.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`; `Denied`; `Closed`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn groups(&self) -> Result<Vec<GroupId>> {
        groups(&*self.view).await
    }

    /// The living members of a group, as [`Group::members`](crate::Group::members).
    ///
    /// # Errors
    /// `GroupNotFound`; `Invalid` for an id that cannot be one; `Unavailable`, `Timeout`; `Denied`; `Closed`; `Corrupt`
    /// where a record cannot be read.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn members(&self, group: impl AsRef<[u8]>) -> Result<Vec<MemberRecord>> {
        members(&*self.view, &GroupId::new(group)?).await
    }

    /// Follows a group, as [`Group::watch`](crate::Group::watch): a snapshot first, then each change.
    ///
    /// # Errors
    /// `GroupNotFound`; `Invalid` for an id that cannot be one; `Unavailable`, `Timeout`; `Denied`; `Closed`.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn watch(&self, group: impl AsRef<[u8]>) -> Result<GroupWatch> {
        let kept = Arc::clone(&self.view) as Kept;
        GroupWatch::open(&*self.view, &GroupId::new(group)?, Some(kept)).await
    }

    /// Who holds a lock, as [`Lock::holders`](crate::Lock::holders).
    ///
    /// # Errors
    /// `Invalid` for a name that cannot be one; `Unavailable`, `Timeout`; `Denied`; `Closed`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn holders(&self, lock: impl AsRef<[u8]>) -> Result<Holders> {
        holders(&*self.view, LockKey::Named(LockName::new(lock)?)).await
    }

    /// Who leads a group, as [`Election::leader`](crate::Election::leader).
    ///
    /// # Errors
    /// `Invalid` for an id that cannot be one; `Unavailable`, `Timeout`; `Denied`; `Closed`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn leader(&self, group: impl AsRef<[u8]>) -> Result<Option<Leader>> {
        election::leader(&*self.view, &GroupId::new(group)?).await
    }

    /// Follows who leads a group, as [`Election::observe`](crate::Election::observe).
    ///
    /// # Errors
    /// `Invalid` for an id that cannot be one; `Unavailable`, `Timeout`; `Denied`; `Closed`.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn observe(&self, group: impl AsRef<[u8]>) -> Result<Observer> {
        let kept = Arc::clone(&self.view) as Kept;
        election::observe(&*self.view, &GroupId::new(group)?, kept).await
    }

    /// Ends the connection within `close_timeout` (5 s); can be called twice. Every later call fails with `Closed`.
    ///
    /// # Errors
    /// `Unavailable`: the driver did not end in time.
    ///
    /// # Cancel safety
    /// Closing goes on.
    pub async fn close(&self) -> Result<()> {
        self.view.close().await.map_err(|error| error.during("close"))
    }
}

struct View {
    url: BackendUrl,
    driver: Arc<dyn Driver>,
    spawner: Spawner,
    limits: Limits,
    closed: AtomicBool,
    owner: OwnerProcess,
}

impl View {
    async fn close(&self) -> Result<()> {
        self.owner.check("view")?;
        self.closed.store(true, Ordering::Release);
        let (answer, answered) = oneshot::channel();
        let driver = Arc::clone(&self.driver);
        self.settle(Box::pin(async move {
            let _ = answer.send(driver.close().await);
        }));
        let limit = self.limits.close_timeout;
        match self.spawner.timeout(limit, answered).await {
            Some(Ok(ended)) => ended,
            // The runtime has ended, and the driver's connection with it.
            Some(Err(_)) => Ok(()),
            None => {
                let why = format!("the driver did not end within {limit:?} (option close_timeout)");
                Err(Error::new(ErrorKind::Unavailable, why))
            }
        }
    }
}

impl Reads for View {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.driver)
    }

    fn limit(&self) -> (&Spawner, Duration) {
        (&self.spawner, self.limits.operation_timeout)
    }

    fn check(&self) -> Result<()> {
        self.owner.check("view")?;
        if self.closed.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    fn settle(&self, job: Owned<()>) {
        self.spawner.spawn(job).detach();
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // In a forked child nothing of the parent's may be touched.
        if !*self.closed.get_mut() && self.owner.is_current() {
            let driver = Arc::clone(&self.driver);
            self.settle(Box::pin(async move {
                if let Err(error) = driver.close().await {
                    tracing::debug!(%error, "the connection of a view did not end as it should");
                }
            }));
        }
    }
}
