//! Groups and memberships.

use async_trait::async_trait;
use tooz_core::driver::support::errors::{
    group_exists, group_not_empty, group_not_found, joined_before, member_id_taken, member_not_found,
};
use tooz_core::driver::support::msgpack;
use tooz_core::driver::{ChangeStream, End, Groups, Join, MemberRecord, SessionGroups, SessionId};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};

use crate::client::{Client, Reply, Tries};
use crate::connection::command::{Batch, Call, Item, Look, MSGPACK, Store, Stored};
use crate::driver::Memcached;
use crate::error::unknown_end;
use crate::session::MemcachedSession;
use crate::session_state::{Membership, Version};
use crate::view::{
    Entry, Group, Own, Seen, listed, lives, living, look_at_group, read_group, seen_group, write_list,
    write_members,
};
use crate::watch;

/// A group that changes under so many looks in a row is given up for now.
const ROUNDS: usize = 256;
/// For how many seconds it is kept that a member left by itself: much longer than a watch takes to look.
const LEFT: u32 = 600;
/// What a group without members holds.
const EMPTY: &[u8] = &[0x80];
/// What Python stores in a group that is being deleted.
const NIL: &[u8] = &[0xc0];

fn changes_too_often(group: &GroupId) -> Error {
    Error::new(ErrorKind::Unavailable, format!("group \"{group}\": others change it again and again"))
}

/// One unreadable member makes every Python process of the group fail.
fn check_readable(client: &Client, capabilities: &Capabilities) -> Result<()> {
    if client.keys.is_default() && !msgpack::python_can_read(capabilities.as_msgpack()) {
        return Err(Error::new(
            ErrorKind::Invalid,
            "the capabilities hold a map whose keys are not text, which Python members of the group cannot read; use text keys, \
             or another namespace",
        ));
    }
    Ok(())
}

/// Puts a group into the list of groups, or takes it out.
async fn list_group(client: &Client, tries: &mut Tries<'_>, group: &GroupId, there: bool) -> Result<()> {
    let key = client.keys.groups();
    for _ in 0..ROUNDS {
        let mut batch = Batch::new();
        batch.get(&key, Look::Whole);
        let mut reply = tries.ask(&batch).await?;
        let list = reply.answers.item()?;
        let mut ids = listed(client, list.as_ref())?;
        let at = ids.iter().position(|id| id == group.as_bytes());
        match (at, there) {
            (None, true) => ids.push(group.as_bytes().to_vec()),
            (Some(at), false) => drop(ids.remove(at)),
            _ => return Ok(()),
        }
        let (value, mut batch) = (write_list(&ids), Batch::new());
        match list {
            Some(list) if ids.is_empty() => batch.delete(&key, list.cas),
            list => batch.replace(msgpack_item(&key, &value), list.map(|list| list.cas)),
        };
        if tries.store(&reply.link, &batch).await? {
            return Ok(());
        }
    }
    Err(changes_too_often(group))
}

fn msgpack_item<'a>(key: &'a [u8], value: &'a [u8]) -> Store<'a> {
    Store { key, flags: MSGPACK, expires: 0, value }
}

