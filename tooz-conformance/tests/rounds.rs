//! Figures of the drivers that speak to servers: round after round with real processes that are stopped, killed, or many.
//!
//! What was counted is printed. The sizes fit into an ordinary run; for the full ones:
//!
//! | | |
//! |---|---|
//! | `TOOZ_ROUNDS=1000 … -- paused` | pauses of a holder around its ttl (24) |
//! | `TOOZ_CONTENDERS=1000 … -- contenders` | waiters on one lock, at least ten to a process and at most a hundred (60) |
//! | `TOOZ_CRASHES=20 … -- crash` | holders that are killed (5) |
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // in real time, and a failure is one

#[path = "rounds/backend.rs"]
mod backend;
#[path = "rounds/contenders.rs"]
mod contenders;
#[path = "rounds/crashes.rs"]
mod crashes;
#[path = "rounds/pauses.rs"]
mod pauses;
#[path = "rounds/people.rs"]
mod people;

use std::process::ExitCode;

use backend::Backend;
use libtest_mimic::{Arguments, Trial};
use {tooz_etcd as _, tooz_redis as _}; // links the drivers

/// One figure of one driver.
type Test = fn(&Backend);

fn main() -> ExitCode {
    if let Some(part) = people::part() {
        match part.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["pauses", url, journals, first, count] => pauses::hold(url, journals, first, count),
            ["contenders", url, count] => contenders::contend(url, count),
            ["crashes", url, name] => crashes::hold(url, name),
            _ => panic!("no such part: {part:?}"),
        }
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // Most of each is waiting, but the counting ones want the machine for themselves.
    arguments.test_threads.get_or_insert(2);
    let tests: [(&str, Test); 5] = [
        ("no_paused_holder_believes_beside_a_newer_one", pauses::paused),
        ("contenders_are_woken_once_each", contenders::woken_once),
        ("contenders_outlive_a_third_of_them", contenders::outlive),
        ("a_crash_is_over_after_a_ttl", crashes::crash),
        ("a_stopped_waiter_believes_no_old_grant", crashes::stopped_waiter),
    ];
    let trials = tests.iter().flat_map(|(name, test)| {
        let test = *test;
        [Backend::redis as fn() -> Backend, Backend::etcd].into_iter().zip(["redis", "etcd"]).map(
            move |(start, driver)| {
                Trial::test(format!("{driver}::{name}"), move || {
                    test(&start());
                    Ok(())
                })
            },
        )
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
