//! Redis, etcd and memcached under the same tests: figures of many rounds, Python tooz beside them, an earlier version beside this one.
//!
//! No test harness of the compiler's: this program runs itself again as other members, and what is missing is known only
//! when the tests are listed.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

#[cfg(any(feature = "redis", feature = "etcd", feature = "memcached"))]
mod python;
#[cfg(any(feature = "redis", feature = "etcd", feature = "memcached"))]
mod rounds;
mod versions;

use std::process::ExitCode;

use tooz_servers::lab::{self, Trial};

#[cfg(feature = "redis")]
fn on_redis() -> Vec<Trial> {
    let program = tooz_servers::redis::program();
    rounds::trials("redis", &program, rounds::QUEUED, rounds::backend::Backend::redis)
}

#[cfg(not(feature = "redis"))]
fn on_redis() -> Vec<Trial> {
    ["rounds::redis", "python::redis"].map(|area| lab::left_out(area, "redis")).into()
}

#[cfg(feature = "etcd")]
fn on_etcd() -> Vec<Trial> {
    let program = tooz_servers::etcd::program();
    rounds::trials("etcd", &program, rounds::QUEUED, rounds::backend::Backend::etcd)
}

#[cfg(not(feature = "etcd"))]
fn on_etcd() -> Vec<Trial> {
    ["rounds::etcd", "python::etcd"].map(|area| lab::left_out(area, "etcd")).into()
}

#[cfg(feature = "memcached")]
fn on_memcached() -> Vec<Trial> {
    let program = tooz_servers::memcached::program();
    rounds::trials("memcached", &program, rounds::UNQUEUED, rounds::backend::Backend::memcached)
}

#[cfg(not(feature = "memcached"))]
fn on_memcached() -> Vec<Trial> {
    ["rounds::memcached", "python::memcached"].map(|area| lab::left_out(area, "memcached")).into()
}

fn main() -> ExitCode {
    #[cfg(any(feature = "redis", feature = "etcd", feature = "memcached"))]
    if rounds::is_part() {
        return ExitCode::SUCCESS;
    }
    let mut trials = on_redis();
    trials.extend(on_etcd());
    trials.extend(on_memcached());
    trials.extend(versions::trials());
    #[cfg(any(feature = "redis", feature = "etcd", feature = "memcached"))]
    trials.extend(python::trials());
    lab::run(trials, lab::WAITING)
}