/// Makes a group. `false`: it was there.
async fn make(client: &Client, tries: &mut Tries<'_>, group: &GroupId) -> Result<bool> {
    let (keys, identity) = (client.keys.group(group), format!("{:032x}", client.context.entropy.id()));
    let (mut made, mut revived) = (false, false);
    for _ in 0..ROUNDS {
        let mut batch = Batch::new();
        batch
            .add(msgpack_item(&keys.members, EMPTY))
            .add(Store::bytes(&keys.identity, 0, identity.as_bytes()))
            .get(&client.keys.groups(), Look::Whole)
            .get(&keys.identity, Look::Whole)
            .get_in(&keys.members, Look::Whole, Call::Create);
        let Reply { link, mut answers, .. } = tries.ask(&batch).await?;
        made |= answers.stored()? == Stored::Done;
        answers.stored()?;
        let (list, identified, map) = (answers.item()?, answers.item()?, answers.item()?);
        let is_listed = listed(client, list.as_ref())?.iter().any(|id| id == group.as_bytes());
        let is_ours = identified.as_ref().is_some_and(|item| item.value == identity.as_bytes());
        let Some(map) = map else { continue };
        if map.value == NIL {
            // A deletion that did not come to its end, or is under way: the group begins anew.
            let mut batch = Batch::new();
            batch.cas(msgpack_item(&keys.members, EMPTY), map.cas);
            revived |= tries.store(&link, &batch).await?;
            continue;
        }
        // An answer that was lost, or an evicted group, which is in the list still.
        made = revived || (made && !is_listed) || (is_ours && tries.unsure);
        if !made
            && is_ours
            && let Some(identified) = &identified
        {
            // It is not ours, and stays without one.
            tries.follow(&link, Batch::new().delete(&keys.identity, identified.cas)).await;
        }
        tries.unsure |= made;
        if made && !is_ours {
            // Of an earlier group, which Python deleted.
            let item = Store::bytes(&keys.identity, 0, identity.as_bytes());
            let mut batch = Batch::new();
            batch.replace(item, identified.map(|item| item.cas));
            if !tries.store(&link, &batch).await? {
                continue;
            }
        }
        if !is_listed {
            list_group(client, tries, group, true).await?;
        }
        return Ok(made);
    }
    Err(changes_too_often(group))
}

/// Deletes a group; `None`: it changed meanwhile.
async fn delete(client: &Client, tries: &mut Tries<'_>, group: &GroupId) -> Result<Option<()>> {
    let Seen::There(found) = read_group(client, tries, group).await? else {
        let missing = group_not_found(group);
        return Err(if tries.unsure { unknown_end("the group is gone") } else { missing });
    };
    let living = lives(client, tries, &found.entries).await?.iter().flatten().count();
    if living > 0 {
        return Err(group_not_empty(group, living as u64));
    }
    let keys = client.keys.group(group);
    let mut batch = Batch::new();
    batch
        .replace(msgpack_item(&keys.members, NIL), found.cas)
        .get(&keys.members, Look::Whole)
        .get(&keys.identity, Look::Cas);
    let Some(mut reply) = tries.follow(&found.link, &batch).await else { return Ok(None) };
    if reply.answers.stored()? != Stored::Done {
        return Ok(None);
    }
    tries.unsure = true;
    let (map, identity) = (reply.answers.item()?, reply.answers.item()?);
    list_group(client, tries, group, false).await?;
    let mut batch = Batch::new();
    if let Some(map) = map.filter(|map| map.value == NIL) {
        batch.delete(&keys.members, map.cas);
        if let Some(identity) = identity {
            batch.delete(&keys.identity, identity.cas);
        }
        // Without an answer what is left says that the group is deleted.
        if let Some(mut reply) = tries.follow(&reply.link, &batch).await
            && reply.answers.stored()? == Stored::Taken
        {
            // It was created anew meanwhile.
            list_group(client, tries, group, true).await?;
        }
    }
    Ok(Some(()))
}

/// Takes dead members out of a group's map, as Python does when it looks. What fails is done by the next look.
async fn remove_dead(client: &Client, tries: &mut Tries<'_>, group: &GroupId, found: &Group) -> Result<bool> {
    let Some(cas) = found.cas else { return Ok(false) };
    let lives = lives(client, tries, &found.entries).await?;
    let living = found.entries.iter().zip(&lives).filter(|(_, left)| left.is_some());
    let living: Vec<_> = living.map(|(entry, _)| entry.clone()).collect();
    if living.len() == found.entries.len() {
        return Ok(false);
    }
    let (key, value) = (client.keys.group(group).members, write_members(&living));
    let mut batch = Batch::new();
    batch.cas(msgpack_item(&key, &value), cas);
    tries.store(&found.link, &batch).await
}

