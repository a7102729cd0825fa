//! Callbacks under tooz's names: join, leave, elected.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::session::call::Reads;
use crate::session::hook_registry::{BoxError, Callback, HookEvent, HookId, HookKind};
use crate::session::state::CloseOnDrop;
use crate::session::watchers::Watchers;
use crate::{GroupId, Result};

/// A coordinator's hooks: callbacks for joins, leaves and elections, under tooz's names; a cheap clone.
///
/// Hooks run inside [`Hooks::run_watchers`] and nowhere else. The clones of a coordinator share them.
#[derive(Clone)]
pub struct Hooks {
    /// Dropped before the last handle sends the close.
    watchers: Arc<Watchers>,
    shared: Arc<CloseOnDrop>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

impl Hooks {
    pub(crate) fn new(shared: &Arc<CloseOnDrop>) -> Self {
        let watchers = Arc::<Watchers>::default();
        let ended = Arc::downgrade(&watchers);
        shared.at_end(move || {
            if let Some(watchers) = ended.upgrade() {
                watchers.end();
            }
        });
        Self { shared: Arc::clone(shared), watchers }
    }

    async fn hook(&self, kind: HookKind, group: impl AsRef<[u8]>, hook: Callback) -> Result<HookId> {
        self.shared.check()?;
        self.watchers.register(&self.shared, kind, GroupId::new(group)?, hook).await
    }

    /// Runs `hook` inside [`Hooks::run_watchers`] for every member that joins `group` from now on.
    ///
    /// # Errors
    /// `GroupNotFound`; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is registered.
    pub async fn watch_join_group<F>(&self, group: impl AsRef<[u8]>, hook: F) -> Result<HookId>
    where
        F: Fn(&HookEvent) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        self.hook(HookKind::Join, group, Arc::new(hook)).await
    }

    /// Ends what [`Hooks::watch_join_group`] began.
    ///
    /// # Errors
    /// `HookNotFound`.
    pub fn unwatch_join_group(&self, group: impl AsRef<[u8]>, hook: HookId) -> Result<()> {
        self.watchers.hooks.remove(HookKind::Join, &GroupId::new(group)?, hook)
    }

    /// Runs `hook` inside [`Hooks::run_watchers`] for every member that leaves `group` from now on.
    ///
    /// # Errors
    /// `GroupNotFound`; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is registered.
    pub async fn watch_leave_group<F>(&self, group: impl AsRef<[u8]>, hook: F) -> Result<HookId>
    where
        F: Fn(&HookEvent) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        self.hook(HookKind::Leave, group, Arc::new(hook)).await
    }

    /// Ends what [`Hooks::watch_leave_group`] began.
    ///
    /// # Errors
    /// `HookNotFound`.
    pub fn unwatch_leave_group(&self, group: impl AsRef<[u8]>, hook: HookId) -> Result<()> {
        self.watchers.hooks.remove(HookKind::Leave, &GroupId::new(group)?, hook)
    }

    /// Makes the coordinator a candidate of `group`: [`Hooks::run_elect_coordinator`] runs for leader, and
    /// `hook` runs when that is won.
    ///
    /// # Errors
    /// `Invalid`, `Closed`.
    ///
    /// # Cancel safety
    /// Nothing is registered.
    pub async fn watch_elected_as_leader<F>(&self, group: impl AsRef<[u8]>, hook: F) -> Result<HookId>
    where
        F: Fn(&HookEvent) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        self.hook(HookKind::Elected, group, Arc::new(hook)).await
    }

    /// Ends what [`Hooks::watch_elected_as_leader`] began; a leadership that was won stays until
    /// [`Hooks::stand_down`].
    ///
    /// # Errors
    /// `HookNotFound`.
    pub fn unwatch_elected_as_leader(&self, group: impl AsRef<[u8]>, hook: HookId) -> Result<()> {
        self.watchers.hooks.remove(HookKind::Elected, &GroupId::new(group)?, hook)
    }

    /// Runs the hooks of everything that happened since the last call, then runs for leader where elected hooks are
    /// registered. If nothing happened and nothing was won, waits up to `timeout` for a first join or leave. Returns
    /// the events. A hook that fails or panics is reported ([`Event::HookFailed`](crate::Event::HookFailed)), is not
    /// run again for the same event, and stops no other.
    ///
    /// # Guarantees
    /// Each run begins with one read per watched group. A join, a leave or a close that has returned before the call,
    /// to whichever coordinator, is therefore among the events of this run or of an earlier one, and of one run only. A
    /// member that came and went between two reads gives no event; one that left and came back gives both.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`, `Closed`; `Corrupt` where a group cannot be read. No join or leave hook ran for what
    /// could not be read, of no group: the next run finds it.
    ///
    /// # Cancel safety
    /// A dropped run loses no event for the hooks: they run when all is read, without an await in between.
    pub async fn run_watchers(&self, timeout: Duration) -> Result<Vec<HookEvent>> {
        self.watchers.run(&self.shared, timeout).await.map_err(|error| error.during("run_watchers"))
    }

    /// Runs for leader in every group with an elected hook, without waiting.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`, `Closed`.
    ///
    /// # Cancel safety
    /// A leadership that was just won is given back.
    pub async fn run_elect_coordinator(&self) -> Result<Vec<HookEvent>> {
        self.watchers
            .run_for_leader(&self.shared)
            .await
            .map_err(|error| error.during("run_elect_coordinator"))
    }

    /// Gives up a leadership won through an elected hook; answers whether there was one.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`: it goes on in the background.
    ///
    /// # Cancel safety
    /// It goes on in the background.
    pub async fn stand_down(&self, group: impl AsRef<[u8]>) -> Result<bool> {
        let group = GroupId::new(group)?;
        self.watchers.stand_down(&self.shared, &group).await.map_err(|error| error.during("stand_down"))
    }
}
