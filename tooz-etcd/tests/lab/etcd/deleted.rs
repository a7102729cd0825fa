//! What somebody else deletes or ends, and what happens while nobody of us could hear of it.

use std::time::Duration;

use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, InstanceId, LockKey, LockMode, OpenSession, Previous, Released,
};
use tooz_core::{Capabilities, Coordinator, ErrorKind, GroupEvent, LockName, LossReason, MemberId};
use tooz_servers::etcd::Etcd;
use tooz_servers::{Proxy, eventually};

use super::{AT_ONCE, LIMIT, Outcome, connect, nobody_holds};

/// W1: history that was compacted away is replaced by a view.
pub(super) async fn compaction_is_followed_by_a_view() -> Outcome {
    let etcd = Etcd::start()?;
    let proxy = Proxy::start(etcd.address())?;
    let (a, b) =
        (connect(&proxy.address().to_string(), "a").await?, connect(&etcd.address().to_string(), "b").await?);
    a.group("g")?.create().await?;
    let mut watch = a.group("g")?.watch().await?;
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Snapshot(members))) if members.is_empty()));
    proxy.refuse();
    b.group("g")?.join(Capabilities::none()).await?;
    b.group("g")?.update_capabilities(Capabilities::new("new")?).await?;
    compact(&etcd)?;
    proxy.heal();
    let event = tokio::time::timeout(LIMIT, watch.next()).await?;
    let Some(Ok(GroupEvent::Resync(members))) = event else { panic!("{event:?}") };
    assert_eq!(members.len(), 1);
    a.close().await?;
    Ok(b.close().await?)
}

/// L7: a lease that somebody revoked ends the session at once, not at the next beat.
pub(super) async fn a_revoked_lease_is_heard_of_at_once() -> Outcome {
    let etcd = Etcd::start()?;
    let a = Coordinator::builder(format!("etcd://{}?ttl=60s", etcd.address()), "a").connect().await?;
    let guard = a.lock("x")?.acquire().await?;
    etcd.ask(|mut client| async move {
        for lease in client.leases().await?.leases() {
            client.lease_revoke(lease.id()).await?;
        }
        Ok(())
    })?;
    // Beats are 20 s apart.
    let why = tokio::time::timeout(Duration::from_secs(10), guard.lost()).await?;
    assert_eq!(why, LossReason::Expired);
    Ok(a.close().await?)
}

/// Deletes everything that begins like this, past every driver.
fn delete_below(etcd: &Etcd, prefix: &'static str) -> Result<(), String> {
    let all = || Some(etcd_client::DeleteOptions::new().with_prefix());
    let deleted = etcd.ask(|mut client| async move { Ok(client.delete(prefix, all()).await?.deleted()) })?;
    if deleted > 0 { Ok(()) } else { Err(format!("nothing begins with {prefix}")) }
}

/// Forgets all history.
fn compact(etcd: &Etcd) -> Result<(), String> {
    etcd.ask(|mut client| async move {
        let revision = client.get("x", None).await?.header().map_or(0, etcd_client::ResponseHeader::revision);
        client.compact(revision, None).await.map(|_| ())
    })
}

/// L7: a key that somebody deleted while its lock is held, ours or the one that Python looks at, loses this lock at once
/// and no other; what is left of it is in nobody's way.
pub(super) async fn a_deleted_key_is_heard_of_at_once() -> Outcome {
    let etcd = Etcd::start()?;
    let url = format!("etcd://{}?ttl=60s", etcd.address());
    let (a, b) =
        (Coordinator::builder(&url, "a").connect().await?, connect(&etcd.address().to_string(), "b").await?);
    let other = a.lock("other")?.acquire().await?;
    for key in ["%tooz/tooz/lock/nx/h/", "/tooz/locksx"] {
        for shared in [false, true] {
            let lock = a.lock("x")?;
            let guard = if shared { lock.shared().acquire().await? } else { lock.acquire().await? };
            delete_below(&etcd, key)?;
            let why =
                tokio::time::timeout(AT_ONCE, guard.lost()).await.map_err(|_| format!("{key}, {shared}"))?;
            assert_eq!(why, LossReason::Vanished);
            eventually("nobody keeps Python out", LIMIT, async || {
                etcd.ask(
                    |mut client| async move { Ok(client.get("/tooz/locksx", None).await?.kvs().is_empty()) },
                )
            })
            .await?;
            let next = tokio::time::timeout(LIMIT, b.lock("x")?.acquire()).await??;
            assert!(next.token() > guard.token());
            next.release().await?;
        }
    }
    assert!(other.is_held(), "the wrong lock was lost");
    other.release().await?;
    a.close().await?;
    Ok(b.close().await?)
}

