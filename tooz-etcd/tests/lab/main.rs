//! The driver on real servers of its own, on which anything may be done: what the suite's cases cannot ask of every driver.
//!
//! No test harness of the compiler's: what is missing on a machine is known only when the tests are listed.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

mod etcd;
mod examine;

use std::process::ExitCode;

use tooz_etcd as _;
use tooz_servers::{lab, openssl, strace};

fn main() -> ExitCode {
    let program = tooz_servers::etcd::program();
    let mut trials = lab::trials("etcd", &program, etcd::CASES);
    trials.extend(lab::trials("etcd", &program.clone().and(openssl()), etcd::SIGNED));
    #[cfg(feature = "tls")]
    trials.extend(lab::trials("etcd", &program.clone().and(openssl()), etcd::TLS));
    #[cfg(not(feature = "tls"))]
    trials.push(lab::left_out("etcd::certificates_on_both_sides", "tls"));
    trials.extend(lab::trials("etcd", &program.clone().and(strace()), etcd::STALLED));
    trials.extend(lab::trials("examine", &program, examine::CASES));
    lab::run(trials, lab::WAITING)
}
