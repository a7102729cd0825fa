//! Rust and Python tooz 9.1 on one directory: locks exclude both ways, groups mix, and either sees the other's
//! members alive and dead.
//!
//! Python tooz is installed into a virtual environment below the target directory at the first run. Where that is
//! not possible the tests are listed as ignored, with the reason; with `TOOZ_REQUIRE=all` that is a failure.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::{
    self, Exclusive, Helper, Shared, ask, eventually, granted, group, held, id, key, member, names, queued,
    short, turn, url,
};
use serde_json::{Value, json};
use tooz_core::driver::{Acquired, BreakRequest, End, Join};
use tooz_core::{Capabilities, ErrorKind};
use tooz_servers::lab::{Trial, trial};
use tooz_servers::python::Peer;

const REQUIREMENTS: [&str; 1] = ["tooz==9.1.0"];

/// The interpreter of an environment that has Python tooz.
fn environment() -> Result<PathBuf, String> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-tooz-9.1.0");
    tooz_servers::python::environment(&place, &REQUIREMENTS, "tooz.drivers.file")
}

/// A Python process with a coordinator.
fn start(python: &Path, url: &str, name: &str) -> Peer {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/peer.py");
    Peer::start(python, &script, url, name)
}

async fn a_lock_excludes_both_ways(python: PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (driver, session) = member(&url, "rust").await;
    let mut peer = start(&python, &url, "python");
    for name in ["x", "deep/er/x", "a b"] {
        for mode in [Exclusive, Shared] {
            let grant =
                granted(&session, u128::from(mode == Shared) + 1 + 10 * name.len() as u128, name, mode).await;
            assert_eq!(peer.does(&format!("try {name}")), json!(false), "{name} {mode:?}");
            session.locks().release(&grant, End::Clean).await.unwrap();
            assert_eq!(peer.does(&format!("try {name}")), json!(true), "{name} {mode:?}");
            assert!(held(&session, name, Exclusive).await && held(&session, name, Shared).await);
            let holders = driver.locks().holders(&key(name)).await.unwrap().holders;
            assert_eq!(holders.len(), 1);
            assert!(holders[0].member.is_none() && holders[0].token.is_none());
            assert_eq!(peer.does(&format!("release {name}")), json!(true));
            assert!(!held(&session, name, Exclusive).await);
        }
    }
}

async fn each_waits_for_the_other(python: PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (_driver, session) = member(&url, "rust").await;
    let mut peer = start(&python, &url, "python");
    assert_eq!(peer.does("try x"), json!(true));
    let place = queued(&session, 1, "x", Exclusive).await;
    let also = queued(&session, 2, "x", Exclusive).await;
    assert!(common::still_waits(&session, &place).await);
    assert_eq!(peer.does("release x"), json!(true));
    let first = turn(&session, &place).await;
    session.locks().release(&first, End::Clean).await.unwrap();
    let second = turn(&session, &also).await;
    assert!(second.token > first.token);
    // Python polls. It would be faster than a waiter of ours now and then, so none waits here.
    peer.tell("acquire x");
    session.locks().release(&second, End::Clean).await.unwrap();
    assert_eq!(peer.hear(), json!(true));
    assert!(held(&session, "x", Exclusive).await);
}

async fn a_killed_python_holder_frees_at_once(python: PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (driver, session) = member(&url, "rust").await;
    let mut peer = start(&python, &url, "python");
    assert_eq!(peer.does("try x"), json!(true));
    tooz_servers::stop(peer.id()).unwrap();
    let error = driver.locks().break_lock(&BreakRequest::new(key("x"), id("op"), "")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HolderUnresponsive);
    assert!(error.to_string().contains(&peer.id().to_string()), "{error}");
    let place = queued(&session, 1, "x", Exclusive).await;
    assert!(common::still_waits(&session, &place).await, "stopped is not dead");
    drop(peer);
    turn(&session, &place).await;
}

async fn a_killed_rust_holder_frees_at_once(python: PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let mut peer = start(&python, &url, "python");
    let (_driver, session) = member(&url, "rust").await;
    granted(&session, 1, "x", Exclusive).await;
    peer.tell("acquire x");
    drop(session);
    assert_eq!(peer.hear(), json!(true));
}

async fn a_deleted_lock_file_keeps_python_out(python: PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let mut peer = start(&python, &url, "python");
    let (_driver, session) = member(&url, "rust").await;
    granted(&session, 1, "x", Exclusive).await;
    std::fs::remove_file(directory.path().join("x")).unwrap();
    eventually("the holder made the file anew", async || directory.path().join("x").exists()).await;
    assert_eq!(peer.does("try x"), json!(false));
}

