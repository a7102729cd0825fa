//! How a coordinator is connected: the URL and the options beside it, checked before anything is sent.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use crate::driver::{Connect, Context, Driver, InstanceId, OpenSession, Registration};
use crate::options::{self, OptionKind, OptionSpec};
use crate::platform::clock::Clock;
use crate::platform::entropy::Entropy;
use crate::platform::runtime::Spawner;
use crate::session::call::closed;
use crate::session::keeper::Keeper;
use crate::session::limits::Config;
use crate::session::live::SessionLease;
use crate::session::state::Shared;
use crate::{
    BackendUrl, Characteristics, Coordinator, Error, ErrorKind, Finding, MemberId, Result, Runtime, Viewer,
    driver,
};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);
/// A time limit or a pause.
const TIME: OptionKind = OptionKind::Duration { min: Duration::from_millis(1), max: DAY };

/// The options that every driver has.
pub const COMMON_OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "ttl",
        // Below a second a busy machine alone would lose sessions; memcached knows no more than 30 days.
        OptionKind::Duration { min: SECOND, max: Duration::from_hours(30 * 24) },
        "how long a session lives without a renewal, on backends with a session ttl (default 15s)",
    ),
    OptionSpec::new("namespace", OptionKind::Text, "separates equal names (default tooz)"),
    OptionSpec::new("connect_timeout", TIME, "time limit of connecting (default 10s)"),
    OptionSpec::new(
        "operation_timeout",
        TIME,
        "time limit of every operation; waiting for a lock does not count (default 10s)",
    ),
    OptionSpec::new("close_timeout", TIME, "time limit of closing (default 5s)"),
    OptionSpec::new("initial_reconnect_backoff", TIME, "first pause before a retry (default 100ms)"),
    OptionSpec::new("max_reconnect_backoff", TIME, "longest pause before a retry (default 5s)"),
    OptionSpec::new("rejoin", OptionKind::Flag, "join the groups again after a loss (default true)"),
];

/// How a coordinator is connected. An option given here replaces the same option in the URL.
///
/// Nothing happens before [`Builder::connect`], [`Builder::view`] or [`Builder::examine`].
///
/// # Examples
/// ```
/// # use std::time::Duration;
/// # use tooz_core::{self as tooz, Characteristics, Coordinator, ErrorKind};
/// # use tooz_memory as _;
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// let c = Coordinator::builder("memory://a-builder?operation_timeout=2s", "host-1")
///     .namespace("billing") // locks and groups of other namespaces are out of reach
///     .require(Characteristics::FAIR_LOCKS)
///     .close_timeout(Duration::from_secs(1))
///     .connect()
///     .await?;
/// c.close().await?;
///
/// // What a backend does not keep is refused before anything is locked on it.
/// let refused = Coordinator::builder("memory://a-builder", "host-1")
///     .require(Characteristics::DISTRIBUTED_ACROSS_HOSTS)
///     .connect()
///     .await;
/// assert_eq!(refused.unwrap_err().kind(), ErrorKind::MissingCharacteristic);
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing happens before connect()"]
pub struct Builder {
    url: String,
    member: Vec<u8>,
    options: Vec<(String, String)>,
    require: Characteristics,
    runtime: Runtime,
    beating: bool,
    seed: Option<u64>,
    drivers: Vec<Registration>,
    adopt: bool,
}

/// Written as the option's parser reads it.
fn written(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

/// Without the URL and the options: both may hold secrets that only parsing tells apart.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("require", &self.require)
            .field("runtime", &self.runtime)
            .finish_non_exhaustive()
    }
}

impl Coordinator {
    /// Begins to connect to the backend at `url` as `member`. What is wrong with either is told by
    /// [`Builder::connect`].
    pub fn builder(url: impl Into<String>, member: impl AsRef<[u8]>) -> Builder {
        Builder {
            url: url.into(),
            member: member.as_ref().to_vec(),
            options: Vec::new(),
            require: Characteristics::empty(),
            runtime: Runtime::default(),
            beating: true,
            seed: None,
            drivers: Vec::new(),
            adopt: false,
        }
    }

