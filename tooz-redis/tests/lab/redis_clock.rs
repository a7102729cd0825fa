//! A server of Redis' kind whose clock is set, by an hour, while locks are held.
//!
//! The clock is moved by libfaketime, which Debian's redis-server does not start under; so the server is a Valkey out of
//! a Python package (`scripts/versions`). Where one of them is missing the tests are listed as ignored, with the reason;
//! with `TOOZ_REQUIRE=all` that is a failure.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tooz_core::{Capabilities, Coordinator, LockGuard};
use tooz_servers::lab::{Trial, trial};
use tooz_servers::redis::Redis;
use tooz_servers::{Launch, Proxy};

use crate::within;

/// The server, and the library that moves its clock.
#[derive(Clone)]
struct Programs {
    valkey: PathBuf,
    faketime: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, String> {
        let known = ["x86_64-linux-gnu", "aarch64-linux-gnu"];
        let faketime = known
            .map(|machine| PathBuf::from(format!("/usr/lib/{machine}/faketime/libfaketime.so.1")))
            .into_iter()
            .chain([PathBuf::from("/usr/lib/faketime/libfaketime.so.1")])
            .find(|library| library.is_file())
            .ok_or("libfaketime is not installed")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/versions");
        let fetched = Command::new(&script).args(["--fetch", "valkey-9.1.2"]).output();
        let fetched = fetched.map_err(|error| format!("{}: {error}", script.display()))?;
        let place = String::from_utf8_lossy(&fetched.stdout).trim().to_owned();
        let valkey = Path::new(&place).join("redis-server");
        if valkey.is_file() {
            return Ok(Self { valkey, faketime });
        }
        Err(String::from_utf8_lossy(&fetched.stderr).trim().replace('\n', " | "))
    }
}

/// A server, and the file from which it has how far its clock is off.
struct Stage {
    redis: Redis,
    clock: tempfile::TempDir,
}

impl Stage {
    fn new(programs: &Programs) -> Result<Self, String> {
        let clock = tempfile::tempdir().map_err(|error| error.to_string())?;
        std::fs::write(clock.path().join("offset"), "+0").map_err(|error| error.to_string())?;
        let mut launch = Launch::new("/usr/bin/env");
        for (name, value) in [
            ("LD_PRELOAD", programs.faketime.as_os_str()),
            ("FAKETIME_TIMESTAMP_FILE", clock.path().join("offset").as_os_str()),
            ("FAKETIME_NO_CACHE", "1".as_ref()),
            // A machine's clock is set without what counts since its start.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".as_ref()),
        ] {
            let mut setting = std::ffi::OsString::from(name);
            setting.push("=");
            setting.push(value);
            launch = launch.arg(setting);
        }
        Ok(Self { redis: Redis::start_as(launch.arg(&programs.valkey), &[])?, clock })
    }

    /// Sets the clock so many seconds before or behind the right time, and waits until the server goes by it.
    async fn set(&self, seconds: i64) {
        let offset = self.clock.path().join("offset");
        // In one step: the server must not read half of it.
        let next = self.clock.path().join("next");
        std::fs::write(&next, format!("{seconds:+}")).unwrap();
        std::fs::rename(next, offset).unwrap();
        let off = || {
            let answer = self.redis.command(&[b"TIME"]).unwrap();
            let server: i64 = tooz_servers::redis::list(&answer)[0].parse().unwrap();
            server - i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
        };
        within("another time", 10, async {
            while (off() - seconds).abs() > 60 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

const HOUR: i64 = 3600;

async fn connect(address: std::net::SocketAddr, member: &str) -> Coordinator {
    Coordinator::builder(format!("redis://{address}?ttl=6s"), member).connect().await.unwrap()
}

/// The lock, whatever sessions are lost meanwhile.
async fn at_last(c: &Coordinator, lock: &str) -> LockGuard {
    within("the lock", 20, async {
        loop {
            match c.lock(lock).unwrap().acquire().await {
                Ok(guard) => break guard,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await
}

/// L3, L7, S7: every session ends at once. Whoever held something hears of it, the next guard's token is higher, and
/// the members come back.
async fn an_hour_forward(stage: Stage) {
    let address = stage.redis.address();
    let (a, b) = (connect(address, "a").await, connect(address, "b").await);
    for c in [&a, &b] {
        c.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    }
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    stage.set(HOUR).await;
    // The next beat hears of it, and its own deadline does not wait for longer.
    within("the loss", 10, guard.lost()).await;
    assert!(!guard.is_held());
    let next = at_last(&b, "x").await;
    assert!(next.token() > guard.token(), "{} after {}", next.token(), guard.token());
    within("the members", 20, async {
        while a.group("g").unwrap().members().await.map_or(0, |members| members.len()) < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    next.release().await.unwrap();
    assert!(at_last(&a, "x").await.is_held());
}

/// L1, L3, S2: what is held stays held, tokens grow although the clock went back, and a holder that is cut off after its
/// next beat is followed as ever.
async fn an_hour_back(stage: Stage) {
    let proxy = Proxy::start(stage.redis.address()).unwrap();
    let (a, b) = (connect(proxy.address(), "a").await, connect(stage.redis.address(), "b").await);
    let before = b.lock("x").unwrap().acquire().await.unwrap();
    let token = before.token();
    before.release().await.unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    stage.set(-HOUR).await;
    tokio::time::sleep(Duration::from_secs(8)).await; // longer than a ttl
    assert!(guard.is_held() && guard.token() > token);
    assert!(b.lock("x").unwrap().try_acquire().await.unwrap().is_none());
    let other = b.lock("y").unwrap().acquire().await.unwrap();
    proxy.refuse();
    let next = within("the lock of who is cut off", 20, b.lock("x").unwrap().acquire()).await.unwrap();
    assert!(!guard.is_held(), "beside the next one");
    assert!(next.token() > guard.token(), "{} after {}", next.token(), guard.token());
    assert!(other.is_held());
}

/// A case, and what it does.
type Case = fn(Stage) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

pub(crate) fn trials() -> Vec<Trial> {
    let cases: [(&str, Case); 2] = [
        ("an_hour_forward", |stage| Box::pin(an_hour_forward(stage))),
        ("an_hour_back", |stage| Box::pin(an_hour_back(stage))),
    ];
    let programs = Programs::find();
    let trial = |(name, case): (&str, Case)| {
        let here = programs.clone();
        trial(format!("redis_clock::{name}"), programs.as_ref().err().cloned(), move || {
            let stage = Stage::new(&here?)?;
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(case(stage));
            Ok(())
        })
    };
    cases.into_iter().map(trial).collect()
}
