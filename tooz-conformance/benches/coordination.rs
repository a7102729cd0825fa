//! What coordination costs, as ratios to the same work done by hand in the same run, since machines are noisy.
//!
//! `cargo bench -p tooz-conformance`. Every figure is the median of several rounds; nothing here passes or fails.
#![allow(clippy::disallowed_methods, clippy::print_stdout)] // a benchmark reads clocks and prints

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};
use tooz_core::{Coordinator, Result, Runtime};

const ROUNDS: usize = 7;

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn micros(duration: Duration, operations: u32) -> f64 {
    duration.as_secs_f64() * 1e6 / f64::from(operations)
}

/// What a program without tooz would write: one table of holders, one row with the next token.
struct ByHand(Connection);

impl ByHand {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.busy_timeout(Duration::from_mins(1))?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS holder (name BLOB PRIMARY KEY, owner TEXT NOT NULL, token INTEGER NOT NULL);
             CREATE TABLE IF NOT EXISTS fence (next INTEGER NOT NULL);
             INSERT INTO fence SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM fence);",
        )?;
        Ok(Self(connection))
    }

    fn acquire(&mut self, name: &[u8], owner: &str) -> rusqlite::Result<u64> {
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let token = transaction
            .prepare_cached("UPDATE fence SET next = next + 1 RETURNING next")?
            .query_row([], |row| row.get(0))?;
        transaction
            .prepare_cached("INSERT INTO holder (name, owner, token) VALUES (?1, ?2, ?3)")?
            .execute((name, owner, token))?;
        transaction.commit()?;
        Ok(token)
    }

    fn release(&mut self, name: &[u8], owner: &str) -> rusqlite::Result<usize> {
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let released = transaction
            .prepare_cached("DELETE FROM holder WHERE name = ?1 AND owner = ?2")?
            .execute((name, owner))?;
        transaction.commit()?;
        Ok(released)
    }
}

async fn pairs(coordinator: &Coordinator, name: &str, count: u32) -> Result<Duration> {
    let lock = coordinator.lock(name)?;
    let start = Instant::now();
    for _ in 0..count {
        lock.acquire().await?.release().await?;
    }
    Ok(start.elapsed())
}

async fn many_pairs(coordinator: &Coordinator, tasks: u32, count: u32) -> Result<Duration> {
    let start = Instant::now();
    let tasks: Vec<_> = (0..tasks)
        .map(|task| {
            let coordinator = coordinator.clone();
            tokio::spawn(async move { pairs(&coordinator, &format!("task-{task}"), count).await })
        })
        .collect();
    for task in tasks {
        task.await.expect("a benchmark task does not panic")?;
    }
    Ok(start.elapsed())
}