/// L4, L12: Python's `break_` deletes the key, and another Python process takes the lock; the holder gives back its own
/// before it has heard of that. The release says that it was not the holder, leaves Python's lock alone, and nothing of
/// its own in the way of who comes next.
pub(super) async fn a_release_does_not_give_back_what_python_took() -> Outcome {
    let etcd = Etcd::start()?;
    let builder = Coordinator::builder(format!("etcd://{}?ttl=60s", etcd.address()), "driver");
    let (driver, _) = builder.connect_driver().await?;
    let open = OpenSession::new(MemberId::new("a")?, InstanceId(1));
    let session = driver.open_session(&open).await?;
    let key = LockKey::Named(LockName::new("x")?);
    for (attempt, mode) in (1..).step_by(2).zip([LockMode::Exclusive, LockMode::Shared]) {
        let ask = |attempt| Acquire::new(AttemptId(attempt), key.clone(), mode).wait(false);
        let Acquired::Granted(grant) = session.locks().request(&ask(attempt)).await? else {
            return Err("a free lock is not granted".into());
        };
        etcd.ask(|mut client| async move {
            client.delete("/tooz/locksx", None).await?;
            client.put("/tooz/locksx", "python", None).await
        })?;
        assert_eq!(session.locks().release(&grant, End::Clean).await?, Released::WasNotHolder, "{mode:?}");
        let taken = etcd.ask(|mut client| async move {
            let found = client.get("/tooz/locksx", None).await?;
            Ok(found.kvs().first().map(|kv| kv.value().to_vec()))
        })?;
        assert_eq!(taken.as_deref(), Some(&b"python"[..]), "{mode:?}: Python's lock was given back");
        assert!(matches!(session.locks().request(&ask(attempt + 1)).await?, Acquired::Held), "two holders");
        delete_below(&etcd, "/tooz/locksx")?;
        let Acquired::Granted(next) = session.locks().request(&ask(attempt + 100)).await? else {
            return Err("what the release found nothing of is still in the way".into());
        };
        assert_ne!(next.previous, Previous::Clean, "{mode:?}");
        assert_eq!(session.locks().release(&next, End::Clean).await?, Released::Released, "{mode:?}");
    }
    session.close(End::Clean).await?;
    Ok(driver.close().await?)
}

/// L7: the same when the history in which it happened is gone before the holder could hear of it.
pub(super) async fn a_key_deleted_in_a_gap_is_missed_after_it() -> Outcome {
    let etcd = Etcd::start()?;
    let proxy = Proxy::start(etcd.address())?;
    let a = Coordinator::builder(format!("etcd://{}?ttl=60s", proxy.address()), "a").connect().await?;
    let b = connect(&etcd.address().to_string(), "b").await?;
    let (gone, broken, other) = (
        a.lock("gone")?.acquire().await?,
        a.lock("broken")?.acquire().await?,
        a.lock("other")?.acquire().await?,
    );
    eventually("they are watched", LIMIT, async || {
        Ok::<_, String>(etcd.watches()? >= 8) // two for each, and one for each session
    })
    .await?;
    proxy.refuse();
    delete_below(&etcd, "%tooz/tooz/lock/ngone/h/")?;
    b.lock("broken")?.break_lock("enough").await?;
    compact(&etcd)?;
    proxy.heal();
    assert_eq!(tokio::time::timeout(AT_ONCE, gone.lost()).await?, LossReason::Vanished);
    let why = tokio::time::timeout(AT_ONCE, broken.lost()).await?;
    assert!(matches!(&why, LossReason::Broken { why, .. } if why == "enough"), "{why:?}");
    assert!(other.is_held(), "the wrong lock was lost");
    other.release().await?;
    a.close().await?;
    Ok(b.close().await?)
}

/// L7: a lock that is put back by somebody is another one: its key has another create revision.
pub(super) async fn a_key_made_anew_is_not_the_one_that_was_granted() -> Outcome {
    let etcd = Etcd::start()?;
    let proxy = Proxy::start(etcd.address())?;
    let a = Coordinator::builder(format!("etcd://{}?ttl=60s", proxy.address()), "a").connect().await?;
    let guard = a.lock("x")?.acquire().await?;
    proxy.refuse();
    etcd.ask(|mut client| async move {
        let below = Some(etcd_client::GetOptions::new().with_prefix());
        let found = client.get("%tooz/tooz/lock/nx/h/", below).await?;
        for kv in found.kvs() {
            client.delete(kv.key(), None).await?;
            let lease = etcd_client::PutOptions::new().with_lease(kv.lease());
            client.put(kv.key(), kv.value(), Some(lease)).await?;
        }
        Ok(())
    })?;
    compact(&etcd)?;
    proxy.heal();
    assert_eq!(tokio::time::timeout(AT_ONCE, guard.lost()).await?, LossReason::Vanished);
    Ok(a.close().await?)
}

