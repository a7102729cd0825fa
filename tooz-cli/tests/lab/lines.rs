//! What `tooz` says about a backend that it cannot use: one line with the cause and the remedy, and the exit code.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use tooz::{Coordinator, ErrorKind};
use tooz_servers::lines::fault;
use tooz_servers::redis::Redis;

use crate::common::{Finished, TestBackend, process};

pub(crate) const REDIS: [(&str, fn()); 5] = tests![
    redis_that_refuses,
    redis_that_refuses_inside_a_script,
    redis_that_is_none,
    a_full_process_on_files,
    a_full_process_on_redis
];
#[cfg(feature = "etcd")]
pub(crate) const ETCD: [(&str, fn()); 2] = tests![etcd_that_is_none, a_full_process_on_etcd];

/// Runs a verb that only looks and one that takes a lock. Both must end with `code` and say on one line what `says`.
pub(crate) fn said(place: &TestBackend, url: &str, code: i32, says: &[&str]) {
    for arguments in [&["holders", "x"][..], &["lock", "x", "--", "true"]] {
        let finished = place.run(&[&["--url", url], arguments].concat());
        check(&format!("{url} {arguments:?}"), &finished, code, says);
    }
}

fn check(what: &str, finished: &Finished, code: i32, says: &[&str]) {
    let line = &finished.stderr;
    assert_eq!(finished.code, Some(code), "{what}: {line}");
    assert_eq!(fault(line), None, "{what}: {line}");
    for says in says {
        assert!(line.contains(says), "{what}: no \"{says}\" in: {line}");
    }
    for never in ["taken effect", "hunter2", "corrupt"] {
        assert!(!line.contains(never), "{what}: \"{never}\" in: {line}");
    }
}

/// A port where something answers that is neither Redis nor etcd; or hangs up, if it has no answer.
pub(crate) fn stranger(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if answer.is_empty() {
                continue;
            }
            // It hangs up last: what it said must not be lost.
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(answer));
                while stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
            });
        }
    });
    address
}

pub(crate) const HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
const MEMCACHED: &[u8] = b"ERROR\r\nERROR\r\n";

fn redis_that_refuses() {
    let place = TestBackend::new();
    let (open, closed) = (Redis::start().unwrap(), Redis::start_with(&["--requirepass", "pw"]).unwrap());
    let (open, closed) = (open.address(), closed.address());
    let none = "names no password; write redis://:PASSWORD@";
    said(&place, &format!("redis://{closed}"), 77, &[none]);
    said(&place, &format!("redis://hunter2@{closed}"), 77, &["a user without a password", ":PASSWORD@"]);
    said(&place, &format!("redis://:hunter2@{closed}"), 77, &["refuses the password"]);
    said(&place, &format!("redis://joe:hunter2@{open}"), 77, &["refuses the user or the password"]);
    said(&place, &format!("redis+cluster://{closed}"), 77, &["write redis+cluster://:PASSWORD@"]);
    said(&place, &format!("redis://{open}/99"), 64, &["no database 99", "databases"]);
    said(&place, &format!("redis://{open}?db=99"), 64, &["no database 99", "databases"]);
}

/// A script that fails has a hash and a line, which say nothing to a user.
fn redis_that_refuses_inside_a_script() {
    let place = TestBackend::new();
    let redis = Redis::start().unwrap();
    let url = format!("redis://{}", redis.address());
    let lock = |what: &str, url: &str, code, says: &str| {
        check(what, &place.run(&["--url", url, "lock", "x", "--", "true"]), code, &[says]);
    };
    redis.command(&[b"ACL", b"SETUSER", b"u", b"on", b">pw", b"~*", b"&*", b"+@all", b"-set"]).unwrap();
    lock("a user", &url.replace("://", "://u:pw@"), 77, "can't run this command");
    redis.command(&[b"CONFIG", b"SET", b"maxmemory", b"1"]).unwrap();
    lock("full", &url, 69, "out of memory (maxmemory)");
}

fn redis_that_is_none() {
    let place = TestBackend::new();
    let (http, memcached, closer) = (stranger(HTTP), stranger(MEMCACHED), stranger(b""));
    for (address, says) in [
        (http, &["does not speak Redis", "check the host and the port"][..]),
        (memcached, &["does not speak Redis", "check the host and the port"]),
        (closer, &["ended the connection", "check the host and the port", "write rediss"]),
        ("127.0.0.1:1".parse().unwrap(), &["connection refused", "check that Redis runs there"]),
    ] {
        said(&place, &format!("redis://{address}"), 69, says);
        said(&place, &format!("redis+sentinel://{address}/m"), 69, says);
    }
    said(&place, "redis://no.such.invalid", 69, &["no.such.invalid", "no address", "check the host"]);
    said(&place, "redis+unix:///nowhere/redis.sock", 69, &["/nowhere/redis.sock", "no socket"]);
}

