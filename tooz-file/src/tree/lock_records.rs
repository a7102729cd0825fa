//! What stands for one lock: its holders, its queue and how the last holder ended, read from the names of its
//! records; and the grant rule on it.

use std::io;
use std::os::unix::fs::FileExt;

use tooz_core::Result;
use tooz_core::driver::{Admission, AttemptId, LockMode, Previous, admits};

use crate::error;
use crate::keys::{self, KeyHash, Named, Record, Role};
use crate::reaper::Doctor;
use crate::tree::directory::Directory;
use crate::tree::owner::Owner;

/// A record and its name.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) record: Record,
    /// Its token, or its place.
    pub(crate) number: u64,
}

/// Somebody whom a waiter waits for.
#[derive(Debug)]
pub(crate) struct Before {
    /// Of its record.
    pub(crate) name: String,
    pub(crate) owner: Owner,
    /// Whether the waiter may hold the lock beside it.
    pub(crate) together: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    /// In the order of their tokens.
    pub(crate) holders: Vec<Entry>,
    /// In the order of asking.
    pub(crate) queue: Vec<Entry>,
    pub(crate) mark: Option<Previous>,
}

impl Book {
    /// Fails if there is a record of this lock that cannot be understood.
    pub(crate) fn read(directory: &Directory, key: &KeyHash) -> io::Result<Self> {
        let mut book = Self::default();
        for name in directory.names()? {
            match keys::parse(key, &name) {
                Some(Named::Record(record)) => {
                    let (list, number) = match record.role {
                        Role::Holder(token) => (&mut book.holders, token),
                        Role::Waiter(place) => (&mut book.queue, place),
                    };
                    list.push(Entry { name, record, number });
                }
                // Broken says more than that somebody died later.
                Some(Named::Mark(Previous::Broken)) => book.mark = Some(Previous::Broken),
                Some(Named::Mark(how)) => book.mark = book.mark.or(Some(how)),
                Some(Named::Unknown) => {
                    let path = directory.path.join(&name);
                    return Err(error::unreadable(&path, "is no record that this version knows"));
                }
                None => {}
            }
        }
        let order = |entry: &Entry| (entry.number, entry.record.attempt);
        book.holders.sort_by_key(order);
        book.queue.sort_by_key(order);
        Ok(book)
    }

    /// Removes what dead sessions left, in the book and, if told so, in the directory.
    pub(crate) fn bury(&mut self, doctor: &mut Doctor<'_>, graves: Option<Graves<'_>>) -> io::Result<()> {
        self.bury_holders(doctor, graves)?;
        living(&mut self.queue, doctor, graves)?;
        Ok(())
    }

    fn bury_holders(&mut self, doctor: &mut Doctor<'_>, graves: Option<Graves<'_>>) -> io::Result<()> {
        if living(&mut self.holders, doctor, graves)? {
            self.mark = self.mark.or(Some(Previous::Expired));
        }
        Ok(())
    }

    /// As [`Book::bury`], but of those alone who are before this attempt, and only as far as it has to be known: whoever
    /// stands behind another who lives need not ask who else does, and so a look costs the same however many wait.
    pub(crate) fn make_way(
        &mut self,
        attempt: AttemptId,
        mode: LockMode,
        doctor: &mut Doctor<'_>,
        graves: Option<Graves<'_>>,
    ) -> io::Result<()> {
        let ours = self.queue.iter().position(|entry| entry.record.attempt == attempt);
        let mut place = ours.unwrap_or(self.queue.len());
        while place > 0 && doctor.is_dead(&self.queue[place - 1].record.owner) {
            let entry = self.queue.remove(place - 1);
            if let Some((directory, key, mode)) = graves {
                remove_dead(directory, key, &entry, mode)?;
            }
            place -= 1;
        }
        if place == 0 {
            self.bury_holders(doctor, graves)?;
        }
        // The limit of permits is compared with all who live.
        if self.admits(attempt, mode).is_err() { self.bury(doctor, graves) } else { Ok(()) }
    }

    pub(crate) fn waiter_of(&self, attempt: AttemptId) -> Option<&Entry> {
        self.queue.iter().find(|entry| entry.record.attempt == attempt)
    }

