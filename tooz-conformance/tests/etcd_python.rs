//! Rust and Python tooz 9.1 on one etcd: locks exclude both ways, groups mix, and either sees the other's members alive
//! and dead.
//!
//! Python tooz is installed into a virtual environment below the target directory at the first run. Where that or etcd
//! is missing the tests are listed as ignored, with the reason; with `TOOZ_REQUIRE=all` that is a failure.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // in real time, and a failure is one

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use tooz_conformance::servers::etcd::{self, Etcd};
use tooz_core::{Capabilities, Coordinator, ErrorKind, GroupEvent, LossReason};
use tooz_etcd as _; // links the driver

const REQUIREMENTS: [&str; 2] = ["tooz==9.1.0", "etcd3gw"];

/// The interpreter of an environment that has Python tooz.
fn environment() -> Result<PathBuf, String> {
    etcd::program()?;
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-tooz-9.1.0-etcd");
    let python = place.join("bin/python");
    let works = || run(Command::new(&python).args(["-c", "import tooz.drivers.etcd3gw"])).is_ok();
    if !works() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&place))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(REQUIREMENTS))?;
        if !works() {
            return Err("Python tooz was installed and cannot be imported".into());
        }
    }
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
    Err(format!("{command:?}: {error}"))
}

/// A server, and the interpreter.
struct Stage {
    etcd: Etcd,
    python: PathBuf,
}

impl Stage {
    async fn rust(&self, member: &str) -> Coordinator {
        self.builder(member).connect().await.unwrap()
    }

    fn builder(&self, member: &str) -> tooz_core::Builder {
        Coordinator::builder(format!("etcd://{}?ttl=2s", self.etcd.address()), member)
    }

    /// Marks that somebody is inside; `false`: somebody else is.
    fn enter(&self) -> bool {
        let missing = Compare::create_revision("inside", CompareOp::Equal, 0);
        let txn = Txn::new().when([missing]).and_then([TxnOp::put("inside", "rust", None)]);
        self.etcd.ask(|mut client| async move { client.txn(txn).await }).unwrap().succeeded()
    }

    fn leave(&self) {
        self.etcd.ask(|mut client| async move { client.delete("inside", None).await }).unwrap();
    }

    fn python(&self, member: &str) -> Peer {
        Peer::start(
            &self.python,
            &format!("etcd3+http://{}?lock_timeout=4&membership_timeout=4", self.etcd.address()),
            member,
        )
    }
}

/// A Python process with a coordinator.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &Path, url: &str, name: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/etcd_peer.py");
        let mut child = Command::new(python)
            .arg(script)
            .args([url, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut peer = Self { child, input, output };
        assert_eq!(peer.hear(), json!("started"));
        peer
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the Python process said {line:?}"))
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    fn does(&mut self, command: &str) -> Value {
        self.tell(command);
        self.hear()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `check` says yes.
async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not in time: {what}");
}

fn ids(members: &[tooz_core::driver::MemberRecord]) -> Vec<String> {
    members.iter().map(|record| record.member.to_string()).collect()
}

async fn a_lock_excludes_both_ways(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    for name in ["x", "deep/er", "50%", "é", "a b"] {
        let lock = rust.lock(name).unwrap();
        for lock in [lock.clone(), lock.shared(), lock.permits(2).unwrap()] {
            let guard = lock.try_acquire().await.unwrap().unwrap();
            assert_eq!(peer.does(&format!("try {name}")), json!(false), "{name}");
            guard.release().await.unwrap();
            assert_eq!(peer.does(&format!("try {name}")), json!(true), "{name}");
            assert!(lock.try_acquire().await.unwrap().is_none(), "{name}");
            let holders = lock.holders().await.unwrap().holders;
            assert!(
                holders.len() == 1 && holders[0].member.is_none() && holders[0].token.is_none(),
                "{holders:?}"
            );
            assert_eq!(peer.does(&format!("release {name}")), json!(true));
        }
    }
}

async fn the_last_reader_keeps_python_out(stage: Stage) {
    let (a, b, mut peer) = (stage.rust("a").await, stage.rust("b").await, stage.python("python"));
    let one = a.lock("x").unwrap().shared().acquire().await.unwrap();
    let two = b.lock("x").unwrap().shared().acquire().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await; // longer than the ttl: both are renewed
    one.release().await.unwrap();
    assert_eq!(peer.does("try x"), json!(false));
    assert!(two.is_held());
    two.release().await.unwrap();
    assert_eq!(peer.does("try x"), json!(true));
}

async fn each_waits_for_the_other(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    assert_eq!(peer.does("try x"), json!(true));
    let lock = rust.lock("x").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    eventually("it waits", async || rust.lock("x").unwrap().holders().await.unwrap().waiters == Some(1))
        .await;
    for _ in 0..12 {
        peer.does("beat"); // Python's holder renews, and says nothing
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!waiting.is_finished());
    }
    assert_eq!(peer.does("release x"), json!(true));
    let guard = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    peer.tell("acquire x");
    tokio::time::sleep(Duration::from_millis(300)).await;
    guard.release().await.unwrap();
    assert_eq!(peer.hear(), json!(true));
}

async fn two_thousand_contended_acquisitions_do_not_overlap(stage: Stage) {
    const EACH: usize = 1000;
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    peer.tell(&format!("contend {EACH}"));
    let lock = rust.lock("contended").unwrap();
    let (mut overlaps, mut tokens) = (0, Vec::new());
    for n in 0..EACH {
        let guard = if n % 2 == 0 {
            lock.acquire().await.unwrap()
        } else {
            loop {
                if let Some(guard) = lock.try_acquire().await.unwrap() {
                    break guard;
                }
            }
        };
        overlaps += usize::from(!stage.enter());
        stage.leave();
        assert!(guard.is_held());
        tokens.push(guard.token());
        guard.release().await.unwrap();
    }
    let others = tokio::task::spawn_blocking(move || peer.hear()).await.unwrap();
    assert_eq!((overlaps, others), (0, json!(0)));
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "a token went back");
}