async fn sqlite(directory: &Path) -> Result<()> {
    let url = |name: &str| format!("sqlite://{}/{name}.db", directory.display());
    let library = Coordinator::builder(url("a"), "bench").connect().await?;
    let current = Coordinator::builder(url("b"), "bench").runtime(Runtime::Current).connect().await?;
    let mut hand = ByHand::open(&directory.join("hand.db")).expect("a database by hand");
    let (mut by_hand, mut ours, mut on_current) = (Vec::new(), Vec::new(), Vec::new());
    let (mut hand_64, mut ours_64) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..2_000 {
            hand.acquire(b"one", "bench").expect("acquired by hand");
            hand.release(b"one", "bench").expect("released by hand");
        }
        by_hand.push(micros(start.elapsed(), 2_000));
        ours.push(micros(pairs(&library, "one", 2_000).await?, 2_000));
        on_current.push(micros(pairs(&current, "one", 2_000).await?, 2_000));

        let shared =
            Arc::new(std::sync::Mutex::new(ByHand::open(&directory.join("hand.db")).expect("by hand")));
        let start = Instant::now();
        let threads: Vec<_> = (0..64)
            .map(|thread| {
                let shared = Arc::clone(&shared);
                // One connection behind a mutex: 64 of them would only wait for each other's write lock longer.
                tokio::task::spawn_blocking(move || {
                    let name = format!("task-{thread}");
                    for _ in 0..100 {
                        let acquired = shared.lock().expect("not poisoned").acquire(name.as_bytes(), "bench");
                        acquired.expect("acquired by hand");
                        let released = shared.lock().expect("not poisoned").release(name.as_bytes(), "bench");
                        released.expect("released by hand");
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.await.expect("a benchmark thread does not panic");
        }
        hand_64.push(micros(start.elapsed(), 6_400));
        ours_64.push(micros(many_pairs(&library, 64, 100).await?, 6_400));
    }
    let (by_hand, ours, on_current) = (median(by_hand), median(ours), median(on_current));
    let (hand_64, ours_64) = (median(hand_64), median(ours_64));
    println!("sqlite, acquire + release, one task");
    println!("  by hand                     {by_hand:8.1} µs");
    println!("  library thread              {ours:8.1} µs   {:.2} x by hand", ours / by_hand);
    println!("  Runtime::Current            {on_current:8.1} µs   {:.2} x by hand", on_current / by_hand);
    println!("sqlite, acquire + release, 64 tasks, each its own name");
    println!("  by hand, one connection     {hand_64:8.1} µs");
    println!("  library thread              {ours_64:8.1} µs   {:.2} x by hand", ours_64 / hand_64);
    contended("sqlite", &library).await?;
    library.close().await?;
    current.close().await
}

/// A thousand tasks of one process on one name.
async fn contended(backend: &str, coordinator: &Coordinator) -> Result<()> {
    let start = Instant::now();
    let tasks: Vec<_> = (0..1_000)
        .map(|_| {
            let coordinator = coordinator.clone();
            tokio::spawn(async move {
                let begin = Instant::now();
                let guard = coordinator.lock("contended")?.acquire().await?;
                let waited = begin.elapsed();
                guard.release().await?;
                Ok::<_, tooz_core::Error>(waited)
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.push(task.await.expect("a benchmark task does not panic")?);
    }
    let took = start.elapsed();
    let longest = waits.iter().max().copied().unwrap_or_default();
    let mean = waits.iter().sum::<Duration>() / 1_000;
    println!(
        "{backend}, 1000 tasks on one name: {:.0} grants/s, longest wait {:.1} ms, mean {:.1} ms",
        1_000.0 / took.as_secs_f64(),
        longest.as_secs_f64() * 1e3,
        mean.as_secs_f64() * 1e3
    );
    Ok(())
}

async fn memory() -> Result<()> {
    let library = Coordinator::builder("memory://bench", "a").connect().await?;
    let current = Coordinator::builder("memory://bench", "b").runtime(Runtime::Current).connect().await?;
    let (mut ours, mut on_current) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(micros(pairs(&library, "x", 10_000).await?, 10_000));
        on_current.push(micros(pairs(&current, "y", 10_000).await?, 10_000));
    }
    let (ours, on_current) = (median(ours), median(on_current));
    println!("memory, acquire + release");
    println!("  library thread              {ours:8.2} µs");
    println!(
        "  Runtime::Current            {on_current:8.2} µs   the library thread costs {:.2} x",
        ours / on_current
    );
    contended("memory", &library).await?;
    library.close().await?;
    current.close().await
}

/// One beat of a session with many locks.
async fn heartbeat() -> Result<()> {
    let coordinator =
        Coordinator::builder("memory://beats", "a").ttl(Duration::from_mins(1)).connect().await?;
    let beat = async |held: usize| -> Result<f64> {
        let mut figures = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            coordinator.heartbeat().await?;
            figures.push(micros(start.elapsed(), 1));
        }
        let figure = median(figures);
        println!("memory+ttl, one heartbeat with {held:6} locks held: {figure:8.1} µs");
        Ok(figure)
    };
    beat(0).await?;
    let mut guards = Vec::new();
    for index in 0..10_000 {
        guards.push(coordinator.lock(format!("lock-{index}"))?.acquire().await?);
    }
    beat(guards.len()).await?;
    coordinator.close().await
}

fn main() -> Result<()> {
    use tooz_memory as _;
    use tooz_sqlite as _;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        memory().await?;
        heartbeat().await?;
        sqlite(directory.path()).await
    })
}
