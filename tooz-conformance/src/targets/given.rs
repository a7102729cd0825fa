//! Servers that somebody else runs, one target for each variable that names one: they are neither stopped nor emptied,
//! and each case has a namespace in them.

use crate::target::{Place, Target};

/// The variables, and the names of the targets.
const VARIABLES: &[(&str, &str)] = &[
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
    #[cfg(feature = "etcd")]
    ("TOOZ_TEST_ETCD_TLS_URL", "etcd+tls"),
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
        targets.push(Target::new(*name, move |_| Ok(Place::new(url.clone()))).ttl());
    }
}
