//! What a case is given.
#![allow(clippy::disallowed_methods)] // the one room in which the suite reads a clock and starts tasks

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tooz_core::driver::{Driver, InstanceId, LockKey, OpenSession, Session};
use tooz_core::{Builder, Characteristics, Coordinator, Error, GroupId, LockName, MemberId, Runtime};

use crate::kit::Kit;
use crate::process::Process;
use crate::target::{Target, TestBackend, Time, Wish};
use crate::tools::{Failure, Outcome, eventually, random, within};

/// A backend of its own, and everything that a case does with it. A cheap clone.
#[derive(Clone, Debug)]
pub struct Harness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    characteristics: Characteristics,
    time: Time,
    backend: TestBackend,
    kit: Option<Box<dyn Kit>>,
    namespace: String,
    clocks_stop: bool,
    opened: Mutex<Opened>,
}

#[derive(Debug, Default)]
struct Opened {
    coordinators: Vec<Coordinator>,
    drivers: Vec<Arc<dyn Driver>>,
    /// The one of them that looks who waits.
    looking: Option<Arc<dyn Driver>>,
    seed: u64,
}

impl Harness {
    pub(crate) fn new(target: &Target, wish: Wish) -> Outcome<Self> {
        let backend = target.fresh(wish)?;
        let namespace = format!("case-{:016x}", random() >> 64);
        let kit = target.make_kit(&backend);
        Ok(Self(Arc::new(Inner {
            characteristics: target.characteristics(),
            time: wish.time,
            kit,
            backend,
            namespace,
            clocks_stop: target.clocks_stop,
            opened: Mutex::default(),
        })))
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, Opened> {
        self.0.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backend's URL.
    pub fn url(&self) -> &str {
        self.0.backend.url()
    }

    /// The case's own namespace.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// What the target claims.
    pub fn claimed(&self) -> Characteristics {
        self.0.characteristics
    }

    /// Whether the case runs on a virtual clock.
    pub fn is_virtual(&self) -> bool {
        self.0.time == Time::Virtual
    }

    /// How to hurt the backend.
    ///
    /// # Errors
    /// The target has none: the case lacks its `.kit()`.
    pub fn kit(&self) -> Outcome<&dyn Kit> {
        self.0.kit.as_deref().ok_or_else(|| "this target has no kit".into())
    }

    /// The directory in which the backend's files stand.
    ///
    /// # Errors
    /// It has none: the case lacks its `.files()`.
    pub fn directory(&self) -> Outcome<&Path> {
        self.0.backend.directory().ok_or_else(|| "this target has no files".into())
    }

    /// A builder of a coordinator in the case's namespace. Only the last handle closes what it connects.
    pub fn builder(&self, member: impl AsRef<[u8]>) -> Builder {
        self.builder_at(&self.0.backend.url_of(member.as_ref()), member)
    }

    /// The same with another URL.
    pub fn builder_at(&self, url: &str, member: impl AsRef<[u8]>) -> Builder {
        let builder = Coordinator::builder(url, member).namespace(self.namespace());
        if !self.is_virtual() {
            return builder;
        }
        // Each its own sequence: two coordinators with the same ids would be one.
        let seed = {
            let mut opened = self.opened();
            opened.seed += 1;
            opened.seed
        };
        builder.runtime(Runtime::Current).seed(seed)
    }

    /// A coordinator, which is closed when the case is over.
    ///
    /// # Errors
    /// It cannot connect.
    pub async fn coordinator(&self, member: impl AsRef<[u8]>) -> Outcome<Coordinator> {
        self.keep(self.builder(member)).await
    }

    /// Connects a coordinator, which is closed when the case is over.
    ///
    /// # Errors
    /// It cannot connect.
    pub async fn keep(&self, builder: Builder) -> Outcome<Coordinator> {
        let coordinator = builder.connect().await?;
        self.opened().coordinators.push(coordinator.clone());
        Ok(coordinator)
    }

    /// Two coordinators, `a` and `b`.
    ///
    /// # Errors
    /// They cannot connect.
    pub async fn pair(&self) -> Outcome<(Coordinator, Coordinator)> {
        Ok((self.coordinator("a").await?, self.coordinator("b").await?))
    }

    /// A driver, for promises that are made at the driver's level.
    ///
    /// # Errors
    /// It cannot connect.
    pub async fn driver(&self) -> Outcome<Arc<dyn Driver>> {
        let (driver, _) = self.builder("driver").connect_driver().await?;
        self.opened().drivers.push(Arc::clone(&driver));
        Ok(driver)
    }

    /// A session of a driver.
    ///
    /// # Errors
    /// It cannot be opened.
    pub async fn session(&self, driver: &Arc<dyn Driver>, member: &str) -> Outcome<Arc<dyn Session>> {
        let request = OpenSession::new(MemberId::new(member)?, InstanceId(random()));
        Ok(driver.open_session(&request).await?)
    }

    /// A process of its own with a coordinator. It is killed when it is dropped.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn process(&self, member: &str) -> Outcome<Process> {
        Process::start(&self.0.backend.url_of(member.as_bytes()), self.namespace(), member).await
    }

    /// The ttl of sessions, as the URL says it.
    pub fn ttl(&self) -> Option<Duration> {
        let url = tooz_core::BackendUrl::parse(self.url()).ok()?;
        url.duration("ttl").ok().flatten()
    }

    /// The ttl of sessions, or a second for a backend that needs none.
    pub fn some_ttl(&self) -> Duration {
        self.ttl().unwrap_or(Duration::from_secs(1))
    }

    /// A promise on an idle machine: kept to the letter on the virtual clock; on a real one, which is shared with
    /// other cases, order and cause are what counts, under a limit of twenty times the promise.
    pub fn limit(&self, promise: Duration) -> Duration {
        if self.is_virtual() { promise } else { promise * 20 }
    }

    /// How long something may take that is to happen at once. Nothing waits for its end, so on a real clock it is as long
    /// as a machine may stand still that has other things to do.
    pub fn soon(&self) -> Duration {
        if self.is_virtual() { Duration::from_millis(100) } else { Duration::from_secs(10) }
    }

    /// How long a crashed session may live on: its ttl and the grain.
    pub fn gone(&self) -> Duration {
        self.ttl().unwrap_or_default() + self.limit(Duration::from_secs(1))
    }

    /// Lets a session that nobody renews die: its ttl and the grain pass, and no more.
    pub async fn outlive(&self) {
        self.pass(self.ttl().unwrap_or_default() + Duration::from_secs(1)).await;
    }

    /// Lets time pass, because the promise is about what time alone does.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// The machine was suspended, on the virtual clock: the clocks of all coordinators jump, and no timer notices.
    pub fn suspend(&self, time: Duration) {
        for (index, coordinator) in self.opened().coordinators.iter().enumerate() {
            // The first to connect brings the backend's clock.
            if index == 0 || !self.0.clocks_stop {
                coordinator.simulate_suspend(time);
            }
        }
    }

    /// Waits until `check` says yes; it is to happen at once.
    ///
    /// # Errors
    /// It did not, or `check` failed.
    pub async fn soon_true<F, E>(&self, what: &str, check: impl FnMut() -> F) -> Outcome
    where
        F: Future<Output = Result<bool, E>>,
        E: Into<Failure>,
    {
        eventually(what, self.soon(), check).await
    }

    /// Awaits something that is to come at once.
    ///
    /// # Errors
    /// It did not.
    pub async fn soon_done<F: Future>(&self, what: &str, future: F) -> Outcome<F::Output> {
        within(what, self.soon(), future).await
    }

    /// Starts a task beside the case.
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(future)
    }

