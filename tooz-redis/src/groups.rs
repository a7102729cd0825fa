//! Groups and memberships.

use async_trait::async_trait;
use tooz_core::driver::support::errors::{
    group_exists, group_not_empty, group_not_found, joined_before, member_id_taken, member_not_found,
};
use tooz_core::driver::{ChangeStream, Groups, Join, MemberRecord, SessionGroups};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};

use crate::client::Client;
use crate::connection::reply::{Parts, bytes};
use crate::driver::Redis;
use crate::scripts::{self, Script};
use crate::session::RedisSession;
use crate::view::{Seen, read_group};
use crate::watch;

fn unknown_end(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the reply was lost, and {what}")).indeterminate()
}

async fn records(client: &Client, group: &GroupId, only: &[u8]) -> Result<Vec<MemberRecord>> {
    match read_group(client, group, only).await? {
        Seen::Missing(_) => Err(group_not_found(group)),
        Seen::There(view) => {
            let mut records: Vec<_> = view.members.into_iter().filter_map(|(_, _, record)| record).collect();
            records.sort_by(|a, b| a.member.cmp(&b.member));
            Ok(records)
        }
    }
}

#[async_trait]
impl Groups for Redis {
    async fn create(&self, group: &GroupId) -> Result<()> {
        let (client, keys) = (&self.client, self.client.keys.group(group));
        let fresh = client.fresh_id();
        let call = scripts::CREATE
            .call()
            .keys([keys.key, client.keys.groups()])
            .arg(group.as_bytes())
            .arg(&keys.base)
            .arg(&fresh);
        let answer = client.call(&call).await?;
        let mut parts = Parts::of(answer.value)?;
        if parts.text("its outcome")? == "ok" || (answer.repeated && parts.text("the group's id")? == fresh) {
            return Ok(());
        }
        Err(group_exists(group))
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        let (client, keys) = (&self.client, self.client.keys.group(group));
        let call = scripts::DELETE
            .call()
            .keys([keys.key, client.keys.groups(), keys.own])
            .arg(group.as_bytes())
            .arg(&keys.base);
        let answer = client.call(&call).await?;
        let mut parts = Parts::of(answer.value)?;
        match parts.text("its outcome")?.as_str() {
            "ok" => Ok(()),
            "members" => Err(group_not_empty(group, parts.number("how many")?.unsigned_abs())),
            _ if answer.repeated => Err(unknown_end("the group is gone")),
            _ => Err(group_not_found(group)),
        }
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        let names = self.client.read(redis::cmd("SMEMBERS").arg(self.client.keys.groups())).await?;
        let names = names.into_sequence().unwrap_or_default();
        let mut groups: Vec<_> =
            names.into_iter().filter_map(|name| GroupId::new(bytes(name)?).ok()).collect();
        groups.sort_unstable();
        Ok(groups)
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        records(&self.client, group, b"").await
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        records(&self.client, group, member.as_bytes())
            .await?
            .pop()
            .ok_or_else(|| member_not_found(group, member))
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        watch::follow(&self.client, group).await
    }
}

#[async_trait]
impl SessionGroups for RedisSession {
    async fn join(&self, request: &Join) -> Result<()> {
        let (state, client, group) = (&self.state, &self.state.client, &request.group);
        let keys = client.keys.group(group);
        let incarnation = client.fresh_id();
        let call = scripts::JOIN
            .call()
            .keys([keys.key, client.keys.groups(), keys.own, state.key(), client.keys.beat(&state.member)])
            .arg(state.id.to_string())
            .arg(state.member.as_bytes())
            .arg(request.capabilities.as_msgpack())
            .number(u8::from(request.create))
            .arg(&incarnation)
            .arg(client.fresh_id())
            .number(state.ttl.as_millis())
            .arg(group.as_bytes())
            .arg(&keys.base)
            .arg(state.previous.map(|id| id.to_string()).unwrap_or_default());
        let mut answer = Parts::of(client.call(&call).await?.value)?;
        match answer.text("its outcome")?.as_str() {
            "ok" => Ok(()),
            "nogroup" => Err(group_not_found(group)),
            "taken" => Err(member_id_taken(&state.member)),
            // Sent twice, and done the first time.
            "joined" if answer.text("an incarnation")? == incarnation => Ok(()),
            "joined" => Err(joined_before(group, &state.member)),
            _ => Err(state.lost()),
        }
    }

    async fn leave(&self, group: &GroupId) -> Result<()> {
        self.change_own(&scripts::LEAVE, group, group.as_bytes(), true).await
    }

    async fn update(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        self.change_own(&scripts::UPDATE, group, capabilities.as_msgpack(), false).await
    }
}

impl RedisSession {
    /// Changes this session's own record in a group. `removes`: a call that was sent twice may itself be why there is none.
    async fn change_own(
        &self,
        script: &'static Script,
        group: &GroupId,
        argument: &[u8],
        removes: bool,
    ) -> Result<()> {
        let (state, client) = (&self.state, &self.state.client);
        let keys = client.keys.group(group);
        let call = script
            .call()
            .keys([keys.key, keys.own, state.key()])
            .arg(state.id.to_string())
            .arg(state.member.as_bytes())
            .arg(&keys.base)
            .arg(argument);
        let answer = client.call(&call).await?;
        match Parts::of(answer.value)?.text("its outcome")?.as_str() {
            "ok" => Ok(()),
            "nomember" | "nogroup" if removes && answer.repeated => Err(unknown_end("the member is out")),
            "nogroup" => Err(group_not_found(group)),
            "nomember" => Err(member_not_found(group, &state.member)),
            _ => Err(state.lost()),
        }
    }
}
