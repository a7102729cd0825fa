//! What a coordinator's handles, its guards and its keeper share.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};

use crate::clock::Clock;
use crate::contend::Contention;
use crate::driver::{AttemptId, Driver, InstanceId, LockKey, Session, SessionId};
use crate::entropy::Entropy;
use crate::heart::Event;
use crate::hooks::HookRegistry;
use crate::runtime::Spawner;
use crate::tenure::Tenure;
use crate::watched::Watched;
use crate::{
    BackendUrl, Capabilities, Characteristics, Error, ErrorKind, GroupId, LossReason, MemberId, Result,
};

/// A future that stands on its own: it can be handed over to the keeper.
pub(crate) type Owned<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What has to be done with a call that outlives its caller. Boxed: a closure's own type in the futures of the
/// API would hide from rustc that they are `Send`, and nobody could spawn them (rust-lang/rust#110338).
pub(crate) type Settle<T> = Box<dyn FnOnce(Owned<Result<T>>) -> Owned<()> + Send>;

/// What a stream keeps alive while somebody reads it.
pub(crate) type Kept = Arc<dyn Any + Send + Sync>;

/// Time limits and habits, from the builder and the URL.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) url: BackendUrl,
    pub(crate) member: MemberId,
    pub(crate) ttl: Option<Duration>,
    pub(crate) connect_timeout: Duration,
    pub(crate) operation_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) initial_backoff: Duration,
    pub(crate) max_backoff: Duration,
    pub(crate) rejoin: bool,
}

/// Who can read from the backend: a coordinator, and a view.
pub(crate) trait Reads: Send + Sync {
    fn driver(&self) -> Arc<dyn Driver>;

    /// On whose runtime the time limit runs, and the limit of one operation.
    fn limit(&self) -> (&Spawner, Duration);

    /// # Errors
    /// `Invalid` in a forked child, `Closed`.
    fn check(&self) -> Result<()>;

    /// Drives what a caller left unfinished to its end.
    fn settle(&self, job: Owned<()>);
}

/// A call that changes nothing: when its time is over, nothing can have taken effect.
pub(crate) async fn read<T: Send + 'static>(reader: &dyn Reads, call: Owned<Result<T>>) -> Result<T> {
    reader.check()?;
    let (spawner, limit) = reader.limit();
    let call = Call { call: Some((call, Box::new(drive::<T>))), reader };
    limited(spawner, limit, call).await.unwrap_or_else(|| Err(no_answer(limit)))
}

/// Polls `future` for at most `limit`; `None` when the time is over.
pub(crate) async fn limited<F: Future>(spawner: &Spawner, limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    // Most calls of an embedded backend are done at once: then no timer is made.
    if let Poll::Ready(output) = poll_once(future.as_mut()).await {
        return Some(output);
    }
    spawner.timeout(limit, future).await
}

