//! A session of this process: what it holds, and what it has to tell.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tooz_core::driver::{AttemptId, Grant, InstanceId, LockKey, LockMode, Notice, SessionId};
use tooz_core::{Error, ErrorKind, GroupId, LossReason, MemberId, Result};

use crate::host::os_lock::FileId;
use crate::keys::KeyHash;
use crate::tree::inotify::Watch;
use crate::tree::lock_records::Mark;
use crate::tree::member_record::Member;
use crate::tree::open_tree::Site;
use crate::tree::owner::Owner;
use crate::tree::topics::Topic;

/// How many withdrawn attempts a session remembers. An attempt has to be remembered only from its withdrawal to
/// the arrival of a request that was made earlier and comes late; nobody has this many under way.
const WITHDRAWN: usize = 4_096;

/// How many lost grants are remembered: they were told as notices already, and a beat that crossed one asks once more.
const LOST: usize = 256;

#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) site: Arc<Site>,
    pub(crate) member: MemberId,
    pub(crate) instance: InstanceId,
    pub(crate) owner: Owner,
    /// Its file.
    pub(crate) id: FileId,
    state: Mutex<State>,
    noticed: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) ended: Option<LossReason>,
    notices: VecDeque<Notice>,
    /// Its lock is the session's life.
    file: Option<File>,
    pub(crate) held: BTreeMap<AttemptId, Held>,
    pub(crate) waiting: BTreeMap<AttemptId, Waiting>,
    pub(crate) members: BTreeMap<GroupId, Membership>,
    /// Grants that were lost, and why, until the next beats have told it.
    lost: VecDeque<(AttemptId, LossReason)>,
    /// The sessions that were before the last wish that waited. Mostly the next one waits behind the same, and then
    /// nothing has to be changed, which would wake the thread that listens.
    pub(crate) lives: Vec<Watch>,
    withdrawn: BTreeSet<AttemptId>,
    withdrawn_in_order: VecDeque<AttemptId>,
}

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) grant: Grant,
    pub(crate) hash: KeyHash,
    /// The name of its record.
    pub(crate) record: String,
    /// The marks of which it was told.
    pub(crate) told: Vec<Mark>,
    /// The files that are locked against Python: the lock's own, and after it was deleted by hand also the new one.
    pub(crate) files: Vec<File>,
}

/// A place in a queue.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) key: LockKey,
    pub(crate) hash: KeyHash,
    pub(crate) record: String,
    pub(crate) mode: LockMode,
    /// The lock's file, kept open between two tries: closing it would wake everybody else who waits.
    pub(crate) spare: Option<Arc<File>>,
}

/// A group that was joined.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) file: File,
    pub(crate) id: FileId,
    pub(crate) member: Member,
}

impl Local {
    pub(crate) fn new(
        site: Arc<Site>,
        member: MemberId,
        instance: InstanceId,
        owner: Owner,
        file: File,
        id: FileId,
    ) -> Self {
        let state = Mutex::new(State { file: Some(file), ..State::default() });
        Self { site, member, instance, owner, id, state, noticed: Notify::new() }
    }

    pub(crate) fn session(&self) -> SessionId {
        self.owner.session
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state().ended.is_some()
    }

    /// Fails if the session ended.
    pub(crate) fn check(&self) -> Result<()> {
        self.state().check()
    }

    /// Ends it here: whatever waits looks again, and the owner is told unless it closed the session itself. What it
    /// holds stays until it is cleared away.
    pub(crate) fn end(&self, reason: LossReason) {
        {
            let mut state = self.state();
            if state.ended.is_some() {
                return;
            }
            state.ended = Some(reason.clone());
            if reason != LossReason::SessionClosed {
                state.notices.clear(); // the end of the session says it all
                state.notices.push_back(Notice::SessionLost(reason));
            }
        }
        self.noticed.notify_waiters();
        self.site.say(&Topic::Session(self.session()));
    }

    /// Lets every file go, as a crash would.
    pub(crate) fn drop_files(&self) {
        let mut state = self.state();
        let held = std::mem::take(&mut state.held);
        let waiting = std::mem::take(&mut state.waiting);
        let members = std::mem::take(&mut state.members);
        let file = state.file.take();
        drop(state);
        // The session's own file last: whoever hears of its closing finds the others free.
        drop((held, waiting, members));
        drop(file);
    }

    pub(crate) fn tell(&self, notice: Notice) {
        {
            let mut state = self.state();
            if let Notice::GrantLost(attempt, why) = &notice {
                state.lost.push_back((*attempt, why.clone()));
                if state.lost.len() > LOST {
                    state.lost.pop_front();
                }
            }
            if state.ended.is_none() {
                state.notices.push_back(notice);
            }
        }
        self.noticed.notify_waiters();
    }

    /// As a fork would make them.
    #[cfg(test)]
    pub(crate) fn copies_of_files(&self) -> Vec<File> {
        let state = self.state();
        let held = state.held.values().flat_map(|held| &held.files);
        let members = state.members.values().map(|membership| &membership.file);
        state.file.iter().chain(held).chain(members).map(|file| file.try_clone().unwrap()).collect()
    }

    /// Cancel-safe: what is not returned stays.
    pub(crate) async fn notice(&self) -> Notice {
        loop {
            let mut noticed = pin!(self.noticed.notified());
            noticed.as_mut().enable(); // before the look, so that no notice falls between
            let notice = self.state().notices.pop_front();
            if let Some(notice) = notice {
                return notice;
            }
            noticed.await;
        }
    }

    /// From now on a request of this attempt fails, also one that is under way.
    pub(crate) fn withdraw(&self, attempt: AttemptId) {
        let mut state = self.state();
        if state.withdrawn.insert(attempt) {
            state.withdrawn_in_order.push_back(attempt);
            if state.withdrawn_in_order.len() > WITHDRAWN
                && let Some(oldest) = state.withdrawn_in_order.pop_front()
            {
                state.withdrawn.remove(&oldest);
            }
        }
    }
}

impl State {
    /// Why a grant that is not held any more is gone.
    pub(crate) fn why_gone(&self, attempt: AttemptId) -> LossReason {
        let known = self.lost.iter().find(|(lost, _)| *lost == attempt);
        known.map_or(LossReason::Vanished, |(_, why)| why.clone())
    }

    pub(crate) fn check(&self) -> Result<()> {
        match &self.ended {
            None => Ok(()),
            Some(LossReason::SessionClosed) => Err(Error::new(ErrorKind::Closed, "the session was closed")),
            Some(reason) => Err(Error::new(ErrorKind::SessionLost, reason.to_string())),
        }
    }

    /// Whether this attempt may still get anything.
    pub(crate) fn check_attempt(&self, attempt: AttemptId) -> Result<()> {
        self.check()?;
        if self.withdrawn.contains(&attempt) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("attempt {attempt} was withdrawn or released; ask with a new attempt"),
            ));
        }
        Ok(())
    }
}
