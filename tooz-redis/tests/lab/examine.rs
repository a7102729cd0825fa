//! What a look at a Redis finds that is not as it should be: what bears no loss, silent sentinels and nodes, refused writes.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tooz_core::{Coordinator, Finding, Result, Severity};
use tooz_servers::lab::Case;
use tooz_servers::redis::Redis;
use tooz_servers::redis_replicated::{Cluster, Sentinels, sentinel_url};
use tooz_servers::{cases, free_port};

pub(crate) const CASES: &[(&str, Case)] = cases![
    what_bears_no_loss_is_told,
    silent_sentinels_and_nodes_are_named,
    a_server_that_refuses_writes_is_told_with_what_to_do,
    a_server_that_loads_its_data_is_told,
];

/// Nothing is called down.
const NEVER: Duration = Duration::from_mins(10);

async fn look(url: &str) -> Result<Vec<Finding>> {
    Coordinator::builder(url, "operator").examine().await
}

fn of<'a>(found: &'a [Finding], topic: &str) -> Vec<&'a Finding> {
    found.iter().filter(|finding| finding.topic() == topic).collect()
}

/// The only finding on this topic.
fn only<'a>(found: &'a [Finding], topic: &str) -> &'a Finding {
    let [one] = of(found, topic)[..] else { panic!("not one {topic}: {found:?}") };
    one
}

async fn what_bears_no_loss_is_told() {
    let alone = Redis::start().unwrap();
    let (one, two) = (Sentinels::start(1, NEVER).unwrap(), Sentinels::start(2, NEVER).unwrap());
    let quick = Sentinels::start(2, Duration::from_secs(5)).unwrap();
    let cluster = Cluster::start(NEVER).unwrap();
    for (url, severity, words) in [
        (format!("redis://{}", alone.address()), Severity::Warning, "without a replica"),
        (one.url(), Severity::Warning, "none may fail"),
        (cluster.url(), Severity::Warning, "none may fail"),
        (quick.url(), Severity::Good, "1 may fail"),
        (format!("{}?ttl=9s", quick.url()), Severity::Warning, "down-after-milliseconds is 5s"),
        (two.url(), Severity::Warning, "down-after-milliseconds is 600s"),
        (format!("{}?wait_replicas=1", two.url()), Severity::Good, "1 may fail"),
        (format!("{}?wait_replicas=2", two.url()), Severity::Warning, "none may fail"),
        (format!("{}?wait_replicas=0", two.url()), Severity::Warning, "wait_replicas"),
    ] {
        let found = look(&url).await.unwrap();
        let redundancy = only(&found, "redundancy");
        assert_eq!(redundancy.severity(), severity, "{url}: {redundancy:?}");
        assert!(redundancy.what().contains(words), "{url}: {redundancy:?}");
    }
    // A replica that hangs confirms nothing, though it is connected.
    two.servers[2].server().stop();
    tooz_servers::until("the replica lags behind", Duration::from_secs(30), async || {
        let info = two.servers[0].command(&[b"INFO", b"replication"]).unwrap();
        String::from_utf8_lossy(&info)
            .split(['=', '\r'])
            .any(|lag| (6..60).any(|late| lag == late.to_string()))
    })
    .await;
    let found = look(&format!("{}?wait_replicas=1", two.url())).await.unwrap();
    let redundancy = only(&found, "redundancy");
    assert!(redundancy.what().starts_with("replicas: 1, of which none may fail"), "{redundancy:?}");
}

