//! The records of one lock: its holders, its queue and how the last holder ended, all read from the names of empty
//! files; and the grant rule on them.

use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::FileExt;

use tooz_core::driver::support::rule::{Foreign, Verdict, fits, verdict};
use tooz_core::driver::{AttemptId, LockMode, Previous};

use crate::error;
use crate::keys::{self, KeyHash};
use crate::tree::directory::Directory;
use crate::tree::liveness::{LivenessMemo, Sessions};
use crate::tree::mutex::Access;
use crate::tree::owner::Owner;

/// Which part a session has in a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// With its token.
    Holder(u64),
    /// With its number in the queue.
    Waiter(u64),
}

impl Role {
    pub(crate) fn is_holder(self) -> bool {
        matches!(self, Self::Holder(_))
    }

    pub(crate) fn number(self) -> u64 {
        let (Self::Holder(number) | Self::Waiter(number)) = self;
        number
    }
}

/// What the name of a holder's or a waiter's record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) role: Role,
    pub(crate) mode: LockMode,
    pub(crate) attempt: AttemptId,
    pub(crate) owner: Owner,
}

/// What stands under a name in a directory of locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Record(Record),
    Mark(Previous),
    /// Of another version, or written by hand. It may stand for a holder, so no grant may pass it.
    Unknown,
}

impl Record {
    /// Its name; `None` for a mode that this version does not know.
    pub(crate) fn name(&self, key: &KeyHash) -> Option<String> {
        let role = match self.role {
            Role::Holder(token) => format!("h{token:016x}"),
            Role::Waiter(number) => format!("w{number:016x}"),
        };
        let mode = match self.mode {
            LockMode::Exclusive => "x".to_owned(),
            LockMode::Shared => "s".to_owned(),
            LockMode::Permit { limit } => format!("p{limit:x}"),
            _ => return None,
        };
        Some(format!("{key}.{role}.{mode}.{}.{}", self.attempt, self.owner))
    }
}

/// Reads the name of a record of `key`; `None` if it is of another lock.
pub(crate) fn parse(key: &KeyHash, name: &str) -> Option<Named> {
    let rest = key.strip(name)?;
    Some(match rest {
        "mexpired" => Named::Mark(Previous::Expired),
        "mbroken" => Named::Mark(Previous::Broken),
        _ => parse_record(rest).map_or(Named::Unknown, Named::Record),
    })
}

fn parse_record(rest: &str) -> Option<Record> {
    let mut parts = rest.splitn(4, '.');
    let (role, mode) = (parts.next()?, parts.next()?);
    let number = padded(role.get(1..)?)?;
    let role = match role.get(..1)? {
        "h" => Role::Holder(number),
        "w" => Role::Waiter(number),
        _ => return None,
    };
    let mode = match (mode.get(..1)?, mode.get(1..)?) {
        ("x", "") => LockMode::Exclusive,
        ("s", "") => LockMode::Shared,
        ("p", limit) => LockMode::Permit { limit: NonZeroU32::new(keys::number(limit)?.try_into().ok()?)? },
        _ => return None,
    };
    let attempt = AttemptId::parse(parts.next()?)?;
    Some(Record { role, mode, attempt, owner: Owner::parse(parts.next()?)? })
}

/// As [`keys::number`], in as many digits as the largest one has.
fn padded(digits: &str) -> Option<u64> {
    let whole = digits.len() == 16 && digits.bytes().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f'));
    whole.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// A record and the name of its file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) record: Record,
}

/// A holder or a waiter immediately before a waiter.
#[derive(Debug)]
pub(crate) struct Before {
    /// The name of its record.
    pub(crate) name: String,
    pub(crate) owner: Owner,
    /// Whether the waiter may hold the lock beside it.
    pub(crate) together: bool,
}

/// The records of one lock, as they were read.
#[derive(Debug)]
pub(crate) struct LockRecords<'a> {
    directory: &'a Directory,
    key: &'a KeyHash,
    memo: LivenessMemo<'a>,
    /// In the order of their tokens.
    pub(crate) holders: Vec<Entry>,
    /// In the order of the requests.
    pub(crate) queue: Vec<Entry>,
    pub(crate) mark: Option<Previous>,
}

