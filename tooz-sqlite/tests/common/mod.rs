//! What the tests of this driver share: short words for long requests, and processes that can be killed.
#![allow(dead_code, unused_imports, clippy::disallowed_methods)] // each test binary uses a part; real time passes

use std::future::{Future, poll_fn};
use std::io::Write;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
pub(crate) use tooz_core::driver::LockMode::{Exclusive, Shared};
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, Clock, Connect, Context, Driver, End, Entropy, Grant, GroupChange, Held,
    InstanceId, Join, LockKey, LockMode, MemberRecord, OpenSession, QueueEntry, Session, Spawner, Turn,
};
use tooz_core::{BackendUrl, Capabilities, ErrorKind, GroupId, LockName, MemberId, Result, Runtime};

/// Longer than anything here takes on a busy machine; whoever waits this long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) fn url(directory: &Path, query: &str) -> String {
    format!("sqlite://{}/tooz.db?{query}", directory.display())
}

pub(crate) async fn try_connect(url: &str) -> Result<Arc<dyn Driver>> {
    let context = Context::new(Clock::boot(), Entropy::system(), Spawner::new(Runtime::Library).unwrap());
    tooz_sqlite::connect(Connect::new(BackendUrl::parse(url).unwrap(), context).unwrap()).await
}

pub(crate) async fn connect(url: &str) -> Arc<dyn Driver> {
    try_connect(url).await.unwrap()
}

pub(crate) async fn session(driver: &Arc<dyn Driver>, name: &str) -> Arc<dyn Session> {
    driver.open_session(&opening(name)).await.unwrap()
}

pub(crate) fn opening(name: &str) -> OpenSession {
    OpenSession::new(id(name), InstanceId(Entropy::system().id()))
}

