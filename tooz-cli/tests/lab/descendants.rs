//! Nothing that a command started outlives the lock, whichever way it leaves the command's process group, and however the
//! command or its lock ends.
//!
//! The kernel is the witness, as in [`crate::rounds`]: the worker takes `flock` on a file, deaf to all but SIGKILL, and the
//! next holder finds it taken as long as any process of the worker runs.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use crate::common::{self, Running, TestBackend, eventually, parent, runs, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tooz_servers::redis::Redis;

/// Of a killed `tooz`; generous, since a loaded machine must not redden this.
const AT_MOST: Duration = Duration::from_secs(5);

const TTL: Duration = Duration::from_secs(3);

const WORKER: &str = "trap '' TERM INT HUP
    exec 9>>work.lock
    flock -n 9 || echo overlap >>overlaps
    echo $$ >\"$1\"
    until [ -e \"$1.stop\" ]; do sleep 0.05; done";

/// How the worker leaves the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Timeout,
    Setsid,
    Su,
    JobControl,
    DoubleFork,
    NestedTooz,
    /// The command exits before it.
    Background,
}

impl Way {
    /// A command that starts the worker this way, and goes on until it is told to exit.
    fn script(self) -> String {
        let start = match self {
            Self::Timeout => "timeout 600 sh worker.sh worker &",
            Self::Setsid => "setsid -f sh worker.sh worker",
            Self::Su => "su root -c 'sh worker.sh worker' &",
            Self::JobControl => "set -m; sh worker.sh worker & set +m",
            Self::DoubleFork => "sh -c '(setsid sh worker.sh worker &)'",
            Self::NestedTooz => "$TOOZ lock inner -- sh worker.sh worker &",
            Self::Background => "sh worker.sh worker & until [ -s worker ]; do sleep 0.02; done; exit 0",
        };
        format!("{start}\nuntil [ -e go ]; do sleep 0.02; done; exit 0")
    }
}

/// What ends the command or its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Break,
    Ttl,
    KillTooz,
    KillGuard,
    KillBoth,
    Term,
    Exit,
}

const ENDS: [End; 7] =
    [End::Break, End::Ttl, End::KillTooz, End::KillGuard, End::KillBoth, End::Term, End::Exit];

struct Scene {
    place: TestBackend,
    url: String,
    tooz: Running,
    worker: i32,
}

impl Scene {
    fn set(way: Way, url: Option<&str>) -> Self {
        let place = TestBackend::new();
        let url = url.map_or_else(|| place.url(), str::to_owned);
        fs::write(place.path("worker.sh"), WORKER).unwrap();
        let children = if way == Way::Background { "wait" } else { "leave" };
        let mut command =
            place.tooz(&["--url", &url, "lock", "--kill-grace", "500ms", "--children", children]);
        command.args(["x", "--", "bash", "-c", &way.script()]).env("TOOZ", env!("CARGO_BIN_EXE_tooz"));
        command.stderr(File::create(place.path("stderr")).unwrap());
        let tooz = Running::start(command);
        let worker = place.number("worker");
        if way == Way::Background {
            let from_tooz = || parent(parent(parent(worker))) == tooz.pid().as_raw();
            eventually("the launcher has adopted the worker", from_tooz);
        }
        Self { place, url, tooz, worker }
    }

    /// The guard: the child of `tooz` from which the worker descends.
    fn guard(&self) -> i32 {
        let mut at = self.worker;
        while parent(at) != self.tooz.pid().as_raw() {
            at = parent(at);
            assert!(at > 1, "the worker descends from tooz");
        }
        at
    }

    /// Runs the next holder to its end; it notes an overlap if the worker still runs.
    fn next(&self, way: Way) {
        fs::write(self.place.path("next.stop"), "").unwrap();
        let next = self.place.run(&["--url", &self.url, "lock", "x", "--", "sh", "worker.sh", "next"]);
        assert_eq!(next.code, Some(0), "{}", next.stderr);
        if way == Way::NestedTooz {
            let inner = self.place.run(&["--url", &self.url, "lock", "inner", "--", "true"]);
            assert_eq!(inner.code, Some(0), "{}", inner.stderr);
        }
    }

