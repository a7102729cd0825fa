//! What is immediately before a waiter. The waiter listens for the end of exactly these, so that a release or a death
//! wakes the one waiter that comes next, however many wait.

use std::mem;

use crate::keys::KeyHash;
use crate::tree::inotify::{Area, Watch, Watching};
use crate::tree::lock_records::Before;
use crate::tree::open_tree::Tree;
use crate::tree::python_lock;

/// What a waiter watches.
#[derive(Debug, Default)]
pub(crate) struct Predecessors {
    records: Vec<Watch>,
    pub(crate) sessions: Vec<Watch>,
    file: Option<Watch>,
}

/// How far what is before a waiter is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coverage {
    Complete,
    /// Something changed while the watches were set up: look again.
    Changed,
    /// The kernel does not report everything: look often.
    Partial,
}

impl Predecessors {
    /// Watches for the end of all of `before`, and of no others any longer.
    pub(crate) fn watch(&mut self, tree: &Tree, hash: &KeyHash, before: &[Before]) -> Coverage {
        self.file = None;
        let Ok(stripe) = tree.mutexes.stripe(hash.stripe()) else { return Coverage::Partial };
        let mut coverage = if tree.pushes_changes() { Coverage::Complete } else { Coverage::Partial };
        // Earlier watches are dropped only afterwards, since most of them are the same.
        let old = (mem::take(&mut self.records), mem::take(&mut self.sessions));
        for one in before {
            let area = Area::Before { lock: hash.clone(), together: one.together };
            match tree.watch_file(stripe, &one.name, area) {
                Watching::Watched(watch) => self.records.push(watch),
                Watching::Gone => return Coverage::Changed,
                Watching::Refused => coverage = Coverage::Partial,
            }
            if tree.sessions.is_local(one.owner.session) {
                continue; // its end is notified in this process
            }
            let session = one.owner.session.to_string();
            let area = Area::SessionBefore(hash.clone());
            match tree.watch_file(&tree.sessions.directory, &session, area) {
                Watching::Watched(watch) => self.sessions.push(watch),
                // A session without its file ends itself; what it leaves ends with its records.
                Watching::Gone => {}
                Watching::Refused => coverage = Coverage::Partial,
            }
            // It may have died before it was watched.
            if tree.sessions.is_dead(&one.owner) {
                return Coverage::Changed;
            }
        }
        drop(old);
        coverage
    }

    /// Whether all of `before` still have their records and live.
    pub(crate) fn are_unchanged(tree: &Tree, hash: &KeyHash, before: &[Before]) -> bool {
        tree.mutexes.stripe(hash.stripe()).is_ok_and(|stripe| {
            before.iter().all(|one| {
                matches!(stripe.stat(&one.name), Ok(Some(_))) && !tree.sessions.is_dead(&one.owner)
            })
        })
    }

    /// Watches the lock's file, which a process has locked that writes no records.
    pub(crate) fn watch_lock_file(&mut self, tree: &Tree, path: &[&str]) {
        self.records.clear();
        if self.file.is_none() {
            self.file = python_lock::watch(tree, path);
        }
    }
}
