//! On memcached: which names Python has, and whom it calls leader.

use serde_json::{Value, json};
use tooz_core::Capabilities;
use tooz_servers::memcached::{Memcached, program};

use super::stage::{Server, Stage, ids};

pub(crate) fn start() -> Result<Box<dyn Server>, String> {
    program()?;
    Ok(Box::new(Memcached::start()?))
}

impl Server for Memcached {
    fn rust(&self, ttl: u64) -> String {
        format!("memcached://{}?ttl={ttl}s", self.address())
    }

    fn python(&self) -> String {
        format!("memcached://{}?timeout=3", self.address())
    }

    fn enter(&self) -> bool {
        self.command(b"add inside 1 0 4\r\nrust\r\n").unwrap() == b"STORED\r\n"
    }

    fn leave(&self) {
        self.delete(b"inside").unwrap();
    }

    fn names(&self) -> &'static [&'static str] {
        &["x", "deep/er", "50%", "é", "a\x01b"]
    }
}

pub(crate) async fn either_knows_the_leader(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    let election = rust.election("g").unwrap();
    rust.group("g").unwrap().create().await.unwrap();
    assert_eq!(peer.does("leader g"), Value::Null);
    let lead = election.try_campaign().await.unwrap().unwrap();
    assert_eq!(peer.does("leader g"), json!("rust"));
    let leader = election.leader().await.unwrap().unwrap();
    assert_eq!(leader.term, Some(lead.term()));
    lead.resign().await.unwrap();
    assert_eq!(peer.does("leader g"), Value::Null);
    assert_eq!(peer.does("campaign g"), Value::Null);
    assert_eq!(peer.does("elect"), json!(1));
    let leader = election.leader().await.unwrap().unwrap();
    assert_eq!(leader.member.unwrap().as_bytes(), b"python");
}

/// Python refuses names that are no keys of memcached: with white space, and too long ones.
pub(crate) async fn names_that_python_cannot_have_are_ours_alone(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    for name in ["a b", "a\tb", &"x".repeat(250)] {
        let guard = rust.lock(name).unwrap().try_acquire().await.unwrap().unwrap();
        assert!(rust.lock(name).unwrap().try_acquire().await.unwrap().is_none(), "{name}");
        let refused = peer.does(&format!("try {name}"));
        assert!(refused.get("error").is_some(), "{name}: {refused}");
        guard.release().await.unwrap();
    }
}

pub(crate) async fn names_that_meet_pythons_own_are_not_shared(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    rust.group("g").unwrap().create().await.unwrap();
    let _guard = rust.lock("_TOOZ_GROUP_LEADER_g").unwrap().try_acquire().await.unwrap().unwrap();
    assert_eq!(peer.does("leader g"), Value::Null);
    let lead = rust.election("g").unwrap().try_campaign().await.unwrap();
    lead.expect("a lock is in the election's way").resign().await.unwrap();
    // Python's list of groups stands where a group of this name would.
    let list = rust.group("LIST").unwrap();
    list.join_or_create(Capabilities::none()).await.unwrap();
    assert!(peer.does("groups").as_array().unwrap().contains(&json!("g")));
    assert_eq!(peer.does("create theirs"), Value::Null);
    assert_eq!(ids(&list.members().await.unwrap()), ["rust"]);
    let mut groups: Vec<_> = rust.groups().await.unwrap().iter().map(ToString::to_string).collect();
    groups.sort();
    assert_eq!(groups, ["LIST", "g", "theirs"]);
    list.leave().await.unwrap();
    list.delete().await.unwrap();
    assert_eq!(peer.does("groups"), json!(["g", "theirs"]));
}
