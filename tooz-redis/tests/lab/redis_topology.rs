//! Redis with replicas, under Sentinel and as a cluster: who is the master changes, or two believe to be it.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tooz_core::{Capabilities, Characteristics, Coordinator, ErrorKind, GroupEvent, LockGuard};
use tooz_servers::lab::Case;
use tooz_servers::redis::{Redis, command, list};
use tooz_servers::redis_replicated::{Cluster, Sentinels, sentinel_url};
use tooz_servers::{Proxy, cases, free_port};

use crate::within;

pub(crate) const CASES: &[(&str, Case)] = cases![
    a_fail_over_keeps_what_replicas_have,
    an_isolated_master_proves_nothing,
    a_grant_without_replicas_is_none,
    a_replica_that_is_called_down_is_not_waited_for,
    two_masters_and_one_holder,
    what_is_wrong_is_named,
    users_and_permissions,
    a_node_of_a_cluster_dies,
    a_slot_moves,
];

/// Silent for so long, a server is called down.
const DOWN: Duration = Duration::from_millis(700);
/// Nothing is called down.
const NEVER: Duration = Duration::from_mins(10);

async fn connect(url: &str, options: &str, member: &str) -> Coordinator {
    Coordinator::builder(format!("{url}?{options}"), member).connect().await.unwrap()
}

async fn refusal(url: &str) -> tooz_core::Error {
    Coordinator::builder(url, "a").connect().await.unwrap_err()
}

async fn eventually(what: &str, check: impl AsyncFnMut() -> bool) {
    tooz_servers::until(what, Duration::from_secs(30), check).await;
}

/// Waits for a lock in a task of its own, and until it stands in the queue.
async fn wait_for(c: &Coordinator, name: &str) -> tokio::task::JoinHandle<LockGuard> {
    let lock = c.lock(name).unwrap();
    let asked = lock.clone();
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    eventually("it waits", async || asked.holders().await.is_ok_and(|holders| holders.waiters == Some(1)))
        .await;
    // It goes the way of the answer, behind it: a caller who has heard of its place waits for ever.
    c.heartbeat().await.unwrap();
    waiting
}

fn exists(redis: &Redis, key: &str) -> bool {
    redis.command(&[b"EXISTS", key.as_bytes()]).unwrap() == b":1\r\n"
}

fn is_master(address: SocketAddr) -> bool {
    command(address, &[b"ROLE"]).is_ok_and(|role| role.windows(6).any(|word| word == b"master"))
}

/// The master dies while a lock is held and another one waited for: both go on under the next one.
async fn a_fail_over_keeps_what_replicas_have() {
    let servers = Sentinels::start(2, DOWN).unwrap();
    let options = "ttl=30s";
    let (a, b) = (connect(&servers.url(), options, "a").await, connect(&servers.url(), options, "b").await);
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let waiting = wait_for(&b, "x").await;
    // Far ahead of the server's clock: the next master has it from the first alone.
    let n = guard.token().get() + 1_000_000_000_000;
    b.raise_tokens(n).await.unwrap();
    servers.servers[0].server().kill();
    let old = servers.servers[0].address();
    eventually("another master", async || servers.master().is_some_and(|master| master != old)).await;
    eventually("a renewal there", async || a.heartbeat().await.is_ok()).await;
    assert!(guard.is_held() && !waiting.is_finished(), "lost although a replica had it");
    let token = guard.token();
    guard.release().await.unwrap();
    let next = within("the hand-over", 30, waiting).await.unwrap();
    assert!(next.is_held() && next.token() > token);
    assert!(next.token().get() >= n, "{} after the tokens were raised to {n}", next.token());
    // Somebody who comes later finds it as well, once the replica that is left follows the new master.
    let c = connect(&servers.url(), &format!("{options}&connect_timeout=60s"), "c").await;
    assert!(c.lock("x").unwrap().try_acquire().await.unwrap().is_none());
    assert!(c.lock("y").unwrap().try_acquire().await.unwrap().unwrap().token() > next.token());
}

/// What the master alone has done proves nothing: whoever renews there loses at the deadline.
async fn an_isolated_master_proves_nothing() {
    let servers = Sentinels::start(1, NEVER).unwrap();
    let (a, b) = (connect(&servers.url(), "ttl=6s", "a").await, connect(&servers.url(), "ttl=6s", "b").await);
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let waiting = wait_for(&b, "x").await;
    // A renewal that is confirmed, so that none is on its way.
    a.heartbeat().await.unwrap();
    servers.servers[1].server().stop();
    let error = a.heartbeat().await.unwrap_err();
    assert!(error.to_string().contains("0 of 1 replicas"), "{error}");
    assert!(guard.is_held(), "the last confirmed renewal counts until its deadline");
    within("the deadline", 10, guard.lost()).await;
    assert!(is_master(servers.servers[0].address()) && !waiting.is_finished());
    servers.servers[1].server().resume();
    let next = within("the lock, once replicas answer", 30, waiting).await.unwrap();
    assert!(next.is_held() && !guard.is_held() && next.token() > guard.token());
}

