//! Groups, as anybody sees them.

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOp, TxnResponse};
use tooz_core::driver::{ChangeStream, Groups, MemberRecord};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};

use crate::client::Client;
use crate::connection::answer;
use crate::driver::Etcd;
use crate::keys::{GroupKeys, end_of};
use crate::watch;

/// A group at one revision.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) revision: i64,
    /// The id of the data, as its key holds it.
    pub(crate) epoch: Vec<u8>,
    /// The create revision of the group's key: a group that was deleted and made again is another one.
    pub(crate) born: i64,
    /// `None`: there is no such group. Members without their group do not exist.
    pub(crate) members: Option<Vec<MemberRecord>>,
}

pub(crate) fn no_group(group: &GroupId) -> Error {
    Error::new(ErrorKind::GroupNotFound, format!("group \"{group}\"; create it first"))
}

pub(crate) fn no_member(group: &GroupId, member: &MemberId) -> Error {
    Error::new(ErrorKind::MemberNotFound, format!("member \"{member}\" in group \"{group}\""))
}

/// A member as its key says. A key that is put anew by another session has another lease, one that was deleted in
/// between another create revision: so each join has an incarnation of its own.
pub(crate) fn member_record(keys: &GroupKeys, kv: &KeyValue) -> Option<MemberRecord> {
    let member = keys.parse_member(kv.key())?;
    let incarnation =
        u128::from(kv.create_revision().cast_unsigned()) << 64 | u128::from(kv.lease().cast_unsigned());
    match Capabilities::from_msgpack(kv.value()) {
        Ok(capabilities) => Some(MemberRecord::new(member, capabilities, incarnation)),
        Err(error) => {
            tracing::warn!(%error, key = %kv.key().escape_ascii(), "a member that cannot be read is left out");
            None
        }
    }
}

fn range(from: Vec<u8>, end: Vec<u8>, options: GetOptions) -> TxnOp {
    TxnOp::get(from, Some(options.with_range(end)))
}

impl Client {
    pub(crate) async fn snapshot(&self, group: &GroupId) -> Result<Snapshot> {
        let keys = self.keys.group(group);
        let ranges = keys.members();
        let mut operations = vec![
            TxnOp::get(self.keys.epoch(), None),
            TxnOp::get(keys.group(), Some(GetOptions::new().with_keys_only())),
        ];
        operations
            .extend(ranges.iter().map(|(from, end)| range(from.clone(), end.clone(), GetOptions::new())));
        let response = self.connection.send(true, Txn::new().and_then(operations)).await?;
        let born = answer::one(&response, 1).map(|kv| kv.create_revision());
        let members = born.is_some().then(|| {
            let found = (0..ranges.len()).flat_map(|at| answer::found(&response, at + 2));
            let mut members: Vec<MemberRecord> = found.filter_map(|kv| member_record(&keys, &kv)).collect();
            members.sort_unstable_by(|one, other| one.member.cmp(&other.member));
            members
        });
        let epoch = answer::value(&response, 0);
        let (revision, born) = (answer::revision(&response), born.unwrap_or_default());
        Ok(Snapshot { revision, epoch, born, members })
    }

    async fn create_group(&self, group: &GroupId) -> Result<()> {
        let key = self.keys.group(group).group().to_vec();
        let txn = Txn::new()
            .when([Compare::version(key.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.clone(), key, None)]);
        if self.connection.send(false, txn).await?.succeeded() {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::GroupExists, format!("group \"{group}\"")))
        }
    }

    async fn delete_group(&self, group: &GroupId) -> Result<()> {
        let keys = self.keys.group(group);
        let ranges = keys.members();
        let mut compares: Vec<Compare> = ranges
            .iter()
            .map(|(from, end)| {
                Compare::create_revision(from.clone(), CompareOp::Equal, 0).with_range(end.clone())
            })
            .collect();
        loop {
            compares.push(Compare::version(keys.group(), CompareOp::Greater, 0));
            let mut looks = vec![TxnOp::get(keys.group(), None)];
            let only_keys = || GetOptions::new().with_keys_only();
            looks.extend(ranges.iter().map(|(from, end)| range(from.clone(), end.clone(), only_keys())));
            let txn = Txn::new()
                .when(std::mem::take(&mut compares))
                .and_then([TxnOp::delete(keys.group(), None)])
                .or_else(looks);
            let response = self.connection.send(false, txn).await?;
            if response.succeeded() {
                return Ok(());
            }
            if answer::found(&response, 0).is_empty() {
                return Err(no_group(group));
            }
            let found = |response: &TxnResponse, at| answer::found(response, at + 1);
            let members: usize = (0..ranges.len())
                .map(|at| {
                    found(&response, at).iter().filter(|kv| keys.parse_member(kv.key()).is_some()).count()
                })
                .sum();
            if members > 0 {
                return Err(Error::new(
                    ErrorKind::GroupNotEmpty,
                    format!("group \"{group}\" has {members} members; let them leave first"),
                ));
            }
            // What stands there is no member: a group of Python's whose name begins with ours and a slash. Nothing may
            // have come since.
            let seen = answer::revision(&response) + 1;
            compares = ranges
                .iter()
                .map(|(from, end)| {
                    Compare::mod_revision(from.clone(), CompareOp::Less, seen).with_range(end.clone())
                })
                .collect();
        }
    }

    async fn list_groups(&self) -> Result<Vec<GroupId>> {
        let options = || GetOptions::new().with_keys_only().with_sort(SortTarget::Key, SortOrder::Ascend);
        let looks = self.keys.all_groups().map(|prefix| range(prefix.clone(), end_of(&prefix), options()));
        let response = self.connection.send(true, Txn::new().and_then(looks)).await?;
        let found = (0..2).flat_map(|at| answer::found(&response, at));
        let mut groups: Vec<GroupId> = found.filter_map(|kv| self.keys.parse_group(kv.key())).collect();
        groups.sort_unstable();
        Ok(groups)
    }

    async fn member_of(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        let keys = self.keys.group(group);
        let looks = [TxnOp::get(keys.group(), None), TxnOp::get(keys.member(member), None)];
        let response = self.connection.send(true, Txn::new().and_then(looks)).await?;
        if answer::found(&response, 0).is_empty() {
            return Err(no_group(group));
        }
        let kv = answer::one(&response, 1).ok_or_else(|| no_member(group, member))?;
        // Asked for by name it is not left out: whoever asks wants to know why it cannot be had.
        Capabilities::from_msgpack(kv.value())?;
        member_record(&keys, &kv).ok_or_else(|| no_member(group, member))
    }
}

#[async_trait]
impl Groups for Etcd {
    async fn create(&self, group: &GroupId) -> Result<()> {
        self.client.create_group(group).await
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        self.client.delete_group(group).await
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        self.client.list_groups().await
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        self.client.snapshot(group).await?.members.ok_or_else(|| no_group(group))
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        self.client.member_of(group, member).await
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        watch::group(&self.client, group).await
    }
}