impl<'a> LockRecords<'a> {
    /// Fails if there is a record of this lock that cannot be understood.
    pub(crate) fn read(
        directory: &'a Directory,
        key: &'a KeyHash,
        sessions: &'a Sessions,
    ) -> io::Result<Self> {
        let (mut holders, mut queue, mut mark) = (Vec::new(), Vec::new(), None);
        for name in directory.names()? {
            match parse(key, &name) {
                Some(Named::Record(record)) => {
                    let list = if record.role.is_holder() { &mut holders } else { &mut queue };
                    list.push(Entry { name, record });
                }
                // Broken says more than that another holder died later.
                Some(Named::Mark(Previous::Broken)) => mark = Some(Previous::Broken),
                Some(Named::Mark(how)) => mark = mark.or(Some(how)),
                Some(Named::Unknown) => {
                    let path = directory.path.join(&name);
                    return Err(error::unreadable(&path, "is no record that this version knows"));
                }
                None => {}
            }
        }
        let order = |entry: &Entry| (entry.record.role.number(), entry.record.attempt);
        holders.sort_by_key(order);
        queue.sort_by_key(order);
        Ok(Self { directory, key, memo: LivenessMemo::new(sessions), holders, queue, mark })
    }

    /// Removes what dead sessions left from these lists; also from the directory, if it may be changed.
    pub(crate) fn remove_dead(&mut self, access: Access) -> io::Result<()> {
        self.remove_dead_holders(access)?;
        let dead: Vec<Entry> =
            self.queue.extract_if(.., |entry| self.memo.is_dead(&entry.record.owner)).collect();
        self.remove_records(&dead, access)
    }

    fn remove_dead_holders(&mut self, access: Access) -> io::Result<()> {
        let dead: Vec<Entry> =
            self.holders.extract_if(.., |entry| self.memo.is_dead(&entry.record.owner)).collect();
        if !dead.is_empty() {
            self.mark = self.mark.or(Some(Previous::Expired));
        }
        self.remove_records(&dead, access)
    }

    fn remove_records(&self, entries: &[Entry], access: Access) -> io::Result<()> {
        if access == Access::Look {
            return Ok(());
        }
        entries.iter().try_for_each(|entry| remove_record(self.directory, self.key, entry))
    }

    /// As [`LockRecords::remove_dead`], but only of those before this attempt, back to the first that lives. What is
    /// before that one does not change the answer, and so a look costs the same however many wait.
    pub(crate) fn remove_dead_before(
        &mut self,
        attempt: AttemptId,
        wanted: LockMode,
        access: Access,
    ) -> io::Result<()> {
        let mut index = self.position(attempt);
        while index > 0 && self.memo.is_dead(&self.queue[index - 1].record.owner) {
            index -= 1;
            let entry = self.queue.remove(index);
            self.remove_records(&[entry], access)?;
        }
        if index == 0 {
            self.remove_dead_holders(access)?;
        }
        // The limit of permits is compared with all who live.
        let refused = matches!(self.verdict(attempt, wanted), Verdict::OtherLimit { .. });
        if refused { self.remove_dead(access) } else { Ok(()) }
    }

    /// The index of this attempt in the queue; a new attempt comes last.
    fn position(&self, attempt: AttemptId) -> usize {
        let index = self.queue.iter().position(|entry| entry.record.attempt == attempt);
        index.unwrap_or(self.queue.len())
    }

    pub(crate) fn is_queued(&self, attempt: AttemptId) -> bool {
        self.position(attempt) < self.queue.len()
    }

    /// Whether a request may be granted now. A reader does not pass the readers before it, as the rule would let it: of the
    /// waiters before it only the nearest is known to live.
    pub(crate) fn verdict(&self, attempt: AttemptId, mode: LockMode) -> Verdict<()> {
        let position = self.position(attempt);
        let before = self.queue[..position].iter().map(|entry| ((), entry.record.mode));
        match verdict(mode, before, self.holders.iter().map(|entry| entry.record.mode), Foreign::None) {
            Verdict::Free if position > 0 => Verdict::Behind(()),
            verdict => verdict,
        }
    }