#[cfg(feature = "etcd")]
fn etcd_that_is_none() {
    let place = TestBackend::new();
    let redis = Redis::start().unwrap();
    let etcd = tooz_servers::etcd::Etcd::start().unwrap();
    let (http, memcached, closer) = (stranger(HTTP), stranger(MEMCACHED), stranger(b""));
    for (address, says) in [
        // It hangs up, and what it said before may be lost.
        (redis.address(), &["not speak etcd's gRPC", "check the host and the port"][..]),
        (http, &["does not speak etcd's gRPC", "check the host and the port"]),
        (memcached, &["does not speak etcd's gRPC", "check the host and the port"]),
        (closer, &["ended the connection", "check the host and the port", "etcds://"]),
        ("127.0.0.1:1".parse().unwrap(), &["connection refused", "check that etcd runs there"]),
    ] {
        said(&place, &format!("etcd://{address}"), 69, &[says, &[&*address.to_string()]].concat());
    }
    said(&place, "etcd://no.such.invalid", 69, &["no.such.invalid", "no address", "check the host"]);
    said(&place, &format!("etcd://joe:hunter2@{}", etcd.address()), 77, &["the server knows no users"]);
    said(&place, &format!("redis://{}", etcd.address()), 69, &["check the host and the port"]);
}

/// Whatever a process has no descriptor left for: the limit is named, and no permission.
fn full(url: &str) {
    let place = TestBackend::new();
    let mut refused = 0;
    for arguments in ["holders x", "lock x -- true"] {
        for limit in 5..40 {
            let mut shell = process("sh");
            shell.args(["-c", &format!("ulimit -n {limit}; exec \"$TOOZ\" --url '{url}' {arguments}")]);
            shell.env("TOOZ", env!("CARGO_BIN_EXE_tooz")).current_dir(place.path("."));
            let output = shell.output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                continue;
            }
            refused += 1;
            assert!(
                stderr.contains("too many open files") && stderr.contains("ulimit -n"),
                "{limit}: {stderr}"
            );
            let denied = ["permission denied", "permissions", "panicked", "corrupt", "taken effect"];
            assert!(denied.iter().all(|word| !stderr.contains(word)), "{limit}: {stderr}");
            assert_eq!(fault(&stderr), None, "{limit}: {stderr}");
            assert!(matches!(output.status.code(), Some(69 | 126)), "{limit} {:?}: {stderr}", output.status);
        }
    }
    assert!((2..68).contains(&refused), "{refused} of 70 were refused");
    let mut shell = process("sh");
    shell.args(["-c", "ulimit -n 64; exec \"$0\""]).arg(std::env::current_exe().unwrap()).env(FULL, url);
    let output = shell.output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&told));
}

/// Names the URL for a process of this program that is full while it works.
pub(crate) const FULL: &str = "TOOZ_TEST_FULL";

/// Connects with no free descriptor, which has to fail, and then with more and more until that succeeds. The library's own thread
/// has its descriptors already.
pub(crate) fn fill(url: &str) {
    tooz_servers::block_on(async {
        let connect = async || Coordinator::builder(url, "m").connect().await;
        connect().await.unwrap().close().await.unwrap();
        let (mut free, mut kept) = (0, Vec::new());
        for _ in 0..40 {
            let mut open: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
            open.truncate(open.len().saturating_sub(free));
            let connected = connect().await;
            drop(open);
            let error = match connected {
                Ok(_) if free > 0 => return,
                // A connection that was closed before has just given its descriptors back. This one keeps them.
                Ok(coordinator) => {
                    kept.push(coordinator);
                    continue;
                }
                Err(error) => error,
            };
            let line = format!("{error:?}");
            assert!(
                error.kind() == ErrorKind::Unavailable && line.contains("ulimit -n"),
                "{free} free: {line}"
            );
            assert_eq!(fault(&line), None, "{free} free: {line}");
            free += 1;
        }
        panic!("{free} free descriptors are too few for {url}, or none is enough");
    });
}

fn a_full_process_on_files() {
    let place = TestBackend::new();
    for scheme in ["sqlite", "file"] {
        let url = format!("{scheme}://{}", place.path(scheme).display());
        assert_eq!(place.run(&["--url", &url, "lock", "x", "--", "true"]).code, Some(0));
        full(&url);
    }
}

fn a_full_process_on_redis() {
    let redis = Redis::start().unwrap();
    full(&format!("redis://{}", redis.address()));
    full(&format!("redis://localhost:{}", redis.address().port()));
}

#[cfg(feature = "etcd")]
fn a_full_process_on_etcd() {
    let etcd = tooz_servers::etcd::Etcd::start().unwrap();
    full(&format!("etcd://{}", etcd.address()));
}
