//! Groups: all of them, and the memberships of one session.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnResponse,
};
use tooz_core::driver::support::errors::{
    group_exists, group_not_empty, group_not_found, joined_before, member_id_taken, member_not_found,
};
use tooz_core::driver::{ChangeStream, Groups, Join, MemberRecord, SessionGroups};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};

use crate::connection::answer;
use crate::driver::Etcd;
use crate::keys::{GroupKeys, below};
use crate::session_state::SessionState;
use crate::view::{get_range, member_record};
use crate::watch;

#[async_trait]
impl Groups for Etcd {
    async fn create(&self, group: &GroupId) -> Result<()> {
        let key = self.client.keys.group(group).group().to_vec();
        let txn = Txn::new()
            .when([Compare::version(key.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.clone(), key, None)]);
        if self.client.connection.send(false, txn).await?.succeeded() {
            Ok(())
        } else {
            Err(group_exists(group))
        }
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        let keys = self.client.keys.group(group);
        let ranges = keys.members();
        let mut seen = 0;
        loop {
            // No key has come since; etcd compares zero where a range is empty.
            let unchanged = ranges.iter().map(|(from, end)| {
                Compare::mod_revision(from.clone(), CompareOp::Less, seen + 1).with_range(end.clone())
            });
            let exists = Compare::version(keys.group(), CompareOp::Greater, 0);
            let compares: Vec<Compare> = unchanged.chain([exists]).collect();
            let mut looks = vec![TxnOp::get(keys.group(), None)];
            let only_keys = || GetOptions::new().with_keys_only();
            looks.extend(ranges.iter().map(|range| get_range(range.clone(), only_keys())));
            let deletes = keys.heads().map(|head| TxnOp::delete(head, None)).collect::<Vec<_>>();
            let txn = Txn::new().when(compares).and_then(deletes).or_else(looks);
            let response = self.client.connection.send(false, txn).await?;
            if response.succeeded() {
                return Ok(());
            }
            if answer::found(&response, 0).is_empty() {
                return Err(group_not_found(group));
            }
            let found = answer::found_from(&response, 1);
            let members = found.iter().filter(|kv| keys.parse_member(kv.key()).is_some()).count();
            if members > 0 {
                return Err(group_not_empty(group, members as u64));
            }
            // The keys found are no members: they are of a group of Python's whose name begins with this one's and a
            // slash.
            seen = answer::revision(&response);
        }
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        let options = || GetOptions::new().with_keys_only().with_sort(SortTarget::Key, SortOrder::Ascend);
        let looks = self.client.keys.all_groups().map(|prefix| get_range(below(&prefix), options()));
        let response = self.client.connection.send(true, Txn::new().and_then(looks)).await?;
        let found = answer::found_from(&response, 0);
        let mut groups: Vec<GroupId> =
            found.iter().filter_map(|kv| self.client.keys.parse_group(kv.key())).collect();
        groups.sort_unstable();
        Ok(groups)
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        let keys = self.client.keys.group(group);
        let looks = [TxnOp::get(keys.group(), None), TxnOp::get(keys.member(member), None)];
        let response = self.client.connection.send(true, Txn::new().and_then(looks)).await?;
        if answer::found(&response, 0).is_empty() {
            return Err(group_not_found(group));
        }
        let kv = answer::one(&response, 1).ok_or_else(|| member_not_found(group, member))?;
        // A member that is asked for by name is not left out: the caller learns why it cannot be read.
        Capabilities::from_msgpack(kv.value())?;
        member_record(&keys, &kv).ok_or_else(|| member_not_found(group, member))
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        self.client.snapshot(group).await?.members.ok_or_else(|| group_not_found(group))
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        watch::group(&self.client, group).await
    }
}

/// How a key must be for a join.
enum Expected {
    Missing,
    Ours,
    /// At this revision, at which it was read and may be replaced.
    At(i64),
}

impl Expected {
    fn compare(&self, session: &SessionState, key: &[u8]) -> Compare {
        match self {
            Self::Missing => Compare::create_revision(key, CompareOp::Equal, 0),
            Self::Ours => Compare::lease(key, CompareOp::Equal, session.opened.lease),
            Self::At(revision) => Compare::mod_revision(key, CompareOp::Equal, *revision),
        }
    }

    /// A key may be replaced if it is of the coordinator's earlier session, which is over.
    fn of(session: &SessionState, found: Option<&KeyValue>) -> Option<Self> {
        match found {
            None => Some(Self::Missing),
            Some(kv) if kv.lease() == session.opened.lease => Some(Self::Ours),
            Some(kv) if session.opened.previous == Some(kv.lease()) => Some(Self::At(kv.mod_revision())),
            Some(_) => None,
        }
    }
}

impl SessionState {
    /// Sends a write to a group. An earlier write that may still be on its way fails if it arrives after this one.
    async fn write(
        &self,
        compares: Vec<Compare>,
        mut writes: Vec<TxnOp>,
        looks: Vec<TxnOp>,
    ) -> Result<TxnResponse> {
        let in_doubt = self.write_in_doubt.load(Ordering::Acquire);
        if in_doubt {
            writes.push(self.advance_session_epoch());
        }
        let looks: Vec<TxnOp> = std::iter::once(self.get_session_epoch()).chain(looks).collect();
        let txn = Txn::new().when(compares).and_then(writes).or_else(looks);
        let response = self.client.connection.send(false, txn).await.inspect_err(|error| {
            if error.is_indeterminate() {
                self.write_in_doubt.store(true, Ordering::Release);
            }
        })?;
        if response.succeeded() && in_doubt {
            self.set_session_epoch(answer::revision(&response));
            self.write_in_doubt.store(false, Ordering::Release);
        }
        Ok(response)
    }

