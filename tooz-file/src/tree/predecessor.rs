//! Who stands immediately before a waiter: listening for exactly their going, so that a release or a death wakes the one
//! that comes next, however many wait.

use std::mem;

use crate::keys::KeyHash;
use crate::reaper;
use crate::session_state::Local;
use crate::tree::inotify::{Area, Watch, Watching};
use crate::tree::lock_records::Before;
use crate::tree::open_tree::Site;
use crate::tree::python_lock;

/// What a waiter listens to.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    records: Vec<Watch>,
    lives: Vec<Watch>,
    file: Option<Watch>,
}

/// Whether what is before a waiter is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hearing {
    /// It is.
    Good,
    /// Something changed while it was being arranged: look again.
    Changed,
    /// The kernel does not tell everything: look often.
    Poor,
}

impl Ahead {
    /// Listens for the going of all of `before`, and no longer for that of others.
    pub(crate) fn listen(&mut self, site: &Site, hash: &KeyHash, before: &[Before]) -> Hearing {
        self.file = None;
        let Ok(stripe) = site.stripe(hash.stripe()) else { return Hearing::Poor };
        let mut hearing = if site.hears() { Hearing::Good } else { Hearing::Poor };
        // What was listened to is let go only afterwards: most of it is the same.
        let old = (mem::take(&mut self.records), mem::take(&mut self.lives));
        for one in before {
            let area = Area::Before { lock: hash.clone(), together: one.together };
            match site.watch_file(stripe, &one.name, area) {
                Watching::Heard(watch) => self.records.push(watch),
                Watching::Gone => return Hearing::Changed,
                Watching::Refused => hearing = Hearing::Poor,
            }
            if site.local(one.owner.session).is_some() {
                continue; // its end is told in this process
            }
            let session = one.owner.session.to_string();
            match site.watch_file(&site.sessions, &session, Area::Life(hash.clone())) {
                Watching::Heard(watch) => self.lives.push(watch),
                // A session without its file ends itself; what it leaves goes with its records.
                Watching::Gone => {}
                Watching::Refused => hearing = Hearing::Poor,
            }
            // It may have died before it was listened to.
            if reaper::is_dead(site, &one.owner) {
                return Hearing::Changed;
            }
        }
        drop(old);
        hearing
    }

    /// Whether everybody still stands and lives who was before the waiter when it listened.
    pub(crate) fn stands(site: &Site, hash: &KeyHash, before: &[Before]) -> bool {
        site.stripe(hash.stripe()).is_ok_and(|stripe| {
            before.iter().all(|one| {
                matches!(stripe.stat(&one.name), Ok(Some(_))) && !reaper::is_dead(site, &one.owner)
            })
        })
    }

    /// Listens to the lock's file, which somebody has locked who keeps no records.
    pub(crate) fn listen_to_file(&mut self, site: &Site, path: &[&str]) {
        self.records.clear();
        if self.file.is_none() {
            self.file = python_lock::watch(site, path);
        }
    }

    /// The wait is over.
    pub(crate) fn keep_for_the_next(&mut self, local: &Local) {
        let old = mem::replace(&mut local.state().lives, mem::take(&mut self.lives));
        drop(old);
    }
}