/// A grant that no replica has is none, and nothing is left of it.
async fn a_grant_without_replicas_is_none() {
    let servers = Sentinels::start(1, NEVER).unwrap();
    let (master, replica) = (&servers.servers[0], &servers.servers[1]);
    let a = connect(&servers.url(), "ttl=15s", "a").await;
    let more = format!("{}?ttl=1s&wait_replicas=2", servers.url());
    let error = refusal(&more).await;
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("1 of 2 replicas"),
        "{error}"
    );
    a.heartbeat().await.unwrap();
    replica.server().stop();
    let error = a.lock("x").unwrap().try_acquire().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && !error.is_indeterminate(), "{error}");
    let error = a.raise_tokens(1).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.is_indeterminate(), "{error}");
    for word in ["0 of 1 replicas", "wait_replicas"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    for key in ["_tooz_x_lock", "_tooz_rs:lock:x:h", "_tooz_rs:lock:x:q"] {
        assert!(!exists(master, key), "{key} is left behind");
    }
    let error = refusal(&format!("{}?ttl=1s", servers.url())).await;
    assert!(error.to_string().contains("0 of 1 replicas"), "{error}");
    // Whoever asks for no replica is not kept from it by one.
    let careless = connect(&servers.url(), "ttl=15s&wait_replicas=0", "b").await;
    assert!(careless.lock("y").unwrap().try_acquire().await.unwrap().is_some());
    replica.server().resume();
    eventually("a grant", async || matches!(a.lock("x").unwrap().try_acquire().await, Ok(Some(_)))).await;
}

/// Every replica is waited for that is not called down.
async fn a_replica_that_is_called_down_is_not_waited_for() {
    let servers = Sentinels::start(2, DOWN * 5).unwrap();
    let a = connect(&servers.url(), "ttl=20s", "a").await;
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    a.heartbeat().await.unwrap();
    servers.servers[2].server().stop();
    let error = a.heartbeat().await.unwrap_err();
    assert!(error.to_string().contains("1 of 2 replicas"), "{error}");
    eventually("a renewal with one replica", async || a.heartbeat().await.is_ok()).await;
    assert!(guard.is_held() && a.lock("y").unwrap().try_acquire().await.unwrap().is_some());
    servers.servers[2].server().resume();
}

/// A split: replicas and sentinels lose sight of a master that a client still reaches. Two servers are masters, and each has
/// a client; at no time do both believe to hold the lock.
async fn two_masters_and_one_holder() {
    let mut proxy = None;
    let hide = |master| {
        let between = Proxy::start(master)?;
        let address = between.address();
        proxy = Some(between);
        Ok(address)
    };
    let servers = Sentinels::start_behind(2, DOWN, hide).unwrap();
    let (proxy, master) = (proxy.unwrap(), servers.servers[0].address());
    let stale = sentinel_url(&[lying_sentinel(master)]);
    let (a, b) = (connect(&stale, "ttl=6s", "a").await, connect(&servers.url(), "ttl=6s", "b").await);
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let waiting = wait_for(&b, "x").await;
    proxy.hold_both();
    // Both look at the same clock: from the moment at which one has it, the other one has not.
    let next = within("the lock on the other side", 60, waiting).await.unwrap();
    assert!(next.is_held() && !guard.is_held(), "two believe to hold it");
    assert!(next.token() > guard.token());
    let promoted = servers.master().unwrap();
    assert!(is_master(master) && is_master(promoted) && master != promoted, "no split");
    let error = a.lock("x").unwrap().try_acquire().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    proxy.heal();
    // The old master follows; whoever still names it is not believed.
    eventually("the old master is one no more", async || !is_master(master)).await;
    let error = refusal(&stale).await;
    assert!(error.to_string().contains("its own role is slave"), "{error}");
    assert!(next.is_held());
}