async fn a_python_holder_that_dies_is_waited_for(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    assert_eq!(peer.does("try x"), json!(true));
    drop(peer);
    let guard = tokio::time::timeout(Duration::from_secs(10), rust.lock("x").unwrap().acquire())
        .await
        .unwrap()
        .unwrap();
    assert!(guard.is_held());
}

async fn a_rust_holder_that_dies_is_waited_for(stage: Stage) {
    let mut peer = stage.python("python");
    let dead = stage.builder("dead").manual_heart().rejoin(false).connect().await.unwrap(); // it never beats
    let guard = dead.lock("x").unwrap().acquire().await.unwrap();
    let taken = tokio::task::spawn_blocking(move || peer.does("acquire x")).await.unwrap();
    assert_eq!(taken, json!(true));
    assert!(!guard.is_held(), "two holders");
}

async fn breaking_is_heard_or_refused(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    assert_eq!(peer.does("try x"), json!(true));
    let error = rust.lock("x").unwrap().break_lock("it hangs").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HolderUnresponsive);
    assert!(error.to_string().contains("/tooz/locksx"), "{error}");
    assert_eq!(peer.does("release x"), json!(true));
    let guard = rust.lock("x").unwrap().try_acquire().await.unwrap().unwrap();
    peer.does("break x");
    let why = tokio::time::timeout(Duration::from_secs(4), guard.lost()).await.unwrap();
    assert_eq!(why, LossReason::Vanished);
    // Nothing of it is in anybody's way.
    assert!(rust.lock("x").unwrap().acquire().await.unwrap().is_held());
}

