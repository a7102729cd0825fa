//! `kill -9` of `tooz`, of its guard and of both, and SIGSTOP: nothing of the command outlives its lock.
#![allow(clippy::disallowed_methods)] // a test may panic, and so may its helpers

use std::time::{Duration, Instant};

use crate::common::{LIMIT, Running, TestBackend, below, children, group, parent, runs, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A family of three in one group, deaf to everything but SIGKILL.
const FAMILY: &str = "trap '' TERM INT HUP QUIT; \
    sh -c 'echo $$ > child; sh -c \"echo \\$\\$ > grandchild; while :; do sleep 60; done\"; :' & \
    echo $$ > command; while :; do sleep 60; done";

/// `tooz lock` in the middle of its work.
struct Scene {
    place: TestBackend,
    tooz: Running,
    guard: i32,
    launcher: i32,
    family: [i32; 3],
}

impl Scene {
    fn set() -> Self {
        let place = TestBackend::new();
        let tooz = Running::start(place.tooz(&["lock", "x", "--", "sh", "-c", FAMILY]));
        let family = ["command", "child", "grandchild"].map(|name| place.number(name));
        let launcher = parent(family[0]);
        let guard = parent(launcher);
        assert_eq!(parent(guard), tooz.pid().as_raw());
        assert!(family.iter().all(|&pid| group(pid) == family[0]), "one group");
        assert!([guard, launcher].iter().all(|&pid| group(pid) == pid), "each in a group of its own");
        Self { place, tooz, guard, launcher, family }
    }

    /// Kills these in this order, and says how long the family survived.
    fn kill(&self, victims: &[i32]) -> Duration {
        for &victim in victims {
            // One that the death of another took with it is gone already.
            let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        }
        within(LIMIT, "command, child and grandchild are gone", || !self.family.iter().any(|&pid| runs(pid)))
    }
}

/// The promise; asserted of the best of some runs, since a loaded machine says nothing about the mechanism.
const PROMISE: Duration = Duration::from_millis(100);
/// And no run may take longer, on any machine.
const AT_MOST: Duration = Duration::from_secs(2);

fn nobody_survives(what: &str, victims: impl Fn(&Scene) -> Vec<i32>) {
    let survived: Vec<_> = (0..5)
        .map(|_| {
            let scene = Scene::set();
            scene.kill(&victims(&scene))
        })
        .collect();
    println!("kill -9 of {what}: the family survived {survived:?}");
    assert!(survived.iter().all(|time| *time < AT_MOST), "{what}: {survived:?}");
    assert!(survived.iter().any(|time| *time < PROMISE), "{what}: {survived:?}");
}

#[test]
fn nobody_survives_tooz() {
    nobody_survives("tooz", |scene| vec![scene.tooz.pid().as_raw()]);
}

#[test]
fn nobody_survives_the_guard() {
    nobody_survives("the guard", |scene| vec![scene.guard]);
}

#[test]
fn nobody_survives_the_launcher() {
    nobody_survives("the launcher", |scene| vec![scene.launcher]);
}

#[test]
fn nobody_survives_both_in_either_order() {
    nobody_survives("tooz, then the guard", |scene| vec![scene.tooz.pid().as_raw(), scene.guard]);
    nobody_survives("the guard, then tooz", |scene| vec![scene.guard, scene.tooz.pid().as_raw()]);
}

#[test]
fn nobody_survives_any_two_of_the_three() {
    nobody_survives("tooz and the launcher", |scene| vec![scene.tooz.pid().as_raw(), scene.launcher]);
    nobody_survives("the launcher and the guard", |scene| vec![scene.launcher, scene.guard]);
}

/// Whoever dies while the command is being started, in whatever moment of that: it runs under three that live, or not
/// at all.
#[test]
fn nobody_survives_a_kill_during_the_start() {
    for round in 0..48 {
        let place = TestBackend::new();
        let tooz = Running::start(place.tooz(&["lock", "x", "--", "sh", "-c", FAMILY]));
        let mut chain = [tooz.pid().as_raw(); 3];
        for depth in 1..3 {
            within(LIMIT, "guard and launcher are started", || {
                chain[depth] = children(chain[depth - 1]).first().copied().unwrap_or(0);
                chain[depth] != 0
            });
        }
        // From the launcher's first breath to a command that has long begun.
        let moment = Instant::now() + Duration::from_micros(400) * round;
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        let [_, guard, launcher] = chain;
        let victims = if round % 2 == 0 { [launcher, guard] } else { [guard, launcher] };
        for victim in victims {
            let _ = kill(Pid::from_raw(victim), Signal::SIGKILL); // gone already: the other took it with it
        }
        let end = Instant::now() + AT_MOST;
        let mut left = below(&place);
        while !left.is_empty() && Instant::now() < end {
            left = below(&place);
        }
        for &pid in &left {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // not into the next test
        }
        assert!(left.is_empty(), "round {round}: {left:?} outlived guard and launcher");
    }
}

#[test]
fn the_command_itself_survives_not_even_all_three() {
    let scene = Scene::set();
    // Stopped first, so that none can act on another's death.
    let all = [scene.launcher, scene.guard, scene.tooz.pid().as_raw()];
    for pid in all {
        tooz_servers::stop(pid.unsigned_abs()).unwrap();
    }
    for pid in all {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    within(AT_MOST, "the command is gone", || !runs(scene.family[0]));
    // Its children are beyond the promise; do not leave them behind.
    let _ = nix::sys::signal::killpg(Pid::from_raw(scene.family[0]), Signal::SIGKILL);
}

#[test]
fn a_killed_guard_is_a_loss_and_frees_the_lock() {
    let mut scene = Scene::set();
    scene.kill(&[scene.guard]);
    assert_eq!(scene.tooz.code(), 74);
    assert_eq!(scene.place.run(&["lock", "--try", "x", "--", "true"]).code, Some(0));
}

#[test]
fn a_stopped_tooz_keeps_its_lock_where_sessions_do_not_live_by_time() {
    let scene = Scene::set();
    scene.tooz.stop();
    assert_eq!(scene.place.run(&["lock", "--wait", "1s", "x", "--", "true"]).code, Some(75));
    assert!(scene.family.iter().all(|&pid| runs(pid)));
    scene.tooz.signal(Signal::SIGCONT);
}

/// Its report lies in the pipe of a guard that cannot pass it on.
#[test]
fn a_guard_that_was_stopped_goes_on() {
    let mut scene = Scene::set();
    kill(Pid::from_raw(scene.guard), Signal::SIGSTOP).unwrap();
    scene.tooz.signal(Signal::SIGKILL);
    within(AT_MOST, "the launcher has ended the family", || !scene.family.iter().any(|&pid| runs(pid)));
    kill(Pid::from_raw(scene.guard), Signal::SIGKILL).unwrap();
    scene = Scene::set();
    for pid in [scene.launcher, scene.guard] {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    }
    kill(Pid::from_raw(scene.family[0]), Signal::SIGKILL).unwrap();
    assert_eq!(scene.tooz.code(), 137, "it continues them, and hears of the end");
    assert!(!scene.family.iter().any(|&pid| runs(pid)));
}
