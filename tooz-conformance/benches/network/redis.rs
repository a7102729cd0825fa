//! Redis by hand: a key with an expiry, given back by a script that compares.

use redis::aio::MultiplexedConnection;
use redis::{Client, cmd, pipe};
use tokio::runtime::Runtime;
use tooz_servers::redis::Redis;

use crate::Raw;

const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end";

#[derive(Clone)]
struct ByHand {
    connection: MultiplexedConnection,
    /// The name that the server gave the script.
    release: String,
}

impl Raw for ByHand {
    async fn acquire(&self, name: &str) {
        let mut command = cmd("SET");
        command.arg(name).arg("mine").arg("NX").arg("PX").arg(60_000);
        let done: Option<String> = command.query_async(&mut self.connection.clone()).await.unwrap();
        assert!(done.is_some());
    }

    async fn release(&self, name: &str) {
        let mut command = cmd("EVALSHA");
        command.arg(&self.release).arg(1).arg(name).arg("mine");
        let done: i64 = command.query_async(&mut self.connection.clone()).await.unwrap();
        assert_eq!(done, 1);
    }

    async fn write(&self) {
        let mut command = cmd("SET");
        command.arg("one").arg("x").exec_async(&mut self.connection.clone()).await.unwrap();
    }

    async fn prepare(&self, records: usize) {
        let mut all = pipe();
        for n in 0..records {
            all.cmd("HSET")
                .arg("records")
                .arg(format!("member-{n}"))
                .arg("about as long as a record of a member");
        }
        all.exec_async(&mut self.connection.clone()).await.unwrap();
    }

    async fn read_all(&self) -> usize {
        let mut command = cmd("HGETALL");
        command.arg("records");
        let all: Vec<(Vec<u8>, Vec<u8>)> = command.query_async(&mut self.connection.clone()).await.unwrap();
        all.len()
    }

    async fn prolong(&self, names: usize) {
        let mut all = pipe();
        for n in 0..names {
            all.cmd("PEXPIRE").arg(format!("prolonged-{n}")).arg(60_000);
        }
        all.exec_async(&mut self.connection.clone()).await.unwrap();
    }
}

pub(crate) fn run(runtime: &Runtime) {
    // Without the disk, which would cover whatever we cost.
    let redis = Redis::start_with(&["--appendonly", "no"]).unwrap();
    let address = redis.address().to_string();
    runtime.block_on(async {
        let client = Client::open(format!("redis://{address}")).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let release =
            cmd("SCRIPT").arg("LOAD").arg(RELEASE).query_async::<String>(&mut connection).await.unwrap();
        let by_hand = ByHand { connection, release };
        let mut names = pipe();
        for n in 0..crate::LOCKS {
            names.cmd("SET").arg(format!("prolonged-{n}")).arg("mine").arg("PX").arg(600_000);
        }
        names.exec_async(&mut by_hand.connection.clone()).await.unwrap();
        Box::pin(crate::compare("redis", &address, by_hand)).await;
    });
}