#[async_trait]
impl Groups for Memcached {
    async fn create(&self, group: &GroupId) -> Result<()> {
        let mut tries = self.client.tries();
        let made = make(&self.client, &mut tries, group).await;
        if made.map_err(|error| tries.failed(error))? { Ok(()) } else { Err(group_exists(group)) }
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        let mut tries = self.client.tries();
        for _ in 0..ROUNDS {
            let deleted = delete(&self.client, &mut tries, group).await;
            if deleted.map_err(|error| tries.failed(error))?.is_some() {
                return Ok(());
            }
        }
        Err(tries.failed(changes_too_often(group)))
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        let mut batch = Batch::new();
        batch.get(&self.client.keys.groups(), Look::Whole);
        let list = self.client.ask(&batch).await?.answers.item()?;
        let ids = listed(&self.client, list.as_ref())?;
        let mut groups: Vec<_> = ids.iter().filter_map(|id| GroupId::new(id).ok()).collect();
        groups.sort_unstable();
        groups.dedup();
        Ok(groups)
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        let (client, mut tries) = (&self.client, self.client.tries());
        let Seen::There(found) = read_group(client, &mut tries, group).await? else {
            return Err(group_not_found(group));
        };
        let members = living(client, &mut tries, &found.entries).await?;
        if members.len() < found.entries.len()
            && !client.config.view
            && let Err(error) = remove_dead(client, &mut tries, group, &found).await
        {
            tracing::debug!(%error, %group, "dead members could not be removed");
        }
        Ok(members.into_iter().map(|(record, _)| record).collect())
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        let (client, mut tries) = (&self.client, self.client.tries());
        let Seen::There(mut found) = read_group(client, &mut tries, group).await? else {
            return Err(group_not_found(group));
        };
        found.entries.retain(|entry| entry.member == member.as_bytes());
        let mut members = living(client, &mut tries, &found.entries).await?;
        members.pop().map(|(record, _)| record).ok_or_else(|| member_not_found(group, member))
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        watch::follow(&self.client, group).await
    }
}

/// Whether the member id can be this session's.
#[derive(PartialEq, Eq)]
enum Claim {
    Ours,
    Taken,
    /// It was of a session that is over, and another look tells.
    Again,
}

