//! memcached by hand: a key with an expiry, added when it is not there and deleted.

use memcache::exp::{AsyncMetaClient, Get, Set, Ttl};
use tokio::runtime::Runtime;
use tooz_servers::memcached::Memcached;

use crate::Raw;

/// Seconds that nothing outlives.
const WHILE: u32 = 600;

#[derive(Clone)]
struct ByHand {
    client: AsyncMetaClient,
}

fn record(n: usize) -> String {
    format!("record-{n}")
}

fn prolonged(n: usize) -> String {
    format!("prolonged-{n}")
}

impl ByHand {
    /// Stores them in one batch.
    async fn store(&self, name: fn(usize) -> String, count: usize, value: &str) {
        let all = (0..count).map(|n| Set::new(name(n), value).ttl(Ttl::secs(WHILE)));
        let stored = self.client.run_many(all).await.unwrap();
        assert!(stored.into_iter().all(|one| one.unwrap().applied()));
    }
}

impl Raw for ByHand {
    async fn acquire(&self, name: &str) {
        let add = self.client.set(name, "mine").ttl(Ttl::secs(60)).add();
        assert!(add.send().await.unwrap().applied());
    }

    async fn release(&self, name: &str) {
        assert!(self.client.delete(name).send().await.unwrap().applied());
    }

    async fn write(&self) {
        let set = self.client.set("one", "x").ttl(Ttl::secs(WHILE));
        assert!(set.send().await.unwrap().applied());
    }

    async fn prepare(&self, records: usize) {
        self.store(record, records, "about as long as a record of a member").await;
    }

    async fn read_all(&self) -> usize {
        let all = self.client.run_many((0..crate::MEMBERS).map(|n| Get::new(record(n)))).await.unwrap();
        all.into_iter().filter(|one| one.as_ref().unwrap().hit()).count()
    }

    async fn prolong(&self, names: usize) {
        let all = (0..names).map(|n| Get::new(prolonged(n)).without_value().touch(Ttl::secs(WHILE)));
        let done = self.client.run_many(all).await.unwrap();
        assert!(done.into_iter().all(|one| one.unwrap().hit()));
    }
}

pub(crate) fn run(runtime: &Runtime) {
    // Each member has a connection of its own.
    let memcached = Memcached::start_with(&["-c", "4096"]).unwrap();
    let address = memcached.address().to_string();
    runtime.block_on(async {
        let by_hand = ByHand { client: AsyncMetaClient::connect(&*address).await.unwrap() };
        by_hand.store(prolonged, crate::LOCKS, "mine").await;
        Box::pin(crate::compare("memcached", &address, by_hand)).await;
    });
}
