//! Many rounds on few names, while beats, releases and requests of earlier holders arrive late.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tooz_core::driver::{LockMode, Released};
use tooz_core::{Coordinator, ErrorKind, FencingToken, LockGuard, LossSignal};
use tooz_servers::lab::Case;
use tooz_servers::memcached::Memcached;
use tooz_servers::{Proxy, cases};

use crate::stage::{PATIENT, connect, url, within};

pub(crate) const CASES: &[(&str, Case)] = cases![nobody_holds_beside_another];

const ROUNDS: u64 = 10_000;
/// So many grants are lost at least: without them nothing is late.
const LOST: u64 = 15;
const NAMES: u64 = 200;
/// How many coordinators are cut off again and again, and as many are not.
const CUT_OFF: usize = 3;
/// How many tasks of each take locks: of those that are cut off, and of the others, who have half of the names at any time.
const TASKS: [usize; 2] = [6, 40];

/// Who had a name last, as far as this process knows.
#[derive(Default)]
struct Name {
    /// The largest token of all, and of those that excluded everybody.
    largest: Option<FencingToken>,
    exclusive: Option<FencingToken>,
    holders: Vec<(FencingToken, LockMode, LossSignal)>,
}

#[derive(Default)]
struct Board {
    names: Vec<Mutex<Name>>,
    rounds: AtomicU64,
    /// Grants that were lost before they were given back.
    lost: AtomicU64,
}

impl Board {
    fn is_done(&self) -> bool {
        self.rounds.load(Ordering::Relaxed) >= ROUNDS && self.lost.load(Ordering::Relaxed) >= LOST
    }

    /// Takes down a grant, beside which there must be none but a reader's beside a reader's.
    fn granted(&self, name: usize, guard: &LockGuard) {
        let mut name = self.names[name].lock().unwrap();
        let reads = |mode: LockMode| mode == LockMode::Shared;
        let beside = |(_, mode, signal): &(_, LockMode, LossSignal)| {
            !(signal.is_lost() || reads(*mode) && reads(guard.mode()))
        };
        let beside = name.holders.iter().any(beside);
        // Asked afterwards: what is held now was held when the others were asked.
        if !guard.is_held() {
            return;
        }
        let (lock, token) = (guard.name(), guard.token());
        assert!(!beside, "{lock}: held twice at the same time");
        let before = if reads(guard.mode()) { name.exclusive } else { name.largest };
        assert!(before.is_none_or(|before| before < token), "{lock}: {token} after {before:?}");
        name.largest = name.largest.max(Some(token));
        if !reads(guard.mode()) {
            name.exclusive = Some(token);
        }
        name.holders.retain(|(_, _, signal)| !signal.is_lost());
        name.holders.push((token, guard.mode(), guard.loss_signal()));
    }

    fn gives_back(&self, name: usize, guard: &LockGuard) {
        let mut name = self.names[name].lock().unwrap();
        name.holders.retain(|(token, _, _)| *token != guard.token());
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Takes and gives back until there were enough rounds. `steady`: nothing is to go wrong.
async fn work(board: Arc<Board>, c: Coordinator, mut seed: u64, steady: bool) {
    while !board.is_done() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (name, wish) = ((seed >> 33) % NAMES, seed >> 60);
        let lock = c.lock(format!("n{name}")).unwrap();
        // A quarter of the names have readers, too.
        let reads = name.is_multiple_of(4) && !(seed >> 50).is_multiple_of(4);
        let lock = if reads { lock.shared() } else { lock };
        let name = usize::try_from(name).unwrap();
        let granted = if wish < 8 {
            lock.try_acquire().await
        } else {
            lock.acquire_within(Duration::from_millis(200)).await
        };
        let guard = match granted {
            Ok(Some(guard)) => guard,
            Ok(None) => continue,
            Err(error) => {
                // On a busy machine an answer may take longer than it was waited for.
                let is_late = wish >= 8 && error.kind() == ErrorKind::Unavailable && error.is_indeterminate();
                assert!(!steady || is_late, "{error}");
                continue;
            }
        };
        board.granted(name, &guard);
        // Work, during which others ask and beats go out.
        let work = if steady { wish * 7 } else { [3, 50, 1000][usize::try_from(wish % 3).unwrap()] };
        tokio::time::sleep(Duration::from_millis(work)).await;
        if !guard.is_held() {
            assert!(!steady, "{} was lost", guard.name());
            board.lost.fetch_add(1, Ordering::Relaxed);
        }
        board.gives_back(name, &guard);
        if wish % 4 == 0 {
            drop(guard);
        } else {
            let released = guard.release().await;
            assert!(!steady || matches!(released, Ok(Released::Released)), "{released:?}");
        }
    }
}

/// Cuts one off, again and again, for longer than its session lives, and lets everything late through afterwards.
async fn cut_off(board: Arc<Board>, proxy: Proxy) -> Proxy {
    for turn in 0.. {
        proxy.delay(Duration::from_millis(if turn % 2 == 0 { 15 } else { 0 }));
        tokio::time::sleep(Duration::from_millis(500)).await;
        if board.is_done() {
            break;
        }
        proxy.hold_both();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        proxy.heal();
    }
    proxy
}

async fn nobody_holds_beside_another() {
    let server = Memcached::start().unwrap();
    let names = (0..NAMES).map(|_| Mutex::default()).collect();
    let board = Arc::new(Board { names, ..Board::default() });
    let (mut workers, mut trouble) = (tokio::task::JoinSet::new(), Vec::new());
    for n in 0..2 * CUT_OFF {
        let steady = n >= CUT_OFF;
        let c = if steady {
            connect(server.address(), PATIENT, &format!("m{n}")).await
        } else {
            let proxy = Proxy::start(server.address()).unwrap();
            let builder = Coordinator::builder(url(proxy.address(), "1s"), format!("m{n}"));
            let c = builder.operation_timeout(Duration::from_secs(2)).connect().await.unwrap();
            trouble.push(tokio::spawn(cut_off(Arc::clone(&board), proxy)));
            c
        };
        for task in 0..TASKS[usize::from(steady)] {
            let seed = u64::try_from(n * 100 + task + 1).unwrap();
            workers.spawn(work(Arc::clone(&board), c.clone(), seed, steady));
        }
    }
    within("the rounds", 120, async {
        while let Some(ended) = workers.join_next().await {
            ended.unwrap();
        }
    })
    .await;
    for ended in trouble {
        ended.await.unwrap();
    }
    let refused = server.statistic("cas_badval").unwrap();
    assert!(refused >= 5, "only {refused} late stores found another item");
}
