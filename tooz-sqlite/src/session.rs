//! A coordinator's session in the database.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::driver::{
    End, Epoch, Held, Instant, Notice, OpenSession, Renewal, Session, SessionGroups, SessionId, SessionLocks,
    Turn,
};
use tooz_core::{LossReason, Result};
use tooz_local::file_id::FileId;

use crate::client::Client;
use crate::engine::jobs::{self, Level};
use crate::engine::session_file;
use crate::engine::tx::{Effect, Tx};
use crate::engine::{lock_rows, schema};
use crate::error::{self, Work};
use crate::keys::{Id, Lock};
use crate::reaper::{self, Recorded};
use crate::session_state::SessionState;
use crate::view;

/// A session in the database. The files `groups` and `locks` implement its other two traits.
#[derive(Debug)]
pub(crate) struct SqliteSession {
    pub(crate) client: Arc<Client>,
    pub(crate) session: Arc<SessionState>,
    /// The session lives as long as this file is locked.
    file: Mutex<Option<File>>,
    epoch: Epoch,
    opened_at: Instant,
    closed: AtomicBool,
}

impl SqliteSession {
    pub(crate) async fn open(client: &Arc<Client>, request: &OpenSession) -> Result<Self> {
        let opened_at = client.jobs.context.clock.now();
        let id = SessionId(client.jobs.context.entropy.id());
        // A caller that waits no longer, and drops the client, must not keep the database open by this job.
        let (owner, request) = (Arc::downgrade(client), request.clone());
        let work = move |tx: &mut Tx<'_>| {
            let owner = owner.upgrade().ok_or_else(jobs::closed)?;
            open(tx, &owner, id, opened_at, &request)
        };
        client.call(Level::Write, work).await
    }

    fn unlock_file(&self) {
        drop(self.file.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for SqliteSession {
    /// Leaves the session as a crash would, before the last client ends the thread, which clears the session away. In a
    /// forked child, this closes only the child's copy of the descriptor, which does not unlock the parent's file.
    fn drop(&mut self) {
        if self.client.jobs.check_process().is_err() {
            return;
        }
        self.session.abandon();
        self.unlock_file();
        if !self.session.is_recorded()
            && FileId::at(&self.session.path).is_ok_and(|id| id == self.session.file)
        {
            // The session's row was never committed, so no process will look for the file.
            let _ = std::fs::remove_file(&self.session.path);
        }
        self.client.jobs.note_abandoned();
    }
}

fn open(
    tx: &mut Tx<'_>,
    client: &Arc<Client>,
    id: SessionId,
    opened_at: Instant,
    request: &OpenSession,
) -> Work<SqliteSession> {
    schema::check_layout(tx.connection, tx.site)?;
    if let Some(previous) = request.previous {
        end_previous(tx, previous, request)?;
    }
    let epoch = Epoch(tx.epoch()?);
    let directory = &tx.site.sessions;
    // INVARIANT: the file is locked and in place before the session's row is written.
    let (file, file_id) = session_file::create(directory, id, client.jobs.paths.mode)
        .map_err(|error| error::io(format!("a session file in {}", directory.display()), error))?;
    let path = session_file::path_of(directory, id);
    let (namespace, process) = (client.config.namespace.clone(), &tx.site.process);
    let inserted = tx.value::<i64>(
        "INSERT INTO sessions \
         (id, namespace, member, instance, inode, pid, started, pid_namespace, boot_id, opened_at, bell) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) RETURNING seq",
        (
            Id(id.0),
            &*namespace,
            request.member.as_bytes(),
            Id(request.instance.0),
            file_id.inode.cast_signed(),
            process.pid,
            process.started,
            process.pid_namespace,
            &tx.site.boot_id,
            tx.wall(),
            tx.site.wakeup.map(Id),
        ),
    );
    // If the insertion failed, this is dropped like the transaction, and removes the file.
    let seq = *inserted.as_ref().ok().and_then(Option::as_ref).unwrap_or(&0);
    let session = SessionState::new(seq, id, namespace, request.member.clone(), path, file_id);
    let opened = SqliteSession {
        client: client.clone(),
        session: Arc::new(session),
        file: Mutex::new(Some(file)),
        epoch,
        opened_at,
        closed: AtomicBool::new(false),
    };
    inserted?;
    tx.effect(Effect::Opened(opened.session.clone()));
    Ok(opened)
}

/// Ends the coordinator's earlier session (S7), if there is one and it really belongs to this coordinator.
fn end_previous(tx: &mut Tx<'_>, previous: SessionId, request: &OpenSession) -> Work<()> {
    let own = tx.exists(
        "SELECT 1 FROM sessions WHERE id = ?1 AND instance = ?2 AND member = ?3",
        (Id(previous.0), Id(request.instance.0), request.member.as_bytes()),
    )?;
    if own && let Some(session) = Recorded::by_id(tx, previous)? {
        reaper::end(tx, &session, None)?;
    }
    Ok(())
}

#[async_trait]
impl Session for SqliteSession {
    fn id(&self) -> SessionId {
        self.session.id
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
        let (session, held) = (self.session.clone(), held.clone());
        self.client.call(Level::Read, move |tx| renew(tx, &session, &held)).await
    }

    async fn notice(&self) -> Notice {
        self.session.notices.next().await
    }

    fn groups(&self) -> &dyn SessionGroups {
        self
    }

    fn locks(&self) -> &dyn SessionLocks {
        self
    }

    async fn close(&self, end: End) -> Result<()> {
        self.client.jobs.check_process()?;
        if self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let session = self.session.clone();
        let work = move |tx: &mut Tx<'_>| {
            // By id: the same number may mean another session in a database that replaced ours.
            if session.loss().is_none()
                && let Some(recorded) = Recorded::by_id(tx, session.id)?
            {
                reaper::end(tx, &recorded, Some(end))?;
            }
            Ok(())
        };
        let outcome =
            self.client.call_within(Level::Write, self.client.config.limits.close_timeout, work).await;
        // Also when the database could not be written. Then other processes find the file unlocked and clear the session
        // away, and so does the thread of this process as soon as it can.
        self.session.end(LossReason::SessionClosed);
        self.unlock_file();
        self.client.jobs.note_abandoned();
        outcome
    }
}

fn renew(tx: &mut Tx<'_>, session: &SessionState, held: &Held) -> Work<Renewal> {
    if let Some(reason) = session.loss() {
        return Ok(Renewal::lost(reason));
    }
    // Other processes judge our life by the file: when it was unlinked or replaced, they can no longer see it.
    let in_place = FileId::at(&session.path).is_ok_and(|id| id == session.file);
    let recorded = tx.value::<i64>("SELECT seq FROM sessions WHERE id = ?1", [Id(session.id.0)])?;
    if !in_place || recorded != Some(session.seq) {
        session.end(LossReason::Vanished);
        tx.effect(Effect::Suspect(session.seq));
        return Ok(Renewal::lost(LossReason::Vanished));
    }
    let mut renewal = Renewal::confirmed();
    for (key, attempt) in &held.grants {
        if !lock_rows::is_held(tx, session.seq, &Lock::new(&session.namespace, key), *attempt)? {
            renewal.gone.push((*attempt, lock_rows::why_gone(tx, *attempt)?));
        }
    }
    for (key, attempt) in &held.waiting {
        let outcome = match lock_rows::outcome(tx, session.seq, &Lock::new(&session.namespace, key), *attempt)
        {
            // The damaged record of one lock does not end the session.
            Err(fail) if fail.is_unreadable() => {
                tracing::warn!(%key, ?fail, "what became of a wish cannot be seen");
                continue;
            }
            answer => answer?,
        };
        match outcome {
            None => {}
            // Sent again, in case the first message was lost.
            Some(Turn::Granted(grant)) => tx.effect(Effect::Granted(session.seq, grant)),
            Some(_) => {
                tx.effect(Effect::Forgotten(session.seq, *attempt));
                renewal.unqueued.push(*attempt);
            }
        }
    }
    for group in &held.groups {
        if !view::is_member(tx, session, group)? {
            renewal.evicted.push(group.clone());
        }
    }
    Ok(renewal)
}
