//! Many processes on one lock: who is woken, and how soon the next one has it.

#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::collections::VecDeque;
use std::fs;
use std::time::{Duration, Instant};

use crate::common::{Exclusive, Helper, member, queued, turn, url};
use tooz_core::driver::{End, Previous};

/// `TOOZ_STRESS` says how many processes; the default fits into an ordinary run.
fn size(default: usize) -> usize {
    std::env::var("TOOZ_STRESS").map_or(default, |text| text.parse().expect("TOOZ_STRESS: a number"))
}

/// How often the thread that hears the kernel's events has gone to sleep, which is how often it was woken.
fn wakes(pid: u32) -> u64 {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let ears = threads.find(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim_end() == "tooz-file")
    });
    let status = fs::read_to_string(ears.expect("it hears").path().join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Counted and not timed: the kernel says how often each process was woken.
#[test]
fn an_acquisition_wakes_whoever_is_next_and_nobody_else() {
    const EACH: usize = 20;
    let processes = size(50);
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let counter = directory.path().join(".counter");
    fs::write(&counter, "0").unwrap();
    let mut helpers: Vec<_> = (0..processes).map(|n| Helper::start(&url, &format!("p{n}"))).collect();
    let before: Vec<u64> = helpers.iter().map(|helper| wakes(helper.pid())).collect();
    for helper in &mut helpers {
        helper.tell(&format!("count {EACH} {}", counter.display()));
    }
    for helper in &helpers {
        assert_eq!(helper.hear(), "counted");
    }
    let woken: u64 = helpers.iter().zip(before).map(|(helper, before)| wakes(helper.pid()) - before).sum();
    let acquisitions = processes * EACH;
    assert_eq!(fs::read_to_string(&counter).unwrap(), acquisitions.to_string());
    let tenths = 10 * woken / acquisitions as u64;
    println!(
        "{processes} processes, {acquisitions} acquisitions, woken {woken} times: {}.{} each",
        tenths / 10,
        tenths % 10
    );
    assert!(woken <= 2 * acquisitions as u64, "{woken} wake-ups for {acquisitions} acquisitions");
}

/// With a queue of processes, of which three that wait die first: whoever stood behind them is next all the same.
#[test]
fn a_death_is_noticed_at_once_however_many_wait() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let mut holder = Helper::start(&url, "holder");
    holder.does("lock x");
    let mut queue = VecDeque::new();
    for place in 0..size(24).max(12) {
        let mut waiter = Helper::start(&url, &place.to_string());
        assert_eq!(waiter.does("queue x"), "queued");
        queue.push_back(waiter);
    }
    for place in [2, 1, 0] {
        queue.remove(place).unwrap().kill();
    }
    let waiting = queue.len();
    let mut times = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        holder.kill();
        holder = queue.pop_front().unwrap();
        holder.hear().parse::<u64>().unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    println!("with {waiting} in the queue, from kill -9 to the next holder: {times:?}");
    // By the event, not by the look every second.
    assert!(times[3] < Duration::from_millis(400), "{times:?}");
}

#[tokio::test]
async fn a_killed_holder_is_noticed_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (_driver, session) = member(&url, "us").await;
    let mut times = Vec::new();
    for attempt in 1..=15 {
        let mut holder = Helper::start(&url, "holder");
        holder.does("lock x");
        let place = queued(&session, attempt, "x", Exclusive).await;
        let start = Instant::now();
        holder.kill();
        let grant = turn(&session, &place).await;
        times.push(start.elapsed());
        assert_eq!(grant.previous, Previous::Expired);
        session.locks().release(&grant, End::Clean).await.unwrap();
    }
    times.sort();
    println!("from kill -9 to the next holder: {times:?}");
    assert!(times[7] < Duration::from_millis(400), "{times:?}");
}