    /// Connects, runs `work` with the coordinator, and closes it before it returns, whether `work` succeeds, fails or
    /// panics.
    ///
    /// A program that returns from `main` right after it dropped a guard ends before the release has left it: the lock is
    /// held until the session's end, and the next holder is told that the last one was cut off. In a scope it is not.
    ///
    /// ```
    /// # use tooz_core::{self as tooz, Coordinator};
    /// # use tooz_memory as _;
    /// #[tokio::main]
    /// async fn main() -> tooz::Result<()> {
    ///     Coordinator::scope(Coordinator::builder("memory://scope", "host-1"), async |c| {
    ///         let lock = c.lock("reindex")?.acquire().await?;
    ///         println!("send token {} along with every write", lock.token());
    ///         Ok(()) // the lock is dropped here, and given back before main returns
    ///     })
    ///     .await
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`Builder::connect`], or what `work` returns. That closing failed is traced as a warning and changes nothing
    /// about that: the work was done, and what was held ends with the session.
    ///
    /// # Cancel safety
    /// `work` is dropped, and the coordinator closes in the background.
    pub async fn scope<T, E: From<Error>>(
        builder: Builder,
        work: impl AsyncFnOnce(Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let coordinator = builder.connect().await?;
        let clone = coordinator.clone();
        let mut work = pin!(async move { work(clone).await });
        // A panic is held back until everything is given back, and goes on then.
        let ended = std::future::poll_fn(|cx| {
            let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx)));
            polled.map_or_else(|panic| Poll::Ready(Err(panic)), |polled| polled.map(Ok))
        })
        .await;
        if let Err(error) = coordinator.close().await {
            tracing::warn!(%error, "the coordinator of a scope could not be closed");
        }
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Builder {
    /// An option by name; see the driver's README and [`COMMON_OPTIONS`].
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((name.into(), value.into()));
        self
    }

    /// What the backend must keep; several calls add up. Default: nothing.
    pub fn require(mut self, characteristics: Characteristics) -> Self {
        self.require |= characteristics;
        self
    }

    /// Where the coordinator lives. Default: [`Runtime::Library`].
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// How long the session lives without a beat: 1 s to 30 days, default 15 s where liveness depends on time.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.option("ttl", written(ttl))
    }

    /// Names in two namespaces never meet. Default `tooz`.
    pub fn namespace(self, namespace: impl Into<String>) -> Self {
        self.option("namespace", namespace)
    }

    /// Time limit of connecting: 1 ms to a day, default 10 s.
    pub fn connect_timeout(self, limit: Duration) -> Self {
        self.option("connect_timeout", written(limit))
    }

    /// Time limit of every operation; waiting for a lock or an election does not count. 1 ms to a day, default
    /// 10 s.
    pub fn operation_timeout(self, limit: Duration) -> Self {
        self.option("operation_timeout", written(limit))
    }

    /// Time limit of closing: 1 ms to a day, default 5 s.
    pub fn close_timeout(self, limit: Duration) -> Self {
        self.option("close_timeout", written(limit))
    }

    /// Whether the groups are joined again after a loss. Default: yes.
    pub fn rejoin(self, rejoin: bool) -> Self {
        self.option("rejoin", rejoin.to_string())
    }

    /// No beats by itself: [`Coordinator::heartbeat`] must be called in time.
    pub fn manual_heart(mut self) -> Self {
        self.beating = false;
        self
    }

    /// Simulation: all randomness comes from this seed, and the wall clock starts at the same time every run.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Registers a driver by hand, where registration by linking does not work.
    pub fn driver(mut self, registration: Registration) -> Self {
        self.drivers.push(registration);
        self
    }

    /// Connects and opens a session.
    ///
    /// # Errors
    /// `UnknownScheme`, `InvalidUrl`, `InvalidOption`, `Invalid` (the member id), `MissingCharacteristic`,
    /// `NoRuntime`; what the backend says: `Unavailable`, `Denied`, `Incompatible`, `Corrupt`; `Timeout` after
    /// `connect_timeout`.
    ///
    /// # Cancel safety
    /// A session that was opened meanwhile is closed in the background.
    pub async fn connect(self) -> Result<Coordinator> {
        let connected = async { self.plan()?.in_time(Plan::connect).await };
        connected.await.map_err(|error| error.during("connect"))
    }

    /// Connects for looking alone, without a session: who is in which group, who holds a lock, who leads.
    ///
    /// Nothing is written to the backend, neither now nor later. So this works where [`Builder::connect`] cannot: on a
    /// full store, and for a user who may only read; the driver's README says what that user needs. A backend or a
    /// namespace that was never used stays as it is: there are no groups and no holders in it. The member id plays no
    /// part, except that it must be one; nor do the ttl, the heart and `rejoin`.
    ///
    /// # Errors
    /// As [`Builder::connect`]; `Incompatible` also where the data is of an earlier layout than this version's, which the
    /// first session of this version changes.
    ///
    /// # Cancel safety
    /// The connection is closed in the background.
    pub async fn view(self) -> Result<Viewer> {
        let connected = async { self.plan()?.in_time(Plan::view).await };
        connected.await.map_err(|error| error.during("connect a view"))
    }

    /// Lets [`Builder::examine`] adopt a backend that was moved: where its driver says that the sessions recorded there
    /// live elsewhere, they end, and the backend belongs to its new place. No process may use it at its former place any more.
    ///
    /// It has no effect on connecting, and none where there is nothing to adopt.
    pub fn adopt(mut self) -> Self {
        self.adopt = true;
        self
    }

    /// Looks at the backend's state and settings without opening a session; empty where the driver has nothing to say.
    /// It changes nothing there, except after [`Builder::adopt`].
    ///
    /// # Errors
    /// As [`Builder::connect`], where nothing at all could be found out.
    ///
    /// # Cancel safety
    /// Its connections are closed.
    pub async fn examine(self) -> Result<Vec<Finding>> {
        let adopt = self.adopt;
        let plan = self.plan()?;
        let (spawner, limit) = (plan.request.context.spawner.clone(), plan.request.limits.connect_timeout);
        let (url, request) = (plan.config.url, Connect { adopt, ..plan.request });
        let Some(examine) = plan.registration.examine else { return Ok(Vec::new()) };
        // On the coordinator's runtime: what a driver's connections run on must not depend on the caller's.
        let examining = spawner.spawn(examine(request));
        let found = match spawner.timeout(limit, examining).await {
            Some(found) => found.unwrap_or_else(|| Err(closed())),
            None => Err(too_late(&url, limit)),
        };
        let mut found = found.map_err(|error| error.without_effect().during("examine"))?;
        if adopt && !found.iter().any(|finding| finding.topic() == "adopt") {
            found.push(Finding::good("adopt", "nothing to adopt: this backend is not bound to a place"));
        }
        Ok(found)
    }

    /// Connects to the backend without a session, for tools and tests that work at the driver's level.
    ///
    /// # Errors
    /// As [`Builder::connect`].
    ///
    /// # Cancel safety
    /// The connection is closed.
    #[doc(hidden)]
    pub async fn connect_driver(self) -> Result<(Arc<dyn Driver>, Context)> {
        let plan = self.plan()?;
        let context = plan.request.context.clone();
        let connecting = context.spawner.spawn(plan.registration.connect(plan.request));
        let driver = connecting.await.unwrap_or_else(|| Err(closed()))?;
        Ok((driver, context))
    }

    fn plan(self) -> Result<Plan> {
        let mut url = BackendUrl::parse(&self.url)?;
        let registration = driver::find(url.scheme(), &self.drivers)?;
        for (name, value) in self.options {
            url.set_option(&name, value);
        }
        let known = [COMMON_OPTIONS, registration.own_options()].concat();
        let foreign = [registration.foreign_options, options::FOREIGN_OPTIONS].concat();
        options::check(&url, &known, &foreign)?;
        let member = MemberId::new(&self.member)?;
        let missing = self.require - registration.characteristics(&url);
        check_characteristics(&url, missing)?;
        let spawner = Spawner::new(self.runtime)?;
        let entropy = self.seed.map_or_else(Entropy::system, Entropy::seeded);
        let clock = match (self.runtime, self.seed) {
            (Runtime::Library, _) => Clock::boot(),
            (Runtime::Current, Some(_)) => Clock::tokio(SystemTime::UNIX_EPOCH + DAY * 20_000),
            (Runtime::Current, None) => Clock::current(),
        };
        let request = Connect::new(url, Context::new(clock, entropy, spawner))?;
        let url = &request.url;
        let duration = |name, default| url.duration(name).map(|given| given.unwrap_or(default));
        let config = Config {
            member,
            limits: request.limits,
            initial_backoff: duration("initial_reconnect_backoff", Duration::from_millis(100))?,
            max_backoff: duration("max_reconnect_backoff", Duration::from_secs(5))?,
            rejoin: url.flag("rejoin")?.unwrap_or(true),
            url: url.clone(),
        };
        Ok(Plan { config, registration, require: self.require, beating: self.beating, request })
    }
}

