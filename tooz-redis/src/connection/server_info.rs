//! What the server at hand keeps: asked once, when connecting.

use std::collections::BTreeMap;

use redis::Value;
use tooz_core::{Characteristics, Error, ErrorKind, Result};

use crate::client::Client;
use crate::connection::address::{Address, Place};
use crate::connection::link::{Link, Sent};
use crate::connection::reply::{Parts, bytes};
use crate::error;
use crate::{scripts, session};

/// What a server said about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    replicas: u64,
    /// Whether every write is on disk before it is answered.
    durable: bool,
    /// Whether it may throw away keys when its memory is full.
    evicts: bool,
}

impl Facts {
    /// What is kept of `best`.
    pub(crate) fn lower(&self, best: Characteristics) -> Characteristics {
        let mut kept = best;
        if !self.durable || self.evicts {
            kept -= Characteristics::DURABLE_FENCING;
        }
        if self.replicas > 0 {
            // One of them may be promoted without what the others have seen.
            kept -= Characteristics::DURABLE_FENCING | Characteristics::CAUSAL;
        }
        kept
    }
}

/// Asks the server and sees to it that it knows the scripts.
pub(crate) async fn ask(client: &Client, link: &Link) -> Result<Facts> {
    let info = match client.send(link, &redis::cmd("INFO")).await {
        Sent::Answered(info) | Sent::Unconfirmed(info, _) => fields(&info),
        Sent::Refused(refusal) if error::of(refusal.clone()).kind() == ErrorKind::Denied => {
            tracing::warn!(address = %link.address, "the user may not call INFO; what the server keeps is not known");
            load(client, link).await;
            return Ok(Facts { replicas: 1, durable: false, evicts: true });
        }
        Sent::Refused(refusal) => return Err(error::connecting(&link.address.to_string(), refusal)),
        Sent::Lost => {
            return Err(Error::new(ErrorKind::Unavailable, format!("{}: {}", link.address, link.why())));
        }
    };
    let say = |name: &str| info.get(name).map_or("", String::as_str);
    unfit(&client.config.place, &link.address, &say)?;
    let facts = Facts {
        replicas: say("connected_slaves").parse().unwrap_or(0),
        durable: say("aof_enabled") == "1" && always_synced(client, link).await,
        evicts: say("maxmemory_policy") != "noeviction",
    };
    if facts.replicas > 0 && !client.config.place.is_sought() {
        tracing::warn!(
            address = %link.address,
            "the server has replicas; if one is promoted, locks and tokens may be lost with it: \
             redis+sentinel:// waits for replicas"
        );
    }
    if facts.evicts {
        tracing::warn!(address = %link.address, "maxmemory-policy is not noeviction: a full server forgets locks");
    }
    load(client, link).await;
    Ok(facts)
}

/// Refuses a server that the URL's scheme does not fit, and names the one that does.
fn unfit<'a>(place: &Place, address: &Address, say: &impl Fn(&str) -> &'a str) -> Result<()> {
    let refuse = |kind, what: &str| Err(Error::new(kind, format!("{address} {what}")));
    match (say("redis_mode"), place) {
        ("sentinel", _) => {
            return refuse(
                ErrorKind::Unsupported,
                "is a sentinel; write redis+sentinel:// with the sentinels and the name of the master",
            );
        }
        (_, Place::Cluster { .. }) if say("cluster_enabled") != "1" => {
            return refuse(ErrorKind::Unsupported, "is no node of a cluster; write redis://");
        }
        (_, Place::Server(_) | Place::Sentinel { .. }) if say("cluster_enabled") == "1" => {
            return refuse(
                ErrorKind::Unsupported,
                "is a node of a cluster, which would send us on to others; write redis+cluster:// with some of its nodes",
            );
        }
        _ => {}
    }
    if say("role") == "slave" {
        return refuse(
            ErrorKind::Unavailable,
            "is a replica and takes no writes; name the master, or write redis+sentinel:// with its sentinels",
        );
    }
    Ok(())
}

/// Whether a server is what others said: they may lag behind.
pub(crate) async fn is_master(client: &Client, link: &Link) -> Result<()> {
    let role = match command(client, link, &redis::cmd("ROLE")).await {
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
            let why = format!("{}: others call it the master, its own role is {role}", link.address);
            Err(Error::new(ErrorKind::Unavailable, why))
        }
    }
}

async fn command(client: &Client, link: &Link, command: &redis::Cmd) -> Result<Value> {
    match client.send(link, command).await {
        Sent::Answered(value) | Sent::Unconfirmed(value, _) => Ok(value),
        Sent::Refused(refusal) => Err(error::connecting(&link.address.to_string(), refusal)),
        Sent::Lost => Err(Error::new(ErrorKind::Unavailable, format!("{}: {}", link.address, link.why()))),
    }
}

/// What cannot be asked counts as not kept.
async fn always_synced(client: &Client, link: &Link) -> bool {
    let mut ask = redis::cmd("CONFIG");
    ask.arg("GET").arg("appendfsync");
    let Ok(value) = command(client, link, &ask).await else { return false };
    let said = match value {
        Value::Map(pairs) => pairs.into_iter().next().and_then(|(_, value)| bytes(value)),
        Value::Array(list) => list.into_iter().nth(1).and_then(bytes),
        _ => None,
    };
    said.as_deref() == Some(b"always")
}

/// A view reads the layout of this version alone. Where no session ever was there is none, and nothing to see.
pub(crate) async fn check_layout(client: &Client, link: &Link) -> Result<()> {
    let mut get = redis::cmd("GET");
    get.arg(client.keys.epoch());
    match bytes(command(client, link, &get).await?) {
        Some(stamp) => {
            session::stamp(client, &stamp)?.readable(&session::place(client), client.config.layout)
        }
        None => Ok(()),
    }
}

/// Loads what the server lacks, so that no first call needs a second round trip. Calls do without it.
async fn load(client: &Client, link: &Link) {
    if client.config.view {
        return; // it has three scripts, and may not be allowed to
    }
    let mut known = redis::cmd("SCRIPT");
    known.arg("EXISTS");
    for script in scripts::ALL {
        known.arg(script.hash());
    }
    let Ok(answer) = command(client, link, &known).await.and_then(Parts::of) else { return };
    for (script, known) in scripts::ALL.iter().zip(answer) {
        if known != Value::Int(1) {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(script.source());
            if let Err(error) = command(client, link, &load).await {
                tracing::debug!(%error, "a script could not be loaded ahead");
                return;
            }
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
        let kept = |durable, evicts, replicas| Facts { replicas, durable, evicts }.lower(best);
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