/// A sentinel that says for ever that this is the master, with one healthy replica.
fn lying_sentinel(master: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", free_port().unwrap())).unwrap();
    let address = listener.local_addr().unwrap();
    let bulk = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        words.concat()
    };
    let port = master.port().to_string();
    let whereabouts = format!("*2\r\n{}", bulk(&["127.0.0.1", &port]));
    let state = format!("*4\r\n{}", bulk(&["flags", "master", "config-epoch", "0"]));
    let replicas = format!("*1\r\n*2\r\n{}", bulk(&["flags", "slave"]));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (whereabouts, state, replicas) = (whereabouts.clone(), state.clone(), replicas.clone());
            std::thread::spawn(move || {
                answer_commands(stream, |words| {
                    match words.get(1).map(|word| word.to_uppercase()).as_deref() {
                        Some("GET-MASTER-ADDR-BY-NAME") => whereabouts.clone(),
                        Some("MASTER") => state.clone(),
                        Some("REPLICAS") => replicas.clone(),
                        _ => "+OK\r\n".into(),
                    }
                });
            });
        }
    });
    address
}

fn answer_commands(mut stream: TcpStream, answer: impl Fn(&[String]) -> String) {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8(seen.clone()).unwrap();
        let mut lines = text.split_inclusive("\r\n");
        let mut used = 0;
        // *n, then n times a length and a word.
        while let Some(head) = lines.next() {
            let count: usize = head.trim_end().trim_start_matches('*').parse().unwrap_or(0);
            let parts: Vec<_> = lines.by_ref().take(2 * count).collect();
            if parts.len() < 2 * count || !parts.iter().all(|part| part.ends_with("\r\n")) {
                break;
            }
            used += head.len() + parts.iter().map(|part| part.len()).sum::<usize>();
            let words: Vec<_> =
                parts.iter().skip(1).step_by(2).map(|word| word.trim_end().to_owned()).collect();
            if stream.write_all(answer(&words).as_bytes()).is_err() {
                return;
            }
        }
        seen.drain(..used);
    }
}

/// Addresses that cannot be reached, and servers that are something else, are named together with what to write.
async fn what_is_wrong_is_named() {
    let servers = Sentinels::start(1, NEVER).unwrap();
    let sentinel = servers.addresses()[0];
    let (plain, node) = (Redis::start().unwrap(), Redis::start_with(&["--cluster-enabled", "yes"]).unwrap());
    let unsupported = ErrorKind::Unsupported;
    let nowhere = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    let announced = lying_sentinel(nowhere);
    for (url, kind, words) in [
        (format!("redis://{}", node.address()), unsupported, vec!["redis+cluster://"]),
        (format!("redis://{sentinel}"), unsupported, vec!["is a sentinel", "redis+sentinel://"]),
        (
            format!("redis://{}", servers.servers[1].address()),
            ErrorKind::Unavailable,
            vec!["redis+sentinel://"],
        ),
        (
            format!("redis+sentinel://{}/mymaster", plain.address()),
            unsupported,
            vec!["is no sentinel", "redis://"],
        ),
        (
            format!("redis+cluster://{}", plain.address()),
            unsupported,
            vec!["no node of a cluster", "redis://"],
        ),
        (format!("redis+cluster://{}", node.address()), ErrorKind::Unavailable, vec!["belongs to no node"]),
        (
            format!("redis+sentinel://{sentinel}/other"),
            ErrorKind::Unavailable,
            vec!["no master called \"other\""],
        ),
        (format!("redis+sentinel://{nowhere}/mymaster"), ErrorKind::Unavailable, vec!["refused"]),
        (
            format!("redis+sentinel://{announced}/mymaster"),
            ErrorKind::Unavailable,
            vec!["announced by sentinel", "reachable"],
        ),
    ] {
        let error = refusal(&url).await;
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        assert_eq!(error.kind(), kind, "{url}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{url}: {text}");
        assert!(
            !url.contains("mymaster") || !text.contains("announced") || text.contains(&nowhere.to_string())
        );
    }
    // One sentinel that is away is no matter.
    let some = sentinel_url(&[nowhere, sentinel]);
    let a = connect(&some, "ttl=15s", "a").await;
    assert!(a.lock("x").unwrap().try_acquire().await.unwrap().is_some());
    for wanted in [Characteristics::DURABLE_FENCING, Characteristics::CAUSAL] {
        assert!(!a.characteristics().contains(wanted));
        let refused = Coordinator::builder(&some, "b").require(wanted).connect().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::MissingCharacteristic);
    }
}

