//! Finds the one server that serves a namespace, by asking the sentinels or the nodes of the cluster.
//!
//! They are asked one at a time, each time in another order: a sentinel or node that lags behind or is cut off is soon not
//! the one whose answer counts.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, RedisError, Value};
use tooz_core::driver::Spawner;
use tooz_core::{Error, ErrorKind, Result};

use super::address::{Address, Topology};
use super::reply::bytes;
use crate::config::Config;
use crate::error;

/// How long a sentinel or node may take to answer, at least and at most.
const LIMIT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// So many nodes of a cluster are remembered besides those in the URL, and so many are asked before an error is returned.
const REMEMBERED: usize = 32;
const ASKED: usize = 8;

/// A server, as announced.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) address: Address,
    /// How many of its replicas are announced as healthy.
    pub(crate) replicas: u32,
    /// How long a server is silent before sentinels call it down. Nodes of a cluster do not announce it.
    pub(crate) down_after: Option<Duration>,
    /// Who announced it, for errors.
    pub(crate) by: String,
    /// The sentinels' configuration, which grows with every fail-over; 0 from nodes, which do not say it.
    epoch: u64,
}

impl Found {
    /// The server that the URL names.
    fn named(address: &Address) -> Self {
        let by = "named by the URL".to_owned();
        Self { address: address.clone(), replicas: 0, down_after: None, by, epoch: 0 }
    }
}

#[derive(Default)]
pub(crate) struct Discovery {
    turn: usize,
    /// Other nodes of the cluster, as its nodes named them.
    nodes: Vec<Address>,
    /// The newest configuration that a sentinel announced.
    epoch: u64,
}

impl Discovery {
    /// The sentinels or nodes to ask, in this order.
    fn order(&mut self, first: &[Address]) -> Vec<Address> {
        let mut all = first.to_vec();
        all.extend(self.nodes.iter().filter(|node| !first.contains(node)).cloned());
        let start = self.turn % all.len().max(1);
        self.turn = self.turn.wrapping_add(1);
        all.rotate_left(start);
        all.truncate(ASKED);
        all
    }

    /// Finds the server; must run on the coordinator's runtime.
    pub(crate) async fn find(&mut self, config: &Config, spawner: &Spawner) -> Result<Found> {
        let asked = match &config.topology {
            Topology::Server(address) => return Ok(Found::named(address)),
            Topology::Sentinel { sentinels, .. } => self.order(sentinels),
            Topology::Cluster { seeds, .. } => self.order(seeds),
        };
        let (mut failures, mut behind) = (Vec::new(), None::<Found>);
        for who in asked {
            let found = self.ask(config, spawner, &who).await.map_err(|error| failures.push(error));
            let Ok(found) = found else { continue };
            if found.epoch >= self.epoch {
                self.epoch = found.epoch;
                return Ok(found);
            }
            // This one has not heard of the last fail-over yet. If all of them went back, none lags behind.
            if behind.as_ref().is_none_or(|newest| newest.epoch < found.epoch) {
                behind = Some(found);
            }
        }
        let newest = behind.ok_or_else(|| not_found(&config.topology, &failures))?;
        if failures.is_empty() {
            self.epoch = newest.epoch;
        }
        Ok(newest)
    }

    /// Asks one sentinel or node, within a limit; must run on the coordinator's runtime.
    pub(crate) async fn ask(&mut self, config: &Config, spawner: &Spawner, who: &Address) -> Result<Found> {
        let limit = (config.limits.ttl / 4).clamp(LIMIT.0, LIMIT.1);
        let asked = spawner.timeout(limit, Box::pin(self.query(config, who))).await;
        asked.unwrap_or_else(|| {
            let why = format!("{who} does not answer within {limit:?}");
            Err(Error::new(ErrorKind::Unavailable, why))
        })
    }

    async fn query(&mut self, config: &Config, who: &Address) -> Result<Found> {
        let explain =
            |error: RedisError| error::connecting(config, config.login_for_discovery(), who, &error);
        let options = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let client = config
            .connection_for_discovery(who)
            .and_then(|info| super::tls::open(info, config.tls.as_ref()))
            .map_err(explain)?;
        let mut connection =
            client.get_multiplexed_async_connection_with_config(&options).await.map_err(explain)?;
        match &config.topology {
            Topology::Sentinel { master, .. } => query_sentinel(&mut connection, config, who, master).await,
            Topology::Cluster { slot, .. } => {
                let slots = answer(&mut connection, config, who, redis::cmd("CLUSTER").arg("SLOTS")).await?;
                let (owner, nodes) = slot_owner(&slots, *slot, who)?;
                self.nodes = nodes;
                Ok(owner)
            }
            Topology::Server(address) => Ok(Found::named(address)),
        }
    }
}

