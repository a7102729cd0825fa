//! What a server loses: scripts, messages, keys, memory.

use std::time::Duration;

use tooz_core::{Capabilities, Coordinator, ErrorKind, Liveness, LossReason};
use tooz_servers::redis::Redis;

use super::{PATIENT, SOON, connect, eventually, url, wait_for};
use crate::within;

/// A server that forgot the scripts is told them again, by every kind of call.
pub(super) async fn forgotten_scripts_are_told_again() {
    let redis = server!();
    let a = connect(&redis, "6s", "a").await;
    let group = a.group("g").unwrap();
    let flush = || drop(redis.command(&[b"SCRIPT", b"FLUSH"]).unwrap());
    flush();
    let guard = a.lock("x").unwrap().try_acquire().await.unwrap().unwrap();
    flush();
    group.join_or_create(Capabilities::none()).await.unwrap();
    flush();
    tokio::time::sleep(Duration::from_secs(3)).await; // beats
    flush();
    assert_eq!(group.members().await.unwrap().len(), 1);
    assert!(guard.is_held());
    flush();
    guard.release().await.unwrap();
    flush();
    a.raise_tokens(1).await.unwrap();
    flush();
    a.close().await.unwrap();
}

/// A hand-over whose message is lost is found out.
pub(super) async fn a_lost_message_delays_a_hand_over_and_no_more() {
    let redis = server!();
    // So long that no beat and no look at a holder's end comes to help.
    let (a, b) = (connect(&redis, "60s", "a").await, connect(&redis, "60s", "b").await);
    for _ in 0..5 {
        let guard = a.lock("x").unwrap().acquire().await.unwrap();
        let waiting = wait_for(&b, "x", 0).await;
        redis.command(&[b"CLIENT", b"KILL", b"TYPE", b"pubsub"]).unwrap();
        guard.release().await.unwrap();
        let next = within("the hand-over", SOON, waiting).await.unwrap();
        assert!(next.is_held());
        next.release().await.unwrap();
    }
}

/// Whoever waited in a queue that was wiped queues again; nobody needs to let go for that.
pub(super) async fn a_wiped_queue_is_queued_in_again() {
    let redis = server!();
    let (a, b) = (connect(&redis, PATIENT, "a").await, connect(&redis, PATIENT, "b").await);
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let waiting = wait_for(&b, "x", 0).await;
    redis.command(&[b"DEL", b"_tooz_rs:lock:x:q", b"_tooz_rs:lock:x:w"]).unwrap();
    eventually("it waits again", async || a.lock("x").unwrap().holders().await.unwrap().waiters == Some(1))
        .await;
    guard.release().await.unwrap();
    assert!(within("the hand-over", SOON, waiting).await.unwrap().is_held());
}

/// X7: what says that sessions live says in which layout they work, too.
pub(super) async fn a_deleted_stamp_is_not_replaced_beside_another_layout() {
    let redis = server!();
    let _a = connect(&redis, PATIENT, "a").await;
    redis.command(&[b"DEL", b"_tooz_rs:epoch"]).unwrap();
    let later = Coordinator::builder(url(&redis, PATIENT), "b").option("layout", "1000");
    let error = later.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
    let _c = connect(&redis, PATIENT, "c").await;
}

/// Data that is gone is noticed at somebody's next beat, and told to all the others by a message; tokens grow all the same.
pub(super) async fn lost_data_is_noticed_and_tokens_grow() {
    let redis = server!();
    let (a, b) = (connect(&redis, "60s", "a").await, connect(&redis, "6s", "b").await);
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let waiting = wait_for(&b, "x", 0).await;
    redis.command(&[b"FLUSHALL"]).unwrap();
    assert_eq!(within("the loss", SOON, guard.lost()).await, LossReason::Vanished);
    let next = within("the lock", SOON, waiting).await.unwrap();
    assert!(next.token() > guard.token());
    // The counter alone is lost, too.
    redis.command(&[b"DEL", b"_tooz_rs:fence"]).unwrap();
    let last = next.token();
    next.release().await.unwrap();
    assert!(a.lock("y").unwrap().acquire().await.unwrap().token() > last);
}

/// What is held stays held in a server without memory, and can be given back; nothing new is promised.
pub(super) async fn a_full_server_keeps_what_it_has() {
    let redis = server!();
    let a = connect(&redis, "4s", "a").await;
    a.group("g").unwrap().join_or_create(Capabilities::none()).await.unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    redis.command(&[b"CONFIG", b"SET", b"maxmemory", b"1"]).unwrap();
    let error = a.lock("y").unwrap().try_acquire().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && !error.is_indeterminate(), "{error}");
    assert!(error.to_string().contains("maxmemory"), "{error}");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(guard.is_held() && matches!(a.liveness(), Liveness::Alive { .. }));
    guard.release().await.unwrap();
    a.group("g").unwrap().leave().await.unwrap();
    redis.command(&[b"CONFIG", b"SET", b"maxmemory", b"0"]).unwrap();
    assert!(a.lock("y").unwrap().try_acquire().await.unwrap().is_some());
}
