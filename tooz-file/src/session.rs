//! A coordinator's life in the directory: a file that is locked as long as it lives.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::clock::Instant;
use tooz_core::driver::{
    AttemptId, End, Epoch, Held, Notice, OpenSession, Previous, Renewal, Session, SessionGroups, SessionId,
    SessionLocks,
};
use tooz_core::runtime::Task;
use tooz_core::{Error, ErrorKind, GroupId, LossReason, Result};

use crate::client::Client;
use crate::error;
use crate::groups::FileSessionGroups;
use crate::holders;
use crate::host::os_lock::{FileId, Hold};
use crate::locks::{self, FileSessionLocks};
use crate::reaper;
use crate::session_state::{Local, Waiting};
use crate::tree::directory;
use crate::tree::inotify::Area;
use crate::tree::layout;
use crate::tree::members;
use crate::tree::open_tree::Site;
use crate::tree::owner::Owner;
use crate::tree::python_lock::{self, Tried};
use crate::tree::topics::Topic;

/// How often a session looks for requests to break its locks when nobody tells it: several times in the second
/// that whoever breaks waits.
const SESSION_POLL: Duration = Duration::from_millis(200);
/// How often members' files are touched and everything is looked at: Python takes a member for dead after its own
/// option `timeout`, 10 s unless told otherwise, so that two touches may fail or come late.
const TOUCH: Duration = reaper::ROUND;

/// A session.
#[derive(Debug)]
pub(crate) struct FileSession {
    client: Arc<Client>,
    local: Arc<Local>,
    opened_at: Instant,
    closed: AtomicBool,
    /// Ends with the session.
    watchman: Mutex<Option<Task<()>>>,
    groups: FileSessionGroups,
    locks: FileSessionLocks,
}

impl FileSession {
    pub(crate) async fn open(client: &Arc<Client>, request: &OpenSession) -> Result<Self> {
        let site = client.enter()?;
        let opened_at = client.context.clock.now();
        let id = SessionId(client.context.entropy.id());
        let local = layout::while_it_stays(&site, || {
            create(&site, id, request).map_err(|cause| {
                error::io(format!("a session file in {}", site.sessions.path.display()), cause)
            })
        })?;
        let local = Arc::new(local);
        site.locals().insert(id, Arc::downgrade(&local));
        let session = Self {
            groups: FileSessionGroups { client: client.clone(), local: local.clone() },
            locks: FileSessionLocks { client: client.clone(), local: local.clone() },
            client: client.clone(),
            local,
            opened_at,
            closed: AtomicBool::new(false),
            watchman: Mutex::new(None),
        };
        if let Some(previous) = request.previous {
            // S7: it is ended first; what it claimed passes on without a gap.
            if let Some(earlier) = earlier(client, &site, previous, request)? {
                // Before its end: its own task gives back what it still has.
                members::pass_claim(client, &site, &earlier, &session.local).await?;
                earlier.end(LossReason::Expired);
                clear(client, &earlier, Previous::Expired).await?;
            }
        }
        let task = client.context.spawner.spawn(watch(client.clone(), session.local.clone()));
        *session.watchman.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(session)
    }

    #[cfg(test)]
    pub(crate) fn local(&self) -> &Arc<Local> {
        &self.local
    }

