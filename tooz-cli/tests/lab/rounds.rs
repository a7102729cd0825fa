//! A command under `tooz lock` has ended before the next holder's begins: round after round on real servers, while `tooz` is
//! stopped, its network is cut or the server hangs, each for longer than the ttl.
//!
//! The kernel is the witness: every command takes `flock` on a file of its lock without waiting, deaf to all but SIGKILL,
//! and keeps it until the last process of its group is gone. One that finds it taken has an overlap to report.
//!
//! `TOOZ_ROUNDS=100` for the full size; the default fits into an ordinary run.
#![allow(clippy::disallowed_methods)] // a test may panic; faults last for a time

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread::{scope, sleep};
use std::time::Duration;

use crate::common::{Running, TestBackend, eventually, runs};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use tooz::Coordinator;
#[cfg(feature = "etcd")]
use tooz_servers::etcd::Etcd;
#[cfg(feature = "memcached")]
use tooz_servers::memcached::Memcached;
use tooz_servers::redis::Redis;
use tooz_servers::{Proxy, Server, Way};

fn random() -> u64 {
    getrandom::u64().unwrap()
}

/// Of which so many run at a time, each with a lock of its own.
const SIDE_BY_SIDE: usize = 10;

/// The shortest that both servers keep as it is asked for.
const TTL: Duration = Duration::from_secs(2);

/// `$0` is the role and `$1` the lock. The first works until it is killed, the next until it is told to end.
const WORK: &str = r#"
    trap '' TERM INT HUP
    exec 9>>"$1.lock"
    flock -n 9 || echo "$TOOZ_FENCING_TOKEN" >>"$1.overlaps"
    echo "$TOOZ_FENCING_TOKEN" >"$1.$0.token"
    read -r stat </proc/$$/stat
    echo "$stat" >"$1.$0"
    until [ "$0" = next ] && [ -e "$1.go" ]; do sleep 0.05; done
"#;

/// What is between two holders.
enum Backend {
    Redis(Redis),
    #[cfg(feature = "etcd")]
    Etcd(Etcd),
    #[cfg(feature = "memcached")]
    Memcached(Memcached),
}

impl Backend {
    fn server(&self) -> &Server {
        match self {
            Self::Redis(redis) => redis.server(),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.server(),
            #[cfg(feature = "memcached")]
            Self::Memcached(memcached) => memcached.server(),
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Redis(redis) => redis.address(),
            #[cfg(feature = "etcd")]
            Self::Etcd(etcd) => etcd.address(),
            #[cfg(feature = "memcached")]
            Self::Memcached(memcached) => memcached.address(),
        }
    }

    fn scheme(&self) -> &'static str {
        match self {
            Self::Redis(_) => "redis",
            #[cfg(feature = "etcd")]
            Self::Etcd(_) => "etcd",
            #[cfg(feature = "memcached")]
            Self::Memcached(_) => "memcached",
        }
    }

    fn proxy(&self) -> Proxy {
        Proxy::start(self.address()).unwrap()
    }

    fn url(&self, address: SocketAddr) -> String {
        format!("{}://{address}?ttl={}s", self.scheme(), TTL.as_secs())
    }
}

/// What goes wrong for longer than a ttl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// `tooz` gets SIGSTOP; the command goes on.
    Stopped,
    /// Nothing passes between `tooz` and the server, in one direction or in both, or every connection is refused.
    Cut,
    /// The server gets SIGSTOP.
    Hung,
}

/// One round: the first holder, who is at work, and the next, who waits.
struct Round<'a> {
    backend: &'a Backend,
    place: &'a TestBackend,
    name: String,
    way: Proxy,
    first: Running,
    command: i32,
    next: Mutex<Running>,
}

/// How a round went.
struct Went {
    /// From the end of the first command as we saw it to the beginning of the next as the kernel noted it: our looking and
    /// the kernel's ticks of 10 ms make it rather too short.
    gap: f64,
    /// From the fault to the beginning of the next command.
    moved: f64,
}

impl<'a> Round<'a> {
    /// On a machine that stands still for a ttl, a holder is lost before anything is done to it; then there is no round.
    fn set(backend: &'a Backend, place: &'a TestBackend, eye: &Coordinator, name: &str) -> Self {
        (0..10).find_map(|n| Self::try_set(backend, place, eye, format!("{name}-{n}"))).expect("a round")
    }

