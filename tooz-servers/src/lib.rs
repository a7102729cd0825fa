//! Real servers, the network between them and a client, and helper processes, for tests.
#![doc = include_str!("../README.md")]
#![allow(clippy::disallowed_methods)] // real time passes here, on threads and runtimes of this crate's own

#[cfg(feature = "servers")]
mod certificates;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod histories;
#[cfg(feature = "lab")]
pub mod lab;
#[cfg(feature = "servers")]
mod launch;
pub mod lines;
#[cfg(feature = "memcached")]
pub mod memcached;
#[cfg(feature = "servers")]
mod pool;
mod process;
#[cfg(feature = "servers")]
mod proxy;
#[cfg(feature = "python")]
pub mod python;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
pub mod redis_replicated;
#[cfg(feature = "redis-tls")]
pub mod redis_tls;
#[cfg(feature = "users")]
pub mod users;
mod wait;
#[cfg(feature = "zookeeper")]
pub mod zookeeper;

#[cfg(feature = "servers")]
pub use certificates::{Certificates, make_certificates};
#[cfg(feature = "servers")]
pub use launch::{Launch, Server, StalledDisk, find, free_port, openssl, strace};
#[cfg(feature = "servers")]
pub use pool::{Lent, Pool};
pub use process::{Helper, part, run, say, stop, told};
#[cfg(feature = "servers")]
pub use proxy::{Proxy, Way};
pub use wait::{Failure, Outcome, block_on, eventually, in_time, poll, until, within};