async fn groups_mix(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    assert_eq!(peer.does("create g"), Value::Null);
    assert_eq!(rust.group("g").unwrap().create().await.unwrap_err().kind(), ErrorKind::GroupExists);
    rust.group("ours").unwrap().create().await.unwrap();
    assert_eq!(peer.does("create ours"), json!({"error": "GroupAlreadyExist"}));
    assert_eq!(rust.groups().await.unwrap().len(), 2);

    let group = rust.group("g").unwrap();
    let mut watch = group.watch().await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Snapshot(members))) if members.is_empty()));
    assert_eq!(peer.does("join g"), Value::Null);
    assert!(
        matches!(watch.next().await, Some(Ok(GroupEvent::Joined(r))) if r.member.as_bytes() == b"python")
    );
    let capabilities = Capabilities::new(&json!({"from": "rust", "n": [1, 2.5, null]})).unwrap();
    group.join(capabilities).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Joined(r))) if r.member.as_bytes() == b"rust"));
    let both = json!({"python": {"from": "python"}, "rust": {"from": "rust", "n": [1, 2.5, null]}});
    assert_eq!(peer.does("capabilities g"), both);
    let theirs = group.member("python").await.unwrap();
    assert_eq!(theirs.capabilities.get::<Value>().unwrap(), json!({"from": "python"}));
    assert_eq!(theirs.joined_at, None);

    assert_eq!(peer.does("update g"), Value::Null);
    assert!(
        matches!(watch.next().await, Some(Ok(GroupEvent::Updated(r))) if r.member.as_bytes() == b"python")
    );
    group.update_capabilities(Capabilities::new(&json!({"weight": 7})).unwrap()).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Updated(r))) if r.member.as_bytes() == b"rust"));
    assert_eq!(peer.does("capabilities g")["rust"], json!({"weight": 7}));
    assert_eq!(peer.does("delete g"), json!({"error": "GroupNotEmpty"}));
    assert_eq!(group.delete().await.unwrap_err().kind(), ErrorKind::GroupNotEmpty);

    assert_eq!(peer.does("leave g"), Value::Null);
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Left(r))) if r.member.as_bytes() == b"python"));
    group.leave().await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Left(_)))));
    assert_eq!(peer.does("members g"), json!([]));
    assert_eq!(peer.does("delete g"), Value::Null);
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Deleted))));
    rust.group("ours").unwrap().delete().await.unwrap();
    assert_eq!(rust.groups().await.unwrap().len(), 0);
}

async fn members_are_seen_alive_and_dead(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    let group = rust.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    assert_eq!(peer.does("join g"), Value::Null);
    // The same id is taken, whoever has it.
    let twin = stage.rust("python").await;
    let taken = twin.group("g").unwrap().join(Capabilities::none()).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::MemberExists);
    // While both beat, both stay; Python's lease is of four seconds.
    for _ in 0..12 {
        peer.does("beat");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(peer.does("members g"), json!(["python", "rust"]));
        assert_eq!(ids(&group.members().await.unwrap()), ["python", "rust"]);
    }
    // Python dies: Rust's watcher hears of it.
    let mut watch = group.watch().await.unwrap();
    drop(watch.next().await);
    drop(peer);
    let left = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap();
    assert!(matches!(&left, Some(Ok(GroupEvent::Left(r))) if r.member.as_bytes() == b"python"), "{left:?}");
    twin.group("g").unwrap().join(Capabilities::none()).await.unwrap();

    // Rust dies: Python sees it go.
    let mut other = stage.python("other");
    let dead = stage.builder("dead").manual_heart().rejoin(false).connect().await.unwrap(); // it never beats
    dead.group("g").unwrap().join(Capabilities::none()).await.unwrap();
    assert_eq!(other.does("members g"), json!(["dead", "python", "rust"]));
    eventually("Python sees it go", async || other.does("members g") == json!(["python", "rust"])).await;
}

type Case = fn(Stage) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), |stage| Box::pin($name(stage)))),*]
    };
}

const CASES: &[(&str, Case)] = cases![
    a_lock_excludes_both_ways,
    the_last_reader_keeps_python_out,
    each_waits_for_the_other,
    two_thousand_contended_acquisitions_do_not_overlap,
    a_python_holder_that_dies_is_waited_for,
    a_rust_holder_that_dies_is_waited_for,
    breaking_is_heard_or_refused,
    groups_mix,
    members_are_seen_alive_and_dead,
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let required = std::env::var("TOOZ_REQUIRE").is_ok_and(|value| value == "all");
    let python = environment();
    let trials = CASES
        .iter()
        .map(|(name, case)| {
            let (python, case) = (python.clone(), *case);
            let why = python.as_ref().err().cloned();
            let ignored = why.is_some() && !required;
            let trial = Trial::test(*name, move || {
                let stage = Stage { etcd: Etcd::start()?, python: python? };
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let limit = Duration::from_secs(120);
                let run = async { tokio::time::timeout(limit, case(stage)).await };
                let ended = runtime.map_err(|error| Failed::from(error.to_string()))?.block_on(run);
                ended.map_err(|_| Failed::from("it takes longer than two minutes"))
            });
            match why.filter(|_| ignored) {
                Some(why) => {
                    trial.with_kind(why.chars().take(60).collect::<String>()).with_ignored_flag(true)
                }
                None => trial,
            }
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