fn check_characteristics(url: &BackendUrl, missing: Characteristics) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::MissingCharacteristic,
        format!("{url} does not guarantee {missing}; choose another backend, or require less"),
    ))
}

fn too_late(url: &BackendUrl, limit: Duration) -> Error {
    // A path relative to the working directory begins with a host of dots alone.
    let hosts = url.hosts().iter().filter(|host| !host.name.trim_matches('.').is_empty());
    let hosts: Vec<_> = hosts
        .map(|host| host.port.map_or_else(|| host.name.clone(), |port| format!("{}:{port}", host.name)))
        .collect();
    let (who, remedy) = if hosts.is_empty() {
        ("the backend".to_owned(), "")
    } else {
        let remedy = "; check the host and the port, that the server runs there, and that it speaks TLS exactly if the URL \
                      says so";
        (hosts.join(", "), remedy)
    };
    let why = format!("{who} did not answer within {limit:?} (option connect_timeout){remedy}");
    Error::new(ErrorKind::Timeout, why)
}

/// Everything that is known before the backend is asked.
struct Plan {
    config: Config,
    registration: Registration,
    require: Characteristics,
    beating: bool,
    request: Connect,
}

impl Plan {
    /// Connects on the coordinator's runtime, and to its end: a coordinator whose caller is gone closes itself.
    async fn in_time<T, F>(self, connect: impl FnOnce(Self) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (spawner, limit) = (self.request.context.spawner.clone(), self.request.limits.connect_timeout);
        let url = self.config.url.clone();
        let (answer, answered) = oneshot::channel();
        let connecting = connect(self);
        spawner
            .spawn(async move {
                let connected = connecting.await;
                let _ = answer.send(connected);
            })
            .detach();
        match spawner.timeout(limit, answered).await {
            Some(Ok(connected)) => connected,
            Some(Err(_)) => Err(Error::new(ErrorKind::Backend, "the driver panicked while connecting")),
            None => Err(too_late(&url, limit)),
        }
    }

