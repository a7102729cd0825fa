//! What the suite believes of a server that it hurts and uses again.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

use std::process::ExitCode;

use tooz_servers::memcached::{Memcached, program, unknown};
use tooz_servers::{cases, lab};

mod zookeeper;

const CASES: &[(&str, lab::Case)] = cases![
    what_is_stored_is_found,
    a_clean_server_is_empty_and_stores,
    unknown_commands_are_answered_and_not_done,
];

async fn what_is_stored_is_found() {
    let server = Memcached::start().unwrap();
    let (key, value) = (b"k%20#", b"a\r\nEND\r\n");
    server.set(key, 2, value).unwrap();
    server.set(b"other", 1, &b"x".repeat(100_000)).unwrap();
    server.command(b"set brief 0 -1 1\r\nx\r\n").unwrap();
    let found = server.item(key).unwrap().unwrap();
    assert_eq!((found.flags, &found.value[..]), (2, &value[..]));
    let mut keys = server.keys().unwrap();
    keys.sort();
    assert_eq!(keys, [&key[..], b"other"]);
    assert!(server.swap(key, &found, b"new").unwrap());
    assert!(!server.swap(key, &found, b"newer").unwrap());
    assert_eq!(server.item(key).unwrap().unwrap().value, b"new");
    assert_eq!(server.statistic("threads").unwrap(), 4);
    assert!(server.statistic("thread").is_err());
    assert!(server.delete(key).unwrap());
    assert!(!server.delete(key).unwrap());
    assert_eq!(server.item(key).unwrap(), None);
    assert_eq!(server.everything().unwrap(), [(b"other".to_vec(), b"x".repeat(100_000))].into());
}

/// Many times, at any moment of the server's second.
async fn a_clean_server_is_empty_and_stores() {
    let server = Memcached::start().unwrap();
    for n in 0..60 {
        let (before, after) = (format!("before-{n}"), format!("after-{n}"));
        server.set(before.as_bytes(), 1, b"x").unwrap();
        assert!(server.clean());
        assert_eq!(server.keys().unwrap(), Vec::<Vec<u8>>::new());
        server.set(after.as_bytes(), 1, b"y").unwrap();
        assert_eq!(server.item(before.as_bytes()).unwrap(), None);
        assert_eq!(server.everything().unwrap(), [(after.into_bytes(), b"y".to_vec())].into());
    }
}

async fn unknown_commands_are_answered_and_not_done() {
    let server = Memcached::start().unwrap();
    let stand_ins = unknown(b"set k 0 0 1\r\nx\r\nmg k v\r\n");
    let answered = server.command(&[&stand_ins[..], b"mn\r\n"].concat()).unwrap();
    assert!(answered.starts_with(b"ERROR\r\n"), "{}", answered.escape_ascii());
    assert_eq!(server.keys().unwrap(), Vec::<Vec<u8>>::new());
}

fn main() -> ExitCode {
    let mut trials = lab::trials("memcached", &program(), CASES);
    trials.extend(zookeeper::trials());
    lab::run(trials, lab::WAITING)
}
