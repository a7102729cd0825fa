//! A member's handle on everything.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::driver::{Connect, Context, Driver, InstanceId, OpenSession, SessionId};
use crate::election::Election;
use crate::entropy::Entropy;
use crate::group::Group;
use crate::heart::{Events, Heart, Liveness};
use crate::hooks::{self, BoxError, HookEvent, HookId, HookKind};
use crate::keeper::Keeper;
use crate::lock::Lock;
use crate::lock_set::LockSet;
use crate::options::{self, OptionKind, OptionSpec};
use crate::runtime::Spawner;
use crate::shared::{Command, Config, Life, Phase, Shared, closed};
use crate::tenure::Tenure;
use crate::{
    BackendUrl, Characteristics, Error, ErrorKind, GroupId, LockName, LossReason, MemberId, Registration,
    Result, Runtime, registry,
};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// The options that every driver has.
pub const COMMON_OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "ttl",
        // Below a second a busy machine alone would lose sessions; memcached knows no more than 30 days.
        OptionKind::Duration { min: SECOND, max: Duration::from_secs(30 * 86_400) },
        "how long a session lives without a beat, where liveness depends on time (default 15s there)",
    ),
    OptionSpec::new("namespace", OptionKind::Text, "names in two namespaces never meet (default tooz)"),
    OptionSpec::new(
        "connect_timeout",
        OptionKind::Duration { min: Duration::from_millis(1), max: DAY },
        "time limit of connecting (default 10s)",
    ),
    OptionSpec::new(
        "operation_timeout",
        OptionKind::Duration { min: Duration::from_millis(1), max: DAY },
        "time limit of every operation; waiting for a lock does not count (default 10s)",
    ),
    OptionSpec::new(
        "close_timeout",
        OptionKind::Duration { min: Duration::from_millis(1), max: DAY },
        "time limit of closing (default 5s)",
    ),
    OptionSpec::new(
        "initial_reconnect_backoff",
        OptionKind::Duration { min: Duration::from_millis(1), max: DAY },
        "first pause before another try (default 100ms)",
    ),
    OptionSpec::new(
        "max_reconnect_backoff",
        OptionKind::Duration { min: Duration::from_millis(1), max: DAY },
        "longest pause before another try (default 5s)",
    ),
    OptionSpec::new("rejoin", OptionKind::Flag, "join the groups again after a loss (default true)"),
];