    fn try_set(
        backend: &'a Backend,
        place: &'a TestBackend,
        eye: &Coordinator,
        name: String,
    ) -> Option<Self> {
        let way = backend.proxy();
        let mut first = start(place, &backend.url(way.address()), "first", &name);
        let mut command = None;
        eventually("the first one is at work", || {
            command = at_work(place, &name, "first");
            command.is_some() || over(&mut first)
        });
        let (command, _) = command?;
        let mut next = start(place, &backend.url(backend.address()), "next", &name);
        let lock = eye.lock(&name).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Where waiters cannot be counted it may begin to wait later.
        eventually("the next one waits", || {
            runtime.block_on(lock.holders()).is_ok_and(|holders| holders.waiters.is_none_or(|n| n == 1))
                || over(&mut first)
                || over(&mut next)
        });
        let file = File::open(place.path(&format!("{name}.lock"))).unwrap();
        // It is seen that somebody is at work: an overlap would be, too.
        let Err((_, Errno::EWOULDBLOCK)) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            return None;
        };
        if over(&mut first) || over(&mut next) {
            return None;
        }
        Some(Self { backend, place, name, way, first, command, next: Mutex::new(next) })
    }

    /// Lets `fault` happen to it, at any moment between two beats.
    fn hurt(&self, fault: Fault) {
        sleep(between(Duration::ZERO, TTL / 3));
        let lasts = between(TTL, TTL * 2);
        match fault {
            Fault::Hung => {}
            Fault::Stopped => {
                self.first.stop();
                sleep(lasts);
                self.first.signal(Signal::SIGCONT);
            }
            Fault::Cut => {
                match random() % 4 {
                    0 => self.way.hold(Way::Up),
                    1 => self.way.hold(Way::Down),
                    2 => self.way.hold_both(),
                    _ => self.way.refuse(),
                }
                sleep(lasts);
                self.way.heal();
            }
        }
    }

    /// Watches both commands until the next one is at work. `None`: the first was gone before anything was done to it.
    fn watch(&self) -> Option<Went> {
        let hurt = boot_time();
        if !runs(self.command) {
            return None;
        }
        eventually("the first command is gone", || !runs(self.command));
        let gone = boot_time();
        let mut next = self.next.lock().unwrap();
        let mut found = None;
        eventually("the next command begins", || {
            found = at_work(self.place, &self.name, "next");
            if found.is_none() && over(&mut next) {
                // Its session ended while it waited, together with the server's memory of it.
                *next = start(self.place, &self.backend.url(self.backend.address()), "next", &self.name);
            }
            found.is_some()
        });
        let (_, begun) = found.unwrap();
        Some(Went { gap: begun - gone, moved: begun - hurt })
    }

    /// Asserts what holds of every round, and what holds of one that was hurt.
    fn end(mut self, hurt: bool) {
        std::fs::write(self.place.path(&format!("{}.go", self.name)), "").unwrap();
        if hurt {
            assert_eq!(self.first.code(), 74, "{}: the first one lost it", self.name);
            let code = self.next.into_inner().unwrap().code();
            assert!(code == 0 || code == 74, "{}: {code}", self.name);
            let token = |role| {
                let text = self.place.read(&format!("{}.{role}.token", self.name));
                text.trim().parse::<u64>().unwrap()
            };
            assert!(token("first") < token("next"), "{}: tokens", self.name);
        }
        assert_eq!(self.place.read(&format!("{}.overlaps", self.name)), "", "{}: two at work", self.name);
    }
}

fn start(place: &TestBackend, url: &str, role: &str, name: &str) -> Running {
    Running::start(place.tooz(&["--url", url, "lock", name, "--", "sh", "-c", WORK, role, name]))
}

fn over(running: &mut Running) -> bool {
    running.0.try_wait().unwrap().is_some()
}

fn between(least: Duration, most: Duration) -> Duration {
    let span = u64::try_from(most.saturating_sub(least).as_micros()).unwrap();
    least + Duration::from_micros(random() % span)
}

fn boot_time() -> f64 {
    Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap()).as_secs_f64()
}

/// The command's process, and when the kernel started it, in its ticks of 10 ms since boot.
fn at_work(place: &TestBackend, name: &str, role: &str) -> Option<(i32, f64)> {
    let text = place.read(&format!("{name}.{role}"));
    let (head, tail) = text.strip_suffix('\n')?.rsplit_once(')')?;
    let ticks: f64 = tail.split_whitespace().nth(19)?.parse().ok()?;
    Some((head.split_whitespace().next()?.parse().ok()?, ticks / 100.0))
}

