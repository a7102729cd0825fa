//! A coordinator's life in the database.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::clock::Instant;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, Epoch, Grant, Held, LockKey, Notice, OpenSession, Place, Released,
    Renewal, Session, SessionGroups, SessionId, SessionLocks, Turn,
};
use tooz_core::{LossReason, Result};

use crate::engine::jobs::{Client, Level, User};
use crate::engine::schema;
use crate::engine::session_file::{self, DeadFile};
use crate::engine::tx::{Effect, Tx};
use crate::error::{self, Work};
use crate::groups::{self, SqliteSessionGroups};
use crate::host::kernel::FileId;
use crate::keys::{Id, Lock};
use crate::locks;
use crate::reaper::{self, Recorded, SessionEnd};
use crate::session_state::Local;

/// The session's file and what goes with it, from the moment it is made.
#[derive(Debug)]
struct Life {
    local: Arc<Local>,
    client: Arc<Client>,
    /// Its lock is our life; dropping it is our death.
    file: Mutex<Option<File>>,
}

impl Life {
    fn end(&self) {
        drop(self.file.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Life {
    /// Leaves the session as a crash would. In a forked child only the child's copy of the descriptor goes, which
    /// does not unlock the parent's file.
    fn drop(&mut self) {
        if self.client.check_process().is_err() {
            return;
        }
        self.local.abandon();
        self.end();
        if !self.local.is_recorded() && FileId::at(&self.local.path).is_ok_and(|id| id == self.local.file) {
            // Its row was never committed, so nobody will ever look for it.
            let _ = std::fs::remove_file(&self.local.path);
        }
        self.client.abandoned();
    }
}

/// A session in the database.
#[derive(Debug)]
pub(crate) struct SqliteSession {
    life: Life,
    user: Arc<User>,
    epoch: Epoch,
    opened_at: Instant,
    closed: AtomicBool,
    groups: SqliteSessionGroups,
    locks: SqliteSessionLocks,
}

impl SqliteSession {
    pub(crate) async fn open(user: &Arc<User>, request: &OpenSession) -> Result<Self> {
        let client = user.client().clone();
        let opened_at = client.clock.now();
        let namespace = user.config.namespace.clone();
        let id = SessionId(client.entropy.id());
        let request = request.clone();
        let work = {
            let client = client.clone();
            move |tx: &mut Tx<'_>| open(tx, &client, &namespace, id, &request)
        };
        let (life, epoch) =
            user.call(Level::Write, work).await.map_err(|error| error.during("open session"))?;
        let (user, local) = (user.clone(), life.local.clone());
        Ok(Self {
            groups: SqliteSessionGroups { user: user.clone(), local: local.clone() },
            locks: SqliteSessionLocks { user: user.clone(), local },
            life,
            user,
            epoch,
            opened_at,
            closed: AtomicBool::new(false),
        })
    }

    fn local(&self) -> &Arc<Local> {
        &self.life.local
    }
}

fn open(
    tx: &mut Tx<'_>,
    client: &Arc<Client>,
    namespace: &Arc<str>,
    id: SessionId,
    request: &OpenSession,
) -> Work<(Life, Epoch)> {
    schema::check_layout(tx.connection, tx.site)?;
    if let Some(previous) = request.previous {
        end_previous(tx, previous, request)?;
    }
    let epoch = tx.first("SELECT epoch FROM tooz", [], |row| row.get::<_, Id>(0))?;
    let directory = &tx.site.sessions;
    // INVARIANT: locked and in place before its row is written.
    let (file, file_id) = session_file::create(directory, id, client.place.mode)
        .map_err(|error| error::io(format!("a session file in {}", directory.display()), error))?;
    let path = session_file::path_of(directory, id);
    let process = &tx.site.process;
    // Undone with the transaction if anything below fails: the life is then dropped and removes its file.
    let life = |seq| Life {
        local: Arc::new(Local::new(
            seq,
            id,
            namespace.clone(),
            request.member.clone(),
            path.clone(),
            file_id,
        )),
        client: client.clone(),
        file: Mutex::new(Some(file)),
    };
    let inserted = tx.first(
        "INSERT INTO sessions \
         (id, namespace, member, instance, inode, pid, started, pid_namespace, boot_id, opened_at, bell) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) RETURNING seq",
        (
            Id(id.0),
            &**namespace,
            request.member.as_bytes(),
            Id(request.instance.0),
            file_id.inode.cast_signed(),
            process.pid,
            process.started,
            process.pid_namespace,
            &tx.site.boot_id,
            tx.wall(),
            tx.site.bell.map(Id),
        ),
        |row| row.get::<_, i64>(0),
    );
    let life = life(*inserted.as_ref().ok().and_then(Option::as_ref).unwrap_or(&0));
    inserted?;
    tx.effect(Effect::Opened(life.local.clone()));
    Ok((life, Epoch(epoch.map_or(0, |epoch| epoch.0))))
}

/// S7: ends the coordinator's earlier session, if it still stands and really is its own.
fn end_previous(tx: &mut Tx<'_>, previous: SessionId, request: &OpenSession) -> Work<()> {
    let own = tx.first(
        "SELECT 1 FROM sessions WHERE id = ?1 AND instance = ?2 AND member = ?3",
        (Id(previous.0), Id(request.instance.0), request.member.as_bytes()),
        |_| Ok(()),
    )?;
    if own.is_none() {
        return Ok(());
    }
    let Some(session) = Recorded::by_id(tx, previous)? else { return Ok(()) };
    let file = tx.local(session.seq).map(|local| DeadFile::inherited(local.path.clone(), local.file));
    reaper::end(tx, &session, SessionEnd::Dead)?;
    if let Some(file) = file {
        tx.effect(Effect::Clear(file));
    }
    Ok(())
}

#[async_trait]
impl Session for SqliteSession {
    fn id(&self) -> SessionId {
        self.local().id
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn ttl(&self) -> Option<Duration> {
        None
    }

    fn opened_at(&self) -> Instant {
        self.opened_at
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        let (local, held) = (self.local().clone(), held.clone());
        let work = move |tx: &mut Tx<'_>| renew(tx, &local, &held);
        self.user.call(Level::Read, work).await.map_err(|error| error.during("renew"))
    }

    async fn notice(&self) -> Notice {
        self.local().notice().await
    }

    fn groups(&self) -> &dyn SessionGroups {
        &self.groups
    }

    fn locks(&self) -> &dyn SessionLocks {
        &self.locks
    }

    async fn close(&self, end: End) -> Result<()> {
        self.user.client().check_process()?;
        if self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let local = self.local().clone();
        let work = move |tx: &mut Tx<'_>| {
            // A number may mean another session in a database that replaced ours.
            if local.loss().is_none()
                && let Some(session) = Recorded::by_id(tx, local.id)?
            {
                reaper::end(tx, &session, SessionEnd::Closed(end))?;
                tx.effect(Effect::Clear(DeadFile::inherited(local.path.clone(), local.file)));
            }
            Ok(())
        };
        let outcome = self.user.call_within(Level::Write, self.user.config.close_timeout, work).await;
        // Also when the database could not be written: others then find the lock free and clear the session away,
        // and so does the thread of this process as soon as it can.
        self.local().end(LossReason::SessionClosed);
        self.life.end();
        self.user.client().abandoned();
        outcome.map_err(|error| error.during("close session"))
    }
}

fn renew(tx: &mut Tx<'_>, local: &Local, held: &Held) -> Work<Renewal> {
    if let Some(reason) = local.loss() {
        return Ok(Renewal::lost(reason));
    }
    // Whoever unlinked or replaced the file has taken away the proof of our life.
    let in_place = FileId::at(&local.path).is_ok_and(|id| id == local.file);
    let recorded =
        tx.first("SELECT seq FROM sessions WHERE id = ?1", [Id(local.id.0)], |row| row.get::<_, i64>(0))?;
    if !in_place || recorded != Some(local.seq) {
        local.end(LossReason::Vanished);
        tx.effect(Effect::Suspect(local.seq));
        return Ok(Renewal::lost(LossReason::Vanished));
    }
    let mut renewal = Renewal::confirmed();
    for (key, attempt) in &held.grants {
        if !locks::is_held(tx, local.seq, &Lock::new(&local.namespace, key), *attempt)? {
            renewal.gone.push((*attempt, locks::why_gone(tx, *attempt)?));
        }
    }
    for (key, attempt) in &held.waiting {
        let outcome = match locks::outcome(tx, local.seq, &Lock::new(&local.namespace, key), *attempt) {
            // One lock that somebody damaged does not concern the session's life.
            Err(fail) if fail.is_unreadable() => {
                tracing::warn!(%key, ?fail, "what became of a wish cannot be seen");
                continue;
            }
            answer => answer?,
        };
        match outcome {
            None => {}
            // Told again, in case the first word was lost.
            Some(Turn::Granted(grant)) => tx.effect(Effect::Granted(local.seq, grant)),
            Some(_) => {
                tx.effect(Effect::Forgotten(local.seq, *attempt));
                renewal.unqueued.push(*attempt);
            }
        }
    }
    for group in &held.groups {
        if !groups::is_member(tx, local, group)? {
            renewal.evicted.push(group.clone());
        }
    }
    Ok(renewal)
}

/// Locks of one session.
#[derive(Debug)]
struct SqliteSessionLocks {
    user: Arc<User>,
    local: Arc<Local>,
}

impl SqliteSessionLocks {
    fn lock(&self, key: &LockKey) -> Lock {
        Lock::new(&self.local.namespace, key)
    }
}

#[async_trait]
impl SessionLocks for SqliteSessionLocks {
    async fn request(&self, request: &Acquire) -> Result<Acquired> {
        let (local, lock, request) = (self.local.clone(), self.lock(&request.key), request.clone());
        let work = move |tx: &mut Tx<'_>| locks::request(tx, &local, &request, &lock);
        self.user.call(Level::Write, work).await.map_err(|error| error.during("request"))
    }

    async fn turn(&self, place: &Place) -> Result<Turn> {
        self.user.client().check_process()?;
        let attempt = place.attempt;
        loop {
            if let Some(slot) = self.local.slot(attempt) {
                return Ok(slot.wait().await);
            }
            self.local.check()?;
            // A place that this process has not seen granted or taken: ask what stands, and wait from then on.
            let (local, lock) = (self.local.clone(), self.lock(&place.key));
            let work = move |tx: &mut Tx<'_>| {
                local.check()?;
                let outcome = locks::outcome(tx, local.seq, &lock, attempt)?;
                if outcome.is_none() {
                    tx.effect(Effect::Queued(local.seq, attempt, lock.clone()));
                }
                Ok(outcome)
            };
            let outcome = self.user.call(Level::Read, work).await.map_err(|error| error.during("turn"))?;
            if let Some(turn) = outcome {
                return Ok(turn);
            }
        }
    }

    async fn withdraw(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        // Before the job is queued: a request that comes later is refused even if it overtakes the job.
        self.local.withdraw(attempt);
        if self.local.loss().is_some() {
            self.user.client().check_process()?;
            return Ok(()); // everything of an ended session is gone
        }
        let (seq, lock) = (self.local.seq, self.lock(key));
        let work = move |tx: &mut Tx<'_>| locks::withdraw(tx, seq, &lock, attempt);
        self.user.call(Level::Write, work).await.map_err(|error| error.during("withdraw"))
    }

    async fn release(&self, grant: &Grant, end: End) -> Result<Released> {
        let (seq, lock, attempt) = (self.local.seq, self.lock(&grant.key), grant.attempt);
        let work = move |tx: &mut Tx<'_>| locks::release(tx, seq, &lock, attempt, end);
        self.user.call(Level::Write, work).await.map_err(|error| error.during("release"))
    }
}
