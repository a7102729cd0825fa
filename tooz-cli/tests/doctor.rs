//! `tooz doctor` on backends that are well and on such that are not.
#![allow(clippy::unwrap_used)] // a test may panic, and so may its helpers

#[allow(unreachable_pub, clippy::redundant_pub_crate)]
mod common;

use std::path::Path;

use common::{Backend, Finished, Place, Running, eventually, is_stopped};
use nix::sys::signal::Signal;
use nix::sys::statfs;
use serde_json::Value;
use tooz_conformance::servers::free_port;
use tooz_conformance::servers::redis::Redis;

/// Topics and severities in the order of telling.
fn topics(finished: &Finished) -> Vec<(String, String)> {
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap().to_owned();
    let findings = finished.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    findings.map(|finding| (text(&finding, "topic"), text(&finding, "severity"))).collect()
}

fn finding(finished: &Finished, topic: &str) -> Value {
    let mut findings = finished.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    findings.find(|finding| finding["topic"] == topic).unwrap_or_else(|| panic!("no {topic}: {finished:?}"))
}

fn worse_than_good(finished: &Finished) -> Vec<String> {
    let bad = topics(finished).into_iter().filter(|(_, severity)| severity != "good");
    bad.map(|(topic, _)| topic).collect()
}

/// What is warned of on any backend that stands in files there.
fn of_the_disk(path: &Path) -> (Option<i32>, Vec<String>) {
    let in_memory = statfs::statfs(path).unwrap().filesystem_type() == statfs::TMPFS_MAGIC;
    if in_memory { (Some(78), vec!["file-system".into()]) } else { (Some(0), Vec::new()) }
}

#[test]
fn a_backend_that_is_well_is_good_and_nothing_of_ours_stays() {
    for backend in [Backend::Sqlite, Backend::File] {
        let place = Place::on(backend);
        let finished = place.run(&["doctor", "--json", "--rounds", "3"]);
        let (code, worse) = of_the_disk(&place.path("."));
        assert_eq!((finished.code, worse_than_good(&finished)), (code, worse), "{finished:?}");
        let latency = finding(&finished, "latency");
        for operation in ["connect", "acquire+release", "join+leave", "members", "beat"] {
            assert!(latency["milliseconds"][operation].as_f64().unwrap() > 0.0, "{operation}: {latency}");
        }
        assert!(latency["what"].as_str().unwrap().starts_with("median of 3: "), "{latency}");
        assert!(finding(&finished, "kept")["kept"].as_array().unwrap().contains(&"durable_fencing".into()));
        assert_eq!(place.run(&["groups"]).stdout, "", "its group is gone");
        assert_eq!(finished.stderr, "");
    }
}

#[test]
fn the_url_may_be_an_argument_and_people_get_text() {
    let place = Place::new();
    let finished = place.run(&["doctor", "memory://x"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let lines: Vec<_> = finished.stdout.lines().collect();
    assert_eq!(lines[0], "good     backend          memory://x");
    assert!(lines.iter().any(|line| line.starts_with("good     latency          median of 5: connect ")));
    assert!(!place.path("tooz.db").exists(), "the argument wins over TOOZ_URL");
}

#[test]
fn a_redis_as_it_is_delivered_endangers_locks() {
    let redis = Redis::start_with(&["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]).unwrap();
    let place = Place::new();
    let finished = place.run(&["doctor", "--json", &format!("redis://{}", redis.address())]);
    assert_eq!(finished.code, Some(78), "{finished:?}");
    assert_eq!(worse_than_good(&finished), ["persistence", "eviction", "not-kept"]);
    let lost = finding(&finished, "not-kept");
    assert_eq!(lost["lowers"], serde_json::json!(["durable_fencing"]));
    assert_eq!(lost["because"], serde_json::json!(["persistence", "eviction"]));
    assert!(finding(&finished, "persistence")["advice"].as_str().unwrap().contains("appendonly yes"));
    assert!(finding(&finished, "clock")["what"].as_str().unwrap().contains("ours"));
}

#[test]
fn a_redis_that_keeps_everything_is_good() {
    let redis = Redis::start().unwrap();
    let place = Place::new();
    let finished = place.run(&["doctor", "--json", &format!("redis://{}", redis.address())]);
    assert_eq!((finished.code, worse_than_good(&finished)), (Some(0), Vec::new()), "{finished:?}");
}

#[test]
fn who_is_refused_gets_another_code_than_who_finds_nobody() {
    let redis = Redis::start_with(&["--requirepass", "s3cret"]).unwrap();
    let place = Place::new();
    for (user, code, severity) in [(":s3cret@", 0, "good"), (":wr0ng@", 77, "bad"), ("", 77, "bad")] {
        let finished = place.run(&["doctor", "--json", &format!("redis://{user}{}", redis.address())]);
        assert_eq!(finished.code, Some(code), "{finished:?}");
        assert_eq!(finding(&finished, "reachable")["severity"], severity, "{finished:?}");
        assert!(!finished.stdout.contains("s3cret") && !finished.stdout.contains("wr0ng"), "{finished:?}");
        assert_eq!(finished.stderr, "", "all is said in findings");
    }
    let nobody = free_port().unwrap();
    let finished = place.run(&["doctor", &format!("redis://127.0.0.1:{nobody}")]);
    assert_eq!(finished.code, Some(69), "{finished:?}");
    assert!(
        finished.stdout.contains("bad      reachable") && finished.stdout.contains("advice: "),
        "{finished:?}"
    );
}

/// A user who may do what locks need and may not ask about the server.
#[test]
fn what_may_not_be_asked_counts_as_not_kept() {
    let user = "asker on >word ~_tooz_* resetchannels &_tooz_* -@all +@read +@write +@pubsub +@scripting +@connection +time -@dangerous";
    let arguments: Vec<_> = ["--user"].into_iter().chain(user.split(' ')).collect();
    let redis = Redis::start_with(&arguments).unwrap();
    let place = Place::new();
    let finished = place.run(&["doctor", "--json", &format!("redis://asker:word@{}", redis.address())]);
    assert_eq!(finished.code, Some(78), "{finished:?}");
    assert_eq!(worse_than_good(&finished), ["permissions", "not-kept", "not-kept"], "{finished:?}");
}

#[test]
fn what_a_usage_error_is_stays_one() {
    let place = Place::new();
    for url in ["nonsense://x", "redis://a,b", "sqlite://"] {
        let finished = place.run(&["doctor", url]);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(64), ""), "{url}: {finished:?}");
        assert!(finished.stderr.starts_with("tooz: "), "{finished:?}");
    }
}

#[test]
fn a_process_that_stands_still_with_a_lock_is_named() {
    for backend in [Backend::Sqlite, Backend::File] {
        let place = Place::on(backend);
        let script = "echo $PPID >up; while :; do sleep 60; done";
        let holder = Running::start(place.tooz(&["lock", "x", "--", "sh", "-c", script]));
        place.wait_for("up");
        let pid = holder.pid();
        holder.signal(Signal::SIGSTOP);
        eventually("it stands still", || is_stopped(pid.as_raw()));
        let finished = place.run(&["doctor", "--json"]);
        assert_eq!(finished.code, Some(78), "{finished:?}");
        let stopped = finding(&finished, "stopped");
        assert!(stopped["what"].as_str().unwrap().contains(&pid.to_string()), "{stopped}");
        assert!(stopped["advice"].as_str().unwrap().contains(&format!("kill -CONT {pid}")), "{stopped}");
        holder.signal(Signal::SIGCONT);
    }
}