fn rounds(backend: &Backend, fault: Fault) {
    let count = tooz_servers::lab::size("TOOZ_ROUNDS", 4);
    let place = TestBackend::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let eye =
        runtime.block_on(Coordinator::builder(backend.url(backend.address()), "eye").connect()).unwrap();
    let (mut all, mut begun) = (Vec::new(), 0);
    while all.len() < count {
        assert!(begun < 4 * count + 40, "the machine stands still for longer than a ttl, again and again");
        let set = |n: usize| {
            let (place, eye) = (&place, &eye);
            move || Round::set(backend, place, eye, &format!("{fault:?}-{n}"))
        };
        let batch = begun..begun + SIDE_BY_SIDE.min(count - all.len());
        begun = batch.end;
        let batch: Vec<Round<'_>> = scope(|s| {
            let setting: Vec<_> = batch.map(|n| s.spawn(set(n))).collect();
            setting.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let went: Vec<_> = scope(|s| {
            let watching: Vec<_> = batch.iter().map(|round| s.spawn(|| round.watch())).collect();
            for round in &batch {
                s.spawn(move || round.hurt(fault));
            }
            if fault == Fault::Hung {
                backend.server().stop();
                sleep(between(TTL, TTL * 2));
                backend.server().resume();
            }
            watching.into_iter().map(|one| one.join().unwrap()).collect()
        });
        scope(|s| {
            for (round, went) in batch.into_iter().zip(&went) {
                s.spawn(move || round.end(went.is_some()));
            }
        });
        all.extend(went.into_iter().flatten());
    }
    let least = all.iter().map(|went| went.gap).fold(f64::INFINITY, f64::min);
    let (shortest, longest) = all
        .iter()
        .map(|went| went.moved)
        .fold((f64::INFINITY, 0.0_f64), |(least, most), moved| (least.min(moved), most.max(moved)));
    println!(
        "{}, {fault:?}: {count} rounds with a ttl of {TTL:?}, no overlap; the next command began at least {:.0} ms after \
         the end of the first, {shortest:.2} to {longest:.2} s after the fault",
        backend.scheme(),
        least * 1e3
    );
}

pub(crate) const REDIS: [(&str, fn()); 3] =
    tests![redis_while_tooz_is_stopped, redis_while_the_network_is_cut, redis_while_the_server_hangs];
#[cfg(feature = "etcd")]
pub(crate) const ETCD: [(&str, fn()); 3] =
    tests![etcd_while_tooz_is_stopped, etcd_while_the_network_is_cut, etcd_while_the_server_hangs];
#[cfg(feature = "memcached")]
pub(crate) const MEMCACHED: [(&str, fn()); 3] = tests![
    memcached_while_tooz_is_stopped,
    memcached_while_the_network_is_cut,
    memcached_while_the_server_hangs
];

fn redis_while_tooz_is_stopped() {
    rounds(&Backend::Redis(Redis::start().unwrap()), Fault::Stopped);
}

fn redis_while_the_network_is_cut() {
    rounds(&Backend::Redis(Redis::start().unwrap()), Fault::Cut);
}

fn redis_while_the_server_hangs() {
    rounds(&Backend::Redis(Redis::start().unwrap()), Fault::Hung);
}

#[cfg(feature = "etcd")]
fn etcd_while_tooz_is_stopped() {
    rounds(&Backend::Etcd(Etcd::start().unwrap()), Fault::Stopped);
}

#[cfg(feature = "etcd")]
fn etcd_while_the_network_is_cut() {
    rounds(&Backend::Etcd(Etcd::start().unwrap()), Fault::Cut);
}

#[cfg(feature = "etcd")]
fn etcd_while_the_server_hangs() {
    rounds(&Backend::Etcd(Etcd::start().unwrap()), Fault::Hung);
}

#[cfg(feature = "memcached")]
fn memcached_while_tooz_is_stopped() {
    rounds(&Backend::Memcached(Memcached::start().unwrap()), Fault::Stopped);
}

#[cfg(feature = "memcached")]
fn memcached_while_the_network_is_cut() {
    rounds(&Backend::Memcached(Memcached::start().unwrap()), Fault::Cut);
}

#[cfg(feature = "memcached")]
fn memcached_while_the_server_hangs() {
    rounds(&Backend::Memcached(Memcached::start().unwrap()), Fault::Hung);
}
