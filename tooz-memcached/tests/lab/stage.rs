//! What the tests of this binary share: coordinators, sessions at the driver's level, and looks past the driver.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tooz_core::driver::{
    Acquire, Acquired, AttemptId, Driver, Grant, Held, InstanceId, LockKey, LockMode, OpenSession, Renewal,
    Session, Turn,
};
use tooz_core::{Coordinator, LockName, MemberId, Result};
use tooz_servers::memcached::Memcached;

/// For sessions that are not to end: a machine may stand still for seconds.
pub(crate) const PATIENT: &str = "15s";

/// What nobody has to wait for comes within so many seconds, on any machine.
pub(crate) const SOON: u64 = 15;

/// How late an expiry may be noticed.
pub(crate) const GRAIN: Duration = Duration::from_secs(1);

/// Awaits `future` for at most so many seconds.
pub(crate) fn within<T>(what: &str, limit: u64, future: impl Future<Output = T>) -> impl Future<Output = T> {
    tooz_servers::in_time(what, Duration::from_secs(limit), future)
}

pub(crate) async fn eventually(what: &str, check: impl AsyncFnMut() -> bool) {
    tooz_servers::until(what, Duration::from_secs(20), check).await;
}

pub(crate) fn url(address: SocketAddr, ttl: &str) -> String {
    format!("memcached://{address}?ttl={ttl}")
}

pub(crate) async fn connect(address: SocketAddr, ttl: &str, member: &str) -> Coordinator {
    Coordinator::builder(url(address, ttl), member).connect().await.unwrap()
}

/// Whether these bytes are of a batch in which the driver's `call` takes effect, or the answer to one.
pub(crate) fn is_of(bytes: &[u8], call: &str) -> bool {
    let word = format!(" O{call}");
    bytes
        .windows(word.len() + 1)
        .any(|window| window.starts_with(word.as_bytes()) && matches!(window[word.len()], b' ' | b'\r'))
}

/// The gate of a lock, which is Python's key.
pub(crate) fn gate(lock: &str) -> Vec<u8> {
    format!("__TOOZ_LOCK_{lock}").into_bytes()
}

/// Says how the last holder of a lock ended.
pub(crate) fn mark(lock: &str) -> Vec<u8> {
    format!("_TOOZ_RS:k:{lock}").into_bytes()
}

/// For how many seconds an item stands there.
pub(crate) fn seconds_left(server: &Memcached, key: &[u8]) -> u64 {
    let answer = server.command(&[b"mg ", key, b" t\r\n"].concat()).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let left = answer.strip_prefix("HD t").and_then(|left| left.trim_end().parse().ok());
    left.unwrap_or_else(|| panic!("{} has no time: {answer}", key.escape_ascii()))
}

/// A session without a heart: it does what the test says, and nothing else.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) session: Arc<dyn Session>,
}

impl Client {
    pub(crate) async fn open(address: SocketAddr, ttl: &str, member: &str) -> Self {
        let (driver, context) =
            Coordinator::builder(url(address, ttl), member).connect_driver().await.unwrap();
        let request = OpenSession::new(MemberId::new(member).unwrap(), InstanceId(context.entropy.id()));
        let session = driver.open_session(&request).await.unwrap();
        Self { driver, session }
    }

    /// Waits for a lock.
    pub(crate) async fn take(&self, lock: &str) -> Grant {
        static ATTEMPTS: AtomicU64 = AtomicU64::new(1);
        let attempt = AttemptId(ATTEMPTS.fetch_add(1, Ordering::Relaxed).into());
        let request = Acquire::new(attempt, named(lock), LockMode::Exclusive).wait(true);
        match self.session.locks().request(&request).await.unwrap() {
            Acquired::Granted(grant) => grant,
            Acquired::Queued(entry) => match self.session.locks().turn(&entry).await.unwrap() {
                Turn::Granted(grant) => grant,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// One beat.
    pub(crate) async fn beat(&self, grants: &[&Grant]) -> Result<Renewal> {
        let mut held = Held::default();
        held.grants = grants.iter().map(|grant| (grant.key.clone(), grant.attempt)).collect();
        self.session.renew(&held).await
    }
}

pub(crate) fn named(lock: &str) -> LockKey {
    LockKey::Named(LockName::new(lock).unwrap())
}