impl MemcachedSession {
    /// Whether another session lives, so that what names it is not to be replaced.
    async fn is_alive(&self, tries: &mut Tries<'_>, session: SessionId) -> Result<bool> {
        if session == self.state.id || Some(session) == self.state.previous {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.get(&self.state.client.keys.session(session), Look::Presence);
        Ok(tries.ask(&batch).await?.answers.item()?.is_some())
    }

    /// The item of the member id was read: claims it if its session is over.
    async fn claim(&self, tries: &mut Tries<'_>, reply: &Reply, item: Option<Item>) -> Result<Claim> {
        let state = &self.state;
        let Some(item) = item else { return Ok(Claim::Again) };
        if item.value == state.claim() {
            state.lease().member = Some(Version { link: reply.link.number, cas: item.cas });
            return Ok(Claim::Ours);
        }
        let other = item.value.strip_prefix(b"tooz-rs ").and_then(|id| std::str::from_utf8(id).ok());
        // One of Python's lives as long as the item is there.
        let Some(other) = other.and_then(SessionId::parse) else { return Ok(Claim::Taken) };
        if self.is_alive(tries, other).await? {
            return Ok(Claim::Taken);
        }
        let (key, value) = (state.client.keys.member(&state.member), state.claim());
        let mut batch = Batch::new();
        batch.cas(Store::bytes(&key, state.expires(), &value), item.cas);
        tries.store(&reply.link, &batch).await?;
        Ok(Claim::Again)
    }

    /// Gives the member id back that a join claimed which then failed.
    async fn unclaim(&self, tries: &mut Tries<'_>) {
        let (state, client) = (&self.state, &self.state.client);
        if !state.groups().is_empty() {
            return;
        }
        let claimed = state.lease().member.take();
        let Some(version) = claimed else { return };
        let Ok(link) = client.link(0, client.config.limits.operation_timeout).await else { return };
        if let Some(cas) = version.on(link.number) {
            // Without an answer the item ends with its time.
            tries.follow(&link, Batch::new().delete(&client.keys.member(&state.member), cas)).await;
        }
    }

    /// Joins; `None`: the group changed meanwhile.
    async fn join_once(
        &self,
        tries: &mut Tries<'_>,
        request: &Join,
        incarnation: u128,
    ) -> Result<Option<()>> {
        let (state, client, group) = (&self.state, &self.state.client, &request.group);
        let (member, claim) = (client.keys.member(&state.member), state.claim());
        let mut batch = Batch::new();
        batch
            .add(Store::bytes(&member, state.expires(), &claim))
            .get(&member, Look::Whole)
            .get(&state.key(), Look::Presence);
        look_at_group(&mut batch, client, group);
        let mut reply = tries.ask(&batch).await?;
        reply.answers.stored()?;
        let (claimed, own) = (reply.answers.item()?, reply.answers.item()?);
        let seen = {
            let Reply { link, answers, .. } = &mut reply;
            seen_group(client, tries, link, group, answers).await?
        };
        if own.is_none() {
            return Err(state.lost());
        }
        match self.claim(tries, &reply, claimed).await? {
            Claim::Ours => {}
            Claim::Again => return Ok(None),
            Claim::Taken => return Err(member_id_taken(&state.member)),
        }
        let Seen::There(mut found) = seen else {
            if request.create {
                make(client, tries, group).await?;
                return Ok(None);
            }
            return Err(group_not_found(group));
        };
        let at = found.entries.iter().position(|entry| entry.member == state.member.as_bytes());
        let before = at.and_then(|at| found.entries[at].own);
        match before {
            Some(own) if own.session == state.id && own.incarnation == incarnation => {
                self.joined(group, incarnation); // sent twice, and done the first time
                return Ok(Some(()));
            }
            Some(own) if own.session == state.id => return Err(joined_before(group, &state.member)),
            Some(own) if self.is_alive(tries, own.session).await? => {
                return Err(member_id_taken(&state.member));
            }
            _ => {}
        }
        let now = client.seconds(&reply.link);
        let own = Own { session: state.id, incarnation, joined: now, updated: now };
        let entry = Entry::new(&state.member, &request.capabilities, own);
        match at {
            Some(at) => found.entries[at] = entry,
            None => found.entries.push(entry),
        }
        let value = write_members(&found.entries);
        let most = reply.link.greeting.item_size().saturating_sub(1_024);
        if value.len() > most {
            if remove_dead(client, tries, group, &found).await? {
                return Ok(None);
            }
            let why = format!(
                "group \"{group}\" has no room for this member: its {} members would take {} of the {most} bytes that one item \
                 of the server holds; publish less, use several groups, or raise the server's item size (option -I)",
                found.entries.len(),
                value.len()
            );
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Ok(self
            .store_map(tries, group, &found, &value, Call::Join)
            .await?
            .then(|| self.joined(group, incarnation)))
    }

    fn joined(&self, group: &GroupId, incarnation: u128) {
        let membership = Membership { incarnation, seen: Version::default() };
        self.state.groups().insert(group.clone(), membership);
    }

    /// Stores a group's map in the place of the one that was read.
    async fn store_map(
        &self,
        tries: &mut Tries<'_>,
        group: &GroupId,
        found: &Group,
        value: &[u8],
        call: Call,
    ) -> Result<bool> {
        let key = self.state.client.keys.group(group).members;
        let mut batch = Batch::new();
        batch.replace(msgpack_item(&key, value), found.cas).get_in(&key, Look::Presence, call);
        tries.store(&found.link, &batch).await
    }

    /// Changes this session's own record in a group, or takes it out; `None`: the group changed meanwhile.
    async fn change_own(
        &self,
        tries: &mut Tries<'_>,
        group: &GroupId,
        capabilities: Option<&Capabilities>,
        end: End,
    ) -> Result<Option<()>> {
        let (state, client) = (&self.state, &self.state.client);
        let missing = |error: Error, tries: &Tries<'_>| {
            if tries.unsure && capabilities.is_none() { unknown_end("the member is out") } else { error }
        };
        let Seen::There(mut found) = read_group(client, tries, group).await? else {
            return Err(missing(group_not_found(group), tries));
        };
        let at = found.entries.iter().position(|entry| entry.member == state.member.as_bytes());
        let own = at.and_then(|at| Some((at, found.entries[at].own.filter(|own| own.session == state.id)?)));
        let Some((at, own)) = own else {
            return Err(missing(member_not_found(group, &state.member), tries));
        };
        let call = if let Some(capabilities) = capabilities {
            let updated = client.seconds(&found.link);
            found.entries[at] = Entry::new(&state.member, capabilities, Own { updated, ..own });
            Call::Update
        } else {
            found.entries.remove(at);
            if end == End::Clean {
                // Before the member is out: who misses it looks for the reason.
                let key = client.keys.left(own.incarnation);
                let mut batch = Batch::new();
                batch.set(Store::bytes(&key, LEFT, b"left"));
                tries.ask(&batch).await?.answers.stored()?;
            }
            Call::Leave
        };
        let value = write_members(&found.entries);
        let most = found.link.greeting.item_size().saturating_sub(1_024);
        if capabilities.is_some() && value.len() > most {
            let why = format!("group \"{group}\" has no room for these capabilities; publish less");
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Ok(self.store_map(tries, group, &found, &value, call).await?.then_some(()))
    }

    async fn change_until_done(
        &self,
        group: &GroupId,
        capabilities: Option<&Capabilities>,
        end: End,
    ) -> Result<()> {
        let mut tries = self.state.client.tries();
        for _ in 0..ROUNDS {
            let once = self.change_own(&mut tries, group, capabilities, end).await;
            if once.map_err(|error| tries.failed(error))?.is_some() {
                return Ok(());
            }
        }
        Err(tries.failed(changes_too_often(group)))
    }

    /// Leaves a group because the session closes.
    pub(crate) async fn leave_at_close(&self, group: &GroupId, end: End) -> Result<()> {
        match self.change_until_done(group, None, end).await {
            Err(error) if !matches!(error.kind(), ErrorKind::GroupNotFound | ErrorKind::MemberNotFound) => {
                Err(error)
            }
            _ => {
                self.state.groups().remove(group);
                Ok(())
            }
        }
    }
}

#[async_trait]
impl SessionGroups for MemcachedSession {
    async fn join(&self, request: &Join) -> Result<()> {
        let client = &self.state.client;
        check_readable(client, &request.capabilities)?;
        let incarnation = client.context.entropy.id();
        let mut tries = client.tries();
        for _ in 0..ROUNDS {
            match self.join_once(&mut tries, request, incarnation).await {
                Ok(Some(())) => return Ok(()),
                Ok(None) => {}
                Err(error) => {
                    self.unclaim(&mut tries).await;
                    return Err(tries.failed(error));
                }
            }
        }
        Err(tries.failed(changes_too_often(&request.group)))
    }

    async fn leave(&self, group: &GroupId) -> Result<()> {
        self.change_until_done(group, None, End::Clean).await?;
        self.state.groups().remove(group);
        Ok(())
    }

    async fn update(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        check_readable(&self.state.client, capabilities)?;
        self.change_until_done(group, Some(capabilities), End::Clean).await
    }
}
