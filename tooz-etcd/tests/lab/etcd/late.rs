//! Requests that are carried out after their caller has given them up.

use std::time::Duration;

use tooz_core::Capabilities;
use tooz_servers::etcd::Cluster;
use tooz_servers::{Way, eventually};

use super::{Fork, LIMIT, Outcome, connect, nobody_holds};

/// L6: a request that hangs on one way is withdrawn over the other; when it arrives, it fails.
pub(super) async fn a_late_request_fails() -> Outcome {
    let fork = Fork::new()?;
    let hosts = fork.hosts();
    let (a, b) = (connect(&hosts, "a").await?, connect(&fork.etcd.address().to_string(), "b").await?);
    let warm = a.lock("warm")?.acquire().await?;
    fork.one.hold_both();
    // Whatever the answer, it is not a guard: the request hangs, and is withdrawn over the other way.
    assert!(!matches!(a.lock("x")?.acquire_within(Duration::from_millis(500)).await, Ok(Some(_))));
    eventually("the other way is taken", LIMIT, async || {
        Ok::<_, tooz_core::Error>(a.lock("y")?.try_acquire().await.is_ok_and(|guard| guard.is_some()))
    })
    .await?;
    nobody_holds(&b, "x").await?;
    fork.one.heal();
    // What hung arrives now. It must not take the lock in the name of a session that goes on living.
    for _ in 0..20 {
        let holders = b.lock("x")?.holders().await?;
        assert!(holders.holders.is_empty(), "a ghost holds it: {holders:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(warm);
    assert!(b.lock("x")?.try_acquire().await?.is_some());
    a.close().await?;
    Ok(b.close().await?)
}

/// L8: a member that stands still keeps nobody waiting: what it may have done is made void, and asked for elsewhere.
pub(super) async fn a_request_that_hangs_is_made_elsewhere() -> Outcome {
    let fork = Fork::new()?;
    let (a, b) = (connect(&fork.hosts(), "a").await?, connect(&fork.etcd.address().to_string(), "b").await?);
    fork.one.hold_both();
    let guard = a.lock("x")?.try_acquire().await?.ok_or("nobody holds it")?;
    guard.release().await?;
    fork.one.heal();
    // What hung arrives now.
    for _ in 0..20 {
        nobody_holds(&b, "x").await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    a.close().await?;
    Ok(b.close().await?)
}

/// G2, G3: a join that hangs on one way and is given up does not come true after its member left.
pub(super) async fn a_late_join_fails() -> Outcome {
    let fork = Fork::new()?;
    let (a, b) = (connect(&fork.hosts(), "a").await?, connect(&fork.etcd.address().to_string(), "b").await?);
    b.group("g")?.create().await?;
    fork.one.hold_both();
    let late = a.group("g")?.join(Capabilities::none()).await;
    assert!(
        late.is_err_and(|error| error.is_indeterminate()),
        "it was answered although nothing came through"
    );
    a.group("g")?.join(Capabilities::none()).await?;
    a.group("g")?.leave().await?;
    fork.one.heal();
    for _ in 0..20 {
        let members = b.group("g")?.members().await?;
        assert!(members.is_empty(), "a ghost joined: {members:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    a.close().await?;
    Ok(b.close().await?)
}

/// L6: the same with a request that a member of a cluster has taken and could not pass on to the leader. That its caller has
/// hung up does not stop it: it is carried out as soon as the members hear each other again.
pub(super) async fn a_late_request_between_members_fails() -> Outcome {
    let cluster = Cluster::start_linked()?;
    let nodes = cluster.nodes();
    let leads = nodes.iter().position(|node| node.leads().unwrap_or(false)).ok_or("none leads")?;
    let follows = (leads + 1) % nodes.len();
    let hosts = format!("{},{}", nodes[follows].address(), nodes[leads].address());
    let (a, b) = (connect(&hosts, "a").await?, connect(&nodes[leads].address().to_string(), "b").await?);
    let warm = a.lock("warm")?.acquire().await?;
    // The others still tell it everything.
    cluster.links()[follows].hold(Way::Down);
    assert!(!matches!(a.lock("x")?.acquire_within(Duration::from_millis(500)).await, Ok(Some(_))));
    eventually("the other way is taken", LIMIT, async || {
        Ok::<_, tooz_core::Error>(a.lock("y")?.try_acquire().await.is_ok_and(|guard| guard.is_some()))
    })
    .await?;
    nobody_holds(&b, "x").await?;
    // What comes after it on the same way, and is given up, too.
    let hung = nodes[follows].ask(|mut client| async move {
        Ok(tokio::time::timeout(Duration::from_millis(300), client.put("hung", "", None)).await.is_err())
    })?;
    assert!(hung, "the members hear each other");
    cluster.links()[follows].heal();
    eventually("what hung was done", LIMIT, async || {
        nodes[leads].ask(|mut client| async move { Ok(!client.get("hung", None).await?.kvs().is_empty()) })
    })
    .await?;
    nobody_holds(&b, "x").await?;
    assert!(b.lock("x")?.try_acquire().await?.is_some());
    assert!(warm.is_held());
    a.close().await?;
    Ok(b.close().await?)
}
