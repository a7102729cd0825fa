//! The command on a terminal of its own, and on servers.
//!
//! No test harness of the compiler's: this program runs itself again to lead the session of a terminal, and what is
//! missing is known only when the tests are listed.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

/// Functions and their names.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        [$((stringify!($name), $name as fn())),*]
    };
}

#[allow(unreachable_pub, clippy::redundant_pub_crate)]
#[path = "../common/mod.rs"]
mod common;
mod descendants;
mod doctor;
mod lines;
#[cfg(feature = "memcached")]
mod memcached;
mod outages;
mod rounds;
mod terminal;
mod users;

use std::process::ExitCode;

use tooz_servers::lab::{self, Trial, trial};
use tooz_servers::redis;

fn trials(area: &str, missing: Option<&String>, tests: &[(&str, fn())]) -> Vec<Trial> {
    let run = |test: fn()| {
        move || {
            test();
            Ok(())
        }
    };
    tests.iter().map(|(name, test)| trial(format!("{area}::{name}"), missing.cloned(), run(*test))).collect()
}

fn main() -> ExitCode {
    terminal::lead_if_told();
    if let Ok(url) = std::env::var(lines::FULL) {
        lines::fill(&url);
        return ExitCode::SUCCESS;
    }
    let no_redis = redis::program().err();
    let mut all = trials("terminal", None, &terminal::TESTS);
    let no_users = users::missing().map(|why| format!("root, who may be other users and mount: {why}"));
    all.extend(trials("users", no_users.as_ref(), &users::TESTS));
    all.extend(trials("descendants", no_redis.as_ref(), &descendants::TESTS));
    all.extend(trials("descendants", no_redis.as_ref().or(no_users.as_ref()), &descendants::AS_ROOT));
    all.extend(trials("descendants", descendants::no_python().as_ref(), &descendants::IN_PYTHON));
    all.extend(trials("doctor", no_redis.as_ref(), &doctor::TESTS));
    all.extend(trials("lines", no_redis.as_ref(), &lines::REDIS));
    #[cfg(feature = "etcd")]
    all.extend(trials(
        "lines",
        no_redis.as_ref().or(tooz_servers::etcd::program().err().as_ref()),
        &lines::ETCD,
    ));
    #[cfg(not(feature = "etcd"))]
    all.push(lab::left_out("lines", "etcd"));
    #[cfg(feature = "memcached")]
    {
        let no_memcached = tooz_servers::memcached::program().err();
        all.extend(trials("memcached", no_memcached.as_ref(), &memcached::TESTS));
        all.extend(trials("rounds", no_memcached.as_ref(), &rounds::MEMCACHED));
    }
    #[cfg(not(feature = "memcached"))]
    all.extend(["memcached", "rounds"].map(|area| lab::left_out(area, "memcached")));
    all.extend(trials("outages", no_redis.as_ref(), &outages::TESTS));
    all.extend(trials("rounds", no_redis.as_ref(), &rounds::REDIS));
    #[cfg(feature = "etcd")]
    {
        let no_etcd = tooz_servers::etcd::program().err();
        all.extend(trials("doctor", no_etcd.as_ref(), &doctor::ETCD));
        all.extend(trials("rounds", no_etcd.as_ref(), &rounds::ETCD));
    }
    #[cfg(not(feature = "etcd"))]
    all.extend(["doctor", "rounds"].map(|area| lab::left_out(area, "etcd")));
    lab::run(all, None)
}
