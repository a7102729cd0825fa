//! The present state of a group or a lock, which both listings and watches read.
//!
//! A file whose owner is dead is no member, whether it was cleared away yet or not. Python's members live by the time
//! of their file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::stat::FileStat;
use tooz_core::driver::{HolderRecord, Holders, LockKey, LockMode, MemberRecord};
use tooz_core::{FencingToken, GroupId, MemberId, Result};
use tooz_local::os_lock::InTheWay;

use crate::client::Client;
use crate::error;
use crate::keys::{self, KeyHash};
use crate::tree::{Access, Directory, Entry, LivenessMemo, LockRecords, Member, Moment, Tree, python_lock};

/// How long Python's member still lives by the time of its file; `None`: it is dead. A file with a time in the future
/// is that of a dead member, as for Python itself.
fn remaining_python_life(client: &Client, data: &FileStat) -> Option<Duration> {
    let now = client.context.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = now.checked_sub(since_epoch(data.st_mtime, data.st_mtime_nsec).unwrap_or_default())?;
    client.config.python_timeout.checked_sub(age)
}

/// The present state of a group.
#[derive(Debug, Default)]
pub(crate) struct GroupView {
    /// By member id, sorted by bytes.
    pub(crate) members: BTreeMap<MemberId, MemberRecord>,
    /// Which of them are Python's.
    pub(crate) pythons: BTreeSet<MemberId>,
    /// When the first of Python's members dies, unless it touches its file.
    pub(crate) expires: Option<Duration>,
}

/// The living members; under the driver lock. What cannot be read is skipped and logged.
pub(crate) fn read_group(
    client: &Client,
    tree: &Tree,
    group: &GroupId,
    directory: &Directory,
) -> Result<GroupView> {
    let failed = |cause| error::group_files(group, cause);
    let mut memo = LivenessMemo::new(&tree.sessions);
    let mut view = GroupView::default();
    for name in directory.names().map_err(failed)? {
        if !keys::is_member(&name) {
            continue;
        }
        let Some(data) = directory.stat(&name).map_err(failed)? else { continue }; // removed by hand just now
        let content = directory.read(&name).map_err(|error| error.to_string());
        let member = content.and_then(|content| Member::read(&content).map_err(|error| error.to_string()));
        let member = match member {
            Ok(member) if keys::member(&member.record.member) == name => member,
            Ok(_) => {
                tracing::warn!(path = %directory.path.join(&name).display(), "a member's file has another's name");
                continue;
            }
            Err(error) => {
                tracing::warn!(path = %directory.path.join(&name).display(), %error, "skipped a member's file");
                continue;
            }
        };
        match &member.owner {
            Some(owner) if memo.is_dead(owner) => continue,
            Some(_) => {}
            None => match remaining_python_life(client, &data) {
                None => continue,
                Some(left) => {
                    view.expires = Some(view.expires.map_or(left, |first| first.min(left)));
                    view.pythons.insert(member.record.member.clone());
                }
            },
        }
        view.members.insert(member.record.member.clone(), member.record);
    }
    Ok(view)
}

/// Whether the file is that of a member that lives.
pub(crate) fn is_alive(client: &Client, tree: &Tree, data: &FileStat, member: &Member) -> bool {
    match &member.owner {
        Some(owner) => !tree.sessions.is_dead(owner),
        None => remaining_python_life(client, data).is_some(),
    }
}

/// Whether a file that cannot be read may be that of a member that lives: this library's hold its lock, Python's
/// touch it.
pub(crate) fn may_live(client: &Client, tree: &Tree, directory: &Directory, name: &str) -> io::Result<bool> {
    let Some(data) = directory.stat(name)? else { return Ok(false) };
    let locked = tree.flavor.is_locked(&directory.open(name)?)?;
    Ok(locked || remaining_python_life(client, &data).is_some())
}

/// The present state of a lock: the holders that live, and how many wait.
pub(crate) struct LockView {
    pub(crate) entries: Vec<(Entry, HolderRecord)>,
    /// What holds it without a record: Python.
    pub(crate) foreign: Option<InTheWay>,
    waiters: usize,
}

pub(crate) async fn read_lock(client: &Client, tree: &Tree, key: &LockKey) -> Result<LockView> {
    let hash = KeyHash::new(key);
    let work = |directory: &Directory| {
        let failed = |cause| error::lock_records(key, cause);
        let mut records = LockRecords::read(directory, &hash, &tree.sessions).map_err(failed)?;
        records.remove_dead(Access::Look).map_err(failed)?;
        let mut entries = Vec::new();
        for entry in records.holders {
            let since = directory.stat(&entry.name).map_err(failed)?;
            // Renaming a waiter's record to a holder's sets this time.
            let since = since.and_then(|data| since_epoch(data.st_ctime, data.st_ctime_nsec));
            let since = since.and_then(|since| UNIX_EPOCH.checked_add(since));
            let member = tree.sessions.member_of(entry.record.owner.session);
            let token = FencingToken::new(entry.record.role.number());
            let record = HolderRecord::new(member, token, entry.record.mode, since);
            entries.push((entry, record));
        }
        let foreign = if entries.is_empty() { find_foreign(tree, key) } else { None };
        Ok(Moment::Done(LockView { entries, foreign, waiters: records.queue.len() }))
    };
    match tree.mutexes.stripe(hash.stripe()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(LockView { entries: Vec::new(), foreign: find_foreign(tree, key), waiters: 0 })
        }
        _ => client.in_stripe(tree, hash.stripe(), Access::Look, client.deadline(), work).await,
    }
}

/// The holders of a lock.
pub(crate) async fn read_holders(client: &Client, tree: &Tree, key: &LockKey) -> Result<Holders> {
    let present = read_lock(client, tree, key).await?;
    let mut holders: Vec<HolderRecord> = present.entries.into_iter().map(|(_, record)| record).collect();
    if present.foreign.is_some() {
        // Python records neither the holder nor the time, and takes no token.
        holders.push(HolderRecord::foreign(LockMode::Exclusive, Vec::new()));
    }
    Ok(Holders::new(holders, u64::try_from(present.waiters).ok()))
}

fn find_foreign(tree: &Tree, key: &LockKey) -> Option<InTheWay> {
    python_lock::in_the_way(tree, &tree.python_path(key)?)
}

fn since_epoch(seconds: i64, nanos: i64) -> Option<Duration> {
    Some(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?))
}
