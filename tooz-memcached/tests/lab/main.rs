//! The driver on real servers of its own, on which anything may be done: what the suite's cases cannot ask of every driver.
//!
//! No test harness of the compiler's: what is missing on a machine is known only when the tests are listed.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

mod costs;
mod examine;
mod flood;
mod full;
mod late;
mod lost;
mod rounds;
mod stage;

use std::process::ExitCode;

use tooz_memcached as _;
use tooz_servers::{lab, openssl};

fn main() -> ExitCode {
    let program = tooz_servers::memcached::program();
    let mut trials = lab::trials("late", &program, late::CASES);
    trials.extend(lab::trials("rounds", &program, rounds::CASES));
    trials.extend(lab::trials("lost", &program, lost::CASES));
    trials.extend(lab::trials("full", &program, full::CASES));
    trials.extend(lab::trials("costs", &program, costs::CASES));
    trials.extend(lab::trials("examine", &program, examine::CASES));
    trials.extend(lab::trials("examine", &program.and(openssl()), examine::TLS));
    lab::run(trials, lab::WAITING)
}