async fn names_that_python_simplifies_are_not_shared(python: PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let mut peer = start(&python, &url, "python");
    let (_driver, session) = member(&url, "rust").await;
    assert_eq!(peer.does("try a/b"), json!(true));
    for name in ["a//b", "a/./b", "groups/x", "tmp"] {
        assert!(matches!(
            session
                .locks()
                .request(&ask(u128::try_from(name.len()).unwrap(), name, Exclusive))
                .await
                .unwrap(),
            Acquired::Granted(_)
        ));
    }
    assert!(held(&session, "a/b", Exclusive).await);
}

async fn groups_mix(python: PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (driver, session) = member(&url, "rust").await;
    let mut peer = start(&python, &url, "python");
    assert_eq!(peer.does("create g"), Value::Null);
    assert_eq!(driver.groups().create(&group("g")).await.unwrap_err().kind(), ErrorKind::GroupExists);
    driver.groups().create(&group("ours")).await.unwrap();
    assert_eq!(peer.does("create ours"), json!({"error": "GroupAlreadyExist"}));
    assert_eq!(peer.does("groups"), json!(["g", "ours"]));
    assert_eq!(driver.groups().list().await.unwrap(), [group("g"), group("ours")]);

    let mut watch = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(common::next(&mut watch).await), "[]");
    assert_eq!(peer.does("join g"), Value::Null);
    assert_eq!(short(common::next(&mut watch).await), "+python");
    let capabilities = Capabilities::new(&json!({"from": "rust", "n": [1, 2.5, null]})).unwrap();
    session.groups().join(&Join::new(group("g"), capabilities)).await.unwrap();
    assert_eq!(short(common::next(&mut watch).await), "+rust");
    assert_eq!(
        peer.does("capabilities g"),
        json!({"python": {"from": "python"}, "rust": {"from": "rust", "n": [1, 2.5, null]}})
    );
    let python_member = driver.groups().member(&group("g"), &id("python")).await.unwrap();
    assert_eq!(python_member.capabilities.get::<Value>().unwrap(), json!({"from": "python"}));

    let new = Capabilities::new(&json!({"from": "rust", "weight": 7})).unwrap();
    session.groups().update(&group("g"), &new).await.unwrap();
    assert_eq!(short(common::next(&mut watch).await), "~rust");
    assert_eq!(peer.does("capabilities g")["rust"], json!({"from": "rust", "weight": 7}));
    assert_eq!(peer.does("delete g"), json!({"error": "GroupNotEmpty"}));
    assert_eq!(driver.groups().delete(&group("g")).await.unwrap_err().kind(), ErrorKind::GroupNotEmpty);

    assert_eq!(peer.does("leave g"), Value::Null);
    assert_eq!(short(common::next(&mut watch).await), "-python");
    session.groups().leave(&group("g")).await.unwrap();
    assert_eq!(short(common::next(&mut watch).await), "-rust");
    assert_eq!(peer.does("members g"), json!([]));
    assert_eq!(peer.does("delete g"), Value::Null);
    assert_eq!(short(common::next(&mut watch).await), "deleted");
    driver.groups().delete(&group("ours")).await.unwrap();
    assert_eq!(peer.does("groups"), json!([]));
}

async fn members_are_seen_alive_and_dead(python: PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    // Shorter than Python's default, so that the test need not wait for it; Rust touches every three seconds.
    let url = url(directory.path(), "?timeout=7");
    let (driver, session) = member(&url, "rust").await;
    let mut peer = start(&python, &url, "python");
    session.groups().join(&Join::new(group("g"), Capabilities::none()).create(true)).await.unwrap();
    assert_eq!(peer.does("join g"), Value::Null);
    let joined = Instant::now();
    let mut watch = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(common::next(&mut watch).await), "[python rust]");
    // The same id is taken, whoever has it.
    let (_d2, twin) = member(&url, "python").await;
    let taken = twin.groups().join(&Join::new(group("g"), Capabilities::none())).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::MemberExists);
    let mut other = start(&python, &url, "rust");
    assert_eq!(other.does("join g"), json!({"error": "MemberAlreadyExist"}));

    // Python stops beating: dead after its timeout, for Rust too. Rust beats by itself.
    assert_eq!(short(common::next(&mut watch).await), "-python");
    let lived = joined.elapsed();
    assert!(lived > Duration::from_millis(6_900) && lived < Duration::from_secs(14), "{lived:?}");
    assert_eq!(names(&driver, "g").await, ["rust"]);
    assert_eq!(peer.does("members g"), json!(["rust"]));
    peer.does("beat");
    assert_eq!(peer.does("members g"), json!(["python", "rust"]));
    eventually("Rust sees it live again", async || names(&driver, "g").await == ["python", "rust"]).await;

    // Rust dies: Rust knows at once, and clears it away, so that Python knows too and the id is free.
    let (_d3, survivor) = member(&url, "survivor").await;
    drop(session);
    eventually("Python sees no Rust member", async || peer.does("members g") != json!(["python", "rust"]))
        .await;
    drop(survivor);
    assert_eq!(other.does("join g"), Value::Null);
}

