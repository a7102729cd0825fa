//! What each operation costs, in round trips.

use tooz_core::Capabilities;
use tooz_servers::lab::Case;
use tooz_servers::memcached::Memcached;
use tooz_servers::{Proxy, cases};

use crate::stage::connect;

pub(crate) const CASES: &[(&str, Case)] = cases![as_few_round_trips_as_can_be];

/// Awaits an operation, which takes so many round trips.
macro_rules! costs {
    ($proxy:expr, $round_trips:literal, $operation:expr) => {{
        let before = $proxy.round_trips();
        let done = $operation.await.unwrap();
        assert_eq!($proxy.round_trips() - before, $round_trips, stringify!($operation));
        done
    }};
}

async fn as_few_round_trips_as_can_be() {
    let server = Memcached::start().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    // So long a ttl that no beat comes between.
    let a = connect(proxy.address(), "10m", "a").await;
    let mut others = Vec::new();
    for n in 0..10 {
        let other = connect(server.address(), "10m", &format!("m{n}")).await;
        other.group("g").unwrap().join_or_create(Capabilities::new(&n).unwrap()).await.unwrap();
        others.push(other);
    }
    let (lock, group, election) = (a.lock("x").unwrap(), a.group("g").unwrap(), a.election("g").unwrap());
    let guard = costs!(proxy, 1, lock.try_acquire()).unwrap();
    costs!(proxy, 1, guard.release());
    costs!(proxy, 2, group.join(Capabilities::none()));
    assert_eq!(costs!(proxy, 2, group.members()).len(), 11);
    costs!(proxy, 2, group.update_capabilities(Capabilities::new(&1).unwrap()));
    // It looks, notes that the member goes by itself, and takes it out.
    costs!(proxy, 3, group.leave());
    let leads = costs!(proxy, 1, election.campaign());
    costs!(proxy, 1, leads.resign());
    let mut guards = Vec::new();
    for n in 0..100 {
        guards.push(a.lock(format!("x{n}")).unwrap().acquire().await.unwrap());
    }
    for _ in 0..3 {
        costs!(proxy, 1, a.heartbeat());
    }
    // The token of a new leader is written out before its gate is.
    let leads = election.campaign().await.unwrap();
    costs!(proxy, 2, a.heartbeat());
    costs!(proxy, 1, a.heartbeat());
    assert!(leads.is_held() && guards.iter().all(tooz_core::LockGuard::is_held));
}