/// A member's handle on groups, locks and elections; a cheap clone. It owns one session.
///
/// The session lives until [`Coordinator::close`], or until the last clone, handle, guard, leadership and watch is
/// gone; then it closes in the background.
///
/// Every operation ends within `operation_timeout` (10 s; waiting for a lock does not count) and works on any
/// executor, or on none: the library has a runtime thread of its own (see [`Runtime`]).
#[derive(Clone)]
pub struct Coordinator {
    life: Arc<Life>,
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("url", &self.life.config.url)
            .field("member", &self.life.config.member)
            .field("liveness", &self.liveness())
            .finish()
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
        }
    }

    /// This coordinator's member id.
    pub fn member(&self) -> &MemberId {
        &self.life.config.member
    }

    /// The backend's URL with all options; showing it shows no secret.
    pub fn url(&self) -> &BackendUrl {
        &self.life.config.url
    }

    /// What this backend keeps, as it said when it was connected to.
    pub fn characteristics(&self) -> Characteristics {
        self.life.characteristics
    }

    /// Whether the session lives, computed from the clock now.
    pub fn liveness(&self) -> Liveness {
        let phase = self.life.phase.borrow().clone();
        match phase {
            Phase::Up(tenure) => match (tenure.loss(), tenure.deadline()) {
                (Some(why), _) => Liveness::Lost { why },
                (None, Some(until)) if tenure.is_suspended() => Liveness::Suspended { until },
                (None, until) => Liveness::Alive { until },
            },
            Phase::Down(why) => Liveness::Lost { why },
            Phase::Closed(_) => Liveness::Lost { why: LossReason::SessionClosed },
        }
    }

    /// The present session's id; `None` while there is none.
    pub fn session_id(&self) -> Option<SessionId> {
        match &*self.life.phase.borrow() {
            Phase::Up(tenure) if tenure.loss().is_none() => Some(tenure.id()),
            _ => None,
        }
    }

    /// What happens to the session from now on.
    pub fn events(&self) -> Events {
        Events::new(self.life.events.subscribe())
    }

    /// The heart.
    pub fn heart(&self) -> Heart {
        Heart(Arc::clone(&self.life))
    }

    /// Whether the session ends unless it is renewed in time.
    pub fn requires_beating(&self) -> bool {
        !self.life.characteristics.contains(Characteristics::NON_TIMEOUT_BASED)
    }

    /// Beats once by hand, and answers how long it is until the next beat is due; `None` where none is needed.
    /// When the session was lost and the heart is stopped, this opens a new one.
    ///
    /// # Errors
    /// `SessionLost`: this beat found that it is gone. `Unavailable`, `Timeout`: not renewed. `Closed`.
    ///
    /// # Cancel safety
    /// The beat goes on.
    pub async fn heartbeat(&self) -> Result<Option<Duration>> {
        let beat = async {
            self.life.check()?;
            let (answer, answered) = oneshot::channel();
            self.life.command(Command::Beat(answer));
            let limit = self.life.config.operation_timeout;
            match self.life.limited(limit, answered).await {
                Some(Ok(result)) => result,
                Some(Err(_)) => Err(closed()),
                None => Err(self.life.timed_out()),
            }
        };
        beat.await.map_err(|error| error.during("heartbeat"))
    }

    /// A lock.
    ///
    /// # Errors
    /// `Invalid` for a name that is empty or longer than 255 bytes.
    pub fn lock(&self, name: impl AsRef<[u8]>) -> Result<Lock> {
        Ok(Lock::new(Arc::clone(&self.life), LockName::new(name)?))
    }

    /// Several locks to be taken together, in an order that cannot deadlock.
    ///
    /// # Errors
    /// `Invalid` for a name that is empty or longer than 255 bytes.
    pub fn lock_all<I>(&self, names: I) -> Result<LockSet>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let locks: Result<Vec<_>> = names.into_iter().map(|name| self.lock(name)).collect();
        Ok(LockSet::new(locks?))
    }

    /// A group.
    ///
    /// # Errors
    /// `Invalid` for an id that is empty or longer than 255 bytes.
    pub fn group(&self, id: impl AsRef<[u8]>) -> Result<Group> {
        Ok(Group::new(Arc::clone(&self.life), GroupId::new(id)?))
    }

    /// The election of a group's leader.
    ///
    /// # Errors
    /// `Invalid` for an id that is empty or longer than 255 bytes.
    pub fn election(&self, group: impl AsRef<[u8]>) -> Result<Election> {
        Ok(Election::new(Arc::clone(&self.life), GroupId::new(group)?))
    }

    /// Every group, sorted by bytes.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn groups(&self) -> Result<Vec<GroupId>> {
        let driver = Arc::clone(&self.life.driver);
        let call = Box::pin(async move { driver.groups().list().await });
        self.life.plain_call(call).await.map_err(|error| error.during("groups"))
    }

    async fn hook<F>(&self, kind: HookKind, group: impl AsRef<[u8]>, hook: F) -> Result<HookId>
    where
        F: Fn(&HookEvent) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        self.life.check()?;
        hooks::register(&self.life, kind, GroupId::new(group)?, Arc::new(hook)).await
    }

    /// Runs `hook` inside [`Coordinator::run_watchers`] for everybody who joins `group` from now on.
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
        self.hook(HookKind::Join, group, hook).await
    }

    /// Ends what [`Coordinator::watch_join_group`] began.
    ///
    /// # Errors
    /// `HookNotFound`.
    pub fn unwatch_join_group(&self, group: impl AsRef<[u8]>, hook: HookId) -> Result<()> {
        hooks::unregister(&self.life, HookKind::Join, &GroupId::new(group)?, hook)
    }

    /// Runs `hook` inside [`Coordinator::run_watchers`] for everybody who leaves `group` from now on.
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
        self.hook(HookKind::Leave, group, hook).await
    }

    /// Ends what [`Coordinator::watch_leave_group`] began.
    ///
    /// # Errors
    /// `HookNotFound`.
    pub fn unwatch_leave_group(&self, group: impl AsRef<[u8]>, hook: HookId) -> Result<()> {
        hooks::unregister(&self.life, HookKind::Leave, &GroupId::new(group)?, hook)
    }

    /// Makes this coordinator a candidate of `group`: [`Coordinator::run_elect_coordinator`] runs for leader, and
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
        self.hook(HookKind::Elected, group, hook).await
    }

    /// Ends what [`Coordinator::watch_elected_as_leader`] began; a leadership that was won stays until
    /// [`Coordinator::stand_down`].
    ///
    /// # Errors
    /// `HookNotFound`.
    pub fn unwatch_elected_as_leader(&self, group: impl AsRef<[u8]>, hook: HookId) -> Result<()> {
        hooks::unregister(&self.life, HookKind::Elected, &GroupId::new(group)?, hook)
    }

    /// Runs the hooks of everything that happened since the last call, waiting up to `timeout` for a first event;
    /// then runs for leader where elected hooks are registered. Answers the events. A hook that fails or panics is
    /// reported ([`Event::HookFailed`](crate::Event::HookFailed)), is not run again for the same event, and stops
    /// no other.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`, `Closed`.
    ///
    /// # Cancel safety
    /// Events that were taken from a watch when the future was dropped are lost for the hooks.
    pub async fn run_watchers(&self, timeout: Duration) -> Result<Vec<HookEvent>> {
        hooks::run_watchers(&self.life, timeout).await.map_err(|error| error.during("run_watchers"))
    }

    /// Runs for leader in every group with an elected hook, without waiting.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`, `Closed`.
    ///
    /// # Cancel safety
    /// A leadership that was just won is given back.
    pub async fn run_elect_coordinator(&self) -> Result<Vec<HookEvent>> {
        hooks::run_elect_coordinator(&self.life).await.map_err(|error| error.during("run_elect_coordinator"))
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
        hooks::stand_down(&self.life, &group).await.map_err(|error| error.during("stand_down"))
    }

    /// Leaves every group, releases every lock, ends the session and the connection. Ends within `close_timeout`
    /// (5 s) also when the backend is away, and can be called twice.
    ///
    /// # Errors
    /// `Unavailable`: the backend did not answer in time; what was held ends with the session.
    ///
    /// # Cancel safety
    /// Closing goes on.
    pub async fn close(&self) -> Result<()> {
        let mut phase = self.life.phase.subscribe();
        self.life.command(Command::Close);
        loop {
            if let Phase::Closed(Some(result)) = &*phase.borrow_and_update() {
                return result.clone();
            }
            if phase.changed().await.is_err() {
                return Err(closed());
            }
        }
    }
}

