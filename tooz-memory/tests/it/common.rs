//! What the tests of this driver share: connecting on the paused clock, and short words for long requests.

use std::future::{Future, poll_fn};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_core::Stream;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, Clock, Connect, Context, Driver, Entropy, Grant, GroupChange, Held,
    InstanceId, LockKey, LockMode, OpenSession, QueueEntry, Session, Spawner, Turn,
};
use tooz_core::{BackendUrl, ErrorKind, GroupId, LockName, MemberId, Result, Runtime};

pub(crate) use tooz_core::driver::LockMode::{Exclusive, Shared};

/// Measures virtual time from when it is made.
pub(crate) struct Stopwatch(Clock, tooz_core::driver::Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        let clock = Clock::tokio(SystemTime::UNIX_EPOCH);
        let now = clock.now();
        Self(clock, now)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.now().saturating_since(self.1)
    }
}

/// On the virtual clock this costs nothing; whatever is still waiting then waits for ever.
const LONG: Duration = Duration::from_hours(1);

pub(crate) fn context() -> Context {
    let clock = Clock::tokio(SystemTime::UNIX_EPOCH);
    Context::new(clock, Entropy::seeded(1), Spawner::new(Runtime::Current).unwrap())
}

pub(crate) async fn connect_in(url: &str, context: Context) -> Arc<dyn Driver> {
    tooz_memory::connect(Connect::new(BackendUrl::parse(url).unwrap(), context).unwrap()).await.unwrap()
}

pub(crate) async fn connect(url: &str) -> Arc<dyn Driver> {
    let seed = SEED.fetch_add(1, Ordering::Relaxed);
    let Context { clock, spawner, .. } = context();
    connect_in(url, Context::new(clock, Entropy::seeded(seed), spawner)).await
}

static SEED: AtomicU64 = AtomicU64::new(1);

/// A driver and a session on it, as a coordinator has them.
pub(crate) async fn member(url: &str, name: &str) -> (Arc<dyn Driver>, Arc<dyn Session>) {
    let driver = connect(url).await;
    let session = driver.open_session(&opening(name)).await.unwrap();
    (driver, session)
}

pub(crate) fn opening(name: &str) -> OpenSession {
    OpenSession::new(id(name), InstanceId(1))
}

pub(crate) fn id(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

pub(crate) fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

pub(crate) fn key(name: &str) -> LockKey {
    LockKey::Named(LockName::new(name).unwrap())
}

pub(crate) fn permit(limit: u32) -> LockMode {
    LockMode::Permit { limit: NonZeroU32::new(limit).unwrap() }
}

pub(crate) fn ask(attempt: u128, name: &str, mode: LockMode) -> Acquire {
    Acquire::new(AttemptId(attempt), key(name), mode)
}

pub(crate) async fn request(session: &Arc<dyn Session>, attempt: u128, mode: LockMode) -> Acquired {
    session.locks().request(&ask(attempt, "x", mode)).await.unwrap()
}

pub(crate) async fn granted(session: &Arc<dyn Session>, attempt: u128, mode: LockMode) -> Grant {
    match request(session, attempt, mode).await {
        Acquired::Granted(grant) => grant,
        other => panic!("{attempt} was not granted: {other:?}"),
    }
}

pub(crate) async fn queued(session: &Arc<dyn Session>, attempt: u128, mode: LockMode) -> QueueEntry {
    match request(session, attempt, mode).await {
        Acquired::Queued(place) => place,
        other => panic!("{attempt} is not in the queue: {other:?}"),
    }
}

pub(crate) async fn turn(session: &Arc<dyn Session>, entry: &QueueEntry) -> Grant {
    match soon(session.locks().turn(entry)).await.unwrap() {
        Turn::Granted(grant) => grant,
        other => panic!("{entry:?}: {other:?}"),
    }
}

/// Whether the place is not granted however long one waits.
pub(crate) async fn still_waits(session: &Arc<dyn Session>, entry: &QueueEntry) -> bool {
    never(session.locks().turn(entry)).await
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it did not come")
}

pub(crate) async fn never<T>(future: impl Future<Output = T>) -> bool {
    tokio::time::timeout(LONG, future).await.is_err()
}

pub(crate) fn held(grants: &[&Grant], waiting: &[&QueueEntry], groups: &[&str]) -> Held {
    let mut held = Held::default();
    held.grants = grants.iter().map(|grant| (grant.key.clone(), grant.attempt)).collect();
    held.waiting = waiting.iter().map(|place| (place.key.clone(), place.attempt)).collect();
    held.groups = groups.iter().map(|name| group(name)).collect();
    held
}

pub(crate) async fn next<T>(stream: &mut Pin<Box<dyn Stream<Item = Result<T>> + Send>>) -> Option<T> {
    soon(poll_fn(|cx| stream.as_mut().poll_next(cx))).await.map(Result::unwrap)
}

pub(crate) async fn quiet<T>(stream: &mut Pin<Box<dyn Stream<Item = Result<T>> + Send>>) -> bool {
    never(poll_fn(|cx| stream.as_mut().poll_next(cx))).await
}

/// A change in few characters: `+a`, `~a`, `-a`, `[a b]`, `deleted`.
pub(crate) fn short(change: Option<GroupChange>) -> String {
    let name = |record: &tooz_core::driver::MemberRecord| record.member.to_string();
    match change {
        None => "end".into(),
        Some(GroupChange::View(all)) => format!("[{}]", all.iter().map(name).collect::<Vec<_>>().join(" ")),
        Some(GroupChange::Joined(record)) => format!("+{}", name(&record)),
        Some(GroupChange::Updated(record)) => format!("~{}", name(&record)),
        Some(GroupChange::Left(record, _)) => format!("-{}", name(&record)),
        Some(GroupChange::Deleted) => "deleted".into(),
        Some(other) => format!("{other:?}"),
    }
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}
