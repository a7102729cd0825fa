//! Redis with replicas that take over: under Sentinel, and as a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::redis::{Redis, command, text};
use super::{Launch, Server, free_port, poll};

/// How long all of them may take to know each other.
const READY: Duration = Duration::from_mins(1);
/// What sentinels call the master.
pub const MASTER: &str = "mymaster";
/// Replicas get everything at once, and say at once what they have; nothing waits for a disk.
const REPLICATION: [&str; 10] = [
    "--repl-diskless-sync",
    "yes",
    "--repl-diskless-sync-delay",
    "0",
    "--repl-ping-replica-period",
    "1",
    "--appendonly",
    "no",
    "--appendfsync",
    "no",
];

fn eventually(what: &str, check: impl FnMut() -> bool) -> Result<(), String> {
    poll(what, Duration::from_millis(20), READY, check).map(drop)
}

fn says(address: SocketAddr, words: &[&str], what: &[&str]) -> bool {
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    command(address, &words).is_ok_and(|answer| {
        let answer = String::from_utf8_lossy(&answer);
        what.iter().all(|what| answer.contains(what))
    })
}

fn is_replica(redis: &Redis) -> bool {
    says(redis.address(), &["INFO", "replication"], &["role:slave", "master_link_status:up"])
}

fn master_of(redis: &Redis, replicas: usize) -> bool {
    let count = format!("connected_slaves:{replicas}\r\n");
    says(redis.address(), &["INFO", "replication"], &["role:master", &count])
}

/// A master, its replicas and three sentinels.
#[derive(Debug)]
pub struct Sentinels {
    /// The first one is the master at the beginning.
    pub servers: Vec<Redis>,
    sentinels: Vec<(Server, SocketAddr)>,
}

impl Sentinels {
    /// Starts them. `down_after`: how long a server is silent before it is called down.
    ///
    /// # Errors
    /// They are not on this machine, or do not start.
    pub fn start(replicas: usize, down_after: Duration) -> Result<Self, String> {
        Self::start_behind(replicas, down_after, Ok)
    }

    /// The same, with replicas and sentinels that know the master under the address that `hide` makes of it.
    ///
    /// # Errors
    /// As [`start`](Sentinels::start).
    pub fn start_behind(
        replicas: usize,
        down_after: Duration,
        hide: impl FnOnce(SocketAddr) -> Result<SocketAddr, String>,
    ) -> Result<Self, String> {
        let program = super::redis::program()?;
        let master = Redis::start_with(&REPLICATION)?;
        let known = hide(master.address())?;
        let port = known.port().to_string();
        let mut servers = vec![master];
        for _ in 0..replicas {
            let more = [&REPLICATION[..], &["--replicaof", "127.0.0.1", &port]].concat();
            servers.push(Redis::start_with(&more)?);
        }
        // A sentinel asks only every 10 s who the replicas are: they are to be there at its first question.
        eventually("the replicas follow", || {
            servers[1..].iter().all(is_replica) && master_of(&servers[0], replicas)
        })?;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(sentinel(&program, known, down_after)?);
        }
        let seen = [format!("slaves={replicas},"), "sentinels=3".into(), "status=ok".into()];
        let seen: Vec<_> = seen.iter().map(String::as_str).collect();
        eventually("the sentinels know each other", || {
            sentinels.iter().all(|(_, address)| says(*address, &["INFO", "sentinel"], &seen))
        })?;
        Ok(Self { servers, sentinels })
    }

    /// Where the sentinels listen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sentinels.iter().map(|(_, address)| *address).collect()
    }

    /// The URL, without options.
    pub fn url(&self) -> String {
        sentinel_url(&self.addresses())
    }

    /// Where the sentinels say that the master is, if they agree.
    pub fn master(&self) -> Option<SocketAddr> {
        let ask = |address: &SocketAddr| {
            let words = [&b"SENTINEL"[..], b"GET-MASTER-ADDR-BY-NAME", MASTER.as_bytes()];
            let answer = command(*address, &words).ok()?;
            let [host, port] = &super::redis::list(&answer)[..] else { return None };
            format!("{host}:{port}").parse::<SocketAddr>().ok()
        };
        let mut said = self.addresses().into_iter().map(|address| ask(&address));
        let first = said.next()??;
        said.all(|other| other == Some(first)).then_some(first)
    }
}

/// The URL of sentinels that listen here.
pub fn sentinel_url(addresses: &[SocketAddr]) -> String {
    let hosts: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    format!("redis+sentinel://{}/{MASTER}", hosts.join(","))
}

