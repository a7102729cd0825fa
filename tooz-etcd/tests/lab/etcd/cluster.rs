//! Three nodes that are one.

use std::time::Duration;

use tooz_core::{Coordinator, LossReason};
use tooz_servers::etcd::{Cluster, Etcd};
use tooz_servers::eventually;

use super::{AT_ONCE, LIMIT, Outcome, queued};

/// L1, L2: three nodes, and the leader is killed while a lock is held and waited for.
pub(super) async fn the_leader_is_killed() -> Outcome {
    let cluster = Cluster::start()?;
    let hosts: Vec<String> = cluster.nodes().iter().map(|node| node.address().to_string()).collect();
    let connect = |member| {
        let url = format!("etcd://{}?ttl=6s", hosts.join(","));
        async move { Coordinator::builder(url, member).connect().await }
    };
    let (a, b) = (connect("a").await?, connect("b").await?);
    let guard = a.lock("x")?.acquire().await?;
    let waiting = queued(&a, &b, "x").await?;
    let leader = cluster.leader()?;
    leader.server().kill();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(guard.is_held(), "a change of leader cost the lock");
    assert!(!waiting.is_finished(), "granted beside its holder");
    let token = guard.token();
    guard.release().await?;
    let next = tokio::time::timeout(LIMIT, waiting).await???;
    assert!(next.is_held() && next.token() > token);
    leader.server().start_again()?;
    a.close().await?;
    Ok(b.close().await?)
}

/// L7, S6: the leader's disk stands still, and another node leads. When the disk goes on, the old leader of some versions (before
/// 3.4.31 and 3.5.13) ends a lease although each of its renewals was confirmed. Then the lock is lost at once; else
/// nothing is.
pub(super) async fn a_leader_whose_disk_stands_still() -> Outcome {
    let cluster = Cluster::start()?;
    let (leaders, others): (Vec<&Etcd>, Vec<&Etcd>) =
        cluster.nodes().iter().partition(|node| node.leads().unwrap_or(false));
    let (leader, other) = (*leaders.first().ok_or("none leads")?, others[0]);
    let hosts: Vec<String> = others.iter().map(|node| node.address().to_string()).collect();
    let url = format!("etcd://{}?ttl=6s", hosts.join(","));
    let (a, b) =
        (Coordinator::builder(&url, "a").connect().await?, Coordinator::builder(&url, "b").connect().await?);
    let guard = a.lock("x")?.acquire().await?;
    let waiting = queued(&a, &b, "x").await?;
    let granted = holder(other)?;
    let stalled = leader.server().stall_disk()?;
    let write =
        |node: &Etcd| node.ask(|mut client| async move { client.put("k", "v", None).await.map(|_| ()) });
    eventually("another node leads", LIMIT, async || {
        // A leader that has nothing to write does not notice its disk.
        let _ = write(other);
        Ok::<_, String>(others.iter().any(|node| node.leads().unwrap_or(false)))
    })
    .await?;
    // Longer than the old leader waits for a renewal.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(guard.is_held(), "a change of leader cost the lock");
    drop(stalled);
    // What the old leader passes on now comes after what it has kept so long.
    eventually("the old leader follows", LIMIT, async || Ok::<_, String>(write(leader).is_ok())).await?;
    if holder(other)? == granted {
        assert!(guard.is_held() && !waiting.is_finished(), "lost although its lease lives");
    } else {
        assert_eq!(tokio::time::timeout(AT_ONCE, guard.lost()).await?, LossReason::Expired);
    }
    let token = guard.token();
    drop(guard);
    let next = tokio::time::timeout(LIMIT, waiting).await???;
    assert!(next.is_held() && next.token() > token);
    a.close().await?;
    Ok(b.close().await?)
}

/// Where the key of the one who holds "x" stands in history.
fn holder(node: &Etcd) -> Result<Vec<i64>, String> {
    node.ask(|mut client| async move {
        let below = Some(etcd_client::GetOptions::new().with_prefix());
        let found = client.get("%tooz/tooz/lock/nx/h/", below).await?;
        Ok(found.kvs().iter().map(etcd_client::KeyValue::create_revision).collect())
    })
}