    /// What is immediately before a waiter: the waiter before it in the queue, or all holders. Until one of them ends
    /// (or, if both may hold the lock together, is granted it) nothing changes for the waiter.
    pub(crate) fn before(&self, attempt: AttemptId, mode: LockMode) -> Vec<Before> {
        let entries = match self.position(attempt) {
            0 => &self.holders[..],
            index => &self.queue[index - 1..index],
        };
        let before = |entry: &Entry| Before {
            name: entry.name.clone(),
            owner: entry.record.owner.clone(),
            together: fits(mode, [entry.record.mode]),
        };
        entries.iter().map(before).collect()
    }

    /// The number of a new waiter's record.
    pub(crate) fn next_number(&self) -> u64 {
        self.queue.last().map_or(0, |entry| entry.record.role.number().saturating_add(1))
    }
}

/// Removes a dead session's record; a holder's leaves a mark (L12).
pub(crate) fn remove_record(directory: &Directory, key: &KeyHash, entry: &Entry) -> io::Result<()> {
    if entry.record.role.is_holder() {
        write_mark(directory, key, Previous::Expired, entry.record.attempt)?;
    }
    directory.remove(&entry.name)?;
    Ok(())
}

/// The name of a mark, and its content.
pub(crate) type Mark = (String, Vec<u8>);

/// Leaves a mark that the grant of this attempt ended so. The attempt is the mark's content, by which this mark
/// differs from those of which earlier holders were told.
pub(crate) fn write_mark(
    directory: &Directory,
    key: &KeyHash,
    how: Previous,
    attempt: AttemptId,
) -> io::Result<()> {
    let Some(name) = key.mark(how) else { return Ok(()) };
    let file = directory.open_or_create(&name)?;
    // The mark's existence is what counts, also where the disk is too full for its content.
    let written = file.set_len(0).and_then(|()| file.write_all_at(attempt.to_string().as_bytes(), 0));
    if let Err(error) = written {
        tracing::debug!(%error, name, "a mark does not say which grant ended");
    }
    Ok(())
}

/// The marks of a lock; under its mutex.
pub(crate) fn read_marks(directory: &Directory, key: &KeyHash) -> Vec<Mark> {
    let mut marks = Vec::new();
    for name in [Previous::Expired, Previous::Broken].into_iter().filter_map(|how| key.mark(how)) {
        match directory.read(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A mark that may not be read still is one.
            content => marks.push((name, content.unwrap_or_default())),
        }
    }
    marks
}

/// Removes the marks of which a holder was told, when it ends cleanly; under the mutex. A mark of a grant that ended
/// later stays.
pub(crate) fn remove_marks(directory: &Directory, key: &KeyHash, told: &[Mark]) -> io::Result<()> {
    for mark in read_marks(directory, key) {
        if told.contains(&mark) {
            directory.remove(&mark.0)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tooz_core::LockName;
    use tooz_core::driver::{LockKey, SessionId};
    use tooz_local::process::Process;

    use super::*;

    fn owner() -> Owner {
        let process = Process { pid: u32::MAX, started: Some(u64::MAX), pid_namespace: Some(u64::MAX) };
        Owner { session: SessionId(u128::MAX), inode: u64::MAX, process, boot: u32::MAX }
    }

    #[test]
    fn the_longest_record_fits_in_a_name() {
        let mode = LockMode::Permit { limit: NonZeroU32::MAX };
        let record =
            Record { role: Role::Holder(u64::MAX), mode, attempt: AttemptId(u128::MAX), owner: owner() };
        let key = KeyHash::new(&LockKey::Named(LockName::new([255; 255]).unwrap()));
        let name = record.name(&key).unwrap();
        assert!(name.len() <= 255, "{}", name.len());
        assert_eq!(parse(&key, &name), Some(Named::Record(record)));
        let without_limit = name.replace(".pffffffff.", ".p0.");
        assert_eq!(parse(&key, &without_limit), Some(Named::Unknown));
    }
}
