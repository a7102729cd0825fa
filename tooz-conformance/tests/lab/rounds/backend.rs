//! A server, and what its driver calls it.

use std::time::Duration;

use tooz_core::Coordinator;
#[cfg(feature = "etcd")]
use tooz_servers::etcd::Etcd;
#[cfg(feature = "memcached")]
use tooz_servers::memcached::Memcached;
#[cfg(feature = "redis")]
use tooz_servers::redis::Redis;

/// Generous: a loaded machine must not redden what asserts order and counts.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

pub(crate) enum Backend {
    #[cfg(feature = "redis")]
    Redis(Redis),
    #[cfg(feature = "etcd")]
    Etcd(Etcd),
    #[cfg(feature = "memcached")]
    Memcached(Memcached),
}

impl Backend {
    #[cfg(feature = "redis")]
    pub(crate) fn redis() -> Self {
        Self::Redis(Redis::start().unwrap())
    }

    #[cfg(feature = "etcd")]
    pub(crate) fn etcd() -> Self {
        Self::Etcd(Etcd::start().unwrap())
    }

    #[cfg(feature = "memcached")]
    pub(crate) fn memcached() -> Self {
        Self::Memcached(Memcached::start().unwrap())
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(_) => "redis",
            #[cfg(feature = "etcd")]
            Self::Etcd(_) => "etcd",
            #[cfg(feature = "memcached")]
            Self::Memcached(_) => "memcached",
        }
    }

    /// Counts what the server does from now on; what it returns asserts that so many turns cost one wake-up each, where there
    /// is a queue.
    pub(crate) fn count(&self) -> Box<dyn FnOnce(usize) -> String + '_> {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(redis) => Box::new(super::count_redis::begin(redis)),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => Box::new(super::count_etcd::begin(etcd)),
            #[cfg(feature = "memcached")]
            Self::Memcached(memcached) => Box::new(super::count_memcached::begin(memcached)),
        }
    }

    pub(crate) fn url(&self, ttl: Duration) -> String {
        let address = match self {
            #[cfg(feature = "redis")]
            Self::Redis(redis) => redis.address(),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.address(),
            #[cfg(feature = "memcached")]
            Self::Memcached(memcached) => memcached.address(),
        };
        format!("{}://{address}?ttl={}s", self.name(), ttl.as_secs())
    }
}

/// On a machine that stands still for a ttl, a session may be over before it stands; then it is tried again.
pub(crate) async fn connect(url: &str, member: &str) -> Coordinator {
    let mut tries = 0;
    loop {
        match Coordinator::builder(url, member).connect().await {
            Ok(coordinator) => return coordinator,
            Err(error) => assert!(tries < 10, "{member}: {error}"),
        }
        tries += 1;
    }
}
