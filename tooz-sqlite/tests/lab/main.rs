//! The driver where it is not welcome.
//!
//! No test harness of the compiler's: each test is this program once more, and whether it can be is known only when the
//! tests are listed.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

#[path = "../common/mod.rs"]
mod common;
mod namespaces;
mod users;

use std::process::ExitCode;

fn main() -> ExitCode {
    if common::is_actor() {
        common::act();
        return ExitCode::SUCCESS;
    }
    if namespaces::is_case() {
        return ExitCode::SUCCESS;
    }
    let mut trials = namespaces::trials();
    trials.extend(users::trials());
    tooz_servers::lab::run(trials, None)
}
