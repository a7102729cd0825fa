//! Real servers for the tests, and the network between them and a coordinator.
//!
//! A server is a program of this machine, started on a free loopback port with its data in a temporary directory. It
//! ends with the test process, however that ends, and is stopped, continued, killed and started again by process id.
//! Nothing here touches a server that somebody else started.
#![allow(clippy::disallowed_methods)] // threads, clocks and runtimes outside any case are made here

#[cfg(feature = "etcd")]
pub mod etcd;
mod launch;
mod pool;
mod proxy;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
pub mod redis_replicated;
#[cfg(feature = "redis-tls")]
pub mod redis_tls;

pub use launch::{Launch, Server, StalledDisk, find, free_port, openssl, strace};
pub use pool::{Lent, Pool};
pub use proxy::{Proxy, Way};
