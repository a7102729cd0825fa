//! The drivers on real servers of their own, on which anything may be done: what the suite's cases cannot ask of every
//! driver.
//!
//! No test harness of the compiler's: this program runs itself again as other members, and what is missing is known only
//! when the tests are listed.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

#[cfg(any(feature = "redis", feature = "etcd"))]
mod case;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod examine;
#[cfg(any(feature = "redis", feature = "etcd"))]
mod python;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod redis_clock;
#[cfg(feature = "redis")]
mod redis_topology;
#[cfg(any(feature = "redis", feature = "etcd"))]
mod rounds;
mod versions;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
#[cfg(any(feature = "redis-tls", feature = "etcd"))]
use tooz_conformance::servers::openssl;
#[cfg(feature = "etcd")]
use tooz_conformance::servers::strace;

/// Most of each test is waiting.
const THREADS: usize = 4;

#[cfg(feature = "redis")]
fn on_redis() -> Vec<Trial> {
    let program = tooz_conformance::servers::redis::program();
    let mut trials = case::trials("redis", &program, redis::CASES);
    #[cfg(feature = "redis-tls")]
    trials.extend(case::trials("redis", &program.clone().and(openssl()), redis::TLS));
    trials.extend(case::trials("redis_topology", &program, redis_topology::CASES));
    trials.extend(redis_clock::trials());
    trials.extend(rounds::trials("redis", &program, rounds::backend::Backend::redis));
    trials
}

#[cfg(not(feature = "redis"))]
fn on_redis() -> Vec<Trial> {
    ["redis", "redis_topology", "redis_clock", "rounds::redis", "python::redis"]
        .map(|area| tooz_conformance::left_out(area, "redis"))
        .into()
}

#[cfg(feature = "etcd")]
fn on_etcd() -> Vec<Trial> {
    let program = tooz_conformance::servers::etcd::program();
    let mut trials = case::trials("etcd", &program, etcd::CASES);
    trials.extend(case::trials("etcd", &program.clone().and(openssl()), etcd::TLS));
    trials.extend(case::trials("etcd", &program.clone().and(strace()), etcd::STALLED));
    trials.extend(case::trials("examine", &program, examine::CASES));
    trials.extend(rounds::trials("etcd", &program, rounds::backend::Backend::etcd));
    trials
}

#[cfg(not(feature = "etcd"))]
fn on_etcd() -> Vec<Trial> {
    ["etcd", "examine", "rounds::etcd", "python::etcd"]
        .map(|area| tooz_conformance::left_out(area, "etcd"))
        .into()
}

fn main() -> ExitCode {
    #[cfg(any(feature = "redis", feature = "etcd"))]
    if rounds::is_part() {
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let mut trials = on_redis();
    trials.extend(on_etcd());
    trials.extend(versions::trials());
    #[cfg(any(feature = "redis", feature = "etcd"))]
    trials.extend(python::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}