async fn silent_sentinels_and_nodes_are_named() {
    let (servers, cluster) = (Sentinels::start(1, NEVER).unwrap(), Cluster::start(NEVER).unwrap());
    let dead = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    // It takes connections and never answers.
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let hanging = hanging.local_addr().map(|address| (address, hanging)).unwrap();
    let sentinels = sentinel_url(&[servers.addresses()[0], dead, hanging.0, servers.addresses()[1]]);
    let nodes = format!("redis+cluster://{},{dead},{}", cluster.nodes[0].address(), hanging.0);
    for url in [sentinels, nodes] {
        // A server that has no password takes any.
        let url = url.replacen("://", "://default:s3cret@", 1);
        let begun = Instant::now();
        let found = look(&url).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        let silent: Vec<_> = of(&found, "endpoint");
        assert_eq!(silent.len(), 2, "{url}: {found:?}");
        for (finding, address) in silent.iter().zip([dead, hanging.0]) {
            assert_eq!(finding.severity(), Severity::Warning, "{finding:?}");
            assert!(finding.what().contains(&address.to_string()), "{finding:?}");
            assert!(!format!("{finding:?}").contains("s3cret"), "{finding:?}");
        }
    }
    let all = look(&servers.url()).await.unwrap();
    assert!(of(&all, "endpoint").is_empty(), "{all:?}");
}

/// Tells what to do about refused writes; a write that tries it leaves nothing.
async fn a_server_that_refuses_writes_is_told_with_what_to_do() {
    let redis = Redis::start().unwrap();
    let url = format!("redis://{}", redis.address());
    let set = |name: &str, value: &str| {
        let answer = redis.command(&[b"CONFIG", b"SET", name.as_bytes(), value.as_bytes()]).unwrap();
        assert_eq!(answer, b"+OK\r\n", "{name} {value}");
    };
    let writes = look(&url).await.unwrap();
    assert!(of(&writes, "writing").is_empty(), "{writes:?}");
    for (name, value, well, said, advice) in [
        ("maxmemory", "1", "0", "OOM", "CONFIG SET maxmemory"),
        ("min-replicas-to-write", "1", "0", "NOREPLICAS", "min-replicas-to-write"),
    ] {
        set(name, value);
        let found = look(&url).await.unwrap();
        let writing = only(&found, "writing");
        assert_eq!(writing.severity(), Severity::Bad, "{writing:?}");
        assert!(writing.what().contains(said), "{writing:?}");
        assert!(writing.advice().unwrap().contains(advice), "{writing:?}");
        set(name, well);
    }
    // A snapshot cannot take the place of a directory.
    std::fs::create_dir(redis.server().data().join("dump.rdb")).unwrap();
    set("save", "3600 1");
    redis.command(&[b"BGSAVE"]).unwrap();
    tooz_servers::until("the snapshot fails", Duration::from_secs(30), async || {
        let info = redis.command(&[b"INFO", b"persistence"]).unwrap();
        String::from_utf8_lossy(&info).contains("rdb_last_bgsave_status:err")
    })
    .await;
    let found = look(&url).await.unwrap();
    assert!(only(&found, "writing").what().contains("MISCONF"), "{found:?}");
    assert!(only(&found, "writing").advice().unwrap().contains("BGSAVE"), "{found:?}");
    assert_eq!(redis.everything().unwrap().len(), 0);
}

async fn a_server_that_loads_its_data_is_told() {
    // It answers after every key that it loads, and each takes 20 ms.
    let slow = ["--rdbcompression", "no", "--loading-process-events-interval-bytes", "1024"];
    let slow = [&slow[..], &["--key-load-delay", "20000"]].concat();
    // Before Redis 7 everybody may call DEBUG, and there is no such setting.
    let redis = Redis::start_with(&[&slow[..], &["--enable-debug-command", "yes"]].concat());
    let redis = redis.or_else(|_| Redis::start_with(&slow)).unwrap();
    redis.command(&[b"DEBUG", b"POPULATE", b"2000", b"key", b"4096"]).unwrap();
    let mut reloading = TcpStream::connect(redis.address()).unwrap();
    std::io::Write::write_all(&mut reloading, b"DEBUG RELOAD\r\n").unwrap();
    tooz_servers::until("it loads", Duration::from_secs(30), async || {
        redis.command(&[b"GET", b"key:1"]).is_ok_and(|answer| answer.starts_with(b"-LOADING"))
    })
    .await;
    let found = look(&format!("redis://{}", redis.address())).await.unwrap();
    let writing = only(&found, "writing");
    assert!(writing.what().contains("LOADING") && writing.advice().unwrap().contains("wait"), "{writing:?}");
}