/// A user with the permissions that the README names can do everything, at the servers and at the sentinels.
async fn users_and_permissions() {
    let servers = Sentinels::start(1, NEVER).unwrap();
    let set = |address, rules: &str| {
        let words: Vec<_> =
            ["ACL", "SETUSER"].into_iter().chain(rules.split(' ')).map(str::as_bytes).collect();
        assert_eq!(command(address, &words).unwrap(), b"+OK\r\n", "{rules}");
    };
    let rules = "app on >hunter2 ~_tooz_* &_tooz_* -@all +@read +@write +@pubsub +@scripting +@connection +time \
                 -@dangerous +wait +role";
    for server in &servers.servers {
        set(server.address(), rules);
    }
    for sentinel in servers.addresses() {
        set(
            sentinel,
            "asker on >secret1 -@all +@connection +sentinel|get-master-addr-by-name +sentinel|master +sentinel|replicas",
        );
    }
    let url = servers.url().replace("://", "://app:hunter2@");
    let options = "ttl=15s&sentinel_user=asker&sentinel_password=secret1";
    let (a, b) = (connect(&url, options, "a").await, connect(&url, options, "b").await);
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let waiting = wait_for(&b, "x").await;
    a.heartbeat().await.unwrap();
    guard.release().await.unwrap();
    assert!(within("the hand-over", 30, waiting).await.unwrap().is_held());
    for bad in
        [format!("{url}?sentinel_user=asker&sentinel_password=wrong2"), url.replace("hunter2", "wrong2")]
    {
        let error = refusal(&bad).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(!format!("{error} {error:?}").contains("wrong2"), "{error:?}");
    }
    // Without the permission to wait, nothing is believed.
    for server in &servers.servers {
        set(server.address(), "app -wait");
    }
    let error = refusal(&format!("{url}?{options}")).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

/// The node that has the namespace dies; its replica takes over what it has.
async fn a_node_of_a_cluster_dies() {
    let cluster = Cluster::start(Duration::from_secs(1)).unwrap();
    let (a, b) =
        (connect(&cluster.url(), "ttl=20s", "a").await, connect(&cluster.url(), "ttl=20s", "b").await);
    let (master, replica) = cluster.owner("{_tooz}").unwrap();
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    assert!(exists(&cluster.nodes[master], "{_tooz}_x_lock"));
    let waiting = wait_for(&b, "x").await;
    cluster.nodes[master].server().kill();
    eventually("the replica takes over", async || is_master(cluster.nodes[replica].address())).await;
    // There is no replica now, and nothing is proved until there is one.
    cluster.nodes[master].server().start_again().unwrap();
    eventually("a renewal there", async || a.heartbeat().await.is_ok()).await;
    assert!(guard.is_held() && !waiting.is_finished());
    let token = guard.token();
    guard.release().await.unwrap();
    let next = within("the hand-over", 30, waiting).await.unwrap();
    assert!(next.is_held() && next.token() > token && !is_master(cluster.nodes[master].address()));
}

/// The namespace's slot moves to another node, with everything that is held, and everybody follows.
async fn a_slot_moves() {
    let cluster = Cluster::start(Duration::from_secs(5)).unwrap();
    let (a, b) =
        (connect(&cluster.url(), "ttl=15s", "a").await, connect(&cluster.url(), "ttl=15s", "b").await);
    let group = a.group("g").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    let mut watch = b.group("g").unwrap().watch().await.unwrap();
    assert!(watch.next().await.unwrap().is_ok());
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let waiting = wait_for(&b, "x").await;
    let slot = cluster.slot("{_tooz}").unwrap().to_string();
    let (from, _) = cluster.owner("{_tooz}").unwrap();
    let to = (from + 1) % 3;
    let (from_id, to_id) = (cluster.id(from).unwrap(), cluster.id(to).unwrap());
    cluster.ask(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).unwrap();
    cluster.ask(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).unwrap();
    let port = cluster.nodes[to].address().port().to_string();
    loop {
        let keys = list(&cluster.ask(from, &["CLUSTER", "GETKEYSINSLOT", &slot, "1000"]).unwrap());
        if keys.is_empty() {
            break;
        }
        let head = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        let words: Vec<_> = head.into_iter().chain(keys.iter().map(String::as_str)).collect();
        cluster.ask(from, &words).unwrap();
    }
    for node in [to, from, (from + 2) % 3] {
        cluster.ask(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).unwrap();
    }
    eventually("a renewal there", async || a.heartbeat().await.is_ok()).await;
    assert!(guard.is_held() && !waiting.is_finished());
    assert_eq!(group.members().await.unwrap().len(), 1);
    guard.release().await.unwrap();
    let next = within("the hand-over", 30, waiting).await.unwrap();
    assert!(next.is_held() && exists(&cluster.nodes[to], "{_tooz}_x_lock"));
    group.leave().await.unwrap();
    let told = async {
        loop {
            match watch.next().await.unwrap().unwrap() {
                GroupEvent::Left(..) => return,
                GroupEvent::Resync(members) if members.is_empty() => return,
                _ => {}
            }
        }
    };
    within("the watch goes on", 30, told).await;
}