    /// Starts measuring time.
    pub fn stopwatch(&self) -> Stopwatch {
        Stopwatch(tokio::time::Instant::now())
    }

    /// Starts a task, and returns when it has been polled once: what it does before it first waits is done.
    pub async fn started<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (tell, polled) = tokio::sync::oneshot::channel();
        let mut tell = Some(tell);
        let mut future = Box::pin(future);
        let task = self.spawn(std::future::poll_fn(move |cx| {
            let poll = future.as_mut().poll(cx);
            if let Some(tell) = tell.take() {
                let _ = tell.send(()); // nobody listens: the case has ended
            }
            poll
        }));
        let _ = polled.await; // an error: it panicked, and whoever awaits the task learns it
        task
    }

    /// Waits until exactly `n` coordinators wait for the lock, as the backend says. Tasks of one coordinator
    /// count as one, and not at all while their coordinator holds the lock.
    ///
    /// # Errors
    /// It did not come to be.
    pub async fn waiters(&self, lock: &str, n: u64) -> Outcome {
        self.queue(LockKey::Named(LockName::new(lock)?), n).await
    }

    /// Waits until exactly `n` coordinators wait to lead the group, as the backend says.
    ///
    /// # Errors
    /// It did not come to be.
    pub async fn candidates(&self, group: &str, n: u64) -> Outcome {
        self.queue(LockKey::Leader(GroupId::new(group)?), n).await
    }

    async fn queue(&self, key: LockKey, n: u64) -> Outcome {
        let known = self.opened().looking.clone();
        let driver = match known {
            Some(driver) => driver,
            None => self.driver().await?,
        };
        self.opened().looking = Some(Arc::clone(&driver));
        self.soon_true(&format!("{n} wait for {key}"), async || {
            let Some(waiters) = driver.locks().holders(&key).await?.waiters else {
                // It cannot say who waits: all that is left is to give the wish time to arrive.
                self.pass(Duration::from_millis(20)).await;
                return Ok::<_, Error>(true);
            };
            Ok(waiters == n)
        })
        .await
    }

    /// Ends everything that the case opened.
    pub(crate) async fn close_all(&self) {
        if let Some(kit) = self.0.kit.as_deref() {
            kit.resume();
        }
        let opened = std::mem::take(&mut *self.opened());
        for coordinator in opened.coordinators {
            // What the case did may have broken it; it was judged already.
            let _ = coordinator.close().await;
        }
        for driver in opened.drivers {
            let _ = driver.close().await;
        }
    }
}

/// Time since a moment, on the case's clock.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(tokio::time::Instant);

impl Stopwatch {
    /// How long ago it was started.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Blocks this thread, for cases about a program that does that.
pub(crate) fn block_thread(time: Duration) {
    std::thread::sleep(time);
}
