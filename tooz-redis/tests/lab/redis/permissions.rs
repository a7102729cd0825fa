//! What a user may do, and what a server's settings let the driver promise.

use std::time::Duration;

use tooz_core::{
    Capabilities, Characteristics, Coordinator, ErrorKind, Group, GroupEvent, LockGuard, Viewer,
};
use tooz_servers::redis::Redis;

use super::{PATIENT, SOON, connect, keys, url};
use crate::within;

/// A user with the permissions that the README names can do everything; without a password nobody can do anything.
pub(super) async fn users_and_permissions() {
    let redis = server!();
    // A new user of Redis 6.2 may use every channel, and then none can be added to them.
    let rules = "on >hunter2 ~_tooz_* resetchannels &_tooz_* -@all +@read +@write +@pubsub +@scripting +@connection \
                 +time -@dangerous";
    let words: Vec<_> =
        ["ACL", "SETUSER", "app"].into_iter().chain(rules.split(' ')).map(str::as_bytes).collect();
    assert_eq!(redis.command(&words).unwrap(), b"+OK\r\n");
    redis.command(&[b"ACL", b"SETUSER", b"default", b"off"]).unwrap();
    let address = redis.address();
    let good = format!("redis://app:hunter2@{address}?ttl=4s");
    let (a, b) = (
        Coordinator::builder(&good, "a").connect().await.unwrap(),
        Coordinator::builder(&good, "b").connect().await.unwrap(),
    );
    // What cannot be asked is not promised.
    assert!(!a.characteristics().contains(Characteristics::DURABLE_FENCING));
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    let mut watch = b.group("g").unwrap().watch().await.unwrap();
    assert!(watch.next().await.unwrap().is_ok());
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let lock = b.lock("x").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    tokio::time::sleep(Duration::from_secs(3)).await; // beats
    guard.release().await.unwrap();
    assert!(within("the hand-over", SOON, waiting).await.unwrap().is_held());
    for bad in ["redis://app:wrong@", "redis://nobody:hunter2@", "redis://:hunter2@", "redis://"] {
        let error = Coordinator::builder(format!("{bad}{address}"), "c").connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{bad}: {error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

/// A user with no more than what the README names for a view sees everything, and what writes is `Denied`.
pub(super) async fn a_user_who_may_only_read_looks() {
    let redis = server!();
    let a = connect(&redis, PATIENT, "a").await;
    let group = a.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let rules = "on >hunter2 resetkeys %R~_tooz_* resetchannels &_tooz_* -@all +@read +@connection +@scripting \
                 +subscribe +unsubscribe +time -@dangerous";
    let words: Vec<_> =
        ["ACL", "SETUSER", "eye"].into_iter().chain(rules.split(' ')).map(str::as_bytes).collect();
    assert_eq!(redis.command(&words).unwrap(), b"+OK\r\n");
    let reader = || Coordinator::builder(format!("redis://eye:hunter2@{}?ttl=4s", redis.address()), "eye");
    let keys_before = keys(&redis, "*").len();
    let viewer = reader().view().await.unwrap();
    sees_everything(&viewer, &group, &guard).await;
    assert_eq!(keys(&redis, "*").len(), keys_before);
    viewer.close().await.unwrap();
    // Forbidden to write keys, and then to call what writes, which only a script's command finds.
    for rules in ["+@read", "resetkeys ~_tooz_*"] {
        let words: Vec<_> =
            ["ACL", "SETUSER", "eye"].into_iter().chain(rules.split(' ')).map(str::as_bytes).collect();
        assert_eq!(redis.command(&words).unwrap(), b"+OK\r\n");
        let error = reader().connect().await.unwrap_err();
        assert!(error.kind() == ErrorKind::Denied && !error.is_indeterminate(), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

/// Where nothing can be written any more, what stands can be looked at.
pub(super) async fn a_full_server_can_be_looked_at() {
    let redis = server!();
    let a = connect(&redis, PATIENT, "a").await;
    let group = a.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    redis.command(&[b"SCRIPT", b"FLUSH"]).unwrap();
    redis.command(&[b"CONFIG", b"SET", b"maxmemory", b"1"]).unwrap();
    let error = Coordinator::builder(url(&redis, PATIENT), "eye").connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let viewer = Coordinator::builder(url(&redis, PATIENT), "eye").view().await.unwrap();
    sees_everything(&viewer, &group, &guard).await;
    viewer.close().await.unwrap();
}

/// Of a group `g` with the member `a` and a lock `x` that `a` holds.
async fn sees_everything(viewer: &Viewer, group: &Group, guard: &LockGuard) {
    assert_eq!(viewer.groups().await.unwrap(), [group.id().clone()]);
    assert_eq!(viewer.members("g").await.unwrap().len(), 1);
    let mut watch = viewer.watch("g").await.unwrap();
    assert!(matches!(watch.next().await.unwrap().unwrap(), GroupEvent::Snapshot(all) if all.len() == 1));
    let found = viewer.holders("x").await.unwrap();
    assert!(found.holders.len() == 1 && found.holders[0].token == Some(guard.token()), "{found:?}");
    assert!(viewer.leader("g").await.unwrap().is_none());
    let mut observer = viewer.observe("g").await.unwrap();
    assert!(observer.next().await.unwrap().unwrap().is_none());
    // Its ticks and what is published go on.
    group.leave().await.unwrap();
    let left = within("the leave", SOON, watch.next()).await.unwrap().unwrap();
    assert!(matches!(left, GroupEvent::Left(..)), "{left:?}");
    assert!(viewer.members("g").await.unwrap().is_empty());
}

/// What a server does not keep is not promised, and a server that cannot be one is refused.
pub(super) async fn the_server_lowers_what_is_promised() {
    let durable = Characteristics::DURABLE_FENCING;
    let redis = server!();
    assert!(connect(&redis, PATIENT, "a").await.characteristics().contains(durable));
    let refused = Coordinator::builder(url(&redis, PATIENT), "a")
        .require(Characteristics::LINEARIZABLE)
        .connect()
        .await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::MissingCharacteristic);
    redis.command(&[b"CONFIG", b"SET", b"appendfsync", b"everysec"]).unwrap();
    assert!(!connect(&redis, PATIENT, "a").await.characteristics().contains(durable));
    redis
        .command(&[b"CONFIG", b"SET", b"appendfsync", b"always", b"maxmemory-policy", b"allkeys-lru"])
        .unwrap();
    let refused = Coordinator::builder(url(&redis, PATIENT), "a").require(durable).connect().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::MissingCharacteristic);
    let port = redis.address().port().to_string();
    let replica = server!("--replicaof", "127.0.0.1", &port);
    let error = Coordinator::builder(url(&replica, PATIENT), "a").connect().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("replica"), "{error}");
    let node = server!("--cluster-enabled", "yes");
    let error = Coordinator::builder(url(&node, PATIENT), "a").connect().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("cluster"), "{error}");
    let gone = url(&replica, PATIENT);
    drop(replica);
    let error = Coordinator::builder(gone, "a").connect().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("refused"), "{error}");
}