async fn answer(
    connection: &mut MultiplexedConnection,
    config: &Config,
    who: &Address,
    command: &Cmd,
) -> Result<Value> {
    let answer = connection.send_packed_command(command).await.and_then(Value::extract_error);
    answer.map_err(|error| refused(config, who, &error))
}

/// Names a server that is not what the URL's scheme says.
fn refused(config: &Config, who: &Address, error: &RedisError) -> Error {
    let words = error.to_string();
    let what = if words.contains("unknown command") {
        "is no sentinel; redis:// is for a server of its own"
    } else if words.contains("cluster support disabled") {
        "is no node of a cluster; redis:// is for a server of its own"
    } else {
        return error::connecting(config, config.login_for_discovery(), who, error);
    };
    Error::new(ErrorKind::Unsupported, format!("{who} {what}"))
}

async fn query_sentinel(
    connection: &mut MultiplexedConnection,
    config: &Config,
    who: &Address,
    master: &str,
) -> Result<Found> {
    let command = |word: &str| {
        let mut command = redis::cmd("SENTINEL");
        command.arg(word).arg(master);
        command
    };
    let address = answer(connection, config, who, &command("GET-MASTER-ADDR-BY-NAME")).await?;
    if address == Value::Nil {
        let why = format!("{who} knows no master called \"{}\"", master.escape_debug());
        return Err(Error::new(ErrorKind::Unavailable, why));
    }
    let address = endpoint(&address, who).ok_or_else(|| nonsense(who, "an address"))?;
    let state = properties(answer(connection, config, who, &command("MASTER")).await?);
    let number = |name: &str| state.get(name).and_then(|value| value.parse::<u64>().ok());
    let epoch = number("config-epoch").unwrap_or(0);
    let down_after = number("down-after-milliseconds").map(Duration::from_millis);
    let replicas = match answer(connection, config, who, &command("REPLICAS")).await? {
        Value::Array(replicas) => replicas.into_iter().map(properties).filter(is_healthy).count(),
        _ => 0,
    };
    let by = format!("announced by sentinel {who} as the master \"{}\"", master.escape_debug());
    Ok(Found { address, replicas: u32::try_from(replicas).unwrap_or(u32::MAX), down_after, by, epoch })
}

fn is_healthy(replica: &BTreeMap<String, String>) -> bool {
    let flags = replica.get("flags").map_or("s_down", String::as_str);
    !flags.split(',').any(|flag| matches!(flag, "s_down" | "o_down" | "disconnected"))
}

/// The owner of a slot, and all other nodes that an answer names.
fn slot_owner(slots: &Value, slot: u16, who: &Address) -> Result<(Found, Vec<Address>)> {
    let Value::Array(ranges) = slots else { return Err(nonsense(who, "slots")) };
    let (mut owner, mut nodes) = (None, Vec::new());
    for range in ranges {
        let Value::Array(parts) = range else { return Err(nonsense(who, "a range of slots")) };
        let [Value::Int(from), Value::Int(to), servers @ ..] = parts.as_slice() else {
            return Err(nonsense(who, "a range of slots"));
        };
        let servers: Vec<_> = servers.iter().filter_map(|server| endpoint(server, who)).collect();
        if (*from..=*to).contains(&i64::from(slot)) {
            // The first is the master; replicas that fail are not named.
            owner = servers.first().map(|address| Found {
                address: address.clone(),
                replicas: u32::try_from(servers.len() - 1).unwrap_or(u32::MAX),
                down_after: None,
                by: format!("announced by node {who} for this namespace's slot"),
                epoch: 0,
            });
        }
        nodes.extend(servers);
    }
    nodes.sort_unstable();
    nodes.dedup();
    nodes.truncate(REMEMBERED);
    let owner = owner.ok_or_else(|| {
        Error::new(ErrorKind::Unavailable, format!("{who} says that slot {slot} belongs to no node"))
    })?;
    Ok((owner, nodes))
}