    async fn driver(&self, view: bool) -> Result<Arc<dyn Driver>> {
        let request = Connect { view, ..self.request.clone() };
        // Connecting changes nothing that a caller relies on.
        let driver = self.registration.connect(request).await.map_err(Error::without_effect)?;
        let missing = self.require - driver.characteristics();
        if let Err(error) = check_characteristics(&self.config.url, missing) {
            // It has no coordinator or view that would close it.
            let _ = driver.close().await;
            return Err(error);
        }
        Ok(driver)
    }

    async fn view(self) -> Result<Viewer> {
        let driver = self.driver(true).await?;
        tracing::debug!(url = %self.config.url, "connected for looking");
        Ok(Viewer::new(&self.config, driver, self.request.context.spawner))
    }

    async fn connect(self) -> Result<Coordinator> {
        let context = self.request.context.clone();
        let driver = self.driver(false).await?;
        let instance = InstanceId(context.entropy.id());
        let request = OpenSession::new(self.config.member.clone(), instance);
        let session = driver.open_session(&request).await?;
        let lease = SessionLease::new(Arc::clone(&session), context.clock.clone());
        let first = Arc::clone(&lease);
        let (shared, commands) = Shared::new(self.config, driver, instance, context, self.beating, first);
        Keeper::start(&shared, commands, lease, session);
        tracing::debug!(url = %shared.config.url, member = %shared.config.member, "connected");
        Ok(Coordinator::new(shared))
    }
}
