//! What the server at hand guarantees: asked once, when connecting.

use std::collections::BTreeMap;

use redis::Value;
use tooz_core::{Characteristics, Error, ErrorKind, Result};

use super::address::{Address, Topology};
use super::link::{Link, Outcome};
use super::reply::{Parts, bytes};
use crate::config::Config;
use crate::keys::Keys;
use crate::scripts;

/// What a server does not guarantee of what its URL promises. `durable`: every write is on disk before it is answered.
/// `evicts`: it may throw away keys when its memory is full.
fn unkept(replicas: u64, durable: bool, evicts: bool) -> Characteristics {
    if replicas > 0 {
        // One of them may be promoted without what the others have seen.
        return Characteristics::DURABLE_FENCING | Characteristics::CAUSAL;
    }
    if durable && !evicts { Characteristics::empty() } else { Characteristics::DURABLE_FENCING }
}

/// Asks what the server does not guarantee.
pub(crate) async fn query(config: &Config, link: &Link) -> Result<Characteristics> {
    let fields = match command(link, &redis::cmd("INFO")).await {
        Ok(info) => fields(&info),
        Err(error) if error.kind() == ErrorKind::Denied => {
            tracing::warn!(address = %link.address, "the user may not call INFO; what the server keeps is not known");
            return Ok(unkept(1, false, true));
        }
        Err(error) => return Err(error),
    };
    let say = |name: &str| fields.get(name).map_or("", String::as_str);
    refuse_unfit(&config.topology, &link.address, &say)?;
    let replicas = say("connected_slaves").parse().unwrap_or(0);
    let durable = say("aof_enabled") == "1" && always_synced(link).await;
    let evicts = say("maxmemory_policy") != "noeviction";
    if replicas > 0 && !config.topology.is_discovered() {
        tracing::warn!(
            address = %link.address,
            "the server has replicas; if one is promoted, locks and tokens may be lost with it: \
             redis+sentinel:// waits for replicas"
        );
    }
    if evicts {
        tracing::warn!(address = %link.address, "maxmemory-policy is not noeviction: a full server forgets locks");
    }
    Ok(unkept(replicas, durable, evicts))
}

/// Refuses a server that the URL's scheme does not fit, and names the one that does.
fn refuse_unfit<'a>(topology: &Topology, address: &Address, say: &impl Fn(&str) -> &'a str) -> Result<()> {
    let (kind, what) = match (say("redis_mode"), topology) {
        ("sentinel", _) => (
            ErrorKind::Unsupported,
            "is a sentinel; write redis+sentinel:// with the sentinels and the name of the master",
        ),
        (_, Topology::Cluster { .. }) if say("cluster_enabled") != "1" => {
            (ErrorKind::Unsupported, "is no node of a cluster; write redis://")
        }
        (_, Topology::Server(_) | Topology::Sentinel { .. }) if say("cluster_enabled") == "1" => (
            ErrorKind::Unsupported,
            "is a node of a cluster, which would send us on to others; write redis+cluster:// with some of its nodes",
        ),
        _ if say("role") == "slave" => (
            ErrorKind::Unavailable,
            "is a replica and takes no writes; name the master, or write redis+sentinel:// with its sentinels",
        ),
        _ => return Ok(()),
    };
    Err(Error::new(kind, format!("{address} {what}")))
}

/// Fails unless the server itself says that it is the master: those who announced it may lag behind.
pub(crate) async fn check_master(link: &Link) -> Result<()> {
    let role = match command(link, &redis::cmd("ROLE")).await {
        Ok(Value::Array(parts)) => parts.into_iter().next().and_then(bytes),
        Ok(_) => None,
        // A replica refuses the first write.
        Err(error) if error.kind() == ErrorKind::Denied => return Ok(()),
        Err(error) => return Err(error),
    };
    match role.as_deref() {
        Some(b"master") => Ok(()),
        role => {
            let role = role.unwrap_or(b"unknown").escape_ascii();
            let why = format!("{}: others name it the master, its own role is {role}", link.address);
            Err(Error::new(ErrorKind::Unavailable, why))
        }
    }
}

async fn command(link: &Link, command: &redis::Cmd) -> Result<Value> {
    match link.exchange(command, false).await {
        Outcome::Answered(value, _) => Ok(value),
        Outcome::Refused(refusal) => Err(link.explain(&refusal)),
        Outcome::Lost => Err(Error::new(ErrorKind::Unavailable, format!("{}: {}", link.address, link.why()))),
    }
}

/// Whether every write is on disk before it is answered. Where the user may not ask, it counts as not.
async fn always_synced(link: &Link) -> bool {
    let answer = command(link, redis::cmd("CONFIG").arg("GET").arg("appendfsync")).await.ok();
    answer.and_then(setting).as_deref() == Some("always")
}

/// The value in an answer to `CONFIG GET`.
pub(crate) fn setting(answer: Value) -> Option<String> {
    redis::from_redis_value::<BTreeMap<String, String>>(answer).ok()?.into_values().next()
}

/// A view reads only the layout of this version. Where no session ever was, there is no layout, and nothing to see.
pub(crate) async fn check_layout(config: &Config, keys: &Keys, link: &Link) -> Result<()> {
    match bytes(command(link, redis::cmd("GET").arg(keys.epoch())).await?) {
        Some(stamp) => keys.read_stamp(&stamp)?.readable(&keys.shown(), config.layout),
        None => Ok(()),
    }
}

/// Loads what the server lacks, so that no first call needs a second round trip. Calls do without it.
pub(crate) async fn load_scripts(link: &Link) {
    let mut known = redis::cmd("SCRIPT");
    known.arg("EXISTS");
    for script in scripts::ALL {
        known.arg(script.hash());
    }
    let Ok(answer) = command(link, &known).await.and_then(Parts::of) else { return };
    for (script, known) in scripts::ALL.iter().zip(answer) {
        if known != Value::Int(1)
            && let Err(error) = command(link, redis::cmd("SCRIPT").arg("LOAD").arg(script.source)).await
        {
            tracing::debug!(%error, "a script could not be loaded ahead");
            return;
        }
    }
}

/// The fields of an answer to `INFO`.
pub(crate) fn fields(info: &Value) -> BTreeMap<String, String> {
    let text = match info {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    };
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_does_not_keep_is_not_claimed() {
        let best = Characteristics::DURABLE_FENCING | Characteristics::CAUSAL | Characteristics::FAIR_LOCKS;
        let kept = |durable, evicts, replicas| best - unkept(replicas, durable, evicts);
        assert_eq!(kept(true, false, 0), best);
        assert_eq!(kept(false, false, 0), best - Characteristics::DURABLE_FENCING);
        assert_eq!(kept(true, true, 0), best - Characteristics::DURABLE_FENCING);
        assert_eq!(kept(true, false, 1), Characteristics::FAIR_LOCKS);
    }

    #[test]
    fn hostile_answers_have_no_fields() {
        assert!(fields(&Value::Nil).is_empty());
        assert_eq!(fields(&Value::BulkString(b"\xff\nrole:master\r\n:\n".to_vec()))["role"], "master");
    }
}