fn no_answer(limit: Duration) -> Error {
    Error::new(ErrorKind::Timeout, format!("no answer within {limit:?} (option operation_timeout)"))
}

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) characteristics: Characteristics,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) instance: InstanceId,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) spawner: Spawner,
    pub(crate) phase: Watched<Phase>,
    pub(crate) keeper: mpsc::UnboundedSender<Command>,
    /// Taken at the end, so that readers hear of it although handles still stand about.
    events: Mutex<Option<broadcast::Sender<Event>>>,
    pub(crate) contention: Arc<Contention>,
    /// One membership change at a time: a rejoin and a leave that cross would leave a member nobody wants.
    pub(crate) membership: Arc<tokio::sync::Mutex<()>>,
    joined: Mutex<BTreeMap<GroupId, Membership>>,
    pub(crate) hooks: HookRegistry,
    /// Whether beats are sent without being asked for.
    pub(crate) beating: AtomicBool,
    pub(crate) beats: AtomicU64,
    /// See [`Coordinator::simulate_abandon`](crate::Coordinator::simulate_abandon).
    pub(crate) abandoning: AtomicBool,
    pid: u32,
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
    Up(Arc<Tenure>),
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
    #[allow(clippy::too_many_arguments)] // made in one place
    pub(crate) fn new(
        config: Config,
        driver: Arc<dyn Driver>,
        instance: InstanceId,
        clock: Clock,
        entropy: Entropy,
        spawner: Spawner,
        beating: bool,
        first: Arc<Tenure>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Command>) {
        let (keeper, commands) = mpsc::unbounded_channel();
        let shared = Arc::new(Self {
            config,
            characteristics: driver.characteristics(),
            driver,
            instance,
            clock,
            entropy,
            spawner,
            phase: Watched::new(Phase::Up(first)),
            keeper,
            events: Mutex::new(Some(broadcast::Sender::new(crate::heart::EVENTS_KEPT))),
            contention: Arc::default(),
            membership: Arc::default(),
            joined: Mutex::default(),
            hooks: HookRegistry::default(),
            beating: AtomicBool::new(beating),
            beats: AtomicU64::new(0),
            abandoning: AtomicBool::new(false),
            pid: std::process::id(),
        });
        (shared, commands)
    }

    pub(crate) fn joined(&self) -> MutexGuard<'_, BTreeMap<GroupId, Membership>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publish(&self, event: Event) {
        if let Some(events) = &*self.events() {
            // No receiver is no error: nobody wants to know.
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

    pub(crate) fn end_events(&self) {
        drop(self.events().take());
    }

    pub(crate) fn command(&self, command: Command) {
        // The keeper is gone only when everything has ended; then there is nothing to settle either.
        let _ = self.keeper.send(command);
    }

    /// Hands unfinished business of a caller that is gone over to the keeper, which drives it to its end.
    pub(crate) fn settle(&self, job: Owned<()>) {
        if !self.abandoning.load(Ordering::Relaxed) {
            self.command(Command::Settle(job));
        }
    }

    pub(crate) fn attempt(&self) -> AttemptId {
        AttemptId(self.entropy.id())
    }

    /// # Errors
    /// `Invalid` in a forked child.
    pub(crate) fn check_process(&self) -> Result<()> {
        let pid = std::process::id();
        if pid != self.pid {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "this coordinator belongs to process {}, from which process {pid} was forked; \
                     connect a coordinator of its own after exec",
                    self.pid
                ),
            ));
        }
        Ok(())
    }

    /// # Errors
    /// `Invalid` in a forked child, `Closed`.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_process()?;
        match *self.phase.borrow() {
            Phase::Closed(_) => Err(closed()),
            _ => Ok(()),
        }
    }

    /// Whether the last beat was not answered.
    pub(crate) fn is_suspended(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Up(tenure) if tenure.is_suspended())
    }

    /// The living session, waited for while a new one is being opened.
    pub(crate) async fn tenure(&self) -> Result<Arc<Tenure>> {
        let mut phase = self.phase.subscribe();
        loop {
            let now = phase.borrow_and_update().clone();
            match now {
                Phase::Up(tenure) if tenure.loss().is_none() => return Ok(tenure),
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

    /// [`Shared::tenure`] within the operation time limit.
    pub(crate) async fn tenure_soon(&self) -> Result<(Arc<Tenure>, Arc<dyn Session>)> {
        self.tenure_within(self.config.operation_timeout).await
    }

    /// [`Shared::tenure`] within `limit`.
    pub(crate) async fn tenure_within(&self, limit: Duration) -> Result<(Arc<Tenure>, Arc<dyn Session>)> {
        let waiting = async {
            loop {
                let tenure = self.tenure().await?;
                if let Some(session) = tenure.session() {
                    return Ok((tenure, session));
                }
                tokio::task::yield_now().await;
            }
        };
        match self.limited(limit, waiting).await {
            Some(result) => result,
            None => Err(Error::new(
                ErrorKind::Unavailable,
                format!("no session with {} could be opened; it is being tried again", self.config.url),
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

    /// Drives one call to the backend within the operation time limit. A call that outlives the limit, or its
    /// caller, is handed over to the keeper; `settle` turns it into what has to be done then.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        call: Owned<Result<T>>,
        settle: Settle<T>,
    ) -> Result<T> {
        self.check()?;
        let limit = self.config.operation_timeout;
        let call = Call { call: Some((call, settle)), reader: self };
        self.limited(limit, call).await.unwrap_or_else(|| Err(self.timed_out()))
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
        no_answer(self.config.operation_timeout).indeterminate()
    }

    /// Sees to it that an attempt neither holds, nor waits, nor ever will; ends when the backend said so or the
    /// session is over.
    pub(crate) async fn withdraw(&self, tenure: &Tenure, key: &LockKey, attempt: AttemptId) {
        tenure.stop_waiting(attempt);
        self.until_answered(tenure, |session| {
            Box::pin(async move { session.locks().withdraw(key, attempt).await })
        })
        .await;
    }

    /// Repeats an idempotent call until the backend has answered it definitely, or the session is over.
    pub(crate) async fn until_answered<'a, F>(&self, tenure: &Tenure, call: F)
    where
        F: Fn(Arc<dyn Session>) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> + Send,
    {
        let mut pause = Backoff::new(&self.config);
        while let Some(session) = tenure.session() {
            let answer = tokio::select! {
                biased; // an answer is worth more than the news that the session ended
                answer = call(session) => answer,
                _ = tenure.lost() => return,
            };
            match answer {
                Ok(()) => return,
                Err(error) if error.kind() == ErrorKind::SessionLost => {
                    self.command(Command::Suspect);
                    return;
                }
                Err(error) if error.is_retryable() || error.is_indeterminate() => {
                    tracing::debug!(%error, "cleaning up is tried again");
                }
                Err(error) => {
                    // Nothing that repeating would mend; the session's end takes it along.
                    tracing::warn!(%error, "cleaning up failed");
                    return;
                }
            }
            let nap = self.spawner.sleep(pause.next(&self.entropy));
            tokio::select! {
                biased; // nothing is left to do once the session is over
                _ = tenure.lost() => return,
                () = nap => {}
            }
        }
    }
}

impl Reads for Shared {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.driver)
    }

    fn limit(&self) -> (&Spawner, Duration) {
        (&self.spawner, self.config.operation_timeout)
    }

    fn check(&self) -> Result<()> {
        self.check()
    }

    fn settle(&self, job: Owned<()>) {
        self.settle(job);
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "connect a new coordinator")
}

/// Nothing but its end is wanted of an unfinished call.
fn drive<T: Send + 'static>(unfinished: Owned<Result<T>>) -> Owned<()> {
    Box::pin(async move { drop(unfinished.await) })
}

/// Polls once and answers what that gave.
pub(crate) async fn poll_once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// A call to the backend that is handed over to somebody who drives it to its end when its caller goes away.
struct Call<'a, T: Send + 'static> {
    call: Option<(Owned<Result<T>>, Settle<T>)>,
    reader: &'a dyn Reads,
}

impl<T: Send + 'static> Future for Call<'_, T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let Some((call, _)) = &mut self.call else { return Poll::Ready(Err(closed())) };
        let output = call.as_mut().poll(cx);
        if let Poll::Ready(Err(error)) = &output
            && error.is_indeterminate()
        {
            // It may have taken effect: what has to be done about that starts with this answer.
            if let Some((_, settle)) = self.call.take() {
                let error = error.clone();
                self.reader.settle(settle(Box::pin(async move { Err(error) })));
            }
        } else if output.is_ready() {
            self.call = None;
        }
        output
    }
}

impl<T: Send + 'static> Drop for Call<'_, T> {
    fn drop(&mut self) {
        if let Some((call, settle)) = self.call.take() {
            self.reader.settle(settle(call));
        }
    }
}

/// Pauses between tries: decorrelated jitter (M. Brooker, *Exponential Backoff and Jitter*, 2015), so that many
/// clients of a backend that came back do not call in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    initial: Duration,
    most: Duration,
    last: Duration,
}

impl Backoff {
    pub(crate) fn new(config: &Config) -> Self {
        Self { initial: config.initial_backoff, most: config.max_backoff, last: config.initial_backoff }
    }

    pub(crate) fn next(&mut self, entropy: &Entropy) -> Duration {
        self.last = entropy.between(self.initial, self.last * 3).min(self.most);
        self.last
    }
}

/// The last of these closes the coordinator (S11). The keeper holds none.
pub(crate) struct Life(pub(crate) Arc<Shared>);

impl Drop for Life {
    fn drop(&mut self) {
        // In a forked child the parent's keeper would not hear it, and nothing of the parent's may be touched.
        self.0.command(Command::Close);
    }
}

impl std::ops::Deref for Life {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.0
    }
}