/// L7, S6: the server ends a lease whose every renewal it confirmed, the last one a moment ago. Done here by hand;
/// `a_leader_whose_disk_stands_still` has etcd do it.
pub(super) async fn a_renewed_lease_that_ends_is_heard_of_at_once() -> Outcome {
    let etcd = Etcd::start()?;
    let (a, b) = (
        Coordinator::builder(format!("etcd://{}?ttl=60s", etcd.address()), "a")
            .manual_heart()
            .connect()
            .await?,
        connect(&etcd.address().to_string(), "b").await?,
    );
    let guard = a.lock("x")?.acquire().await?;
    for _ in 0..10 {
        a.heartbeat().await?;
    }
    assert!(guard.is_held());
    etcd.ask(|mut client| async move {
        let below = Some(etcd_client::GetOptions::new().with_prefix());
        let held = client.get("%tooz/tooz/lock/nx/h/", below).await?;
        for kv in held.kvs() {
            client.lease_revoke(kv.lease()).await?;
        }
        Ok(())
    })?;
    // Nobody asks the server any more, and its last word was that the lease lives for a minute.
    assert_eq!(tokio::time::timeout(AT_ONCE, guard.lost()).await?, LossReason::Expired);
    assert!(b.lock("x")?.try_acquire().await?.is_some_and(|next| next.token() > guard.token()));
    a.close().await?;
    Ok(b.close().await?)
}

/// W4: a group that was deleted and made again in a gap of history is another group: its watch ends.
pub(super) async fn a_group_made_again_in_a_gap_is_another_one() -> Outcome {
    let etcd = Etcd::start()?;
    let proxy = Proxy::start(etcd.address())?;
    let (a, b) =
        (connect(&proxy.address().to_string(), "a").await?, connect(&etcd.address().to_string(), "b").await?);
    let group = b.group("g")?;
    group.create().await?;
    let mut watch = a.group("g")?.watch().await?;
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Snapshot(members))) if members.is_empty()));
    proxy.refuse();
    group.delete().await?;
    group.join_or_create(Capabilities::none()).await?;
    compact(&etcd)?;
    proxy.heal();
    let event = tokio::time::timeout(LIMIT, watch.next()).await?;
    assert!(matches!(event, Some(Ok(GroupEvent::Deleted))), "{event:?}");
    assert!(watch.next().await.is_none(), "a watch that ended tells more");
    a.close().await?;
    Ok(b.close().await?)
}

/// L8: a place that somebody deleted by hand is found missing at the next beat, and taken anew.
pub(super) async fn a_deleted_place_is_taken_anew() -> Outcome {
    let etcd = Etcd::start()?;
    let address = etcd.address().to_string();
    let (a, b) = (connect(&address, "a").await?, connect(&address, "b").await?);
    let guard = a.lock("x")?.acquire().await?;
    let waiting = tokio::spawn({
        let lock = b.lock("x")?;
        async move { lock.acquire().await }
    });
    let waits = async |n| {
        eventually("somebody waits", LIMIT, async || {
            Ok::<_, tooz_core::Error>(a.lock("x")?.holders().await?.waiters == Some(n))
        })
        .await
    };
    waits(1).await?;
    etcd.ask(|mut client| async move {
        let prefix = etcd_client::DeleteOptions::new().with_prefix();
        client.delete("%tooz/tooz/lock/nx/q/", Some(prefix)).await.map(|_| ())
    })?;
    waits(1).await?;
    guard.release().await?;
    assert!(tokio::time::timeout(LIMIT, waiting).await???.is_held());
    a.close().await?;
    Ok(b.close().await?)
}

fn delete(etcd: &Etcd, prefix: &'static str) -> Outcome {
    let delete = etcd.ask(move |mut client| async move {
        let all = etcd_client::DeleteOptions::new().with_prefix();
        client.delete(prefix, Some(all)).await.map(|_| ())
    });
    Ok(delete?)
}

/// X7: without the stamp nobody knows in which layout the living work.
pub(super) async fn a_deleted_stamp_is_not_replaced_beside_the_living() -> Outcome {
    let etcd = Etcd::start()?;
    let address = etcd.address().to_string();
    let a = connect(&address, "a").await?;
    delete(&etcd, "%tooz/tooz/epoch")?;
    let error = connect(&address, "b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("member \"a\" lives"), "{error}");
    a.close().await?;
    connect(&address, "b").await?.close().await?;
    Ok(())
}

/// L3: tokens would be as small as revisions.
pub(super) async fn without_raises_nothing_is_granted() -> Outcome {
    let etcd = Etcd::start()?;
    let address = etcd.address().to_string();
    let (a, b) = (connect(&address, "a").await?, connect(&address, "b").await?);
    let guard = a.lock("x")?.acquire().await?;
    let waiting = tokio::spawn({
        let lock = b.lock("x")?;
        async move { lock.acquire().await }
    });
    eventually("somebody waits", LIMIT, async || {
        Ok::<_, tooz_core::Error>(a.lock("x")?.holders().await?.waiters == Some(1))
    })
    .await?;
    let last = guard.token();
    delete(&etcd, "%tooz/tooz/fence/")?;
    guard.release().await?;
    for error in [
        tokio::time::timeout(LIMIT, waiting).await??.unwrap_err(),
        a.lock("y")?.try_acquire().await.unwrap_err(),
        a.lock("y")?.acquire().await.unwrap_err(),
        a.lock("y")?.shared().acquire().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("tooz tokens raise"), "{error}");
    }
    nobody_holds(&a, "x").await?;
    nobody_holds(&a, "y").await?;
    a.raise_tokens(last.get() + 1).await?;
    assert!(b.lock("x")?.acquire().await?.token() > last);
    a.close().await?;
    Ok(b.close().await?)
}