pub(crate) fn id(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

pub(crate) fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

pub(crate) fn key(name: &str) -> LockKey {
    LockKey::Named(LockName::new(name).unwrap())
}

pub(crate) fn permit(limit: u32) -> LockMode {
    LockMode::Permit { limit: NonZeroU32::new(limit).unwrap() }
}

pub(crate) fn ask(name: &str, mode: LockMode) -> Acquire {
    Acquire::new(AttemptId(Entropy::system().id()), key(name), mode)
}

pub(crate) fn join(name: &str) -> Join {
    Join::new(group(name), Capabilities::none())
}

pub(crate) async fn granted(session: &Arc<dyn Session>, request: &Acquire) -> Grant {
    match session.locks().request(request).await.unwrap() {
        Acquired::Granted(grant) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

pub(crate) async fn queued(session: &Arc<dyn Session>, request: &Acquire) -> QueueEntry {
    match session.locks().request(request).await.unwrap() {
        Acquired::Queued(place) => place,
        other => panic!("not queued: {other:?}"),
    }
}

pub(crate) async fn turn(session: &Arc<dyn Session>, entry: &QueueEntry) -> Grant {
    match soon(session.locks().turn(entry)).await.unwrap() {
        Turn::Granted(grant) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

pub(crate) fn held(grants: &[&Grant], waiting: &[&QueueEntry], groups: &[&str]) -> Held {
    let mut held = Held::default();
    held.grants = grants.iter().map(|grant| (grant.key.clone(), grant.attempt)).collect();
    held.waiting = waiting.iter().map(|place| (place.key.clone(), place.attempt)).collect();
    held.groups = groups.iter().map(|name| group(name)).collect();
    held
}

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tooz_servers::in_time("it takes too long", LONG, future).await
}

/// Polls until `what` is true.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: impl Fn() -> F) {
    tooz_servers::until("it came true", LONG, async || what().await).await;
}

pub(crate) async fn next<S: Stream + ?Sized>(stream: &mut Pin<Box<S>>) -> Option<S::Item> {
    soon(poll_fn(|cx| stream.as_mut().poll_next(cx))).await
}

/// A change in few characters: `+a`, `~a`, `-a`, `[a b]`, `deleted`.
pub(crate) fn short(change: Option<Result<GroupChange>>) -> String {
    let name = |record: &MemberRecord| record.member.to_string();
    match change.map(Result::unwrap) {
        None => "end".into(),
        Some(GroupChange::View(all)) => format!("[{}]", all.iter().map(name).collect::<Vec<_>>().join(" ")),
        Some(GroupChange::Joined(record)) => format!("+{}", name(&record)),
        Some(GroupChange::Updated(record)) => format!("~{}", name(&record)),
        Some(GroupChange::Left(record, _)) => format!("-{}", name(&record)),
        Some(GroupChange::Deleted) => "deleted".into(),
        Some(other) => format!("{other:?}"),
    }
}

/// Whether nothing comes: it must be asked after something that comes later anyway.
pub(crate) async fn is_quiet<S: Stream + ?Sized>(stream: &mut Pin<Box<S>>) -> bool {
    poll_fn(|cx| std::task::Poll::Ready(stream.as_mut().poll_next(cx).is_pending())).await
}

/// A process of its own, doing one of the parts in `act`.
pub(crate) struct Actor(tooz_servers::Helper);

impl Actor {
    /// Starts `part` and waits for its first word.
    pub(crate) fn start(part: &str, arguments: &[&str]) -> (Self, String) {
        Self::run(Command::new(std::env::current_exe().unwrap()), part, arguments)
    }

    /// The same in a user namespace in which no inotify instance can be had.
    pub(crate) fn start_without_events(part: &str, arguments: &[&str]) -> (Self, String) {
        let mut command = Command::new("unshare");
        let script = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$0\" \"$@\"";
        command.args(["--user", "--map-root-user", "sh", "-c", script]);
        command.arg(std::env::current_exe().unwrap());
        Self::run(command, part, arguments)
    }

    /// The same by this command, to which the rest is added.
    pub(crate) fn run(mut command: Command, part: &str, arguments: &[&str]) -> (Self, String) {
        command
            .args(["actor", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env("TOOZ_SQLITE_PART", part)
            .env("TOOZ_SQLITE_ARGUMENTS", arguments.join("\n"));
        let actor = Self(tooz_servers::Helper::start_marked(command, "@").unwrap());
        let word = actor.hear();
        (actor, word)
    }

    pub(crate) fn hear(&self) -> String {
        self.0.hear_within(LONG).expect("the other process says nothing")
    }

    /// What it says within a short while, if anything.
    pub(crate) fn try_hear(&self) -> Option<String> {
        self.0.hear_within(Duration::from_millis(2))
    }

    pub(crate) fn tell(&mut self, word: &str) {
        self.0.tell(word).unwrap();
    }

    pub(crate) fn pid(&self) -> nix::libc::pid_t {
        self.0.id().try_into().unwrap()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        self.0.signal(signal).unwrap();
    }

    /// Stops it, and waits until each of its threads has stopped.
    pub(crate) fn stop(&self) {
        self.0.stop().unwrap();
    }

    /// Ends it as a crash would, and waits until it has ended.
    pub(crate) fn crash(&mut self) {
        self.0.kill().unwrap();
    }

    /// Ends it as a crash would; it stays a zombie until this is dropped.
    pub(crate) fn kill(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
    }
}

pub(crate) fn say(word: impl std::fmt::Display) {
    println!("@{word}");
    std::io::stdout().flush().unwrap();
}

/// Whether this process was started as another one.
pub(crate) fn is_actor() -> bool {
    std::env::var_os("TOOZ_SQLITE_PART").is_some()
}

/// What another process does, by the name of its part.
pub(crate) fn act() {
    let part = std::env::var("TOOZ_SQLITE_PART").expect("this is a part of other tests, not a test");
    let arguments = std::env::var("TOOZ_SQLITE_ARGUMENTS").unwrap();
    let arguments: Vec<_> = arguments.split('\n').collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    match part.as_str() {
        "member" => runtime.block_on(member(arguments[0], arguments[1])),
        "follow" => runtime.block_on(follow(arguments[0], arguments[1])),
        "open-umask" => {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o777));
            let driver = runtime.block_on(connect(arguments[0]));
            let session = runtime.block_on(session(&driver, "umask"));
            runtime.block_on(driver.groups().create(&group("g"))).unwrap();
            say(session.id());
            words().for_each(drop);
        }
        "sql" => {
            rusqlite::Connection::open(arguments[0]).unwrap().execute_batch(arguments[1]).unwrap();
            say("done");
        }
        "thief" => {
            say("ready");
            tooz_servers::users::steal(Path::new(arguments[0]));
        }
        "neighbor" => runtime.block_on(neighbor()),
        "vandal" => vandal(),
        "stopped-writer" => stopped_writer(arguments[0]),
        "many-changes" => runtime.block_on(many_changes(arguments[0], arguments[1].parse().unwrap())),
        other => panic!("no part {other}"),
    }
}

fn words() -> impl Iterator<Item = Vec<String>> {
    std::io::stdin().lines().map(|line| line.unwrap().split(' ').map(str::to_owned).collect())
}

/// A member that does what it is told, until its input ends.
async fn member(url: &str, name: &str) {
    let driver = connect(url).await;
    let session = session(&driver, name).await;
    say(session.id());
    let mut grants = std::collections::HashMap::new();
    for words in words() {
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["acquire", name] => {
                let request = ask(name, Exclusive);
                let grant = match session.locks().request(&request).await.unwrap() {
                    Acquired::Granted(grant) => grant,
                    Acquired::Queued(place) => {
                        say("queued");
                        turn(&session, &place).await
                    }
                    Acquired::Held => panic!("it was asked to wait"),
                    _ => panic!("unknown answer"),
                };
                say(grant.token);
                grants.insert((*name).to_owned(), grant);
            }
            ["try", name] => {
                match session.locks().request(&ask(name, Exclusive).wait(false)).await.unwrap() {
                    Acquired::Granted(grant) => {
                        say(grant.token);
                        grants.insert((*name).to_owned(), grant);
                    }
                    _ => say("held"),
                }
            }
            ["queue", name, limit] => {
                let mode = LockMode::Permit { limit: limit.parse().unwrap() };
                match session.locks().request(&ask(name, mode)).await {
                    Ok(Acquired::Queued(_)) => say("queued"),
                    Ok(_) => say("not queued"),
                    Err(error) => say(format!("{:?}", error.kind())),
                }
            }
            ["release", name] => {
                let grant = grants.remove(*name).unwrap();
                say(format!("{:?}", session.locks().release(&grant, End::Clean).await.unwrap()));
            }
            ["join", name] => match session.groups().join(&join(name).create(true)).await {
                Ok(()) => say("joined"),
                Err(error) => say(format!("{:?}", error.kind())),
            },
            ["leave", name] => {
                session.groups().leave(&group(name)).await.unwrap();
                say("left");
            }
            ["notice"] => say(format!("{:?}", soon(session.notice()).await)),
            ["counter", path, name, rounds] => counter(&session, path, name, rounds.parse().unwrap()).await,
            #[allow(clippy::zombie_processes)] // it is to outlive this process
            ["inherit"] => {
                keep_session_files_open_on_exec();
                let sleeper = Command::new("sleep").arg("600").spawn().unwrap();
                say(sleeper.id());
            }
            other => panic!("what is {other:?}?"),
        }
    }
}

/// Reads, adds one and writes without any protection but the lock: two holders at once lose counts.
pub(crate) async fn counter(session: &Arc<dyn Session>, path: &str, name: &str, rounds: u32) {
    for _ in 0..rounds {
        let request = ask(name, Exclusive);
        let grant = match session.locks().request(&request).await.unwrap() {
            Acquired::Queued(place) => turn(session, &place).await,
            Acquired::Granted(grant) => grant,
            other => panic!("{other:?}"),
        };
        let count: u64 = std::fs::read_to_string(path).unwrap().parse().unwrap();
        tokio::task::yield_now().await;
        std::fs::write(path, (count + 1).to_string()).unwrap();
        session.locks().release(&grant, End::Clean).await.unwrap();
    }
    say("counted");
}

/// What a careless library does: makes a duplicate of the session file's descriptor that children inherit. Sent
/// through a socket to ourselves, since it then comes back without the flag that closes it on exec.
fn keep_session_files_open_on_exec() {
    use nix::sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg, socketpair,
    };
    use std::io::{IoSlice, IoSliceMut};
    use std::os::fd::AsRawFd;
    let files: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let target = std::fs::read_link(path).unwrap_or_default();
            target.parent().is_some_and(|parent| parent.to_string_lossy().ends_with("-sessions"))
        })
        .map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(files.len(), 1, "one session file is open");
    let (one, other) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
    sendmsg::<UnixAddr>(
        one.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&files)],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
    let mut byte = [0];
    let mut space = nix::cmsg_space!(i32);
    let mut into = [IoSliceMut::new(&mut byte)];
    let received =
        recvmsg::<UnixAddr>(other.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::empty()).unwrap();
    assert_eq!(received.cmsgs().unwrap().count(), 1);
}

