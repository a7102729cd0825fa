//! On Redis: what has names of Python's own there.

use serde_json::json;
use tooz_core::Capabilities;
use tooz_servers::redis::{Redis, program};

use super::stage::{Server, Stage};

pub(crate) fn start() -> Result<Box<dyn Server>, String> {
    program()?;
    Ok(Box::new(Redis::start()?))
}

impl Server for Redis {
    fn rust(&self, ttl: u64) -> String {
        format!("redis://{}?ttl={ttl}s", self.address())
    }

    fn python(&self) -> String {
        format!("redis://{}?timeout=3", self.address())
    }

    fn enter(&self) -> bool {
        self.command(&[b"SET", b"inside", b"rust", b"NX"]).unwrap() == b"+OK\r\n"
    }

    fn leave(&self) {
        self.command(&[b"DEL", b"inside"]).unwrap();
    }
}

pub(crate) async fn names_that_meet_pythons_own_are_not_shared(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    rust.group("g").unwrap().create().await.unwrap();
    for name in ["leader_of_g", "group:g", "beats:rust"] {
        let _guard = rust.lock(name).unwrap().try_acquire().await.unwrap().unwrap();
        assert_eq!(peer.does("groups"), json!(["g"]));
        let lead = rust.election("g").unwrap().try_campaign().await.unwrap();
        lead.expect("a lock is in the election's way").resign().await.unwrap();
    }
    let there: Result<(), tooz_core::Error> = rust.group("g").unwrap().join(Capabilities::none()).await;
    there.unwrap();
    assert_eq!(peer.does("members g"), json!(["rust"]));
}
