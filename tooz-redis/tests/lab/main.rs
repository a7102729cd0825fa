//! The driver on real servers of its own, on which anything may be done: what the suite's cases cannot ask of every driver.
//!
//! No test harness of the compiler's: what is missing on a machine is known only when the tests are listed.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

mod examine;
mod histories;
mod redis;
mod redis_clock;
mod redis_topology;

use std::process::ExitCode;
use std::time::Duration;

use tooz_redis as _;
use tooz_servers::lab;

/// Awaits `future` for at most so many seconds.
fn within<T>(what: &str, limit: u64, future: impl Future<Output = T>) -> impl Future<Output = T> {
    tooz_servers::in_time(what, Duration::from_secs(limit), future)
}

fn main() -> ExitCode {
    let program = tooz_servers::redis::program();
    let mut trials = lab::trials("redis", &program, redis::CASES);
    #[cfg(feature = "tls")]
    trials.extend(lab::trials("redis", &program.clone().and(tooz_servers::openssl()), redis::TLS));
    #[cfg(not(feature = "tls"))]
    trials.push(lab::left_out("redis::certificates_are_verified", "tls"));
    trials.extend(lab::trials("redis_topology", &program, redis_topology::CASES));
    trials.extend(lab::trials("examine", &program, examine::CASES));
    trials.extend(lab::trials("histories", &program, histories::CASES));
    trials.extend(redis_clock::trials());
    lab::run(trials, lab::WAITING)
}