/// For each database that it is told of: a member of `g` that holds `y`, until it is told of the next.
async fn neighbor() {
    say("ready");
    let mut last: Option<Arc<dyn Driver>> = None;
    for words in words() {
        if let Some(driver) = last.take() {
            driver.close().await.unwrap();
        }
        let Some(url) = words.first().filter(|url| !url.is_empty()) else {
            say("left");
            continue;
        };
        let driver = connect(url).await;
        let session = session(&driver, "neighbor").await;
        session.groups().join(&join("g").create(true)).await.unwrap();
        granted(&session, &ask("y", Exclusive)).await;
        std::mem::forget(session); // it lives until this process ends, or drops the database
        last = Some(driver);
        say("there");
    }
}

/// Writes into tables what no driver writes: `DIRECTORY<tab>TABLE<tab>SET`.
fn vandal() {
    say("ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (directory, rest) = line.split_once('\t').unwrap();
        let (table, set) = rest.split_once('\t').unwrap();
        let connection = rusqlite::Connection::open(format!("{directory}/tooz.db")).unwrap();
        connection.busy_timeout(LONG).unwrap();
        let definition: String = connection
            .query_row("SELECT sql FROM sqlite_schema WHERE name = ?1", [table], |row| row.get(0))
            .unwrap();
        let define = |definition: &str| {
            connection.execute_batch("PRAGMA writable_schema = ON").unwrap();
            let changed = connection
                .execute("UPDATE sqlite_schema SET sql = ?1 WHERE name = ?2", [definition, table])
                .unwrap();
            assert_eq!(changed, 1);
            connection.execute_batch("PRAGMA writable_schema = RESET").unwrap();
        };
        connection.execute_batch("PRAGMA foreign_keys = OFF; BEGIN IMMEDIATE").unwrap();
        define(&loosened(&definition));
        let done = connection.execute(&format!("UPDATE {table} SET {set}"), []);
        define(&definition);
        connection.execute_batch("COMMIT").unwrap();
        say(match done {
            Ok(0) => "nothing to damage".to_owned(),
            Ok(_) => "damaged".to_owned(),
            Err(error) => format!("refused: {error}"),
        });
    }
}

