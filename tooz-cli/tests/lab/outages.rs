//! A backend that is away, hangs or is only starting: how long `tooz` waits for it, and what it says.
#![allow(clippy::disallowed_methods)] // faults last for a time, and it is measured how long an end takes

use std::fs::File;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::common::{Finished, Running, TestBackend, eventually, in_time, runs};
use nix::sys::signal::Signal;
use tooz_servers::Proxy;
use tooz_servers::redis::{self, Redis};

pub(crate) const TESTS: [(&str, fn()); 9] = tests![
    the_guard_acts_at_the_deadline_while_tooz_is_stopped,
    a_beating_heart_keeps_the_command_alive_past_many_ttls,
    after_a_loss_lock_and_elect_exit_at_once,
    try_gives_up_on_a_backend_that_hangs,
    wait_gives_up_on_a_backend_that_hangs,
    wait_waits_for_a_backend_that_starts,
    what_try_sent_too_late_is_withdrawn,
    a_membership_that_is_gone_and_comes_back_is_told,
    a_watch_tells_that_the_backend_is_away,
];

fn url(redis: &Redis, ttl: u32) -> String {
    format!("redis://{}?ttl={ttl}s", redis.address())
}

fn the_guard_acts_at_the_deadline_while_tooz_is_stopped() {
    in_time("within the ttl", acts_while_tooz_is_stopped);
}

fn acts_while_tooz_is_stopped() -> bool {
    const TTL: u32 = 5;
    let (redis, place) = (Redis::start().unwrap(), TestBackend::new());
    let script = "echo $$ > command; trap '' TERM; while :; do sleep 0.05; done";
    let mut tooz =
        Running::start(place.tooz(&["--url", &url(&redis, TTL), "lock", "x", "--", "sh", "-c", script]));
    let command = place.number("command");
    tooz.stop();
    let survived = eventually("the command is gone", || !runs(command));
    println!("ttl {TTL} s, tooz stopped: the command was gone after {survived:?}");
    tooz.signal(Signal::SIGCONT);
    assert_eq!(tooz.code(), 74);
    survived < Duration::from_secs(TTL.into())
}

