//! The state of a group or a lock, as listings and watches read it.

use tooz_core::driver::{HolderRecord, Holders, LockKey, LockMode, MemberRecord};
use tooz_core::{Capabilities, Error, FencingToken, GroupId, MemberId, Result};

use crate::client::Client;
use crate::connection::reply::{Parts, corrupt};
use crate::scripts;
use crate::scripts::codes::{parse_mode, parse_time};

/// A group that was read.
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
    /// Each with the bytes on the server; `None`: they cannot be understood.
    pub(crate) members: Vec<(Vec<u8>, Vec<u8>, Option<MemberRecord>)>,
}

/// Reads a group, or one member of it.
pub(crate) async fn read_group(client: &Client, group: &GroupId, only: &[u8]) -> Result<Seen> {
    let keys = client.keys.group(group);
    let call = client
        .question(&scripts::MEMBERS, &scripts::SEE_MEMBERS)
        .keys([keys.key, keys.own, client.keys.epoch()])
        .arg(&keys.base)
        .arg(client.fresh_id())
        .arg(only);
    let mut answer = Parts::of(client.call(&call).await?.value)?;
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
        let record = member_record(&member, &caps, &incarnation, &joined, &updated);
        members.push((member, caps, record));
    }
    Ok(Seen::There(View { epoch, version, instance, members }))
}

/// A member's record. `None`, after a warning, for bytes that are none: any program may have written them.
pub(crate) fn member_record(
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
                .at(parse_time(joined), parse_time(updated)),
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

/// What a watch asks for once a second: whether a group changed, without its members.
pub(crate) enum Tick {
    There { epoch: String, version: u64, instance: String, digest: Option<(u64, u64)> },
    Missing(String),
}

pub(crate) async fn read_tick(client: &Client, group: &GroupId) -> Result<Tick> {
    let keys = client.keys.group(group);
    let call = client
        .question(&scripts::TICK, &scripts::SEE_TICK)
        .keys([keys.key, keys.own, client.keys.epoch()])
        .arg(&keys.base)
        .arg(client.fresh_id());
    let mut answer = Parts::of(client.call(&call).await?.value)?;
    let there = answer.text("its outcome")? == "ok";
    let epoch = answer.text("the epoch")?;
    if !there {
        return Ok(Tick::Missing(epoch));
    }
    let version = u64::try_from(answer.number("the version")?).unwrap_or_default();
    let instance = answer.text("the group's id")?;
    let number = |result: Result<i64>| result.ok().and_then(|number| u64::try_from(number).ok());
    let at = number(answer.number("a version"));
    let digest = number(answer.number("a digest"));
    Ok(Tick::There { epoch, version, instance, digest: at.zip(digest) })
}

/// Reads who holds a lock and how many wait.
pub(crate) async fn read_holders(client: &Client, key: &LockKey) -> Result<Holders> {
    let lock = client.keys.lock(key);
    let call = client
        .question(&scripts::HOLDERS, &scripts::SEE_HOLDERS)
        .keys(lock.keys())
        .keys([client.keys.fence()])
        .number(client.config().retention().as_millis())
        .arg(&lock.base);
    let mut answer = Parts::of(client.call(&call).await?.value)?;
    let waiters = u64::try_from(answer.number("how many wait")?).unwrap_or_default();
    let foreign = answer.bytes("who holds it")?;
    let mut holders = holder_records(answer)?;
    if let [b'f', value @ ..] = &*foreign {
        // Python's lock holds a random word, which names no member.
        holders.push(HolderRecord::foreign(LockMode::Exclusive, value.to_vec()));
    }
    Ok(Holders::new(holders, Some(waiters)))
}

/// The holders that an answer names, in the order of their tokens.
pub(crate) fn holder_records(answer: Parts) -> Result<Vec<HolderRecord>> {
    let read = |value| {
        let mut parts = Parts::of(value)?;
        let token = parts.text("a token")?.parse().ok().and_then(FencingToken::new);
        let since = parse_time(&parts.text("since when")?);
        let mode = parse_mode(&parts.text("a mode")?, &parts.text("a limit")?);
        let mode = mode.ok_or_else(|| corrupt("a limit"))?;
        let member = MemberId::new(parts.bytes("a member")?).ok();
        Ok(HolderRecord::new(member, token, mode, since))
    };
    let mut holders = answer.map(read).collect::<Result<Vec<_>>>()?;
    holders.sort_by_key(|holder| holder.token);
    Ok(holders)
}