fn sentinel(
    program: &PathBuf,
    master: SocketAddr,
    down_after: Duration,
) -> Result<(Server, SocketAddr), String> {
    let data = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    // It writes into its file what it learns.
    let file = data.path().join("sentinel.conf");
    let lines = format!(
        "bind 127.0.0.1\nport {}\ndir {}\nprotected-mode no\nsentinel monitor {MASTER} {} {} 2\n\
         sentinel down-after-milliseconds {MASTER} {}\nsentinel failover-timeout {MASTER} 3000\n\
         sentinel parallel-syncs {MASTER} 1\n",
        address.port(),
        data.path().display(),
        master.ip(),
        master.port(),
        down_after.as_millis(),
    );
    std::fs::write(&file, lines).map_err(|error| format!("{}: {error}", file.display()))?;
    let launch = Launch::new(program).arg(file.as_os_str()).arg("--sentinel");
    let server = Server::start(data, launch, move || says(address, &["PING"], &["PONG"]))?;
    Ok((server, address))
}

/// A cluster of three masters with a replica each.
#[derive(Debug)]
pub struct Cluster {
    /// Three masters, then their replicas in the same order.
    pub nodes: Vec<Redis>,
}

const MASTERS: usize = 3;

impl Cluster {
    /// Starts one; `node_timeout`: how long a node is silent before it is called down.
    ///
    /// # Errors
    /// It is not on this machine, or does not start.
    pub fn start(node_timeout: Duration) -> Result<Self, String> {
        let timeout = node_timeout.as_millis().to_string();
        let more =
            [&REPLICATION[..], &["--cluster-enabled", "yes", "--cluster-node-timeout", &timeout]].concat();
        let nodes = (0..2 * MASTERS).map(|_| Redis::start_with(&more)).collect::<Result<_, _>>()?;
        let cluster = Self { nodes };
        for n in 0..MASTERS {
            let part = 16_384 * n / MASTERS..16_384 * (n + 1) / MASTERS;
            let slots: Vec<_> = part.map(|slot| slot.to_string()).collect();
            // ADDSLOTSRANGE came with Redis 7.
            let add = ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str));
            cluster.ask(n, &add.collect::<Vec<_>>())?;
            cluster.ask(n, &["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()])?;
        }
        let port = cluster.nodes[0].address().port().to_string();
        for n in 1..cluster.nodes.len() {
            cluster.ask(n, &["CLUSTER", "MEET", "127.0.0.1", &port])?;
        }
        let all = format!("cluster_known_nodes:{}\r\n", cluster.nodes.len());
        eventually("the nodes know each other", || {
            cluster.nodes.iter().all(|node| {
                says(node.address(), &["CLUSTER", "INFO"], &[&all])
                    && !says(node.address(), &["CLUSTER", "NODES"], &["handshake"])
            })
        })?;
        for n in 0..MASTERS {
            let id = cluster.id(n)?;
            // It may not have heard of the master yet.
            eventually("a replica", || cluster.ask(MASTERS + n, &["CLUSTER", "REPLICATE", &id]).is_ok())?;
        }
        eventually("the cluster stands", || cluster.stands())?;
        Ok(cluster)
    }

    /// Sends a command to a node.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub fn ask(&self, node: usize, words: &[&str]) -> Result<Vec<u8>, String> {
        let bytes: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
        let answer = self.nodes[node].command(&bytes)?;
        if answer.first() == Some(&b'-') {
            return Err(format!("{words:?}: {}", answer.escape_ascii()));
        }
        Ok(answer)
    }

    /// The id of a node.
    ///
    /// # Errors
    /// It does not answer.
    pub fn id(&self, node: usize) -> Result<String, String> {
        self.ask(node, &["CLUSTER", "MYID"]).map(|answer| text(&answer))
    }

    /// The slot of a key.
    ///
    /// # Errors
    /// It does not answer.
    pub fn slot(&self, key: &str) -> Result<usize, String> {
        let answer = self.ask(0, &["CLUSTER", "KEYSLOT", key])?;
        let slot = String::from_utf8_lossy(&answer);
        slot.trim_matches(|c: char| !c.is_ascii_digit()).parse().map_err(|_| format!("no slot: {slot}"))
    }

    /// Which of the first masters has a key; its replica is so many nodes after it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn owner(&self, key: &str) -> Result<(usize, usize), String> {
        let slot = self.slot(key)?;
        let master = (0..MASTERS).find(|n| slot < 16_384 * (n + 1) / MASTERS).unwrap_or(0);
        Ok((master, master + MASTERS))
    }

    fn stands(&self) -> bool {
        let ports: Vec<_> = self.nodes.iter().map(|node| format!(":{}\r\n", node.address().port())).collect();
        let ports: Vec<_> = ports.iter().map(String::as_str).collect();
        self.nodes[..MASTERS].iter().all(|node| master_of(node, 1))
            && self.nodes[MASTERS..].iter().all(is_replica)
            && self.nodes.iter().all(|node| {
                says(node.address(), &["CLUSTER", "INFO"], &["cluster_state:ok", "cluster_slots_ok:16384"])
                    // Every node knows every other as one that can be counted on.
                    && says(node.address(), &["CLUSTER", "SLOTS"], &ports)
            })
    }

    /// The URL, without options.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes[..MASTERS].iter().map(|node| node.address().to_string()).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }
}
