//! Acquire and release against the same two transactions written by hand with rusqlite, and a name that many wait for.
//!
//! Run it on a quiet machine and beside as many busy processes as there are processors.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs)] // it measures time

use std::sync::Arc;
use std::time::{Duration, Instant};

use tooz_core::driver::{
    Acquire, Acquired, AttemptId, Clock, Connect, Context, Entropy, InstanceId, LockKey, LockMode,
    OpenSession, Session, Spawner,
};
use tooz_core::{BackendUrl, Coordinator, LockName, MemberId, Runtime};

fn by_hand(directory: &std::path::Path, rounds: u32) -> Duration {
    let mut connection = rusqlite::Connection::open(directory.join("hand.db")).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.pragma_update(None, "synchronous", "NORMAL").unwrap();
    connection
        .execute_batch("CREATE TABLE l (name TEXT PRIMARY KEY, owner TEXT, token INTEGER) WITHOUT ROWID")
        .unwrap();
    let start = Instant::now();
    for _ in 0..rounds {
        let immediate = rusqlite::TransactionBehavior::Immediate;
        let transaction = connection.transaction_with_behavior(immediate).unwrap();
        transaction.prepare_cached("INSERT INTO l VALUES ('x', 'me', 1)").unwrap().execute([]).unwrap();
        transaction.commit().unwrap();
        let transaction = connection.transaction_with_behavior(immediate).unwrap();
        transaction
            .prepare_cached("DELETE FROM l WHERE name = 'x' AND owner = 'me'")
            .unwrap()
            .execute([])
            .unwrap();
        transaction.commit().unwrap();
    }
    start.elapsed() / rounds
}

async fn pair(session: &Arc<dyn Session>, name: &str, attempt: u128) {
    let key = LockKey::Named(LockName::new(name).unwrap());
    let request = Acquire::new(AttemptId(attempt), key, LockMode::Exclusive);
    let Acquired::Granted(grant) = session.locks().request(&request).await.unwrap() else {
        panic!("it is not contended")
    };
    session.locks().release(&grant, tooz_core::driver::End::Clean).await.unwrap();
}

/// Tasks of one coordinator on one name; how long a grant takes.
async fn contended(coordinator: &Coordinator, tasks: u32) -> Duration {
    let start = Instant::now();
    let mut set = tokio::task::JoinSet::new();
    for _ in 0..tasks {
        let lock = coordinator.lock("contended").unwrap();
        set.spawn(async move { lock.acquire().await.unwrap().release().await.unwrap() });
    }
    while let Some(done) = set.join_next().await {
        done.unwrap();
    }
    start.elapsed() / tasks
}

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let context = Context::new(Clock::boot(), Entropy::system(), Spawner::new(Runtime::Library).unwrap());
    let url = BackendUrl::parse(&format!("sqlite://{}/tooz.db", directory.path().display())).unwrap();
    let driver = runtime.block_on(tooz_sqlite::connect(Connect::new(url, context).unwrap())).unwrap();
    let opening = OpenSession::new(MemberId::new("m").unwrap(), InstanceId(1));
    let session = runtime.block_on(driver.open_session(&opening)).unwrap();
    let coordinator = Coordinator::builder(format!("sqlite://{}/tooz.db", directory.path().display()), "c");
    let coordinator = runtime.block_on(coordinator.connect()).unwrap();
    for round in 0..5_u128 {
        let rounds = 5_000;
        let hand = by_hand(tempfile::tempdir().unwrap().path(), rounds);
        let ours = {
            let start = Instant::now();
            runtime.block_on(async {
                for attempt in 0..rounds {
                    pair(&session, "x", (round << 64) + u128::from(attempt) + 1).await;
                }
            });
            start.elapsed() / rounds
        };
        let tasks = 64_u32;
        let many = {
            let start = Instant::now();
            runtime.block_on(async {
                let mut set = tokio::task::JoinSet::new();
                for task in 0..tasks {
                    let session = session.clone();
                    set.spawn(async move {
                        for attempt in 0..500_u32 {
                            let id = (u128::from(task) << 100) + (round << 64) + u128::from(attempt) + 1;
                            pair(&session, &format!("x{task}"), id).await;
                        }
                    });
                }
                while let Some(done) = set.join_next().await {
                    done.unwrap();
                }
            });
            start.elapsed() / (tasks * 500)
        };
        let grant = runtime.block_on(contended(&coordinator, 1_000));
        println!(
            "by hand {hand:?} a pair; one task {ours:?} ({:.2}x); {tasks} tasks {many:?} ({:.2}x); \
             1000 tasks on one name {:.0} grants/s",
            ours.as_secs_f64() / hand.as_secs_f64(),
            many.as_secs_f64() / hand.as_secs_f64(),
            1.0 / grant.as_secs_f64()
        );
    }
}
