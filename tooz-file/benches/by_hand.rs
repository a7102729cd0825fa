//! Acquire and release without contention, as ratios to the same run's bare operating-system lock, and to what any
//! program would have to do for the same promises: `cargo bench -p tooz-file`.
//!
//! `cargo bench -p tooz-file -- session 2000` makes that many pairs of one kind and nothing else, for `strace -c -f`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs)] // it measures time

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, Clock, Connect, Context, Entropy, InstanceId, LockKey, LockMode,
    OpenSession, Session, Spawner,
};
use tooz_core::{BackendUrl, Coordinator, LockName, MemberId, Runtime};

#[allow(clippy::cast_possible_truncation)] // the constants of the C header are wider than its fields
fn set(file: &File, kind: libc::c_int) {
    let lock =
        libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
}

/// Nothing but the lock, on a file that is open.
fn bare(directory: &Path, rounds: u32) -> Duration {
    let file = File::create(directory.join("bare")).unwrap();
    let start = Instant::now();
    for _ in 0..rounds {
        set(&file, libc::F_WRLCK);
        set(&file, libc::F_UNLCK);
    }
    start.elapsed() / rounds
}

/// What a lock takes that Python shares, whose holder and next token others can read: the lock's own file, which may
/// have been replaced; a counter under a lock; a record of the holder.
fn by_hand(directory: &Path, rounds: u32) -> Duration {
    let (path, record) = (directory.join("hand"), directory.join("record"));
    let counter = File::options().read(true).write(true).create_new(true).open(directory.join("counter"));
    let counter = counter.unwrap();
    counter.write_all_at(&[0; 8], 0).unwrap();
    let start = Instant::now();
    for _ in 0..rounds {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        set(&file, libc::F_WRLCK);
        assert_eq!(file.metadata().unwrap().ino(), std::fs::symlink_metadata(&path).unwrap().ino());
        set(&counter, libc::F_WRLCK);
        let mut next = [0; 8];
        counter.read_exact_at(&mut next, 0).unwrap();
        counter.write_all_at(&(u64::from_be_bytes(next) + 1).to_be_bytes(), 0).unwrap();
        set(&counter, libc::F_UNLCK);
        drop(File::create_new(&record).unwrap());
        std::fs::remove_file(&record).unwrap();
        drop(file);
    }
    let took = start.elapsed() / rounds;
    std::fs::remove_file(directory.join("counter")).unwrap();
    took
}

async fn session(url: &str, runtime: Runtime) -> Arc<dyn Session> {
    let context = Context::new(Clock::boot(), Entropy::system(), Spawner::new(runtime).unwrap());
    let driver =
        tooz_file::connect(Connect::new(BackendUrl::parse(url).unwrap(), context).unwrap()).await.unwrap();
    driver.open_session(&OpenSession::new(MemberId::new("m").unwrap(), InstanceId(1))).await.unwrap()
}

/// At the driver's level, polled where it is called.
async fn driver(session: &Arc<dyn Session>, key: &LockKey, rounds: u32) -> Duration {
    static ATTEMPT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let start = Instant::now();
    for _ in 0..rounds {
        let attempt = ATTEMPT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let request = Acquire::new(AttemptId(attempt.into()), key.clone(), LockMode::Exclusive);
        let Acquired::Granted(grant) = session.locks().request(&request).await.unwrap() else {
            panic!("it is not contended")
        };
        session.locks().release(&grant, tooz_core::driver::End::Clean).await.unwrap();
    }
    start.elapsed() / rounds
}

/// As a program does it.
async fn whole(coordinator: &Coordinator, rounds: u32) -> Duration {
    let lock = coordinator.lock("whole").unwrap();
    let start = Instant::now();
    for _ in 0..rounds {
        lock.acquire().await.unwrap().release().await.unwrap();
    }
    start.elapsed() / rounds
}

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let url = format!("file://{}", place.join("tooz").display());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ours = runtime.block_on(session(&url, Runtime::Library));
    let key = LockKey::Named(LockName::new("x").unwrap());
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "session") {
        let rounds = arguments.get(at + 1).and_then(|count| count.parse().ok()).unwrap_or(1_000);
        println!("{:?} a pair", runtime.block_on(driver(&ours, &key, rounds)));
        return;
    }
    let connect = |member: &str, on: Runtime| {
        runtime.block_on(Coordinator::builder(&url, member).runtime(on).connect()).unwrap()
    };
    let (library, current) = (connect("library", Runtime::Library), connect("current", Runtime::Current));
    let rounds = 2_000;
    for _ in 0..5 {
        let (bare, hand) = (bare(place, rounds * 5), by_hand(place, rounds));
        let figures = [
            ("the driver", runtime.block_on(driver(&ours, &key, rounds))),
            ("a coordinator on the library's thread", runtime.block_on(whole(&library, rounds))),
            ("one on the caller's runtime", runtime.block_on(whole(&current, rounds))),
        ];
        println!("bare lock and unlock {bare:?}; by hand {hand:?}");
        for (what, time) in figures {
            let ratio = |to: Duration| time.as_secs_f64() / to.as_secs_f64();
            println!("  {what}: {time:?}, {:.1} of the bare lock, {:.2} by hand", ratio(bare), ratio(hand));
        }
    }
}