    fn end(mut self, way: Way, end: End) {
        let victims = match end {
            End::KillTooz => vec![self.tooz.pid()],
            End::KillGuard => vec![Pid::from_raw(self.guard())],
            End::KillBoth => vec![self.tooz.pid(), Pid::from_raw(self.guard())],
            _ => Vec::new(),
        };
        match end {
            End::Break => {
                let broken = self.place.run(&["--url", &self.url, "break", "x", "--reason", "test"]);
                assert_eq!(broken.code, Some(0), "{}", broken.stderr);
                assert_eq!(self.tooz.code(), 74);
                assert!(!runs(self.worker), "when tooz has ended");
            }
            End::Ttl => {
                self.tooz.stop();
                self.next(way);
                assert!(!runs(self.worker), "when the lock has moved");
                self.tooz.signal(Signal::SIGCONT);
                assert_eq!(self.tooz.code(), 74);
            }
            End::KillTooz | End::KillGuard | End::KillBoth => {
                for pid in victims {
                    kill(pid, Signal::SIGKILL).unwrap();
                }
                within(AT_MOST, "the worker is gone", || !runs(self.worker));
                if end == End::KillGuard {
                    assert_eq!(self.tooz.code(), 74);
                }
            }
            End::Term => {
                self.tooz.signal(Signal::SIGTERM);
                let code = self.tooz.code();
                assert!(!runs(self.worker), "when tooz has ended");
                assert_eq!(code, if way == Way::Background { 0 } else { 143 });
            }
            End::Exit if way == Way::Background => {
                let taken = self.place.run(&["lock", "--try", "x", "--", "true"]);
                assert_eq!(taken.code, Some(75), "it is held for the worker: {}", taken.stderr);
                fs::write(self.place.path("worker.stop"), "").unwrap();
                assert_eq!(self.tooz.code(), 0);
                assert!(!runs(self.worker));
            }
            End::Exit => {
                fs::write(self.place.path("go"), "").unwrap();
                assert_eq!(self.tooz.code(), 0);
                assert!(runs(self.worker), "nothing is ended");
                let said = self.place.read("stderr");
                let named = format!("{} (user ", self.worker);
                assert!(said.contains("still runs without the lock") && said.contains(&named), "{said}");
                fs::write(self.place.path("worker.stop"), "").unwrap();
                eventually("the worker ends", || !runs(self.worker));
            }
        }
        // A killed tooz may have been ahead of its guard; see the guarantees.
        if end != End::Ttl {
            self.next(way);
        }
        assert_eq!(self.place.read("overlaps"), "", "two at work");
        let mut left = common::below(&self.place);
        within(AT_MOST, "no process is left", || {
            left = common::below(&self.place);
            left.is_empty()
        });
    }
}

fn nothing_is_left(way: Way) {
    let redis = Redis::start().unwrap();
    let url = format!("redis://{}?ttl={}s", redis.address(), TTL.as_secs());
    for end in ENDS {
        println!("{way:?}, {end:?}");
        Scene::set(way, (end == End::Ttl).then_some(&url)).end(way, end);
    }
}

pub(crate) const TESTS: [(&str, fn()); 6] = tests![
    after_timeout,
    after_setsid,
    after_job_control,
    after_a_double_fork,
    below_a_nested_tooz,
    in_the_background,
];

/// With an interpreter that forks quickly.
pub(crate) const IN_PYTHON: [(&str, fn()); 1] = tests![what_forks_without_end_is_not_overlooked];

/// Why there is no Python.
pub(crate) fn no_python() -> Option<String> {
    Command::new("python3").arg("--version").output().err().map(|error| format!("python3: {error}"))
}

/// Root may become another user.
pub(crate) const AS_ROOT: [(&str, fn()); 1] = tests![below_su];

fn after_timeout() {
    nothing_is_left(Way::Timeout);
}

fn after_setsid() {
    nothing_is_left(Way::Setsid);
}

fn after_job_control() {
    nothing_is_left(Way::JobControl);
}

fn after_a_double_fork() {
    nothing_is_left(Way::DoubleFork);
}

fn below_a_nested_tooz() {
    nothing_is_left(Way::NestedTooz);
}

fn in_the_background() {
    nothing_is_left(Way::Background);
}

fn below_su() {
    nothing_is_left(Way::Su);
}

/// Each process lives for less time than a look at all processes takes.
fn what_forks_without_end_is_not_overlooked() {
    let hop = "import os\nimport sys\nopen(sys.argv[1], 'w').write('1')\nwhile True:\n    if os.fork():\n        os._exit(0)\n    \
               if os.path.exists('stop'):\n        os._exit(0)\n";
    let place = TestBackend::new();
    std::fs::write(place.path("hop.py"), hop).unwrap();
    let start = |children: &str| {
        let script = "python3 hop.py started; exit 3";
        Running::start(place.tooz(&["lock", "--children", children, "x", "--", "sh", "-c", script]))
    };
    let mut waiting = start("wait");
    place.wait_for("started");
    for _ in 0..20 {
        assert_eq!(place.run(&["lock", "--try", "x", "--", "true"]).code, Some(75), "the hopper still runs");
        assert_eq!(waiting.0.try_wait().unwrap(), None);
    }
    std::fs::write(place.path("stop"), "").unwrap();
    assert_eq!(waiting.code(), 3);
    for path in ["stop", "started"] {
        std::fs::remove_file(place.path(path)).unwrap();
    }
    let mut broken = start("wait");
    place.wait_for("started");
    assert_eq!(place.run(&["break", "x", "--reason", "test"]).code, Some(0));
    assert_eq!(broken.code(), 74);
    within(AT_MOST, "no process is left", || common::below(&place).is_empty());
}
