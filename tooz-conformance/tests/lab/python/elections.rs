//! What holds where Python's locks can be broken, and where it has elections.

use serde_json::{Value, json};
use tooz_core::{Capabilities, LossReason};

use super::stage::{SOON, Stage, eventually, ids, is_nobody_or_python};

pub(crate) async fn either_can_break_the_others_lock(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    assert_eq!(peer.does("try x"), json!(true));
    assert_eq!(rust.lock("x").unwrap().break_lock("it hangs").await.unwrap().len(), 1);
    assert_eq!(peer.does("owns x"), json!(false));
    let guard = rust.lock("x").unwrap().try_acquire().await.unwrap().unwrap();
    // As Python's break_: the key is deleted, without a word.
    assert_eq!(peer.does("break x"), Value::Null);
    let why = tokio::time::timeout(SOON, guard.lost()).await.unwrap();
    assert_eq!(why, LossReason::Vanished);
}

pub(crate) async fn an_election_is_shared(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    rust.group("g").unwrap().create().await.unwrap();
    assert_eq!(peer.does("campaign g"), Value::Null);
    let lead = rust.election("g").unwrap().try_campaign().await.unwrap().unwrap();
    assert_eq!(peer.does("elect"), json!(0));
    lead.resign().await.unwrap();
    assert_eq!(peer.does("elect"), json!(1));
    assert!(rust.election("g").unwrap().try_campaign().await.unwrap().is_none());
    let leader = rust.election("g").unwrap().leader().await.unwrap().unwrap();
    assert!(is_nobody_or_python(leader.member.as_ref()) && leader.term.is_none(), "{leader:?}");
    drop(peer);
    let lead = tokio::time::timeout(SOON, rust.election("g").unwrap().campaign()).await.unwrap();
    assert!(lead.unwrap().is_held());
}

/// A member that Python took out when it died may come again as one of Python's own, and Python lists the groups of both.
pub(crate) async fn what_python_took_out_may_come_again(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    let group = rust.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    assert_eq!(peer.does("create theirs"), Value::Null);
    assert_eq!(peer.does("groups"), json!(["g", "theirs"]));
    let dead = stage.dead().await;
    dead.group("g").unwrap().join(Capabilities::none()).await.unwrap();
    eventually("Python sees it go", async || peer.does("members g") == json!(["rust"])).await;
    drop(dead);
    let mut heir = stage.python("dead");
    assert_eq!(heir.does("join g"), Value::Null);
    eventually("Rust sees the heir", async || ids(&group.members().await.unwrap()) == ["dead", "rust"]).await;
}
