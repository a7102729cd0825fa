//! A coordinator's session: a file that is locked as long as the session lives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::driver::{
    AttemptId, Departure, End, Epoch, Held, Instant, Notice, OpenSession, Previous, Renewal, Session,
    SessionGroups, SessionId, SessionLocks, Task,
};
use tooz_core::{Error, ErrorKind, GroupId, LossReason, Result};
use tooz_local::os_lock::Hold;

use crate::client::{Client, early};
use crate::error;
use crate::reaper;
use crate::session_state::{self, SessionState, Waiting};
use crate::tree::{Area, Topic, Tried, layout, members, python_lock};

/// How often a session looks for requests to break its locks where no event tells of them: several times in the
/// second for which the process that breaks waits.
const SESSION_POLL: Duration = Duration::from_millis(200);
/// How often members' files are touched and everything is inspected. Python takes a member for dead after its own
/// option `timeout`, 10 s by default, so that two touches may fail or come late.
const TOUCH: Duration = reaper::ROUND;

/// A session.
#[derive(Debug)]
pub(crate) struct FileSession {
    pub(crate) state: Arc<SessionState>,
    opened_at: Instant,
    closed: AtomicBool,
    /// Ends with the session.
    monitor: Mutex<Option<Task<()>>>,
}

impl FileSession {
    pub(crate) async fn open(client: &Arc<Client>, request: &OpenSession) -> Result<Self> {
        let tree = client.enter()?;
        let opened_at = client.context.clock.now();
        let id = SessionId(client.context.entropy.id());
        let state = layout::while_it_stays(&tree, || {
            SessionState::create(client, &tree, id, request).map_err(|cause| {
                error::io(format!("a session file in {}", tree.sessions.directory.path.display()), cause)
            })
        })?;
        let session = Self { state, opened_at, closed: AtomicBool::new(false), monitor: Mutex::new(None) };
        if let Some(previous) = request.previous {
            // S7: the earlier session is ended first; its claim passes on without a gap. A session of another
            // process, or one that was dropped, is judged by its lock like any other.
            client.check_process()?;
            if let Some(earlier) = SessionState::find(&tree, previous, request) {
                // Before its end, at which its own task gives back what it still has.
                {
                    let _lock = client.driver_lock(&tree, Hold::Alone).await?;
                    members::pass_claim(&tree, earlier.member(), earlier.id(), &session.state.owner)?;
                }
                earlier.end(LossReason::Expired);
                earlier.clear(Previous::Expired).await?;
            }
        }
        let task = client.context.spawner.spawn(monitor(session.state.clone()));
        *session.monitor.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(session)
    }

