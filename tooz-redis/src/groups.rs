//! Groups and memberships.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use redis::Value;
use tooz_core::driver::{ChangeStream, Groups, Join, MemberRecord, SessionGroups};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};

use crate::client::{Client, Repeat};
use crate::connection::reply::{Parts, bytes};
use crate::scripts;
use crate::session::RedisSession;
use crate::watch;

pub(crate) fn no_group(group: &GroupId) -> Error {
    Error::new(ErrorKind::GroupNotFound, format!("group \"{group}\""))
}

fn no_member(group: &GroupId, member: &MemberId) -> Error {
    Error::new(ErrorKind::MemberNotFound, format!("member \"{member}\" of group \"{group}\""))
}

fn unknown_end(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the answer was lost, and {what}")).indeterminate()
}

/// A group as it is read.
#[derive(Debug)]
pub(crate) enum Seen {
    There(View),
    /// There is none, in the data of this epoch.
    Missing(String),
}

#[derive(Debug)]
pub(crate) struct View {
    pub(crate) epoch: String,
    pub(crate) version: u64,
    pub(crate) instance: String,
    /// Each with the bytes that stand there; `None`: they cannot be understood.
    pub(crate) members: Vec<(Vec<u8>, Vec<u8>, Option<MemberRecord>)>,
}

/// A moment that the server wrote, in microseconds.
pub(crate) fn moment(text: &str) -> Option<SystemTime> {
    text.parse().ok().and_then(|micros| UNIX_EPOCH.checked_add(Duration::from_micros(micros)))
}

/// A record; `None`, and a warning, for what is none: anybody may have written it.
pub(crate) fn record(
    member: &[u8],
    caps: &[u8],
    incarnation: &str,
    joined: &str,
    updated: &str,
) -> Option<MemberRecord> {
    let read = || {
        let id = MemberId::new(member)?;
        // Python's members have no incarnation.
        let incarnation = u128::from_str_radix(incarnation, 16).unwrap_or(0);
        Ok::<_, Error>(
            MemberRecord::new(id, Capabilities::from_msgpack(caps)?, incarnation)
                .at(moment(joined), moment(updated)),
        )
    };
    match read() {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(member = %member.escape_ascii(), %error, "a member that cannot be understood is left out");
            None
        }
    }
}

/// Reads a group, or one member of it.
pub(crate) async fn read(client: &Client, group: &GroupId, only: &[u8]) -> Result<Seen> {
    let place = client.keys.group(group);
    let own = place.own();
    let call = client
        .question(&scripts::WHO_IS_IN)
        .keys([place.key, own, client.keys.epoch()])
        .arg(&place.base)
        .arg(format!("{:032x}", client.context.entropy.id()))
        .arg(only);
    let mut answer = Parts::of(client.call(&call, Repeat::Yes).await?.value)?;
    let there = answer.text("its outcome")? == "ok";
    let epoch = answer.text("the epoch")?;
    if !there {
        return Ok(Seen::Missing(epoch));
    }
    let version = u64::try_from(answer.number("the version")?).unwrap_or_default();
    let instance = answer.text("the group's id")?;
    let mut members = Vec::new();
    for one in answer.parts("the members")? {
        let mut one = Parts::of(one)?;
        let (member, caps) = (one.bytes("a member")?, one.bytes("capabilities")?);
        let (incarnation, joined, updated) =
            (one.text("an incarnation")?, one.text("a time")?, one.text("a time")?);
        let record = record(&member, &caps, &incarnation, &joined, &updated);
        members.push((member, caps, record));
    }
    Ok(Seen::There(View { epoch, version, instance, members }))
}

async fn records(client: &Client, group: &GroupId, only: &[u8]) -> Result<Vec<MemberRecord>> {
    match read(client, group, only).await? {
        Seen::Missing(_) => Err(no_group(group)),
        Seen::There(view) => {
            let mut records: Vec<_> = view.members.into_iter().filter_map(|(_, _, record)| record).collect();
            records.sort_by(|a, b| a.member.cmp(&b.member));
            Ok(records)
        }
    }
}

#[derive(Debug)]
pub(crate) struct RedisGroups(pub(crate) Arc<Client>);

