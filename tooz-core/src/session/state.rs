//! What a coordinator's handles, its guards and its keeper share.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};

use super::call::{Call, Owned, Reads, Settle, closed, drive, limited, no_answer};
use super::events::{EVENTS_KEPT, Event};
use super::limits::Config;
use super::live::SessionLease;
use super::queue::Contention;
use crate::driver::support::fork::OwnerProcess;
use crate::driver::{Context, Driver, InstanceId, Session, SessionId};
use crate::platform::clock::Clock;
use crate::platform::entropy::Entropy;
use crate::platform::runtime::Spawner;
use crate::platform::state_cell::StateCell;
use crate::{Capabilities, Characteristics, Error, ErrorKind, GroupId, LossReason, Result};

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) characteristics: Characteristics,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) instance: InstanceId,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) spawner: Spawner,
    pub(crate) phase: StateCell<Phase>,
    pub(crate) keeper: mpsc::UnboundedSender<Command>,
    /// Taken at the end, so that readers hear of it although handles still stand about.
    events: Mutex<Option<broadcast::Sender<Event>>>,
    pub(crate) contention: Arc<Contention>,
    /// One membership change at a time: a rejoin and a leave that cross would leave an unwanted member.
    pub(crate) membership: Arc<tokio::sync::Mutex<()>>,
    joined: Mutex<BTreeMap<GroupId, Membership>>,
    /// Called once when everything has ended.
    at_end: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
    /// Whether beats are sent without being asked for.
    pub(crate) beating: AtomicBool,
    pub(crate) beats: AtomicU64,
    /// See [`Coordinator::simulate_abandon`](crate::Coordinator::simulate_abandon).
    pub(crate) abandoning: AtomicBool,
    owner: OwnerProcess,
}

/// What the program wants to be a member of.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) capabilities: Capabilities,
    /// The session whose record stands on the backend, as far as we know.
    pub(crate) session: Option<SessionId>,
}

/// Where a coordinator is in its life.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Up(Arc<SessionLease>),
    Down(LossReason),
    Closed(Option<Result<()>>),
}