/// Far longer than it takes, since Python polls, at most every tenth of a second.
const COUNTING: Duration = Duration::from_mins(4);

/// Several processes of either language add to one number, two thousand times in all: nobody is inside beside another,
/// and no addition is lost.
async fn both_count_to_two_thousand(python: PathBuf) {
    const EACH: usize = 400;
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let counter = directory.path().join("groups-counter");
    std::fs::write(&counter, "0").unwrap();
    let mut rust: Vec<_> = (0..3).map(|n| Helper::start(&url, &format!("rust-{n}"))).collect();
    let mut peers: Vec<_> = (0..2).map(|n| start(&python, &url, &format!("python-{n}"))).collect();
    let command = format!("count {EACH} {}", counter.display());
    for peer in &mut peers {
        peer.tell(&command);
    }
    for helper in &mut rust {
        helper.tell(&command);
    }
    for helper in &rust {
        assert_eq!(helper.hear_within(COUNTING), "counted");
    }
    for peer in &mut peers {
        assert_eq!(peer.hear(), json!("counted"));
    }
    assert_eq!(std::fs::read_to_string(&counter).unwrap(), (5 * EACH).to_string());
    let log = std::fs::read_to_string(directory.path().join("groups-counter.log")).unwrap();
    let by_python = log.matches('p').count();
    assert_eq!((log.len(), by_python), (5 * EACH, 2 * EACH));
    let changes = log.as_bytes().windows(2).filter(|pair| pair[0] != pair[1]).count();
    println!("{} additions; the lock went {changes} times from one language to the other", log.len());
    assert!(changes >= 10, "they hardly met: {changes}");
}

/// With processes that are killed.
async fn each_sees_the_crash_of_the_other(python: PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "?timeout=7");
    let (driver, session) = member(&url, "survivor").await;
    let mut peer = start(&python, &url, "python");
    let mut helper = Helper::start(&url, "rust");
    helper.does("lock x");
    assert_eq!(helper.does("join g"), "Ok(())");
    assert_eq!(peer.does("members g"), json!(["rust"]));
    peer.tell("acquire x");
    helper.kill();
    assert_eq!(peer.hear(), json!(true));
    assert!(held(&session, "x", Exclusive).await);
    eventually("the dead is no member for Python", async || peer.does("members g") == json!([])).await;
    assert!(names(&driver, "g").await.is_empty());

    assert_eq!(peer.does("join g"), Value::Null);
    assert_eq!(names(&driver, "g").await, ["python"]);
    let place = queued(&session, 1, "x", Exclusive).await;
    drop(peer);
    turn(&session, &place).await;
    eventually("the dead is no member for Rust", async || names(&driver, "g").await.is_empty()).await;
    assert_eq!(start(&python, &url, "next").does("members g"), json!([]));
}

type Case = fn(PathBuf) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), |python| Box::pin($name(python)))),*]
    };
}

const CASES: &[(&str, Case)] = cases![
    a_lock_excludes_both_ways,
    each_waits_for_the_other,
    a_killed_python_holder_frees_at_once,
    a_killed_rust_holder_frees_at_once,
    a_deleted_lock_file_keeps_python_out,
    names_that_python_simplifies_are_not_shared,
    groups_mix,
    members_are_seen_alive_and_dead,
    each_sees_the_crash_of_the_other,
    both_count_to_two_thousand,
];

pub(crate) fn trials() -> Vec<Trial> {
    let python = environment();
    let trial = |(name, case): &(&str, Case)| {
        let (here, case) = (python.clone(), *case);
        let missing = python.as_ref().err().map(|why| format!("Python tooz: {why}"));
        trial(format!("python::{name}"), missing, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let python = here?;
            runtime.block_on(async { tokio::time::timeout(COUNTING, case(python)).await })?;
            Ok(())
        })
    };
    CASES.iter().map(trial).collect()
}