    /// Whether a wish may be granted now: nobody waits before it, and it fits beside the holders.
    ///
    /// # Errors
    /// `Invalid` if permits of another limit are held or waited for.
    pub(crate) fn admits(&self, attempt: AttemptId, mode: LockMode) -> Result<bool> {
        // Two limits in one queue could never both be right.
        admits(
            mode,
            self.queue.iter().filter(|entry| entry.record.attempt != attempt).map(|e| e.record.mode),
        )?;
        let fits = admits(mode, self.holders.iter().map(|entry| entry.record.mode))? == Admission::Yes;
        let first = self.queue.first().is_none_or(|entry| entry.record.attempt == attempt);
        Ok(fits && first)
    }

    /// Who is immediately before a waiter: whoever stands before it in the queue, or all holders. Until one of them goes
    /// (or, if both may hold it together, comes to hold it) nothing changes for the waiter.
    pub(crate) fn before(&self, attempt: AttemptId, mode: LockMode) -> Vec<Before> {
        let ours = self.queue.iter().position(|entry| entry.record.attempt == attempt);
        let entries = match ours.unwrap_or(self.queue.len()) {
            0 => &self.holders[..],
            place => &self.queue[place - 1..place],
        };
        let before = |entry: &Entry| Before {
            name: entry.name.clone(),
            owner: entry.record.owner.clone(),
            together: matches!(admits(mode, [entry.record.mode]), Ok(Admission::Yes)),
        };
        entries.iter().map(before).collect()
    }

    pub(crate) fn next_place(&self) -> u64 {
        self.queue.last().map_or(0, |entry| entry.number.saturating_add(1))
    }
}

/// Where records are removed: the directory, the lock, and the permissions of new files.
pub(crate) type Graves<'a> = (&'a Directory, &'a KeyHash, u32);

/// Keeps the entries whose sessions live; says whether there were others.
fn living(entries: &mut Vec<Entry>, doctor: &mut Doctor<'_>, graves: Option<Graves<'_>>) -> io::Result<bool> {
    let dead: Vec<Entry> = entries.extract_if(.., |entry| doctor.is_dead(&entry.record.owner)).collect();
    if let Some((directory, key, mode)) = graves {
        for entry in &dead {
            remove_dead(directory, key, entry, mode)?;
        }
    }
    Ok(!dead.is_empty())
}

/// A mark's name and what stands in it.
pub(crate) type Mark = (String, Vec<u8>);

/// Removes a dead session's record; a holder's leaves a mark (L12).
pub(crate) fn remove_dead(directory: &Directory, key: &KeyHash, entry: &Entry, mode: u32) -> io::Result<()> {
    if matches!(entry.record.role, Role::Holder(_)) {
        mark(directory, key, Previous::Expired, entry.record.attempt, mode)?;
    }
    directory.remove(&entry.name)?;
    Ok(())
}

/// Leaves a mark that the grant of this attempt ended so. It stands in the mark, which thereby is another one than that of
/// which others were told.
pub(crate) fn mark(
    directory: &Directory,
    key: &KeyHash,
    how: Previous,
    attempt: AttemptId,
    mode: u32,
) -> io::Result<()> {
    let Some(name) = key.mark(how) else { return Ok(()) };
    let file = directory.open_or_create(&name, mode)?;
    // That it stands is what counts, also where there is no room for more.
    let written = file.set_len(0).and_then(|()| file.write_all_at(attempt.to_string().as_bytes(), 0));
    if let Err(error) = written {
        tracing::debug!(%error, name, "a mark does not say which grant ended");
    }
    Ok(())
}

/// The marks of a lock, to be read under its mutex.
pub(crate) fn marks(directory: &Directory, key: &KeyHash) -> Vec<Mark> {
    let mut marks = Vec::new();
    for name in [Previous::Expired, Previous::Broken].into_iter().filter_map(|how| key.mark(how)) {
        match directory.read(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // One that may not be read stands for itself.
            content => marks.push((name, content.unwrap_or_default())),
        }
    }
    marks
}

/// Removes the marks of which a holder was told that ends cleanly, under the mutex: not what ended after it was granted.
pub(crate) fn unmark(directory: &Directory, key: &KeyHash, told: &[Mark]) -> io::Result<()> {
    for mark in marks(directory, key) {
        if told.contains(&mark) {
            directory.remove(&mark.0)?;
        }
    }
    Ok(())
}