/// What is sent to the keeper.
pub(crate) enum Command {
    /// Unfinished business of a caller that is gone: driven to its end.
    Settle(Owned<()>),
    /// One beat now, by hand.
    Beat(oneshot::Sender<Result<Option<Duration>>>),
    /// The backend said that the session is gone: look at once.
    Suspect,
    /// Something changed that the keeper's timetable depends on.
    Wake,
    Close,
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        driver: Arc<dyn Driver>,
        instance: InstanceId,
        context: Context,
        beating: bool,
        first: Arc<SessionLease>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Command>) {
        let (keeper, commands) = mpsc::unbounded_channel();
        let Context { clock, entropy, spawner } = context;
        let shared = Arc::new(Self {
            config,
            characteristics: driver.characteristics(),
            driver,
            instance,
            clock,
            entropy,
            spawner,
            phase: StateCell::new(Phase::Up(first)),
            keeper,
            events: Mutex::new(Some(broadcast::Sender::new(EVENTS_KEPT))),
            contention: Arc::default(),
            membership: Arc::default(),
            joined: Mutex::default(),
            at_end: Mutex::default(),
            beating: AtomicBool::new(beating),
            beats: AtomicU64::new(0),
            abandoning: AtomicBool::new(false),
            owner: OwnerProcess::current(),
        });
        (shared, commands)
    }

    pub(crate) fn joined(&self) -> MutexGuard<'_, BTreeMap<GroupId, Membership>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publish(&self, event: Event) {
        if let Some(events) = &*self.events() {
            // No receiver is no error: no reader wants to know.
            let _ = events.send(event);
        }
    }

    fn events(&self) -> MutexGuard<'_, Option<broadcast::Sender<Event>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events from now on; none any more if they have ended.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events().as_ref().map_or_else(|| broadcast::channel(1).1, broadcast::Sender::subscribe)
    }

    /// Calls `then` once when everything has ended; at once if that was before.
    pub(crate) fn at_end(&self, then: impl FnOnce() + Send + 'static) {
        let events = self.events();
        if events.is_none() {
            drop(events);
            return then();
        }
        self.at_end.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(then));
    }

    /// Everything has ended: readers of events hear of it, and what was registered with `at_end` is called.
    pub(crate) fn ended(&self) {
        drop(self.events().take());
        let then = std::mem::take(&mut *self.at_end.lock().unwrap_or_else(PoisonError::into_inner));
        for then in then {
            then();
        }
    }

    pub(crate) fn command(&self, command: Command) {
        // The keeper is gone only when everything has ended; then there is nothing to settle either.
        let _ = self.keeper.send(command);
    }

    /// # Errors
    /// `Invalid` in a forked child.
    pub(crate) fn check_process(&self) -> Result<()> {
        self.owner.check("coordinator")
    }

    /// Whether the last beat was not answered.
    pub(crate) fn is_suspended(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Up(lease) if lease.is_suspended())
    }

    /// The living session, waited for while a new one is being opened.
    pub(crate) async fn lease(&self) -> Result<Arc<SessionLease>> {
        let mut phase = self.phase.subscribe();
        loop {
            let now = phase.borrow_and_update().clone();
            match now {
                Phase::Up(lease) if lease.loss().is_none() => return Ok(lease),
                Phase::Closed(_) => return Err(closed()),
                Phase::Down(why) if !self.beating.load(Ordering::Acquire) => {
                    return Err(Error::new(
                        ErrorKind::SessionLost,
                        format!("{why}; the heart is stopped, so call heartbeat() to open a new session"),
                    ));
                }
                // A lost one is about to be taken down by the keeper.
                Phase::Up(_) | Phase::Down(_) => {}
            }
            phase.changed().await;
        }
    }

    /// [`Shared::lease`] within `limit`.
    pub(crate) async fn lease_within(
        &self,
        limit: Duration,
    ) -> Result<(Arc<SessionLease>, Arc<dyn Session>)> {
        let waiting = async {
            loop {
                let lease = self.lease().await?;
                if let Some(session) = lease.session() {
                    return Ok((lease, session));
                }
                tokio::task::yield_now().await;
            }
        };
        match self.limited(limit, waiting).await {
            Some(result) => result,
            None => Err(Error::new(
                ErrorKind::Unavailable,
                format!("cannot open a session with {}; the coordinator keeps trying", self.config.url),
            )),
        }
    }

    /// Polls `future` for at most `limit`; `None` when the time is over.
    pub(crate) fn limited<F: Future>(
        &self,
        limit: Duration,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> {
        // Not a future around it: each one around another is as large again.
        limited(&self.spawner, limit, future)
    }

    /// One operation time limit for everything that a change waits for: its turn, a session, the answer.
    pub(crate) async fn in_time<T>(&self, change: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.config.limits.operation_timeout;
        self.limited(limit, change).await.unwrap_or_else(|| Err(self.timed_out()))
    }

    /// Drives one call to the backend within the operation time limit. A call that outlives the limit, or its
    /// caller, is handed over to the keeper; `settle` turns it into what has to be done then.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        call: Owned<Result<T>>,
        settle: Settle<T>,
    ) -> Result<T> {
        self.check()?;
        self.in_time(Call::new(call, settle, self)).await
    }

    /// This, as what the functions that only look are given.
    pub(crate) fn reader(&self) -> &dyn Reads {
        self
    }

    /// A call after which nothing has to be done, whether it took effect or not.
    pub(crate) async fn plain_call<T: Send + 'static>(&self, call: Owned<Result<T>>) -> Result<T> {
        self.call(call, Box::new(drive)).await
    }

    /// What may have taken effect has not been answered in time.
    pub(crate) fn timed_out(&self) -> Error {
        no_answer(self.config.limits.operation_timeout).indeterminate()
    }
}

impl Reads for Shared {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.driver)
    }

    fn limit(&self) -> (&Spawner, Duration) {
        (&self.spawner, self.config.limits.operation_timeout)
    }

    fn check(&self) -> Result<()> {
        self.check_process()?;
        if matches!(*self.phase.borrow(), Phase::Closed(_)) { Err(closed()) } else { Ok(()) }
    }

    /// Hands it over to the keeper.
    fn settle(&self, job: Owned<()>) {
        if !self.abandoning.load(Ordering::Relaxed) {
            self.command(Command::Settle(job));
        }
    }
}

/// The last of these closes the coordinator (S11). The keeper holds none.
pub(crate) struct CloseOnDrop(pub(crate) Arc<Shared>);

/// What handles share is not shown with each of them.
impl fmt::Debug for CloseOnDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        // In a forked child the parent's keeper would not hear it, and nothing of the parent's may be touched.
        self.0.command(Command::Close);
    }
}

impl std::ops::Deref for CloseOnDrop {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.0
    }
}