/// The address whose host and port an answer begins with; one without a host is at the same host as `who`.
fn endpoint(server: &Value, who: &Address) -> Option<Address> {
    let Value::Array(parts) = server else { return None };
    let [host, port, ..] = parts.as_slice() else { return None };
    let port = text(port)?.parse().ok()?;
    match (text(host).filter(|host| !host.is_empty() && host != "?"), who) {
        (Some(host), _) => Some(Address::Tcp(host, port)),
        (None, Address::Tcp(host, _)) => Some(Address::Tcp(host.clone(), port)),
        (None, Address::Unix(_)) => None,
    }
}

/// The text of a string or number.
fn text(value: &Value) -> Option<String> {
    redis::from_redis_value_ref(value).ok()
}

/// Names and values, as a map or one after the other. What cannot be read is left out alone: without the others a master
/// would lose its epoch, and a replica its state.
fn properties(mut value: Value) -> BTreeMap<String, String> {
    if let Value::Array(items) = &mut value
        && items.len() % 2 == 1
    {
        items.pop();
    }
    let text = |value| String::from_utf8(bytes(value)?).ok();
    let pairs = value.into_map_iter().into_iter().flatten();
    pairs.filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect()
}

fn nonsense(who: &Address, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{who} returned something other than {what}"))
}

/// No sentinel or node knows the server. The error has the kind of the failures if all have the same.
fn not_found(topology: &Topology, failures: &[Error]) -> Error {
    let same = |kind| failures.iter().all(|failure| failure.kind() == kind);
    let kind = failures.first().map(Error::kind).filter(|kind| same(*kind)).unwrap_or(ErrorKind::Unavailable);
    let each: Vec<_> = failures.iter().map(Error::context).collect();
    Error::new(kind, format!("no server tells the address of {topology}: {}", each.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn what_cannot_be_read_hides_no_other_property() {
        let flat = |items: &[Value]| properties(Value::Array(items.to_vec()));
        let expected: BTreeMap<_, _> = [("flags".to_owned(), "slave".to_owned())].into();
        for unreadable in [Value::Nil, Value::BulkString(vec![0xff]), Value::Array(vec![bulk("x")])] {
            assert_eq!(flat(&[bulk("x"), unreadable, bulk("flags"), bulk("slave")]), expected);
        }
        assert_eq!(flat(&[bulk("flags"), bulk("slave"), bulk("odd")]), expected);
        assert_eq!(properties(Value::Map(vec![(bulk("flags"), bulk("slave"))])), expected);
    }

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.into(), port)
    }

    #[test]
    fn the_owner_of_a_slot() {
        let node =
            |host: Value, port| Value::Array(vec![host, Value::Int(port), bulk("id"), Value::Array(vec![])]);
        let range = |from, to, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(from), Value::Int(to)], nodes].concat())
        };
        let slots = Value::Array(vec![
            range(0, 99, vec![node(bulk("a"), 1), node(bulk("b"), 2)]),
            range(100, 16_383, vec![node(bulk(""), 3), node(Value::Nil, 4), node(bulk("?"), 5)]),
        ]);
        let who = tcp("h", 9);
        let (said, nodes) = slot_owner(&slots, 99, &who).unwrap();
        assert_eq!((said.address, said.replicas), (tcp("a", 1), 1));
        let (said, _) = slot_owner(&slots, 100, &who).unwrap();
        assert_eq!((said.address, said.replicas), (tcp("h", 3), 2));
        assert_eq!(nodes, [tcp("a", 1), tcp("b", 2), tcp("h", 3), tcp("h", 4), tcp("h", 5)]);
        let hole = Value::Array(vec![range(0, 99, vec![node(bulk("a"), 1)])]);
        assert!(slot_owner(&hole, 100, &who).is_err_and(|error| error.to_string().contains("slot 100")));
        for hostile in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            range(0, 16_383, vec![]),
            range(0, 16_383, vec![Value::Nil]),
        ] {
            assert!(slot_owner(&hostile, 1, &who).is_err());
        }
    }

    #[test]
    fn who_is_healthy() {
        let of = |flags: &str| is_healthy(&properties(Value::Array(vec![bulk("flags"), bulk(flags)])));
        assert!(of("slave") && !of("s_down,slave") && !of("slave,disconnected"));
        assert!(!is_healthy(&properties(Value::Nil)));
    }

    #[test]
    fn another_one_is_asked_first_each_time() {
        let mut discovery = Discovery::default();
        let all = [tcp("a", 1), tcp("b", 1), tcp("c", 1)];
        let firsts: Vec<_> = (0..4).map(|_| discovery.order(&all)[0].clone()).collect();
        assert_eq!(firsts, [all[0].clone(), all[1].clone(), all[2].clone(), all[0].clone()]);
    }
}