    /// Writes to this session's own record in a group.
    async fn write_own(&self, group: &GroupId, write: impl Fn(Vec<u8>) -> Vec<TxnOp>) -> Result<()> {
        let keys = self.client.keys.group(group);
        let own = keys.member(&self.member);
        loop {
            let compares = vec![
                self.in_session_epoch(),
                Compare::version(keys.group(), CompareOp::Greater, 0),
                Compare::lease(own.clone(), CompareOp::Equal, self.opened.lease),
            ];
            let looks = vec![TxnOp::get(keys.group(), None), TxnOp::get(own.clone(), None)];
            let response = self.write(compares, write(own.clone()), looks).await?;
            if response.succeeded() {
                return Ok(());
            }
            self.read_session_epoch(&response, 0)?;
            if answer::found(&response, 1).is_empty() {
                return Err(group_not_found(group));
            }
            if answer::found(&response, 2).first().is_none_or(|kv| kv.lease() != self.opened.lease) {
                return Err(member_not_found(group, &self.member));
            }
            // A withdrawal of this session moved its epoch meanwhile: again.
        }
    }
}

impl SessionState {
    /// The writes of a leave. Watches know it by the write to the head of the member's range; the value and the lease of the
    /// group's own key stay.
    fn leaving(&self, keys: &GroupKeys) -> Vec<TxnOp> {
        let head = keys.head(&self.member);
        let options = if head == keys.group() {
            Some(PutOptions::new().with_ignore_value().with_ignore_lease())
        } else {
            self.with_lease()
        };
        vec![TxnOp::put(head, "", options), TxnOp::delete(keys.member(&self.member), None)]
    }

    /// Leaves every group in which the session is still a member.
    pub(crate) fn leaving_all(&self) -> Vec<TxnOp> {
        let leaving = |group: &GroupId| {
            let keys = self.client.keys.group(group);
            let compares = [
                Compare::version(keys.group(), CompareOp::Greater, 0),
                Compare::lease(keys.member(&self.member), CompareOp::Equal, self.opened.lease),
            ];
            TxnOp::txn(Txn::new().when(compares).and_then(self.leaving(&keys)))
        };
        self.joined().iter().map(leaving).collect()
    }

    async fn enter(&self, request: &Join) -> Result<()> {
        let keys = self.client.keys.group(&request.group);
        let (group, own, claim) =
            (keys.group().to_vec(), keys.member(&self.member), self.client.keys.claim(&self.member));
        let claimed = self.claimed.load(Ordering::Acquire);
        let mut expected = (if claimed { Expected::Ours } else { Expected::Missing }, Expected::Missing);
        loop {
            let mut compares = vec![
                self.in_session_epoch(),
                expected.0.compare(self, &claim),
                expected.1.compare(self, &own),
            ];
            let mut writes = vec![
                TxnOp::put(own.clone(), request.capabilities.as_msgpack(), self.with_lease()),
                TxnOp::put(claim.clone(), self.opened.id.to_string(), self.with_lease()),
            ];
            if request.create {
                let missing = Compare::version(group.clone(), CompareOp::Equal, 0);
                let create = [TxnOp::put(group.clone(), group.clone(), None)];
                writes.push(TxnOp::txn(Txn::new().when([missing]).and_then(create)));
            } else {
                compares.push(Compare::version(group.clone(), CompareOp::Greater, 0));
            }
            let looks = [&group, &claim, &own].map(|key| TxnOp::get(key.clone(), None)).to_vec();
            let response = self.write(compares, writes, looks).await?;
            if response.succeeded() {
                self.claimed.store(true, Ordering::Release);
                return Ok(());
            }
            self.read_session_epoch(&response, 0)?;
            if !request.create && answer::found(&response, 1).is_empty() {
                return Err(group_not_found(&request.group));
            }
            let member = &self.member;
            let Some(of_claim) = Expected::of(self, answer::found(&response, 2).first()) else {
                return Err(member_id_taken(member));
            };
            expected = match Expected::of(self, answer::found(&response, 3).first()) {
                Some(Expected::Ours) => {
                    return Err(joined_before(&request.group, member));
                }
                Some(of_member) => (of_claim, of_member),
                None => {
                    let what = format!(
                        "member id \"{member}\" is taken in group \"{}\", perhaps by Python; use another id",
                        request.group
                    );
                    return Err(Error::new(ErrorKind::MemberExists, what));
                }
            };
        }
    }
}

#[async_trait]
impl SessionGroups for SessionState {
    async fn join(&self, request: &Join) -> Result<()> {
        // Noted before it is sent: a close does not wait for the answer.
        let is_new = self.joined().insert(request.group.clone());
        let result = self.enter(request).await;
        if is_new && result.as_ref().is_err_and(|error| !error.is_indeterminate()) {
            self.joined().remove(&request.group);
        }
        result
    }

    async fn leave(&self, group: &GroupId) -> Result<()> {
        let keys = self.client.keys.group(group);
        let mut result = self.write_own(group, |_| self.leaving(&keys)).await;
        if result
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Unavailable && !error.is_indeterminate())
        {
            // A server without space refuses what is written, and not what is deleted. Watches call it a death then.
            result = self.write_own(group, |own| vec![TxnOp::delete(own, None)]).await;
        }
        let is_gone =
            |error: &Error| matches!(error.kind(), ErrorKind::GroupNotFound | ErrorKind::MemberNotFound);
        if result.as_ref().map_or_else(is_gone, |()| true) {
            self.joined().remove(group);
        }
        result
    }

    async fn update(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        let write = |own| vec![TxnOp::put(own, capabilities.as_msgpack(), self.with_lease())];
        self.write_own(group, write).await
    }
}
