//! The driver beside Python tooz, and among several users.
//!
//! No test harness of the compiler's: what is missing is known only when the tests are listed.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

#[path = "../common/mod.rs"]
mod common;
mod python;
mod users;

use std::process::ExitCode;

fn main() -> ExitCode {
    if common::is_helper() {
        common::obey();
        return ExitCode::SUCCESS;
    }
    let mut trials = python::trials();
    trials.extend(users::trials());
    tooz_servers::lab::run(trials, None)
}