    fn stop(&self) {
        drop(self.monitor.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl SessionState {
    /// Removes everything that a session has in the directory, then closes its files.
    async fn clear(&self, how: Previous) -> Result<()> {
        let tree = &self.tree;
        // A directory that was deleted has nothing more of it.
        let cleared = if tree.is_in_place() { self.remove_all(how).await } else { Ok(()) };
        self.abandon();
        cleared
    }

    async fn remove_all(&self, how: Previous) -> Result<()> {
        let tree = &self.tree;
        let (held, waiting, groups) = {
            let state = self.state();
            let held: Vec<AttemptId> = state.held.keys().copied().collect();
            let waiting: Vec<_> =
                state.waiting.iter().map(|(id, waiting)| (*id, waiting.key.clone())).collect();
            let groups: Vec<GroupId> = state.members.keys().cloned().collect();
            (held, waiting, groups)
        };
        for attempt in held {
            self.end_grant(attempt, LossReason::SessionClosed, how).await?;
        }
        for (attempt, key) in waiting {
            self.end_attempt(&key, attempt).await?;
        }
        let gone = if how == Previous::Clean { Departure::Left } else { Departure::Died };
        self.leave_all(groups, gone).await?;
        let name = self.id().to_string();
        if tree.sessions.directory.has(&name, self.file_id) {
            let removed = tree.sessions.directory.remove(&name);
            removed.map_err(|cause| error::io(format!("the session file {name}"), cause))?;
        }
        Ok(())
    }

    /// Compares what this session believes to have with the records in the directory; returns the waiters and the
    /// groups that are missing there.
    async fn inspect(&self) -> Result<(Vec<AttemptId>, Vec<GroupId>)> {
        let tree = &self.tree;
        if !tree.is_in_place() || !tree.sessions.directory.has(&self.id().to_string(), self.file_id) {
            // Others cannot judge a session without its file: it ends itself.
            self.end(LossReason::Vanished);
            self.check()?;
        }
        let held: Vec<AttemptId> = self.state().held.keys().copied().collect();
        for attempt in held {
            self.check_grant(attempt).await?;
        }
        let describe = |(id, waiting): (&AttemptId, &Waiting)| {
            (*id, waiting.key.clone(), waiting.hash.stripe(), waiting.record.clone())
        };
        let waiting: Vec<_> = self.state().waiting.iter().map(describe).collect();
        let mut missing = Vec::new();
        for (attempt, key, stripe, record) in waiting {
            let stripe = tree.mutexes.stripe(stripe).map_err(|cause| error::lock_records(&key, cause))?;
            let gone = matches!(stripe.stat(&record), Ok(None));
            // It may just have been granted.
            if gone && self.state().waiting.contains_key(&attempt) {
                missing.push(attempt);
            }
        }
        Ok((missing, self.forget_missing().await?))
    }

    /// A grant whose record was removed is lost. A lock file that was removed is made and locked anew; only if Python
    /// was faster is the grant lost.
    async fn check_grant(&self, attempt: AttemptId) -> Result<()> {
        let tree = &self.tree;
        let describe =
            |held: &session_state::Held| (held.grant.key.clone(), held.hash.clone(), held.record.clone());
        let held = self.state().held.get(&attempt).map(describe);
        let Some((key, hash, record)) = held else { return Ok(()) };
        let failed = |cause| error::lock_records(&key, cause);
        if matches!(tree.mutexes.stripe(hash.stripe()).map_err(failed)?.stat(&record), Ok(None)) {
            // A release removes the grant from the state first, so a grant that is still there has lost its record.
            return self.end_grant(attempt, LossReason::Vanished, Previous::Unknown).await;
        }
        let Some(path) = tree.python_path(&key) else { return Ok(()) };
        let replaced = {
            let state = self.state();
            let Some(held) = state.held.get(&attempt) else { return Ok(()) };
            let in_place = held.files.last().is_none_or(|file| python_lock::is_in_place(tree, &path, file));
            (!in_place).then_some(held.grant.mode)
        };
        let Some(mode) = replaced else { return Ok(()) };
        match python_lock::try_lock(tree, &path, python_lock::hold_for(mode), None)? {
            Tried::Locked(file) => {
                tracing::warn!(%key, "the lock's file was removed or replaced; made and locked anew");
                // The old one stays locked: Python's waiters have it open.
                if let Some(held) = self.state().held.get_mut(&attempt) {
                    held.files.push(file);
                }
                Ok(())
            }
            Tried::Impossible => Ok(()),
            Tried::Busy(_) => self.end_grant(attempt, LossReason::Vanished, Previous::Expired).await,
        }
    }

    /// What a session does when something changed, and from time to time.
    async fn look_after(&self) -> Result<()> {
        // A failure of one does not prevent the others.
        let answered = self.answer_break_requests().await;
        let inspected = self.inspect().await.map(|(_, groups)| {
            for group in groups {
                self.notices.add(Notice::Evicted(group));
            }
        });
        answered.and(inspected)
    }
}

/// Lives as long as the session: answers requests to break its locks, looks after its files, shows Python that its
/// members live, and clears away other sessions that died.
async fn monitor(session: Arc<SessionState>) {
    let (client, tree) = (&session.client, &session.tree);
    let mut own = tree.topics.listen(vec![Topic::Session(session.id()), Topic::LockFileGone]);
    let mut deaths = tree.topics.listen(vec![Topic::Deaths]);
    let area = Area::OwnSession(session.id());
    let _watched = tree.watch_file(&tree.sessions.directory, &session.id().to_string(), area);
    let clock = client.context.clock.clone();
    let mut touch = clock.now() + TOUCH;
    // What was notified between the session's opening and now, without a listener.
    if let Err(error) = session.look_after().await {
        tracing::warn!(%error, session = %session.id(), "looking after the session failed");
    }
    loop {
        let left = touch.saturating_since(clock.now());
        let pause = if tree.pushes_changes() { left } else { left.min(SESSION_POLL) };
        let died = tokio::select! {
            biased; // what is about this session first: a process may wait for an answer
            () = own.heard() => false,
            () = deaths.heard() => true,
            () = client.context.spawner.sleep(pause) => false,
        };
        if session.is_over() {
            break;
        }
        let due = clock.now() >= touch;
        if due {
            touch = clock.now() + TOUCH;
            session.touch_members(clock.wall());
        }
        let looked = session.look_after().await;
        let reaped = match (died, due) {
            (true, _) => reaper::reap_all(client, tree).await,
            (false, true) => reaper::reap_in_turn(client, tree).await,
            (false, false) => Ok(()),
        };
        if let Err(error) = looked.and(reaped) {
            tracing::warn!(%error, session = %session.id(), "looking after the session failed");
        }
        if session.is_over() {
            break;
        }
    }
    // A call that closes the session clears it away itself.
    let vanished = session.ended() != Some(&LossReason::SessionClosed);
    if vanished && let Err(error) = session.clear(Previous::Expired).await {
        tracing::warn!(%error, session = %session.id(), "clearing away the ended session failed");
    }
}

#[async_trait]
impl Session for FileSession {
    fn id(&self) -> SessionId {
        self.state.id()
    }

    fn epoch(&self) -> Epoch {
        self.state.tree.stamp.epoch
    }

    fn ttl(&self) -> Option<Duration> {
        None
    }

    fn opened_at(&self) -> Instant {
        self.opened_at
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        self.state.client.check_process()?;
        let lost = || self.state.ended().cloned().map(Renewal::lost);
        if let Some(renewal) = lost() {
            return Ok(renewal);
        }
        let found = self.state.inspect().await;
        if let Some(renewal) = lost() {
            return Ok(renewal);
        }
        let (unqueued, missing) = found.map_err(|error| error.during("renew"))?;
        let state = self.state.state();
        let mut renewal = Renewal::confirmed();
        for (_, attempt) in &held.grants {
            if !state.held.contains_key(attempt) {
                let why = state.lost.get(*attempt).cloned().unwrap_or(LossReason::Vanished);
                renewal.gone.push((*attempt, why));
            }
        }
        for (_, attempt) in &held.waiting {
            let known = state.waiting.contains_key(attempt) || state.held.contains_key(attempt);
            if !known || unqueued.contains(attempt) {
                renewal.unqueued.push(*attempt);
            }
        }
        let joined = |group: &&GroupId| state.members.contains_key(*group) && !missing.contains(group);
        renewal.evicted = held.groups.iter().filter(|group| !joined(group)).cloned().collect();
        Ok(renewal)
    }

    async fn notice(&self) -> Notice {
        self.state.notices.next().await
    }

    fn groups(&self) -> &dyn SessionGroups {
        &*self.state
    }

    fn locks(&self) -> &dyn SessionLocks {
        &*self.state
    }

    async fn close(&self, end: End) -> Result<()> {
        self.state.client.check_process()?;
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.state.end(LossReason::SessionClosed);
        self.stop();
        let how = match self.state.ended() {
            Some(LossReason::SessionClosed) | None => end.previous(),
            Some(_) => Previous::Expired,
        };
        let limit = early(self.state.client.config.limits.close_timeout);
        let cleared = self.state.client.context.spawner.timeout(limit, self.state.clear(how)).await;
        // What could not be removed in time ends as after a crash.
        self.state.abandon();
        cleared
            .unwrap_or_else(|| {
                Err(Error::new(
                    ErrorKind::Unavailable,
                    "what the session held was let go, but its records could not be removed in time; the next one to \
                     look clears them away",
                ))
            })
            .map_err(|error| error.during("close"))
    }
}

impl Drop for FileSession {
    /// As a crash: nothing is removed. In a forked child only the child's copies of the descriptors go, which
    /// unlocks nothing.
    fn drop(&mut self) {
        if self.state.client.check_process().is_err() {
            // The task is the parent's.
            return std::mem::forget(self.monitor.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
        if !self.closed.load(Ordering::Acquire) {
            self.stop();
            self.state.end(LossReason::SessionClosed);
            self.state.abandon();
        }
    }
}
