//! What the tests of this driver share: connecting, helper processes, and waiting for what has to come.
#![allow(dead_code, unused_imports, clippy::disallowed_methods)] // every test binary uses a part of it, in real time

use std::future::poll_fn;
use std::io::{BufRead, Write};
use std::num::NonZeroU32;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_core::Stream;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, Clock, Connect, Context, Driver, End, Entropy, Grant, GroupChange, Held,
    InstanceId, LockKey, LockMode, OpenSession, QueueEntry, Session, Spawner, Turn,
};
use tooz_core::{
    BackendUrl, Capabilities, Coordinator, ErrorKind, GroupId, LockName, MemberId, Result, Runtime,
};
use tooz_file as _;

pub(crate) use tooz_core::driver::LockMode::{Exclusive, Shared};

/// Twenty times what the slowest of these takes on an idle machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);
/// Long enough that what should not come would have come.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

pub(crate) fn url(directory: &Path, options: &str) -> String {
    format!("file://{}{options}", directory.display())
}

pub(crate) async fn connect(url: &str) -> Result<Arc<dyn Driver>> {
    let context = Context::new(Clock::boot(), Entropy::system(), Spawner::new(Runtime::Library)?);
    tooz_file::connect(Connect::new(BackendUrl::parse(url)?, context)?).await
}

/// A driver and a session on it, as a coordinator has them.
pub(crate) async fn member(url: &str, name: &str) -> (Arc<dyn Driver>, Arc<dyn Session>) {
    let driver = connect(url).await.unwrap();
    let session = driver.open_session(&opening(name)).await.unwrap();
    (driver, session)
}

pub(crate) async fn coordinator(url: &str, name: &str) -> Coordinator {
    Coordinator::builder(url, name).connect().await.unwrap()
}

