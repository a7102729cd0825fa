//! A group or a lock as it is now: what listings and watches read.

use etcd_client::{GetOptions, KeyValue, Txn, TxnOp};
use tooz_core::driver::{HolderRecord, Holders, LockMode, MemberRecord};
use tooz_core::{Capabilities, FencingToken, GroupId, Result};

use crate::client::Client;
use crate::connection::answer;
use crate::keys::{GroupKeys, LockKeys, Range};
use crate::lock::GateKind;
use crate::lock::record::Holder;
use crate::lock::state::{State, look};

/// A group at one revision.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) revision: i64,
    /// The id of the data, as its key holds it.
    pub(crate) epoch: Vec<u8>,
    /// The create revision of the group's key: a group that was deleted and made again is another one.
    pub(crate) born: i64,
    /// `None`: there is no such group, and so no member in it.
    pub(crate) members: Option<Vec<MemberRecord>>,
}

/// The member of a key. A key that another session put has another lease, and one that was deleted meanwhile has another
/// create revision: so each join has an incarnation of its own.
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

/// Reads a range of keys.
pub(crate) fn get_range((from, end): Range, options: GetOptions) -> TxnOp {
    TxnOp::get(from, Some(options.with_range(end)))
}

pub(crate) fn record(holder: &Holder) -> HolderRecord {
    let token = u64::try_from(holder.token).ok().and_then(FencingToken::new);
    HolderRecord::new(Some(holder.member.clone()), token, holder.mode, holder.since)
}

/// Who holds the lock in this state.
pub(crate) fn holders(state: &State) -> Holders {
    let mut records: Vec<HolderRecord> = state.holders.iter().map(record).collect();
    if records.is_empty() && state.gate.is_some_and(|gate| gate.kind == GateKind::Foreign) {
        // Python's key holds no name.
        records.push(HolderRecord::foreign(LockMode::Exclusive, Vec::new()));
    }
    Holders::new(records, Some(u64::try_from(state.queue.len()).unwrap_or(u64::MAX)))
}

impl Client {
    pub(crate) async fn snapshot(&self, group: &GroupId) -> Result<Snapshot> {
        let keys = self.keys.group(group);
        let ranges = keys.members();
        let mut operations = vec![
            TxnOp::get(self.keys.epoch(), None),
            TxnOp::get(keys.group(), Some(GetOptions::new().with_keys_only())),
        ];
        operations.extend(ranges.into_iter().map(|range| get_range(range, GetOptions::new())));
        let response = self.connection.send(true, Txn::new().and_then(operations)).await?;
        let born = answer::one(&response, 1).map(|kv| kv.create_revision());
        let members = born.is_some().then(|| {
            let found = answer::found_from(&response, 2);
            let mut members: Vec<MemberRecord> =
                found.iter().filter_map(|kv| member_record(&keys, kv)).collect();
            members.sort_unstable_by(|one, other| one.member.cmp(&other.member));
            members
        });
        let epoch = answer::value(&response, 0);
        let (revision, born) = (answer::revision(&response), born.unwrap_or_default());
        Ok(Snapshot { revision, epoch, born, members })
    }

    pub(crate) async fn look(&self, keys: &LockKeys) -> Result<State> {
        let response = self.connection.send(true, Txn::new().and_then(look(keys))).await?;
        State::read(keys, &response, 0)
    }

    /// The lock, and the id of the data.
    pub(crate) async fn look_with_epoch(&self, keys: &LockKeys) -> Result<(State, Vec<u8>)> {
        let operations: Vec<TxnOp> =
            std::iter::once(TxnOp::get(self.keys.epoch(), None)).chain(look(keys)).collect();
        let response = self.connection.send(true, Txn::new().and_then(operations)).await?;
        let epoch = answer::value(&response, 0);
        Ok((State::read(keys, &response, 1)?, epoch))
    }
}
