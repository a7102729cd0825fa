#![doc = include_str!("../README.md")]
#![doc(html_root_url = "https://docs.rs/tooz")]

// INVARIANT: every driver feature names its crate here. A crate that nothing names is dropped by the linker, and
// its registration with it.

pub use tooz_core::*;

#[cfg(feature = "etcd")]
pub use tooz_etcd as etcd;
#[cfg(feature = "file")]
pub use tooz_file as file;
#[cfg(feature = "memcached")]
pub use tooz_memcached as memcached;
#[cfg(feature = "memory")]
pub use tooz_memory as memory;
#[cfg(feature = "redis")]
pub use tooz_redis as redis;
#[cfg(feature = "sqlite")]
pub use tooz_sqlite as sqlite;
