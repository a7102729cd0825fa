//! On etcd: what is otherwise there.

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use serde_json::json;
use tooz_core::{ErrorKind, LossReason};
use tooz_servers::etcd::{Etcd, program};

use super::stage::{SOON, Server, Stage};

pub(crate) fn start() -> Result<Box<dyn Server>, String> {
    program()?;
    Ok(Box::new(Etcd::start()?))
}

impl Server for Etcd {
    fn rust(&self, ttl: u64) -> String {
        format!("etcd://{}?ttl={ttl}s", self.address())
    }

    fn python(&self) -> String {
        format!("etcd3+http://{}?lock_timeout=4&membership_timeout=4", self.address())
    }

    fn enter(&self) -> bool {
        let missing = Compare::create_revision("inside", CompareOp::Equal, 0);
        let txn = Txn::new().when([missing]).and_then([TxnOp::put("inside", "rust", None)]);
        self.ask(|mut client| async move { client.txn(txn).await }).unwrap().succeeded()
    }

    fn leave(&self) {
        self.ask(|mut client| async move { client.delete("inside", None).await }).unwrap();
    }
}

pub(crate) async fn breaking_is_heard_or_refused(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    assert_eq!(peer.does("try x"), json!(true));
    let error = rust.lock("x").unwrap().break_lock("it hangs").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HolderUnresponsive);
    assert!(error.to_string().contains("/tooz/locksx"), "{error}");
    assert_eq!(peer.does("release x"), json!(true));
    let guard = rust.lock("x").unwrap().try_acquire().await.unwrap().unwrap();
    peer.does("break x");
    let why = tokio::time::timeout(SOON, guard.lost()).await.unwrap();
    assert_eq!(why, LossReason::Vanished);
    // Nothing of it is in anybody's way.
    assert!(rust.lock("x").unwrap().acquire().await.unwrap().is_held());
}
