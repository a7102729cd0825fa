//! A session of this process: what it holds, and the notices to its owner.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tooz_core::driver::support::attempts::EndedAttempts;
use tooz_core::driver::support::errors::session_ended;
use tooz_core::driver::support::notices::Notices;
use tooz_core::driver::{
    AttemptId, Grant, InstanceId, LockKey, LockMode, Notice, OpenSession, Previous, SessionId,
};
use tooz_core::{Error, ErrorKind, GroupId, LossReason, MemberId, Result};
use tooz_local::file_id::FileId;
use tooz_local::os_lock::Hold;

use crate::client::Client;
use crate::keys::KeyHash;
use crate::tree::{LocalSession, Mark, Membership, Owner, Sessions, Topic, Tree, Watch, directory, liveness};

#[derive(Debug)]
pub(crate) struct SessionState {
    pub(crate) client: Arc<Client>,
    pub(crate) tree: Arc<Tree>,
    life: Arc<LocalSession>,
    instance: InstanceId,
    pub(crate) owner: Owner,
    pub(crate) file_id: FileId,
    state: Mutex<State>,
    pub(crate) notices: Notices,
}

/// The sessions of this process, for those that follow them.
static SESSIONS: Mutex<Vec<Weak<SessionState>>> = Mutex::new(Vec::new());

#[derive(Debug, Default)]
pub(crate) struct State {
    /// As long as its lock is held, the session lives.
    pub(crate) file: Option<File>,
    pub(crate) held: BTreeMap<AttemptId, Held>,
    pub(crate) waiting: BTreeMap<AttemptId, Waiting>,
    pub(crate) members: BTreeMap<GroupId, Membership>,
    /// Grants that were lost, and why. Notices have told of them already, but a beat that crossed one asks once more.
    pub(crate) lost: EndedAttempts<LossReason>,
    /// Watches of the sessions before the last attempt that waited. Mostly the next one waits behind the same, and
    /// then no watch has to be changed, which would wake the thread that reads events.
    pub(crate) predecessors: Vec<Watch>,
    withdrawn: EndedAttempts<()>,
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

/// An attempt that waits in a queue.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) key: LockKey,
    pub(crate) hash: KeyHash,
    pub(crate) record: String,
    pub(crate) mode: LockMode,
    /// The lock's file, open between two tries: closing it would wake all other waiters.
    pub(crate) spare: Option<Arc<File>>,
}

fn sessions() -> MutexGuard<'static, Vec<Weak<SessionState>>> {
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SessionState {
    /// Creates a session and its file. The file is locked before it is visible under its name.
    pub(crate) fn create(
        client: &Arc<Client>,
        tree: &Arc<Tree>,
        id: SessionId,
        request: &OpenSession,
    ) -> io::Result<Arc<Self>> {
        let temporary = directory::unique("session");
        let file = tree.tmp.create(&temporary)?;
        let file_id = FileId::of(&file)?;
        let Sessions { process, boot, .. } = &tree.sessions;
        let owner = Owner { session: id, inode: file_id.inode, process: process.clone(), boot: *boot };
        (&file).write_all(&liveness::write_session(&request.member, &owner, tree.stamp.layout))?;
        if !tree.flavor.try_lock(&file, Hold::Alone)? {
            return Err(io::Error::other("another process has locked a new session file"));
        }
        // The name is 128 random bits: there is nothing to replace.
        tree.tmp.rename(&temporary, &tree.sessions.directory, &id.to_string())?;
        let life = Arc::new(LocalSession { member: request.member.clone(), ended: OnceLock::new() });
        tree.sessions.locals().insert(id, Arc::downgrade(&life));
        let session = Arc::new(Self {
            client: client.clone(),
            tree: tree.clone(),
            life,
            instance: request.instance,
            owner,
            file_id,
            state: Mutex::new(State { file: Some(file), ..State::default() }),
            notices: Notices::default(),
        });
        let mut sessions = sessions();
        sessions.retain(|known| known.strong_count() > 0);
        sessions.push(Arc::downgrade(&session));
        drop(sessions);
        Ok(session)
    }

    /// The session of this process with this id, if it is in this tree and the coordinator's own.
    pub(crate) fn find(tree: &Arc<Tree>, id: SessionId, request: &OpenSession) -> Option<Arc<Self>> {
        let known: Vec<_> = sessions().iter().filter_map(Weak::upgrade).collect();
        let own = |found: &Arc<Self>| found.instance == request.instance && *found.member() == request.member;
        known.into_iter().find(|found| found.id() == id && Arc::ptr_eq(&found.tree, tree) && own(found))
    }

    pub(crate) fn id(&self) -> SessionId {
        self.owner.session
    }

    pub(crate) fn member(&self) -> &MemberId {
        &self.life.member
    }

    /// Why it ended, once it did.
    pub(crate) fn ended(&self) -> Option<&LossReason> {
        self.life.ended.get()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended().is_some()
    }

    /// Fails if the session ended.
    pub(crate) fn check(&self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(reason) => Err(session_ended(reason)),
        }
    }

    /// The state, to grant this attempt something.
    ///
    /// # Errors
    /// The session ended, or the attempt was withdrawn.
    pub(crate) fn state_for(&self, attempt: AttemptId) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        self.check()?;
        if state.withdrawn.contains(attempt) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("attempt {attempt} was withdrawn or released; ask with a new attempt"),
            ));
        }
        Ok(state)
    }

    /// Ends the session in this process. Its waiters look again, and its owner gets a notice, unless it closed the
    /// session itself. What the session holds stays until it is cleared away.
    pub(crate) fn end(&self, reason: LossReason) {
        {
            // INVARIANT: a session ends under the lock of its state, so that what is checked under it stays so.
            let _state = self.state();
            if self.life.ended.set(reason.clone()).is_err() {
                return;
            }
        }
        self.notices.end(reason);
        self.tree.notify(&Topic::Session(self.id()));
    }

    /// Drops all that the session has, as a crash would; the sessions that notice clear its records away.
    pub(crate) fn abandon(&self) {
        let mut state = self.state();
        let held = std::mem::take(&mut state.held);
        let waiting = std::mem::take(&mut state.waiting);
        let members = std::mem::take(&mut state.members);
        let file = state.file.take();
        drop(state);
        // The session's own file last: a process that notices its closing finds the others unlocked.
        drop((held, waiting, members));
        drop(file);
        self.tree.sessions.locals().remove(&self.id());
        sessions().retain(|known| !std::ptr::eq(known.as_ptr(), self));
        self.tree.notify(&Topic::Deaths);
    }

    /// From now on a request of this attempt fails, also one that is under way.
    pub(crate) fn mark_withdrawn(&self, attempt: AttemptId) {
        self.state().withdrawn.put(attempt, ());
    }

    /// Ends one grant of a living session, and tells its owner first.
    pub(crate) async fn end_grant(
        &self,
        attempt: AttemptId,
        reason: LossReason,
        how: Previous,
    ) -> Result<()> {
        let Some(mut held) = self.state().held.remove(&attempt) else { return Ok(()) };
        self.mark_withdrawn(attempt);
        self.state().lost.put(attempt, reason.clone());
        self.notices.add(Notice::GrantLost(attempt, reason));
        // Before the record: a process that finds the record gone finds the file unlocked.
        held.files.clear();
        self.remove_and_mark(&held, how).await?;
        self.tree.notify(&Topic::Lock(held.hash));
        Ok(())
    }
}