#[async_trait]
impl Groups for RedisGroups {
    async fn create(&self, group: &GroupId) -> Result<()> {
        let (client, place) = (&self.0, self.0.keys.group(group));
        let fresh = format!("{:032x}", client.context.entropy.id());
        let call = client
            .script(&scripts::CREATE)
            .keys([place.key, client.keys.groups()])
            .arg(group.as_bytes())
            .arg(&place.base)
            .arg(&fresh);
        let answer = client.call(&call, Repeat::Yes).await?;
        let mut parts = Parts::of(answer.value)?;
        if parts.text("its outcome")? == "ok" || (answer.repeated && parts.text("the group's id")? == fresh) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::GroupExists, format!("group \"{group}\"")))
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        let (client, place) = (&self.0, self.0.keys.group(group));
        let own = place.own();
        let call = client
            .script(&scripts::DELETE)
            .keys([place.key, client.keys.groups(), own])
            .arg(group.as_bytes())
            .arg(&place.base);
        let answer = client.call(&call, Repeat::Yes).await?;
        let mut parts = Parts::of(answer.value)?;
        match parts.text("its outcome")?.as_str() {
            "ok" => Ok(()),
            "members" => {
                let count = parts.number("how many")?;
                let why = format!("group \"{group}\" has {count} members; let them leave first");
                Err(Error::new(ErrorKind::GroupNotEmpty, why))
            }
            _ if answer.repeated => Err(unknown_end("the group is gone")),
            _ => Err(no_group(group)),
        }
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        let mut command = redis::cmd("SMEMBERS");
        command.arg(self.0.keys.groups());
        let names: Vec<Value> = match self.0.ask(&command).await? {
            Value::Set(names) | Value::Array(names) => names,
            _ => Vec::new(),
        };
        let mut groups: Vec<_> =
            names.into_iter().filter_map(bytes).filter_map(|name| GroupId::new(name).ok()).collect();
        groups.sort_unstable();
        Ok(groups)
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        records(&self.0, group, b"").await
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        records(&self.0, group, member.as_bytes()).await?.pop().ok_or_else(|| no_member(group, member))
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        watch::follow(&self.0, group).await
    }
}

#[async_trait]
impl SessionGroups for RedisSession {
    async fn join(&self, request: &Join) -> Result<()> {
        let (inner, client, group) = (&self.inner, &self.inner.client, &request.group);
        let place = client.keys.group(group);
        let own = place.own();
        let id = || format!("{:032x}", client.context.entropy.id());
        let incarnation = id();
        let call = client
            .script(&scripts::JOIN)
            .keys([place.key, client.keys.groups(), own, inner.key(), client.keys.beat(&inner.member)])
            .arg(inner.id.to_string())
            .arg(inner.member.as_bytes())
            .arg(request.capabilities.as_msgpack())
            .number(u8::from(request.create))
            .arg(&incarnation)
            .arg(id())
            .number(inner.ttl.as_millis())
            .arg(group.as_bytes())
            .arg(&place.base)
            .arg(inner.previous.map(|id| id.to_string()).unwrap_or_default());
        let mut answer = Parts::of(client.call(&call, Repeat::Yes).await?.value)?;
        match answer.text("its outcome")?.as_str() {
            "ok" => Ok(()),
            "nogroup" => Err(no_group(group)),
            "taken" => Err(Error::new(
                ErrorKind::MemberExists,
                format!("member id \"{}\" belongs to another live coordinator; use another id", inner.member),
            )),
            // Sent twice, and done the first time.
            "joined" if answer.text("an incarnation")? == incarnation => Ok(()),
            "joined" => Err(Error::new(
                ErrorKind::MemberExists,
                format!("member \"{}\" joined group \"{group}\" before", inner.member),
            )),
            _ => Err(inner.lost()),
        }
    }

    async fn leave(&self, group: &GroupId) -> Result<()> {
        let (inner, client) = (&self.inner, &self.inner.client);
        let place = client.keys.group(group);
        let own = place.own();
        let call = client
            .script(&scripts::LEAVE)
            .keys([place.key, own, inner.key()])
            .arg(inner.id.to_string())
            .arg(inner.member.as_bytes())
            .arg(&place.base)
            .arg(group.as_bytes());
        let answer = client.call(&call, Repeat::Yes).await?;
        match Parts::of(answer.value)?.text("its outcome")?.as_str() {
            "ok" => Ok(()),
            "nomember" | "nogroup" if answer.repeated => Err(unknown_end("the member is out")),
            "nogroup" => Err(no_group(group)),
            "nomember" => Err(no_member(group, &inner.member)),
            _ => Err(inner.lost()),
        }
    }

    async fn update(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        let (inner, client) = (&self.inner, &self.inner.client);
        let place = client.keys.group(group);
        let own = place.own();
        let call = client
            .script(&scripts::UPDATE)
            .keys([place.key, own, inner.key()])
            .arg(inner.id.to_string())
            .arg(inner.member.as_bytes())
            .arg(&place.base)
            .arg(capabilities.as_msgpack());
        match Parts::of(client.call(&call, Repeat::Yes).await?.value)?.text("its outcome")?.as_str() {
            "ok" => Ok(()),
            "nogroup" => Err(no_group(group)),
            "nomember" => Err(no_member(group, &inner.member)),
            _ => Err(inner.lost()),
        }
    }
}
