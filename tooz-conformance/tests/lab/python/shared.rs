//! What holds on every store that Python shares.

use std::time::Duration;

use serde_json::{Value, json};
use tooz_core::{Capabilities, Departure, ErrorKind, GroupEvent};

use super::stage::{SOON, Stage, eventually, ids, is_nobody_or_python};

pub(crate) async fn a_lock_excludes_both_ways(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    for name in stage.server.names() {
        let lock = rust.lock(*name).unwrap();
        for lock in [lock.clone(), lock.shared(), lock.permits(2).unwrap()] {
            let guard = lock.try_acquire().await.unwrap().unwrap();
            assert_eq!(peer.does(&format!("try {name}")), json!(false), "{name}");
            guard.release().await.unwrap();
            assert_eq!(peer.does(&format!("try {name}")), json!(true), "{name}");
            assert!(lock.try_acquire().await.unwrap().is_none(), "{name}");
            let holders = lock.holders().await.unwrap().holders;
            assert!(
                holders.len() == 1
                    && is_nobody_or_python(holders[0].member.as_ref())
                    && holders[0].token.is_none(),
                "{holders:?}"
            );
            assert_eq!(peer.does(&format!("release {name}")), json!(true));
        }
    }
}

pub(crate) async fn the_last_reader_keeps_python_out(stage: Stage) {
    let (a, b, mut peer) =
        (stage.rust_for(4, "a").await, stage.rust_for(4, "b").await, stage.python("python"));
    let one = a.lock("x").unwrap().shared().acquire().await.unwrap();
    let two = b.lock("x").unwrap().shared().acquire().await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await; // longer than the ttl: both are renewed
    one.release().await.unwrap();
    assert_eq!(peer.does("try x"), json!(false));
    assert!(two.is_held());
    two.release().await.unwrap();
    assert_eq!(peer.does("try x"), json!(true));
}

pub(crate) async fn each_waits_for_the_other(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    assert_eq!(peer.does("try x"), json!(true));
    let lock = rust.lock("x").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    // Where the server can say.
    eventually("it waits", async || {
        rust.lock("x").unwrap().holders().await.unwrap().waiters.is_none_or(|waiters| waiters == 1)
    })
    .await;
    for _ in 0..10 {
        peer.does("beat"); // Python's holder renews, and says nothing
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!waiting.is_finished());
    }
    assert_eq!(peer.does("release x"), json!(true));
    let guard = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    peer.tell("acquire x");
    tokio::time::sleep(Duration::from_millis(300)).await;
    guard.release().await.unwrap();
    assert_eq!(peer.hear(), json!(true));
}

pub(crate) async fn two_thousand_contended_acquisitions_do_not_overlap(stage: Stage) {
    const EACH: usize = 1000;
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    peer.tell(&format!("contend {EACH}"));
    let lock = rust.lock("contended").unwrap();
    let (mut overlaps, mut tokens) = (0, Vec::new());
    for n in 0..EACH {
        let guard = if n % 2 == 0 {
            lock.acquire().await.unwrap()
        } else {
            loop {
                if let Some(guard) = lock.try_acquire().await.unwrap() {
                    break guard;
                }
            }
        };
        overlaps += usize::from(!stage.server.enter());
        stage.server.leave();
        assert!(guard.is_held());
        tokens.push(guard.token());
        guard.release().await.unwrap();
    }
    let others = tokio::task::spawn_blocking(move || peer.hear()).await.unwrap();
    assert_eq!((overlaps, others), (0, json!(0)));
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "a token went back");
}

pub(crate) async fn a_python_holder_that_dies_is_waited_for(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    assert_eq!(peer.does("try x"), json!(true));
    drop(peer);
    let guard = tokio::time::timeout(SOON, rust.lock("x").unwrap().acquire()).await.unwrap().unwrap();
    assert!(guard.is_held());
}

pub(crate) async fn a_rust_holder_that_dies_is_waited_for(stage: Stage) {
    let mut peer = stage.python("python");
    let dead = stage.dead().await;
    let guard = dead.lock("x").unwrap().acquire().await.unwrap();
    let taken = tokio::task::spawn_blocking(move || peer.does("acquire x")).await.unwrap();
    assert_eq!(taken, json!(true));
    assert!(!guard.is_held(), "two holders");
}