/// A table's definition without types and checks; a key's columns keep their index.
fn loosened(definition: &str) -> String {
    let mut text: String =
        definition.lines().map(|line| line.split("--").next().unwrap()).collect::<Vec<_>>().join(" ");
    while let Some(at) = text.find("CHECK (") {
        let mut depth = 0;
        let end = text[at..].find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ')' && depth == 0
        });
        text.replace_range(at..=at + end.unwrap(), "");
    }
    for (what, with) in [
        (") STRICT, WITHOUT ROWID", ") WITHOUT ROWID"),
        (") STRICT", ")"),
        ("NOT NULL", ""),
        ("INTEGER PRIMARY KEY", "WHOLE"),
        (" INTEGER", ""),
        (" TEXT", ""),
        (" BLOB", ""),
        ("WHOLE", "INTEGER PRIMARY KEY"),
    ] {
        text = text.replace(what, with);
    }
    text
}

fn stopped_writer(path: &str) {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE; DELETE FROM breaks").unwrap();
    say(std::process::id());
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).unwrap();
    connection.execute_batch("COMMIT").unwrap();
    say("committed");
    words().for_each(drop);
}

async fn follow(url: &str, name: &str) {
    let driver = connect(url).await;
    driver.groups().create(&group(name)).await.unwrap();
    let mut watch = driver.groups().watch(&group(name)).await.unwrap();
    while let Some(change) = poll_fn(|cx| watch.as_mut().poll_next(cx)).await {
        say(short(Some(change)));
    }
}

async fn many_changes(url: &str, count: u32) {
    let driver = connect(url).await;
    let session = session(&driver, "busy").await;
    session.groups().join(&join("g").create(true)).await.unwrap();
    for number in 0..count {
        let capabilities = Capabilities::new(&number).unwrap();
        session.groups().update(&group("g"), &capabilities).await.unwrap();
    }
    say("done");
    words().for_each(drop);
}
