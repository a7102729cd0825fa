//! The guard alone, driven over its pipes as `tooz` drives it: what it does when nobody can tell it anything more.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::common::{Running, TestBackend, eventually, group_runs, in_time, parent, process, runs};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// A command that is told to end and stays, with a child that does, too.
const STUBBORN: &str = "trap 'echo term >> $DIR/terms' TERM; \
     sh -c 'trap \"\" TERM; echo $$ > $DIR/child; while :; do sleep 60; done' & \
     echo $$ > $DIR/command; while :; do wait; done";

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap().into()
}

/// A guard, and the part of `tooz` played by the test.
struct Guard {
    process: Running,
    orders: Option<File>,
    reports: BufReader<File>,
    /// The command's group.
    group: i32,
}

impl Guard {
    /// With a command that has begun.
    fn start(place: &TestBackend, grace: u32, first: &str, script: &str) -> Self {
        let mut guard = Self::prepare(place, grace, first, script);
        guard.order("begin");
        guard
    }

    /// With a command that waits for the word to begin.
    fn prepare(place: &TestBackend, grace: u32, first: &str, script: &str) -> Self {
        let mut guard = Self::unprepared(place, grace, first, script);
        let report = guard.report();
        let command = report.strip_prefix("started ").and_then(|rest| rest.split(' ').next());
        guard.group = command.unwrap().parse().unwrap();
        guard
    }