/// How the member went, if that is the event.
fn departure(event: Option<&tooz_core::Result<GroupEvent>>, member: &[u8]) -> Option<Departure> {
    match event {
        Some(Ok(GroupEvent::Left(record, how))) if record.member.as_bytes() == member => Some(*how),
        _ => None,
    }
}

pub(crate) async fn groups_mix(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    assert_eq!(peer.does("create g"), Value::Null);
    assert_eq!(rust.group("g").unwrap().create().await.unwrap_err().kind(), ErrorKind::GroupExists);
    rust.group("ours").unwrap().create().await.unwrap();
    assert_eq!(peer.does("create ours"), json!({"error": "GroupAlreadyExist"}));
    assert_eq!(rust.groups().await.unwrap().len(), 2);

    let group = rust.group("g").unwrap();
    let mut watch = group.watch().await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Snapshot(members))) if members.is_empty()));
    assert_eq!(peer.does("join g"), Value::Null);
    assert!(
        matches!(watch.next().await, Some(Ok(GroupEvent::Joined(r))) if r.member.as_bytes() == b"python")
    );
    let capabilities = Capabilities::new(&json!({"from": "rust", "n": [1, 2.5, null]})).unwrap();
    group.join(capabilities).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Joined(r))) if r.member.as_bytes() == b"rust"));
    let both = json!({"python": {"from": "python"}, "rust": {"from": "rust", "n": [1, 2.5, null]}});
    assert_eq!(peer.does("capabilities g"), both);
    let theirs = group.member("python").await.unwrap();
    assert_eq!(theirs.capabilities.get::<Value>().unwrap(), json!({"from": "python"}));
    assert_eq!(theirs.joined_at, None);

    assert_eq!(peer.does("update g"), Value::Null);
    assert!(
        matches!(watch.next().await, Some(Ok(GroupEvent::Updated(r))) if r.member.as_bytes() == b"python")
    );
    group.update_capabilities(Capabilities::new(&json!({"weight": 7})).unwrap()).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Updated(r))) if r.member.as_bytes() == b"rust"));
    assert_eq!(peer.does("capabilities g")["rust"], json!({"weight": 7}));
    assert_eq!(peer.does("delete g"), json!({"error": "GroupNotEmpty"}));
    assert_eq!(group.delete().await.unwrap_err().kind(), ErrorKind::GroupNotEmpty);

    assert_eq!(peer.does("leave g"), Value::Null);
    assert_eq!(departure(watch.next().await.as_ref(), b"python"), Some(Departure::Unknown));
    group.leave().await.unwrap();
    assert_eq!(departure(watch.next().await.as_ref(), b"rust"), Some(Departure::Left));
    assert_eq!(peer.does("members g"), json!([]));
    assert_eq!(peer.does("delete g"), Value::Null);
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Deleted))));
    rust.group("ours").unwrap().delete().await.unwrap();
    assert!(rust.groups().await.unwrap().is_empty());
}

pub(crate) async fn members_are_seen_alive_and_dead(stage: Stage) {
    let (rust, mut peer) = (stage.rust("rust").await, stage.python("python"));
    let group = rust.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    assert_eq!(peer.does("join g"), Value::Null);
    // The same id is taken, whoever has it.
    let twin = stage.rust("python").await;
    let taken = twin.group("g").unwrap().join(Capabilities::none()).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::MemberExists);
    // While both beat, both stay, for longer than either waits for a beat.
    for _ in 0..12 {
        peer.does("beat");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(peer.does("members g"), json!(["python", "rust"]));
        assert_eq!(ids(&group.members().await.unwrap()), ["python", "rust"]);
    }
    // Python dies: Rust's watcher hears of it.
    let mut watch = group.watch().await.unwrap();
    drop(watch.next().await);
    drop(peer);
    let left = tokio::time::timeout(SOON, watch.next()).await.unwrap();
    let how = departure(left.as_ref(), b"python").unwrap_or_else(|| panic!("{left:?}"));
    assert_ne!(how, Departure::Left);
    twin.group("g").unwrap().join(Capabilities::none()).await.unwrap();

    // Rust dies: Python sees it go.
    let mut other = stage.python("other");
    let dead = stage.dead().await;
    dead.group("g").unwrap().join(Capabilities::none()).await.unwrap();
    assert_eq!(other.does("members g"), json!(["dead", "python", "rust"]));
    eventually("Python sees it go", async || other.does("members g") == json!(["python", "rust"])).await;
}