    fn stop(&self) {
        drop(self.watchman.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Creates, locks and places the session's file: it is never seen unlocked under its name.
fn create(site: &Arc<Site>, id: SessionId, request: &OpenSession) -> io::Result<Local> {
    let temporary = directory::unique("session");
    let file = site.tmp.create(&temporary, site.mode)?;
    let file_id = FileId::of(&file)?;
    let owner = Owner { session: id, inode: file_id.inode, process: site.process.clone(), boot: site.boot };
    io::Write::write_all(&mut &file, &reaper::write_session(&request.member, &owner, site.stamp.layout))?;
    if !site.flavor.try_lock(&file, Hold::Alone)? {
        return Err(io::Error::other("a new session file is locked by somebody else"));
    }
    // The name is 128 random bits: there is nothing to replace.
    site.tmp.rename(&temporary, &site.sessions, &id.to_string())?;
    Ok(Local::new(site.clone(), request.member.clone(), request.instance, owner, file, file_id))
}

/// The coordinator's earlier session, if it is of this process and really its own. One of another process, or one
/// that was dropped, is judged by its lock like everybody's.
fn earlier(
    client: &Client,
    site: &Site,
    previous: SessionId,
    request: &OpenSession,
) -> Result<Option<Arc<Local>>> {
    client.check_process()?;
    let found = site.local(previous);
    Ok(found.filter(|local| local.instance == request.instance && local.member == request.member))
}

/// Removes everything that a session has in the directory, then lets its files go.
async fn clear(client: &Arc<Client>, local: &Arc<Local>, how: Previous) -> Result<()> {
    let site = &local.site;
    // A directory that was deleted holds nothing more of it.
    let cleared = if site.is_in_place() { remove_all(client, local, how).await } else { Ok(()) };
    abandon(local);
    cleared
}

/// Lets everything go as a crash would; whoever hears it clears away what is left.
fn abandon(local: &Local) {
    local.drop_files();
    local.site.locals().remove(&local.session());
    local.site.say(&Topic::Deaths);
}

async fn remove_all(client: &Arc<Client>, local: &Arc<Local>, how: Previous) -> Result<()> {
    let site = &local.site;
    let (held, waiting, groups) = {
        let state = local.state();
        let held: Vec<AttemptId> = state.held.keys().copied().collect();
        let waiting: Vec<_> = state.waiting.iter().map(|(id, waiting)| (*id, waiting.key.clone())).collect();
        let groups: Vec<GroupId> = state.members.keys().cloned().collect();
        (held, waiting, groups)
    };
    for attempt in held {
        holders::let_go(client, local, attempt, LossReason::SessionClosed, Some(how)).await?;
    }
    let locks = FileSessionLocks { client: client.clone(), local: local.clone() };
    for (attempt, key) in waiting {
        locks.take_back(&key, attempt).await?;
    }
    members::leave_all(client, local, groups).await?;
    let name = local.session().to_string();
    if site.sessions.has(&name, local.id) {
        site.sessions.remove(&name).map_err(|cause| error::io(format!("the session file {name}"), cause))?;
    }
    Ok(())
}

/// What was found missing.
#[derive(Debug, Default)]
struct Missing {
    waiting: Vec<AttemptId>,
    groups: Vec<GroupId>,
}

/// Compares what this session believes to have with what stands in the directory.
async fn inspect(client: &Client, local: &Arc<Local>) -> Result<Missing> {
    let site = &local.site;
    if !site.is_in_place() || !site.sessions.has(&local.session().to_string(), local.id) {
        // Nobody else can judge a session without its file: it ends itself.
        local.end(LossReason::Vanished);
        local.check()?;
    }
    let held: Vec<AttemptId> = local.state().held.keys().copied().collect();
    for attempt in held {
        check_grant(client, local, attempt).await?;
    }
    let place = |(id, waiting): (&AttemptId, &Waiting)| {
        (*id, waiting.key.clone(), waiting.hash.stripe(), waiting.record.clone())
    };
    let waiting: Vec<_> = local.state().waiting.iter().map(place).collect();
    let mut missing = Missing::default();
    for (attempt, key, stripe, record) in waiting {
        let stripe = site.stripe(stripe).map_err(|cause| locks::failed(&key, cause))?;
        let gone = matches!(stripe.stat(&record), Ok(None));
        // It may just have been granted.
        if gone && local.state().waiting.contains_key(&attempt) {
            missing.waiting.push(attempt);
        }
    }
    missing.groups = members::missing(client, local).await?;
    Ok(missing)
}

/// A grant whose record somebody removed is lost. A lock file that somebody removed is made and locked anew; only
/// if Python was faster is the grant lost.
async fn check_grant(client: &Client, local: &Arc<Local>, attempt: AttemptId) -> Result<()> {
    let site = &local.site;
    let Some((key, hash, record)) = local
        .state()
        .held
        .get(&attempt)
        .map(|held| (held.grant.key.clone(), held.hash.clone(), held.record.clone()))
    else {
        return Ok(());
    };
    let failed = |cause| locks::failed(&key, cause);
    if matches!(site.stripe(hash.stripe()).map_err(failed)?.stat(&record), Ok(None)) {
        // A release removes it from the state first, so a grant that still stands there has lost its record.
        return holders::let_go(client, local, attempt, LossReason::Vanished, None).await;
    }
    let Some(path) = site.python_path(&key) else { return Ok(()) };
    let replaced = {
        let state = local.state();
        let Some(held) = state.held.get(&attempt) else { return Ok(()) };
        let in_place = held.files.last().is_none_or(|file| python_lock::is_in_place(site, &path, file));
        (!in_place).then_some(held.grant.mode)
    };
    let Some(mode) = replaced else { return Ok(()) };
    match python_lock::try_lock(site, &path, python_lock::hold(mode), None)? {
        Tried::Locked(file) => {
            tracing::warn!(%key, "the lock's file was removed or replaced; made and locked anew");
            // The old one stays locked: Python's waiters have it open.
            if let Some(held) = local.state().held.get_mut(&attempt) {
                held.files.push(file);
            }
            Ok(())
        }
        Tried::NoPlace => Ok(()),
        Tried::Busy(_) => {
            holders::let_go(client, local, attempt, LossReason::Vanished, Some(Previous::Expired)).await
        }
    }
}

/// Lives as long as the session: answers requests to break its locks, looks after its files, shows Python that its
/// members live, and clears away other sessions that died.
async fn watch(client: Arc<Client>, local: Arc<Local>) {
    let site = local.site.clone();
    let mut ours = site.hub.listen(vec![Topic::Session(local.session()), Topic::LockFileGone]);
    let mut deaths = site.hub.listen(vec![Topic::Deaths]);
    let own = (local.session().to_string(), Area::Own(local.session()));
    let _watched = site.watch_file(&site.sessions, &own.0, own.1);
    let clock = client.context.clock.clone();
    let mut touch = clock.now() + TOUCH;
    // What was said between the session's opening and now, when nobody listened yet.
    if let Err(error) = round(&client, &local, Reap::Nobody).await {
        tracing::warn!(%error, session = %local.session(), "looking after the session failed");
    }
    loop {
        let left = touch.saturating_since(clock.now());
        let pause = if site.hears() { left } else { left.min(SESSION_POLL) };
        let died = tokio::select! {
            biased; // what is about this session first: somebody may wait for an answer
            () = ours.heard() => false,
            () = deaths.heard() => true,
            () = client.context.spawner.sleep(pause) => false,
        };
        if local.is_over() {
            break;
        }
        let mut reap = if died { Reap::Now } else { Reap::Nobody };
        if clock.now() >= touch {
            touch = clock.now() + TOUCH;
            members::touch(&local, clock.wall());
            reap = if died { Reap::Now } else { Reap::InTurn };
        }
        if let Err(error) = round(&client, &local, reap).await {
            tracing::warn!(%error, session = %local.session(), "looking after the session failed");
        }
        if local.is_over() {
            break;
        }
    }
    // Whoever closes it clears it away itself.
    let vanished = local.state().ended.as_ref() != Some(&LossReason::SessionClosed);
    if vanished && let Err(error) = clear(&client, &local, Previous::Expired).await {
        tracing::warn!(%error, session = %local.session(), "clearing away the ended session failed");
    }
}

/// Whether to clear away sessions that died.
#[derive(Clone, Copy, Debug)]
enum Reap {
    Nobody,
    /// Unless another process did a moment ago.
    InTurn,
    Now,
}

async fn round(client: &Client, local: &Arc<Local>, reap: Reap) -> Result<()> {
    // One that fails does not keep the others from being done.
    let answered = holders::answer(client, local).await;
    let inspected = inspect(client, local).await.map(|missing| {
        for group in missing.groups {
            local.tell(Notice::Evicted(group));
        }
    });
    match reap {
        Reap::Nobody => {}
        Reap::InTurn => reaper::reap_in_turn(client, &local.site).await?,
        Reap::Now => reaper::reap_all(client, &local.site).await?,
    }
    answered.and(inspected)
}

#[async_trait]
impl Session for FileSession {
    fn id(&self) -> SessionId {
        self.local.session()
    }

    fn epoch(&self) -> Epoch {
        self.local.site.stamp.epoch
    }

    fn ttl(&self) -> Option<Duration> {
        None
    }

    fn opened_at(&self) -> Instant {
        self.opened_at
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        self.client.check_process()?;
        let lost = || self.local.state().ended.clone().map(Renewal::lost);
        if let Some(renewal) = lost() {
            return Ok(renewal);
        }
        let found = inspect(&self.client, &self.local).await;
        if let Some(renewal) = lost() {
            return Ok(renewal);
        }
        let missing = found.map_err(|error| error.during("renew"))?;
        let state = self.local.state();
        let mut renewal = Renewal::confirmed();
        for (_, attempt) in &held.grants {
            if !state.held.contains_key(attempt) {
                renewal.gone.push((*attempt, state.why_gone(*attempt)));
            }
        }
        for (_, attempt) in &held.waiting {
            let stands = state.waiting.contains_key(attempt) || state.held.contains_key(attempt);
            if !stands || missing.waiting.contains(attempt) {
                renewal.unqueued.push(*attempt);
            }
        }
        let joined = |group: &&GroupId| state.members.contains_key(*group) && !missing.groups.contains(group);
        renewal.evicted = held.groups.iter().filter(|group| !joined(group)).cloned().collect();
        Ok(renewal)
    }

    async fn notice(&self) -> Notice {
        self.local.notice().await
    }

    fn groups(&self) -> &dyn SessionGroups {
        &self.groups
    }

    fn locks(&self) -> &dyn SessionLocks {
        &self.locks
    }

    async fn close(&self, end: End) -> Result<()> {
        self.client.check_process()?;
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.local.end(LossReason::SessionClosed);
        self.stop();
        let how = match &self.local.state().ended {
            Some(LossReason::SessionClosed) | None => end.previous(),
            Some(_) => Previous::Expired,
        };
        let limit = self.client.close_deadline().saturating_since(self.client.context.clock.now());
        let cleared = self.client.context.spawner.timeout(limit, clear(&self.client, &self.local, how)).await;
        // Whatever could not be removed in time ends as after a crash.
        abandon(&self.local);
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
        if self.client.check_process().is_err() {
            // The parent's task is none of ours.
            return std::mem::forget(self.watchman.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
        if !self.closed.load(Ordering::Acquire) {
            self.stop();
            self.local.end(LossReason::SessionClosed);
            abandon(&self.local);
        }
    }
}