    fn unprepared(place: &TestBackend, grace: u32, first: &str, script: &str) -> Self {
        let (their_input, orders) = std::io::pipe().unwrap();
        let (reports, their_output) = std::io::pipe().unwrap();
        let mut command = process(env!("CARGO_BIN_EXE_tooz"));
        command.arg("__guard");
        for end in [their_input.as_raw_fd(), their_output.as_raw_fd()] {
            command.arg(end.to_string());
        }
        fcntl(&their_input, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        fcntl(&their_output, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let own = std::process::id().to_string();
        command.args([&own, &own, "0", "0", &grace.to_string()]);
        command.args(["sh", "-c", script]).env("DIR", place.path(""));
        let process = Running::start(command);
        let mut guard = Self {
            process,
            orders: Some(OwnedFd::from(orders).into()),
            reports: BufReader::new(OwnedFd::from(reports).into()),
            group: 0,
        };
        guard.order(first);
        guard
    }

    fn order(&mut self, line: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{line}").unwrap();
    }

    fn report(&mut self) -> String {
        let mut line = String::new();
        self.reports.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

fn deadline(at: Duration) -> String {
    format!("deadline {}", at.as_nanos())
}

/// Waits until the group has got its SIGTERM. `false`: it was killed before it could say so.
fn asked(place: &TestBackend, group: i32) -> bool {
    let said = || place.read("terms") == "term\n";
    eventually("SIGTERM came", || said() || !group_runs(group));
    said()
}

#[test]
fn the_group_is_asked_and_then_killed_before_the_deadline() {
    in_time("before the lock can move, even though SIGTERM was ignored", asked_and_then_killed);
}

/// Whether the group was gone before the deadline.
fn asked_and_then_killed() -> bool {
    let place = TestBackend::new();
    let end = now() + Duration::from_secs(6);
    let mut guard = Guard::start(&place, 2_000, &deadline(end), STUBBORN);
    let (command, child) = (place.number("command"), place.number("child"));
    assert_eq!(guard.group, command);
    if !asked(&place, command) {
        return false;
    }
    assert!(now() + Duration::from_secs(2) >= end, "no earlier than the grace before the deadline");
    let given_the_grace = runs(command) && runs(child);
    eventually("the group is gone", || !group_runs(command));
    let before_the_deadline = now() < end;
    assert_eq!(guard.report(), "expired");
    assert_eq!(place.read("terms"), "term\n", "it is asked once");
    let mut last = guard.report();
    while last == "expired" {
        last = guard.report();
    }
    assert_eq!(last, "signaled 9");
    guard.order("leave");
    assert_eq!(guard.process.code(), 0);
    given_the_grace && before_the_deadline
}

#[test]
fn a_renewal_puts_the_end_off_until_sigterm_was_sent_and_not_afterwards() {
    in_time("who was told to end is not saved by a late renewal", renewed_before_and_after_sigterm);
}

/// Whether the group was gone before the second deadline, and the third, which came too late, counted for nothing.
fn renewed_before_and_after_sigterm() -> bool {
    let place = TestBackend::new();
    let first = now() + Duration::from_secs(5);
    let mut guard = Guard::start(&place, 500, &deadline(first), STUBBORN);
    let command = place.number("command");
    let second = first + Duration::from_secs(1);
    guard.order(&deadline(second));
    if !asked(&place, command) {
        return false;
    }
    assert!(now() + Duration::from_millis(500) >= second, "the first deadline counts no more");
    guard.order(&deadline(second + Duration::from_hours(1)));
    guard.order("deadline none");
    eventually("the group is gone", || !group_runs(command));
    now() < second
}

#[test]
fn without_a_deadline_the_command_ends_by_itself() {
    let place = TestBackend::new();
    let mut guard = Guard::start(&place, 100, "deadline none", "exit 7");
    assert_eq!(guard.report(), "exited 7");
    guard.order("leave");
    assert_eq!(guard.process.code(), 0);
}

#[test]
fn the_end_of_the_pipe_is_the_end_of_the_group() {
    let place = TestBackend::new();
    let mut guard = Guard::start(&place, 100, "deadline none", STUBBORN);
    let (command, child) = (place.number("command"), place.number("child"));
    guard.orders = None;
    eventually("the group is gone", || !runs(command) && !runs(child));
    assert_eq!(place.read("terms"), "", "at once, without asking");
    guard.process.code();
}

#[test]
fn an_order_to_end_ends_the_group_at_once() {
    let place = TestBackend::new();
    let mut guard = Guard::start(&place, 100, "deadline none", STUBBORN);
    let command = place.number("command");
    place.number("child");
    guard.order("end");
    eventually("the group is gone", || !group_runs(command));
    assert_eq!(guard.group, command);
    assert_eq!(guard.report(), "signaled 9");
}

#[test]
fn a_stopped_guard_is_stood_in_for_by_the_launcher() {
    in_time("the launcher knows the deadline", stood_in_for);
}

fn stood_in_for() -> bool {
    let place = TestBackend::new();
    let end = now() + Duration::from_secs(5);
    let guard = Guard::start(&place, 400, &deadline(end), STUBBORN);
    let command = place.number("command");
    // The launcher starts nothing before it knows the deadline.
    guard.process.stop();
    eventually("the group is gone", || !group_runs(command));
    let before_the_deadline = now() < end;
    guard.process.signal(Signal::SIGCONT);
    before_the_deadline
}

#[test]
fn a_command_whose_deadline_has_passed_is_not_started() {
    let place = TestBackend::new();
    let mut guard = Guard::unprepared(&place, 400, &deadline(now()), "echo 1 > $DIR/ran");
    let mut last = guard.report();
    while last == "expired" {
        last = guard.report();
    }
    assert_eq!(last, "signaled 9");
    guard.order("leave");
    guard.process.code();
    assert!(!place.path("ran").exists());
}

/// A command that nobody above it knows of cannot be ended by them: it begins when `tooz` has heard of it.
#[test]
fn a_command_begins_when_it_is_known() {
    let place = TestBackend::new();
    let mut guard = Guard::prepare(&place, 100, "deadline none", "echo 1 > $DIR/ran; exit 7");
    let mut first = String::new();
    eventually("it is a program, not on the way to one", || {
        first = fs::read_to_string(format!("/proc/{}/cmdline", guard.group)).unwrap();
        !first.is_empty()
    });
    assert!(first.starts_with("tooz\0__exec\0"), "{first:?} has begun unasked");
    guard.order("begin");
    assert_eq!(guard.report(), "exited 7");
    assert!(place.path("ran").exists());
}

#[test]
fn a_command_that_never_began_ends_with_those_above_it() {
    for also_the_launcher in [false, true] {
        let place = TestBackend::new();
        let guard = Guard::prepare(&place, 100, "deadline none", "echo 1 > $DIR/ran; sleep 60");
        // None may act upon the end of the other, as if both ended in one moment.
        let launcher = parent(guard.group);
        let victims = [Some(guard.process.pid().as_raw()), also_the_launcher.then_some(launcher)];
        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            for pid in victims.into_iter().flatten() {
                kill(Pid::from_raw(pid), signal).unwrap();
            }
        }
        eventually("nobody is left", || !group_runs(guard.group) && !runs(launcher));
        assert!(!place.path("ran").exists(), "it began though nobody could have ended it");
    }
}

#[test]
fn a_mangled_order_changes_nothing() {
    let place = TestBackend::new();
    let mut guard = Guard::start(&place, 100, "deadline none", STUBBORN);
    let command = place.number("command");
    for line in ["deadline", "deadline -5", "", "kill", &"x".repeat(5_000)] {
        guard.order(line);
    }
    guard.order("end");
    assert_eq!(guard.group, command);
    assert_eq!(guard.report(), "signaled 9");
}

#[test]
fn ordinary_signals_do_not_reach_guard_or_launcher() {
    let place = TestBackend::new();
    let mut guard = Guard::start(&place, 100, "deadline none", STUBBORN);
    let command = place.number("command");
    let launcher = Pid::from_raw(parent(command));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGTSTP, Signal::SIGUSR1] {
        guard.process.signal(signal);
        kill(launcher, signal).unwrap();
    }
    guard.order("end");
    assert_eq!(guard.group, command);
    assert_eq!(guard.report(), "signaled 9", "both live and do their work");
}
