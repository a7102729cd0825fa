//! etcd by hand: a key with a lease, put when it is not there and deleted when it is ours.

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use tokio::runtime::Runtime;
use tooz_servers::etcd::Etcd;

use crate::Raw;

#[derive(Clone)]
struct ByHand {
    client: Client,
    lease: i64,
}

impl Raw for ByHand {
    async fn acquire(&self, name: &str) {
        let put = TxnOp::put(name, "mine", Some(PutOptions::new().with_lease(self.lease)));
        let txn = Txn::new().when([Compare::create_revision(name, CompareOp::Equal, 0)]).and_then([put]);
        assert!(self.client.kv_client().txn(txn).await.unwrap().succeeded());
    }

    async fn release(&self, name: &str) {
        let txn = Txn::new()
            .when([Compare::value(name, CompareOp::Equal, "mine")])
            .and_then([TxnOp::delete(name, None)]);
        assert!(self.client.kv_client().txn(txn).await.unwrap().succeeded());
    }

    async fn write(&self) {
        self.client.kv_client().put("one", "x", None).await.unwrap();
    }

    async fn prepare(&self, records: usize) {
        for n in 0..records {
            let value = "about as long as a record of a member";
            self.client.kv_client().put(format!("records/member-{n}"), value, None).await.unwrap();
        }
    }

    async fn read_all(&self) -> usize {
        let all =
            self.client.kv_client().get("records/", Some(GetOptions::new().with_prefix())).await.unwrap();
        all.kvs().len()
    }

    /// Whatever hangs on a lease is prolonged with it; whether it is still there is not looked at.
    async fn prolong(&self, _: usize) {
        let (mut keeper, mut answers) = self.client.lease_client().keep_alive(self.lease).await.unwrap();
        keeper.keep_alive().await.unwrap();
        assert!(answers.message().await.unwrap().unwrap().ttl() > 0);
    }
}

pub(crate) fn run(runtime: &Runtime) {
    let etcd = Etcd::start().unwrap();
    let address = etcd.address().to_string();
    runtime.block_on(async {
        let mut client = Client::connect([format!("http://{address}")], None).await.unwrap();
        let lease = client.lease_grant(600, None).await.unwrap().id();
        Box::pin(crate::compare("etcd", &address, ByHand { client, lease })).await;
    });
}
