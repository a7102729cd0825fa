//! Rust and Python tooz 9.1 on one server: locks exclude both ways, groups mix, elections are shared where Python has
//! them, and either sees the other's members alive and dead.
//!
//! Python tooz is installed into a virtual environment below the target directory at the first run. Where that or a server
//! is missing the tests are listed as ignored, with the reason; with `TOOZ_REQUIRE=all` that is a failure.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

#[cfg(any(feature = "redis", feature = "memcached"))]
mod elections;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "memcached")]
mod memcached;
#[cfg(feature = "redis")]
mod redis;
mod shared;
mod stage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use stage::{Server, Stage};
use tooz_servers::lab::{Failed, Trial, trial};

const REQUIREMENTS: [&str; 4] = ["tooz==9.1.0", "redis", "etcd3gw", "pymemcache"];
const IMPORTS: &str = "tooz.drivers.redis, tooz.drivers.etcd3gw, tooz.drivers.memcached";

/// The interpreter of an environment that has Python tooz.
fn environment() -> Result<PathBuf, String> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-tooz-9.1.0");
    tooz_servers::python::environment(&place, &REQUIREMENTS, IMPORTS)
}

type Case = fn(Stage) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;
type Start = fn() -> Result<Box<dyn Server>, String>;
type Cases = &'static [(&'static str, Case)];
/// Its name, what starts it, its own cases, and whether its program is here.
type Driver = (&'static str, Start, &'static [Cases], Result<PathBuf, String>);

macro_rules! cases {
    ($room:ident: $($name:ident),* $(,)?) => {
        [$((stringify!($name), |stage| Box::pin($room::$name(stage)))),*]
    };
}

const SHARED: [(&str, Case); 8] = cases![shared:
    a_lock_excludes_both_ways,
    the_last_reader_keeps_python_out,
    each_waits_for_the_other,
    two_thousand_contended_acquisitions_do_not_overlap,
    a_python_holder_that_dies_is_waited_for,
    a_rust_holder_that_dies_is_waited_for,
    groups_mix,
    members_are_seen_alive_and_dead,
];
#[cfg(any(feature = "redis", feature = "memcached"))]
const ELECTIONS: [(&str, Case); 3] = cases![elections:
    either_can_break_the_others_lock,
    an_election_is_shared,
    what_python_took_out_may_come_again,
];
#[cfg(feature = "redis")]
const REDIS: [(&str, Case); 1] = cases![redis: names_that_meet_pythons_own_are_not_shared];
#[cfg(feature = "memcached")]
const MEMCACHED: [(&str, Case); 3] = cases![memcached:
    either_knows_the_leader,
    names_that_python_cannot_have_are_ours_alone,
    names_that_meet_pythons_own_are_not_shared,
];
#[cfg(feature = "etcd")]
const ETCD: [(&str, Case); 1] = cases![etcd: breaking_is_heard_or_refused];

pub(crate) fn trials() -> Vec<Trial> {
    let python = environment();
    let drivers: &[Driver] = &[
        #[cfg(feature = "redis")]
        ("redis", redis::start, &[&ELECTIONS, &REDIS], tooz_servers::redis::program()),
        #[cfg(feature = "etcd")]
        ("etcd", etcd::start, &[&ETCD], tooz_servers::etcd::program()),
        #[cfg(feature = "memcached")]
        ("memcached", memcached::start, &[&ELECTIONS, &MEMCACHED], tooz_servers::memcached::program()),
    ];
    let mut trials = Vec::new();
    for (driver, start, own, program) in drivers {
        let here = program.clone().and(python.clone());
        for (name, case) in SHARED.iter().chain(own.iter().copied().flatten()) {
            let (here, case, start) = (here.clone(), *case, *start);
            let missing = here.as_ref().err().cloned();
            trials.push(trial(format!("python::{driver}::{name}"), missing, move || {
                let stage = Stage { python: here?, server: start()? };
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let limit = Duration::from_mins(2);
                let ended = runtime.block_on(async { tokio::time::timeout(limit, case(stage)).await });
                ended.map_err(|_| Failed::from("it takes longer than two minutes"))
            }));
        }
    }
    trials
}
