//! Servers that somebody else runs, one target for each variable that names one: they are neither stopped nor emptied,
//! and each case has a namespace in them.

use std::time::Duration;

use tooz_core::{Characteristics, Coordinator};

use crate::target::{Target, TestBackend};

/// The variables, and the names of the targets.
pub const VARIABLES: &[(&str, &str)] = &[
    #[cfg(feature = "redis")]
    ("TOOZ_TEST_REDIS_URL", "redis"),
    #[cfg(feature = "redis")]
    ("TOOZ_TEST_REDIS_AUTH_URL", "redis+auth"),
    #[cfg(feature = "redis")]
    ("TOOZ_TEST_REDIS_SENTINEL_URL", "redis+sentinel"),
    #[cfg(feature = "redis")]
    ("TOOZ_TEST_REDIS_CLUSTER_URL", "redis+cluster"),
    #[cfg(feature = "redis-tls")]
    ("TOOZ_TEST_REDIS_TLS_URL", "redis+tls"),
    #[cfg(feature = "etcd")]
    ("TOOZ_TEST_ETCD_URL", "etcd"),
    #[cfg(feature = "etcd")]
    ("TOOZ_TEST_ETCD_CLUSTER_URL", "etcd+cluster"),
    #[cfg(feature = "etcd")]
    ("TOOZ_TEST_ETCD_AUTH_URL", "etcd+auth"),
    #[cfg(feature = "etcd-tls")]
    ("TOOZ_TEST_ETCD_TLS_URL", "etcd+tls"),
    #[cfg(feature = "memcached")]
    ("TOOZ_TEST_MEMCACHED_URL", "memcached"),
];

/// A server that all cases share answers late now and then, for it waits for the disk for all of them; budgets grow with
/// the ttl.
const TTL: &str = "ttl=5s";

/// Puts them in the place of targets of the same name.
pub(super) fn replace(targets: &mut Vec<Target>) {
    for (variable, name) in VARIABLES {
        let Ok(url) = std::env::var(variable) else { continue };
        let separator = if url.contains('?') { '&' } else { '?' };
        let url = format!("{url}{separator}{TTL}");
        targets.retain(|target| target.name() != *name);
        let kept = kept(&url);
        let target = Target::new(*name, move |_| Ok(TestBackend::new(url.clone()))).ttl();
        targets.push(match kept {
            Some(kept) => target.keeps(kept),
            None => target,
        });
    }
}

/// What this server keeps of what its URL promises: its version and its settings have a say. `None`: it does not answer, as
/// each case will say.
fn kept(url: &str) -> Option<Characteristics> {
    let connecting =
        Coordinator::builder(url, "what-is-kept").connect_timeout(Duration::from_secs(5)).connect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    // A thread of its own, for the caller may be on a runtime.
    let asking = std::thread::spawn(move || runtime.block_on(connecting).ok().map(|c| c.characteristics()));
    asking.join().ok()?
}
