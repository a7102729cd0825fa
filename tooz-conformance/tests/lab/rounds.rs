//! Figures of the drivers that speak to servers: round after round with real processes that are stopped, killed, or many.
//!
//! What was counted is printed. The sizes fit into an ordinary run; for the full ones:
//!
//! | | |
//! |---|---|
//! | `TOOZ_ROUNDS=1000 … paused` | pauses of a holder around its ttl (24) |
//! | `TOOZ_CONTENDERS=1000 … contenders` | waiters on one lock, at least ten to a process and at most a hundred (60) |
//! | `TOOZ_TURNS=1000 … overlap` | turns of each of eight contenders where nobody queues (60) |
//! | `TOOZ_CRASHES=20 … crash` | holders that are killed (5) |
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

pub(crate) mod backend;
#[cfg(any(feature = "redis", feature = "etcd"))]
mod contenders;
#[cfg(feature = "etcd")]
mod count_etcd;
#[cfg(feature = "memcached")]
mod count_memcached;
#[cfg(feature = "redis")]
mod count_redis;
mod crashes;
#[cfg(feature = "memcached")]
mod overlaps;
mod pauses;

use std::path::PathBuf;

use backend::Backend;
use tooz_servers::lab::{Trial, trial};

/// One figure of one driver.
type Test = fn(&Backend);

/// Does its part, if this process was started for one.
pub(crate) fn is_part() -> bool {
    let Some(part) = tooz_servers::part() else { return false };
    match part.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["pauses", url, journals, first, count] => pauses::hold(url, journals, first, count),
        #[cfg(any(feature = "redis", feature = "etcd"))]
        ["contenders", url, count] => contenders::contend(url, count),
        #[cfg(feature = "memcached")]
        ["overlaps", url, journal, turns] => overlaps::contend(url, journal, turns),
        ["crashes", url, name] => crashes::hold(url, name),
        _ => panic!("no such part: {part:?}"),
    }
    true
}

/// The figures of a backend with a queue.
#[cfg(any(feature = "redis", feature = "etcd"))]
pub(crate) const QUEUED: &[(&str, Test)] = &[
    ("no_paused_holder_believes_beside_a_newer_one", pauses::paused),
    ("contenders_are_woken_once_each", contenders::woken_once),
    ("contenders_outlive_a_third_of_them", contenders::outlive),
    ("a_crash_is_over_after_a_ttl", crashes::crash),
    ("a_stopped_waiter_believes_no_old_grant", crashes::stopped_waiter),
];

/// The figures of a backend on which whoever wants a lock asks again and again.
#[cfg(feature = "memcached")]
pub(crate) const UNQUEUED: &[(&str, Test)] = &[
    ("no_paused_holder_believes_beside_a_newer_one", pauses::paused),
    ("contenders_of_whom_one_is_killed_do_not_overlap", overlaps::killed),
    ("a_crash_is_over_after_a_ttl", crashes::crash),
];

/// The figures of one driver, on servers that `start` starts.
pub(crate) fn trials(
    driver: &str,
    program: &Result<PathBuf, String>,
    tests: &[(&str, Test)],
    start: fn() -> Backend,
) -> Vec<Trial> {
    let missing = program.as_ref().err();
    let trial = |&(name, test): &(&str, Test)| {
        trial(format!("rounds::{driver}::{name}"), missing.cloned(), move || {
            test(&start());
            Ok(())
        })
    };
    tests.iter().map(trial).collect()
}
