//! `tooz doctor` on servers that are well and on such that are not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::common::{TestBackend, finding, worse_than_good};
#[cfg(feature = "etcd")]
use tooz_servers::etcd::Etcd;
use tooz_servers::free_port;
use tooz_servers::redis::Redis;

pub(crate) const TESTS: [(&str, fn()); 8] = tests![
    a_redis_as_it_is_delivered_endangers_locks,
    a_redis_that_keeps_everything_is_good,
    who_is_refused_gets_another_code_than_who_finds_nobody,
    what_may_not_be_asked_counts_as_not_kept,
    a_redis_is_left_as_it_was,
    an_unknown_place_is_left_as_it_was,
    a_server_that_hangs_is_waited_for_once,
    a_failure_points_to_what_the_driver_found,
];

#[cfg(feature = "etcd")]
pub(crate) const ETCD: [(&str, fn()); 1] = tests![an_etcd_is_left_as_it_was];

fn a_redis_as_it_is_delivered_endangers_locks() {
    let redis = Redis::start_with(&["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]).unwrap();
    let place = TestBackend::new();
    let finished = place.run(&["doctor", "--json", &format!("redis://{}", redis.address())]);
    assert_eq!(finished.code, Some(78), "{finished:?}");
    assert_eq!(worse_than_good(&finished), ["persistence", "eviction", "redundancy", "not-kept"]);
    let lost = finding(&finished, "not-kept");
    assert_eq!(lost["lowers"], serde_json::json!(["durable_fencing"]));
    assert_eq!(lost["because"], serde_json::json!(["persistence", "eviction"]));
    assert!(finding(&finished, "persistence")["advice"].as_str().unwrap().contains("appendonly yes"));
    assert!(finding(&finished, "clock")["what"].as_str().unwrap().contains("ours"));
}

fn a_redis_that_keeps_everything_is_good() {
    let redis = Redis::start().unwrap();
    let place = TestBackend::new();
    let url = format!("redis://{}", redis.address());
    // All but itself: it is one server.
    let alone = vec!["redundancy".to_owned()];
    let finished = place.run(&["doctor", "--json", &url]);
    assert_eq!((finished.code, worse_than_good(&finished)), (Some(78), alone.clone()), "{finished:?}");
    assert_eq!(finding(&finished, "redundancy")["ignored"], false, "{finished:?}");
    let finished = place.run(&["doctor", "--json", "--ignore", "redundancy", "--ignore", "eviktion", &url]);
    assert_eq!((finished.code, worse_than_good(&finished)), (Some(0), alone), "{finished:?}");
    assert_eq!(finding(&finished, "redundancy")["ignored"], true, "{finished:?}");
    assert_eq!(finding(&finished, "eviction")["ignored"], false, "{finished:?}");
    let said: Vec<_> = finished.stderr.lines().collect();
    assert!(said.len() == 1 && said[0].contains("--ignore eviktion"), "{said:?}");
    let finished = place.run(&["doctor", "--ignore", "redundancy", "--ignore", "kept", &url]);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{finished:?}");
    assert!(finished.stdout.contains("\nwarning  redundancy       (ignored) one server"), "{finished:?}");
}

fn who_is_refused_gets_another_code_than_who_finds_nobody() {
    let redis = Redis::start_with(&["--requirepass", "s3cret"]).unwrap();
    let place = TestBackend::new();
    for (user, code, severity) in [(":s3cret@", 0, "good"), (":wr0ng@", 77, "bad"), ("", 77, "bad")] {
        let url = format!("redis://{user}{}", redis.address());
        let finished = place.run(&["doctor", "--json", "--ignore", "redundancy", &url]);
        assert_eq!(finished.code, Some(code), "{finished:?}");
        assert_eq!(finding(&finished, "reachable")["severity"], severity, "{finished:?}");
        assert!(!finished.stdout.contains("s3cret") && !finished.stdout.contains("wr0ng"), "{finished:?}");
        assert_eq!(finished.stderr, "", "all is said in findings");
        let finished = place.run(&["doctor", "--ignore", "reachable", &url]);
        assert_eq!(finished.code == Some(77), code == 77, "a failure is not ignored: {finished:?}");
        assert_eq!(finished.stderr.contains("cannot be ignored"), code == 77, "{finished:?}");
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
fn what_may_not_be_asked_counts_as_not_kept() {
    let user = "asker on >word ~_tooz_* resetchannels &_tooz_* -@all +@read +@write +@pubsub +@scripting +@connection +time -@dangerous";
    let arguments: Vec<_> = ["--user"].into_iter().chain(user.split(' ')).collect();
    let redis = Redis::start_with(&arguments).unwrap();
    let place = TestBackend::new();
    let finished = place.run(&["doctor", "--json", &format!("redis://asker:word@{}", redis.address())]);
    assert_eq!(finished.code, Some(78), "{finished:?}");
    assert_eq!(worse_than_good(&finished), ["permissions", "not-kept", "not-kept"], "{finished:?}");
}

/// Examines a server that was never used, and again after its first use: `everything` in it stays as it was.
pub(crate) fn is_left_as_it_was(url: &str, everything: impl Fn() -> BTreeMap<String, Vec<u8>>) {
    let place = TestBackend::new();
    for used in [false, true] {
        if used {
            assert_eq!(place.run(&["--url", url, "lock", "x", "--", "true"]).code, Some(0));
        }
        let before = everything();
        assert_eq!(before.is_empty(), !used);
        let finished = place.run(&["doctor", "--json", "--rounds", "2", url]);
        assert_eq!(everything(), before, "{finished:?}");
        assert!(matches!(finished.code, Some(0 | 78)), "{finished:?}");
        assert_eq!(finished.stdout.contains("\"unused\""), !used, "{finished:?}");
        let latency = finding(&finished, "latency");
        assert_eq!(latency["milliseconds"].get("acquire+release").is_some(), used, "{latency}");
        assert!(latency["milliseconds"]["connect"].as_f64().unwrap() > 0.0, "{latency}");
    }
}

fn a_redis_is_left_as_it_was() {
    let redis = Redis::start().unwrap();
    is_left_as_it_was(&format!("redis://{}", redis.address()), || {
        let mut all = redis.everything().unwrap();
        // Tokens that were taken are gone for good, and this key expires a ttl after the last session.
        all.get_mut("_tooz_rs:fence").map(Vec::clear);
        all.remove("_tooz_rs:lives");
        all
    });
}

/// A user who may not ask whether a lock was ever granted here.
fn an_unknown_place_is_left_as_it_was() {
    let user = "asker on >word ~_tooz_* resetchannels &_tooz_* -@all +@read +@write +@pubsub +@scripting +@connection +time +info";
    for (rule, used) in [("-exists", false), ("-get", false), ("+ping", true)] {
        let arguments: Vec<_> = ["--user"].into_iter().chain(user.split(' ')).chain([rule]).collect();
        let redis = Redis::start_with(&arguments).unwrap();
        let (place, url) = (TestBackend::new(), format!("redis://asker:word@{}", redis.address()));
        if used {
            assert_eq!(place.run(&["--url", &url, "lock", "x", "--", "true"]).code, Some(0));
        }
        let finished = place.run(&["doctor", "--json", &url]);
        assert_eq!(redis.everything().unwrap().is_empty(), !used, "{rule}: {finished:?}");
        assert_eq!(finished.stdout.contains("acquire+release"), used, "{rule}: {finished:?}");
    }
}

#[allow(clippy::disallowed_methods)] // in real time
fn a_server_that_hangs_is_waited_for_once() {
    let redis = Redis::start().unwrap();
    redis.server().stop();
    let place = TestBackend::new();
    let begun = Instant::now();
    let finished =
        place.run(&["doctor", "--json", &format!("redis://{}?connect_timeout=3s", redis.address())]);
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(5500), "{took:?}: {finished:?}");
    assert_eq!(finished.code, Some(69), "{finished:?}");
    assert_eq!(finding(&finished, "reachable")["severity"], "bad", "{finished:?}");
}

fn a_failure_points_to_what_the_driver_found() {
    let redis = Redis::start().unwrap();
    let (place, url) = (TestBackend::new(), format!("redis://{}", redis.address()));
    for (setting, value, well, advice) in [
        ("maxmemory", "1", "0", "CONFIG SET maxmemory"),
        ("min-replicas-to-write", "1", "0", "min-replicas-to-write"),
    ] {
        assert_eq!(place.run(&["--url", &url, "lock", "x", "--", "true"]).code, Some(0));
        let set = |value: &str| redis.command(&[b"CONFIG", b"SET", setting.as_bytes(), value.as_bytes()]);
        set(value).unwrap();
        // Neither can be ignored.
        let finished = place.run(&["doctor", "--json", "--ignore", "writing", &url]);
        set(well).unwrap();
        assert_eq!(finished.code, Some(69), "{finished:?}");
        let failed = finding(&finished, "reachable")["advice"].to_string();
        assert!(failed.contains("what is bad here: writing"), "{finished:?}");
        assert!(finding(&finished, "writing")["advice"].to_string().contains(advice), "{finished:?}");
    }
}

#[cfg(feature = "etcd")]
fn an_etcd_is_left_as_it_was() {
    let etcd = Etcd::start().unwrap();
    is_left_as_it_was(&format!("etcd://{}", etcd.address()), || etcd.everything().unwrap());
}