pub(crate) fn opening(name: &str) -> OpenSession {
    static INSTANCE: AtomicU64 = AtomicU64::new(1);
    let instance = InstanceId(u128::from(INSTANCE.fetch_add(1, Ordering::Relaxed)));
    OpenSession::new(id(name), instance)
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

pub(crate) fn ask(attempt: u128, name: &str, mode: LockMode) -> Acquire {
    Acquire::new(AttemptId(attempt), key(name), mode)
}

pub(crate) async fn request(
    session: &Arc<dyn Session>,
    attempt: u128,
    name: &str,
    mode: LockMode,
) -> Acquired {
    session.locks().request(&ask(attempt, name, mode)).await.unwrap()
}

pub(crate) async fn granted(session: &Arc<dyn Session>, attempt: u128, name: &str, mode: LockMode) -> Grant {
    match request(session, attempt, name, mode).await {
        Acquired::Granted(grant) => grant,
        other => panic!("{attempt} was not granted: {other:?}"),
    }
}

pub(crate) async fn queued(
    session: &Arc<dyn Session>,
    attempt: u128,
    name: &str,
    mode: LockMode,
) -> QueueEntry {
    match request(session, attempt, name, mode).await {
        Acquired::Queued(place) => place,
        other => panic!("{attempt} is not in the queue: {other:?}"),
    }
}

pub(crate) async fn held(session: &Arc<dyn Session>, name: &str, mode: LockMode) -> bool {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 40);
    let attempt = u128::from(NEXT.fetch_add(1, Ordering::Relaxed));
    match session.locks().request(&ask(attempt, name, mode).wait(false)).await.unwrap() {
        Acquired::Held => true,
        Acquired::Granted(grant) => {
            session.locks().release(&grant, End::Clean).await.unwrap();
            false
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn turn(session: &Arc<dyn Session>, entry: &QueueEntry) -> Grant {
    match soon(session.locks().turn(entry)).await.unwrap() {
        Turn::Granted(grant) => grant,
        other => panic!("{entry:?}: {other:?}"),
    }
}

pub(crate) async fn still_waits(session: &Arc<dyn Session>, entry: &QueueEntry) -> bool {
    tokio::time::timeout(QUIET, session.locks().turn(entry)).await.is_err()
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tooz_servers::in_time("it did not come", LONG, future).await
}

/// Polls until it is so.
pub(crate) async fn eventually(what: &str, look: impl AsyncFnMut() -> bool) {
    tooz_servers::until(what, LONG, look).await;
}

pub(crate) fn holding(grants: &[&Grant], waiting: &[&QueueEntry], groups: &[&str]) -> Held {
    let mut held = Held::default();
    held.grants = grants.iter().map(|grant| (grant.key.clone(), grant.attempt)).collect();
    held.waiting = waiting.iter().map(|place| (place.key.clone(), place.attempt)).collect();
    held.groups = groups.iter().map(|name| group(name)).collect();
    held
}

pub(crate) type Watched<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

pub(crate) async fn next<T>(stream: &mut Watched<T>) -> Option<T> {
    soon(poll_fn(|cx| stream.as_mut().poll_next(cx))).await.map(Result::unwrap)
}

/// A change in few characters: `+a`, `~a`, `-a`, `[a b]`, `deleted`.
pub(crate) fn short(change: Option<GroupChange>) -> String {
    let name = |record: &tooz_core::driver::MemberRecord| record.member.to_string();
    match change {
        None => "end".into(),
        Some(GroupChange::View(all)) => format!("[{}]", all.iter().map(name).collect::<Vec<_>>().join(" ")),
        Some(GroupChange::Joined(record)) => format!("+{}", name(&record)),
        Some(GroupChange::Updated(record)) => format!("~{}", name(&record)),
        Some(GroupChange::Left(record, _)) => format!("-{}", name(&record)),
        Some(GroupChange::Deleted) => "deleted".into(),
        Some(other) => format!("{other:?}"),
    }
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

pub(crate) async fn names(driver: &Arc<dyn Driver>, name: &str) -> Vec<String> {
    let members = driver.groups().members(&group(name)).await.unwrap();
    members.iter().map(|record| record.member.to_string()).collect()
}

/// A process of this test binary that does what it is told.
pub(crate) struct Helper(tooz_servers::Helper);

const SAYS: &str = "HELPER ";
/// Who takes part in nothing and works in the directory that it gets for a URL.
pub(crate) const THIEF: &str = "thief";

impl Helper {
    /// Starts one that connects to `url` as `name`.
    pub(crate) fn start(url: &str, name: &str) -> Self {
        Self::run(Command::new(std::env::current_exe().unwrap()), url, name)
    }

    /// The same by this command, to which the rest is added.
    pub(crate) fn run(mut command: Command, url: &str, name: &str) -> Self {
        command
            .args(["--ignored", "--exact", "helper", "--nocapture", "--test-threads=1"])
            .env("TOOZ_FILE_URL", url)
            .env("TOOZ_FILE_MEMBER", name);
        let helper = Self(tooz_servers::Helper::start_marked(command, SAYS).unwrap());
        assert_eq!(helper.hear(), "connected");
        helper
    }

    pub(crate) fn hear(&self) -> String {
        self.hear_within(LONG)
    }

    pub(crate) fn hear_within(&self, limit: Duration) -> String {
        self.0.hear_within(limit).expect("the helper says nothing")
    }

    pub(crate) fn tell(&mut self, command: &str) {
        self.0.tell(command).unwrap();
    }

    pub(crate) fn does(&mut self, command: &str) -> String {
        self.tell(command);
        self.hear()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.0.signal(signal).unwrap();
    }

    pub(crate) fn stop(&self) {
        self.0.stop().unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
    }
}

/// Whether this process was started as a helper.
pub(crate) fn is_helper() -> bool {
    std::env::var_os("TOOZ_FILE_MEMBER").is_some()
}

/// Takes a mutex as if in the middle of a change.
fn take_mutex(path: &str) -> std::fs::File {
    let mut file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    // Of type, whence, start and length: for writing, from the start, all of it.
    let all = libc::flock {
        l_type: libc::F_WRLCK.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_SETLKW(&all)).unwrap();
    file.write_all(&std::process::id().to_be_bytes()).unwrap();
    file
}

/// What a helper does: obeys line by line until its input ends.
pub(crate) fn obey() {
    let say = |text: &str| {
        println!("{SAYS}{text}");
    };
    let (Ok(url), Ok(name)) = (std::env::var("TOOZ_FILE_URL"), std::env::var("TOOZ_FILE_MEMBER")) else {
        panic!("this is run by the other tests");
    };
    if name == THIEF {
        say("connected");
        tooz_servers::users::steal(Path::new(&url));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (driver, session) = member(&url, &name).await;
        say("connected");
        let mut attempt = u128::from(std::process::id()) << 32;
        let mut grants: Vec<Grant> = Vec::new();
        let mut mutexes = Vec::new();
        for line in std::io::stdin().lock().lines() {
            let line = line.unwrap();
            let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
            attempt += 1;
            match verb {
                "lock" | "share" | "lead" => {
                    let wanted = if verb == "lead" { LockKey::Leader(group(rest)) } else { key(rest) };
                    let mode = if verb == "share" { Shared } else { Exclusive };
                    let asked =
                        session.locks().request(&Acquire::new(AttemptId(attempt), wanted, mode)).await;
                    let grant = match asked.unwrap() {
                        Acquired::Granted(grant) => grant,
                        Acquired::Queued(place) => turn(&session, &place).await,
                        other => panic!("{other:?}"),
                    };
                    say(&grant.token.to_string());
                    grants.push(grant);
                }
                "queue" => {
                    let place = queued(&session, attempt, rest, Exclusive).await;
                    say("queued");
                    let grant = turn(&session, &place).await;
                    say(&grant.token.to_string());
                    grants.push(grant);
                }
                "try" => {
                    match session.locks().request(&ask(attempt, rest, Exclusive).wait(false)).await.unwrap() {
                        Acquired::Granted(grant) => {
                            say(&grant.token.to_string());
                            grants.push(grant);
                        }
                        _ => say("held"),
                    }
                }
                "unlock" => {
                    say(&format!(
                        "{:?}",
                        session.locks().release(&grants.pop().unwrap(), End::Clean).await.unwrap()
                    ));
                }
                "count" => {
                    // Adds one to a file's number as often as told, each time under the lock, and notices everybody
                    // else who does so meanwhile.
                    let (times, file) = rest.split_once(' ').unwrap();
                    let inside = format!("{file}.inside");
                    for _ in 0..times.parse::<u32>().unwrap() {
                        attempt += 1;
                        let grant = match request(&session, attempt, "counter", Exclusive).await {
                            Acquired::Granted(grant) => grant,
                            Acquired::Queued(place) => turn(&session, &place).await,
                            other => panic!("{other:?}"),
                        };
                        let entered = std::fs::File::create_new(&inside);
                        assert!(entered.is_ok(), "somebody else is inside: {entered:?}");
                        let number: u64 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
                        std::fs::write(file, (number + 1).to_string()).unwrap();
                        let mut log = std::fs::File::options();
                        let log = log.append(true).create(true).open(format!("{file}.log"));
                        log.unwrap().write_all(b"r").unwrap();
                        std::fs::remove_file(&inside).unwrap();
                        session.locks().release(&grant, End::Clean).await.unwrap();
                    }
                    say("counted");
                }
                "join" => {
                    let join = tooz_core::driver::Join::new(group(rest), Capabilities::none()).create(true);
                    say(&format!("{:?}", session.groups().join(&join).await.map_err(|error| error.kind())));
                }
                "mutex" => {
                    mutexes.push(take_mutex(rest));
                    say(&std::process::id().to_string());
                }
                "close" => {
                    session.close(End::Clean).await.unwrap();
                    driver.close().await.unwrap();
                    say("closed");
                }
                other => panic!("what is {other}?"),
            }
        }
    });
}