/// How to connect. Options given here win over equal ones in the URL.
#[derive(Debug)]
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
}

/// Written as the option's parser reads it.
fn written(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
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
        self.connect_within().await.map_err(|error| error.during("connect"))
    }

    async fn connect_within(self) -> Result<Coordinator> {
        let plan = self.plan()?;
        let (spawner, limit) = (plan.context.spawner.clone(), plan.config.connect_timeout);
        let (answer, answered) = oneshot::channel();
        // On the coordinator's runtime, and to its end: a coordinator that nobody takes closes itself.
        spawner
            .spawn(async move {
                let connected = plan.connect().await;
                let _ = answer.send(connected);
            })
            .detach();
        match spawner.timeout(limit, answered).await {
            Some(Ok(connected)) => connected,
            Some(Err(_)) => Err(Error::new(ErrorKind::Backend, "the driver panicked while connecting")),
            None => Err(Error::new(
                ErrorKind::Timeout,
                format!("the backend did not answer within {limit:?} (option connect_timeout)"),
            )),
        }
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
        let context = plan.context.clone();
        let request = Connect::new(plan.config.url.clone(), context.clone());
        let connecting = context.spawner.spawn(plan.registration.connect(request));
        let driver = connecting.await.unwrap_or_else(|| Err(closed()))?;
        Ok((driver, context))
    }

    fn plan(self) -> Result<Plan> {
        let mut url = BackendUrl::parse(&self.url)?;
        let registration = registry::find(url.scheme(), &self.drivers)?;
        for (name, value) in self.options {
            url.set_option(&name, value);
        }
        options::check(&url, &[COMMON_OPTIONS, registration.own_options()])?;
        let member = MemberId::new(&self.member)?;
        let missing = self.require - registration.characteristics(&url);
        check_characteristics(&url, missing)?;
        let duration = |name, default| url.duration(name).map(|given| given.unwrap_or(default));
        let config = Config {
            member,
            ttl: url.duration("ttl")?,
            connect_timeout: duration("connect_timeout", Duration::from_secs(10))?,
            operation_timeout: duration("operation_timeout", Duration::from_secs(10))?,
            close_timeout: duration("close_timeout", Duration::from_secs(5))?,
            initial_backoff: duration("initial_reconnect_backoff", Duration::from_millis(100))?,
            max_backoff: duration("max_reconnect_backoff", Duration::from_secs(5))?,
            rejoin: url.flag("rejoin")?.unwrap_or(true),
            url,
        };
        let spawner = Spawner::new(self.runtime)?;
        let entropy = self.seed.map_or_else(Entropy::system, Entropy::seeded);
        let clock = match (self.runtime, self.seed) {
            (Runtime::Library, _) => Clock::boot(),
            (Runtime::Current, Some(_)) => Clock::tokio(SystemTime::UNIX_EPOCH + DAY * 20_000),
            (Runtime::Current, None) => Clock::current(),
        };
        Ok(Plan {
            config,
            registration,
            require: self.require,
            beating: self.beating,
            context: Context::new(clock, entropy, spawner),
        })
    }
}

fn check_characteristics(url: &BackendUrl, missing: Characteristics) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::MissingCharacteristic,
        format!("{url} does not keep {missing}; choose another backend, or require less"),
    ))
}

/// Everything that is known before the backend is asked.
struct Plan {
    config: Config,
    registration: Registration,
    require: Characteristics,
    beating: bool,
    context: Context,
}

impl Plan {
    async fn connect(self) -> Result<Coordinator> {
        let Context { clock, entropy, spawner, .. } = self.context.clone();
        let driver = self.registration.connect(Connect::new(self.config.url.clone(), self.context)).await?;
        check_characteristics(&self.config.url, self.require - driver.characteristics())?;
        let instance = InstanceId(entropy.id());
        let request = OpenSession::new(self.config.member.clone(), instance, self.config.ttl);
        let session = driver.open_session(&request).await?;
        let tenure = Tenure::new(Arc::clone(&session), clock.clone());
        let (shared, commands) = Shared::new(
            self.config,
            driver,
            instance,
            clock,
            entropy,
            spawner,
            self.beating,
            Arc::clone(&tenure),
        );
        Keeper::start(&shared, commands, tenure, session);
        tracing::debug!(url = %shared.config.url, member = %shared.config.member, "connected");
        Ok(Coordinator { life: Arc::new(Life(shared)) })
    }
}
