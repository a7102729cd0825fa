//! Many who want one lock, each with a session of its own, so that each stands in the backend's queue.

use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use tooz_core::{Coordinator, LockGuard};
use tooz_servers::lab::size;
use tooz_servers::{Helper, block_on, say, told};

use super::backend::{Backend, LIMIT, connect};

/// How many there are unless more are asked for.
const SOME: usize = 60;
/// So long that no beat falls due in the middle of an ordinary run.
const TTL: Duration = Duration::from_mins(1);
/// How long a machine may stand still while the last few have their turns.
const STANDS_STILL: Duration = Duration::from_secs(3);
/// Whoever is killed blocks the others for no longer than this; or longer, where so many beat.
const SHORT_TTL: Duration = Duration::from_secs(5);

/// The helper's part: each connects, all ask at a word, and each gives it back as soon as it has it.
pub(crate) fn contend(url: &str, count: &str) {
    let count: usize = count.parse().unwrap();
    block_on(async {
        let mut all = Vec::new();
        // A few at a time: a thousand handshakes at once would be another test.
        for n in (0..count).step_by(5) {
            let connecting: Vec<_> = (n..count.min(n + 5))
                .map(|n| {
                    let (url, member) = (url.to_owned(), format!("{}-{n}", std::process::id()));
                    tokio::spawn(async move { connect(&url, &member).await })
                })
                .collect();
            for one in connecting {
                all.push(one.await.unwrap());
            }
        }
        say("ready");
        told();
        let asking: Vec<_> = all
            .iter()
            .map(|c| {
                let lock = c.lock("x").unwrap();
                tokio::spawn(async move {
                    let begin = Instant::now();
                    let guard = lock.acquire().await.unwrap();
                    say(&format!("{} {}", guard.token(), begin.elapsed().as_micros()));
                    guard.release().await.unwrap();
                })
            })
            .collect();
        for one in asking {
            one.await.unwrap();
        }
        say("done");
        told();
    });
}

/// Everybody in the queue, behind us.
struct Crowd {
    processes: Vec<Helper>,
    each: usize,
    eye: Coordinator,
    guard: LockGuard,
}

/// A turn: the token, and how long it was waited for.
type Turn = (u64, Duration);

impl Crowd {
    fn gather(backend: &Backend, ttl: Duration) -> Self {
        let wanted = size("TOOZ_CONTENDERS", SOME);
        let count = (wanted / 100).max((wanted / 10).clamp(1, 4));
        let each = wanted / count;
        let url = backend.url(ttl);
        let start = |_| Helper::part(&["contenders", &url, &each.to_string()]).unwrap();
        let mut processes: Vec<_> = (0..count).map(start).collect();
        for process in &mut processes {
            assert_eq!(process.hear().as_deref(), Some("ready"));
        }
        let (eye, guard) = block_on(async {
            let eye = connect(&url, "eye").await;
            let guard = eye.lock("x").unwrap().acquire().await.unwrap();
            (eye, guard)
        });
        let mut crowd = Self { processes, each, eye, guard };
        for process in &mut crowd.processes {
            process.tell("go").unwrap();
        }
        wait_for(&crowd.eye, crowd.count());
        crowd
    }

    fn count(&self) -> usize {
        self.processes.len() * self.each
    }

    /// Lets them go. When a third has had its turn, so many processes that are not done are killed.
    fn go(self, kill: usize) -> Vec<Turn> {
        let (total, Self { mut processes, eye, guard, .. }) = (self.count(), self);
        let mut working: BTreeSet<usize> = (0..processes.len()).collect();
        let (sender, lines) = channel();
        for (n, process) in processes.iter_mut().enumerate() {
            let (sender, lines) = (sender.clone(), process.lines());
            std::thread::spawn(move || {
                for line in lines {
                    // Nobody listens when the test has failed.
                    let _ = sender.send((n, line));
                }
            });
        }
        block_on(guard.release()).unwrap();
        let mut turns = Vec::new();
        while !working.is_empty() {
            let (n, line): (usize, String) = lines.recv_timeout(LIMIT).unwrap();
            let Some((token, waited)) = line.split_once(' ') else {
                assert_eq!(line, "done");
                working.remove(&n);
                continue;
            };
            turns.push((token.parse().unwrap(), Duration::from_micros(waited.parse().unwrap())));
            if turns.len() == total / 3 {
                // One of them is at the front of the queue, and the others stand in it.
                assert!(working.len() > kill, "most were done before anybody was killed");
                for victim in working.iter().copied().take(kill).collect::<Vec<_>>() {
                    processes[victim].kill().unwrap();
                    working.remove(&victim);
                }
            }
        }
        wait_for(&eye, 0);
        turns
    }
}

/// Until so many wait; until nobody even holds it, if none is to wait.
fn wait_for(eye: &Coordinator, waiters: usize) {
    let begin = Instant::now();
    let lock = eye.lock("x").unwrap();
    loop {
        let Ok(found) = block_on(lock.holders()) else {
            assert!(begin.elapsed() < LIMIT, "the server does not answer");
            continue;
        };
        if found.waiters == u64::try_from(waiters).ok() && (waiters > 0 || found.holders.is_empty()) {
            return;
        }
        assert!(begin.elapsed() < LIMIT, "{waiters} should wait: {found:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// L8: one is woken at each release, in turn, and nobody waits much longer than the others.
pub(crate) fn woken_once(backend: &Backend) {
    let crowd = Crowd::gather(backend, TTL);
    let (total, processes) = (crowd.count(), crowd.processes.len());
    let count = backend.count();
    let begin = Instant::now();
    let turns = crowd.go(0);
    let took = begin.elapsed();
    let cost = count(total);
    let waits = fair(&turns, Duration::ZERO);
    println!(
        "{}: {total} contenders from {processes} processes had their turns in {took:.2?}: {cost}; {waits}",
        backend.name()
    );
    assert_eq!(turns.len(), total);
}

/// L8, S2: a third of the processes is killed in the middle; the others have their turns.
pub(crate) fn outlive(backend: &Backend) {
    let many = u64::try_from(size("TOOZ_CONTENDERS", SOME) / 50).unwrap();
    let ttl = SHORT_TTL.max(Duration::from_secs(many));
    let crowd = Crowd::gather(backend, ttl);
    let (total, processes, each) = (crowd.count(), crowd.processes.len(), crowd.each);
    let killed = (processes / 3).max(1);
    let turns = crowd.go(killed);
    let waits = fair(&turns, ttl);
    println!(
        "{}: {killed} of {processes} processes with {total} contenders killed, {} turns; {waits}",
        backend.name(),
        turns.len()
    );
    assert!(turns.len() >= total - killed * each, "somebody was left out");
}

/// Asserts that nobody starves, apart from having stood behind the dead for so long, and that no turn was had twice.
fn fair(turns: &[Turn], dead: Duration) -> String {
    let tokens: BTreeSet<u64> = turns.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens.len(), turns.len(), "two turns with one token");
    let longest = turns.iter().map(|(_, waited)| *waited).max().unwrap();
    let mean =
        turns.iter().map(|(_, waited)| *waited).sum::<Duration>() / u32::try_from(turns.len()).unwrap();
    assert!(
        longest <= mean * 3 + dead + STANDS_STILL,
        "somebody starved: {longest:?} where the mean is {mean:?}"
    );
    format!("longest wait {longest:.2?}, mean {mean:.2?}")
}