fn a_beating_heart_keeps_the_command_alive_past_many_ttls() {
    let (redis, place) = (Redis::start().unwrap(), TestBackend::new());
    let finished = place.run(&["--url", &url(&redis, 6), "lock", "x", "--", "sleep", "14"]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
}

fn after_a_loss_lock_and_elect_exit_at_once() {
    for verb in ["lock", "elect"] {
        in_time(verb, || exits_at_once(verb));
    }
}

/// Whether it exits within two seconds after the command has ended. A release and a close would take 15.
fn exits_at_once(verb: &str) -> bool {
    let (redis, place) = (Redis::start().unwrap(), TestBackend::new());
    let script = "echo $$ > command; exec sleep 300";
    let mut tooz = place.tooz(&["--url", &url(&redis, 2), verb, "x", "--", "sh", "-c", script]);
    tooz.stderr(File::create(place.path("stderr")).unwrap());
    let mut tooz = Running::start(tooz);
    let command = place.number("command");
    redis.server().stop();
    eventually("the command has ended", || !runs(command));
    let ended = Instant::now();
    assert_eq!(tooz.code(), 74);
    let late = ended.elapsed();
    assert!(place.read("stderr").starts_with("tooz: lost "), "{}", place.read("stderr"));
    redis.server().resume();
    println!("{verb}: exit {late:?} after the end of the command");
    late < Duration::from_secs(2)
}

/// Runs it, and says how long that took.
fn timed(place: &TestBackend, arguments: &[&str]) -> (Finished, Duration) {
    let begun = Instant::now();
    let finished = place.run(arguments);
    (finished, begun.elapsed())
}

/// Whether it gives up within three seconds.
fn gives_up(verb: &str, patience: &[&str]) -> bool {
    let (redis, place) = (Redis::start().unwrap(), TestBackend::new());
    redis.server().stop();
    let url = url(&redis, 15);
    let arguments = [&["--url", &url, verb], patience, &["x", "--", "true"]].concat();
    let (finished, took) = timed(&place, &arguments);
    redis.server().resume();
    println!("{arguments:?}: gave up after {took:?}");
    assert_eq!(finished.code, Some(69), "{finished:?}");
    assert!(finished.stderr.contains("did not answer"), "{finished:?}");
    assert!(!finished.stderr.contains("did not acquire"), "the backend has not said so: {finished:?}");
    took < Duration::from_millis(3_500)
}

fn try_gives_up_on_a_backend_that_hangs() {
    for verb in ["lock", "elect"] {
        in_time(verb, || gives_up(verb, &["--try"]));
    }
}

fn wait_gives_up_on_a_backend_that_hangs() {
    for verb in ["lock", "elect"] {
        in_time(verb, || gives_up(verb, &["--wait", "1s"]));
    }
}

fn wait_waits_for_a_backend_that_starts() {
    let (redis, place) = (Redis::start().unwrap(), TestBackend::new());
    let way = Proxy::start(redis.address()).unwrap();
    way.refuse();
    let url = format!("redis://{}?connect_timeout=1s", way.address());
    let at_once = place.run(&["--url", &url, "lock", "--try", "x", "--", "true"]);
    assert_eq!(at_once.code, Some(69), "{at_once:?}");
    let waiting = scope(|s| {
        let waiting = s.spawn(|| place.run(&["--url", &url, "lock", "--wait", "60s", "x", "--", "true"]));
        // Longer than an attempt to connect, so that one has failed.
        sleep(Duration::from_secs(2));
        assert!(!waiting.is_finished(), "it tries again");
        way.heal();
        waiting.join().unwrap()
    });
    assert_eq!(waiting.code, Some(0), "{waiting:?}");
}

fn what_try_sent_too_late_is_withdrawn() {
    in_time("an answer after two seconds and before three", withdrawn);
}

/// Whether the answer came after `tooz` had given up, and before it exited.
fn withdrawn() -> bool {
    let (redis, place) = (Redis::start().unwrap(), TestBackend::new());
    let url = url(&redis, 60);
    redis.server().stop();
    let (finished, took) = scope(|s| {
        let trying = s.spawn(|| timed(&place, &["--url", &url, "lock", "--try", "x", "--", "true"]));
        sleep(Duration::from_millis(2_400));
        redis.server().resume();
        trying.join().unwrap()
    });
    if finished.code == Some(0) || took > Duration::from_secs(3) {
        return false;
    }
    assert_eq!(finished.code, Some(69), "{finished:?}");
    let sessions = redis::list(&redis.command(&[b"KEYS", b"*rs:s:*"]).unwrap());
    assert!(sessions.is_empty(), "a session is left for its ttl: {sessions:?}");
    let free = place.run(&["--url", &url, "lock", "--try", "x", "--", "true"]);
    assert_eq!(free.code, Some(0), "{free:?}");
    true
}

/// The lines of a process on standard error, in a file.
fn told(place: &TestBackend, name: &str, arguments: &[&str]) -> Running {
    let mut command = place.tooz(arguments);
    command.stdout(File::create(place.path(&format!("{name}.out"))).unwrap());
    command.stderr(File::create(place.path(name)).unwrap());
    Running::start(command)
}

fn a_membership_that_is_gone_and_comes_back_is_told() {
    let (redis, place) = (Redis::start().unwrap(), TestBackend::new());
    let url = url(&redis, 6);
    let script = "echo > started; until [ -e go ]; do sleep 0.02; done";
    let mut member = told(&place, "stderr", &["--url", &url, "join", "g", "--", "sh", "-c", script]);
    place.wait_for("started");
    redis.server().stop();
    let lines = || place.read("stderr").lines().map(str::to_owned).collect::<Vec<_>>();
    eventually("it is lost", || place.read("stderr").contains("tooz: the membership is gone: "));
    redis.server().resume();
    eventually("it is back", || place.read("stderr").contains("tooz: joined again\n"));
    assert!(lines().contains(&"tooz: the backend does not answer".to_owned()), "{:?}", lines());
    assert_eq!(place.run(&["--url", &url, "members", "g"]).stdout.lines().count(), 1);
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(member.code(), 0);
}

fn a_watch_tells_that_the_backend_is_away() {
    let (redis, place) = (Redis::start().unwrap(), TestBackend::new());
    let url = url(&redis, 15);
    let _member = told(&place, "member", &["--url", &url, "join", "g"]);
    eventually("the group is there", || place.run(&["--url", &url, "members", "g"]).code == Some(0));
    let mut watches = [
        ("members", told(&place, "members", &["--url", &url, "members", "--watch", "g"])),
        ("leader", told(&place, "leader", &["--url", &url, "leader", "--watch", "g"])),
    ];
    for (name, _) in &watches {
        eventually("it follows", || !place.read(&format!("{name}.out")).is_empty());
    }
    redis.server().stop();
    for (name, _) in &watches {
        eventually("it is away", || place.read(name) == "tooz: the backend does not answer\n");
    }
    redis.server().resume();
    for (name, watch) in &mut watches {
        let lines = "tooz: the backend does not answer\ntooz: the backend answers again\n";
        eventually("it is back", || place.read(name) == lines);
        watch.signal(Signal::SIGTERM);
        assert_eq!(watch.code(), 143);
    }
}
