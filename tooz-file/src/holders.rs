//! The holders of any lock: listing, breaking and following them.
//!
//! No process can take an operating-system lock from another one. Replacing its file would split the lock between the
//! processes that have the old one open and those that open the new one. So the holder's process is asked, by a file of
//! which its session is notified. If it does not release the lock in time, nothing is changed and the error names the
//! process to end.

use std::time::Duration;

use async_trait::async_trait;
use tooz_core::driver::{BreakRequest, HolderRecord, HolderStream, Holders, LockKey, Locks, Previous};
use tooz_core::{Error, ErrorKind, FencingToken, LossReason, MemberId, Result};
use tooz_local::os_lock::InTheWay;

use crate::client::{Client, FileDriver};
use crate::error::{self, existing};
use crate::keys::{self, KeyHash};
use crate::session_state::SessionState;
use crate::tree::{Access, Entry, Moment, Topic, Tree};
use crate::view::{read_holders, read_lock};
use crate::watch;

/// How long the holder's process may take to release the lock (L10).
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the records are read meanwhile, where the kernel pushes no changes; an answer takes milliseconds.
const LOOK: Duration = Duration::from_millis(20);

fn unresponsive(key: &LockKey, who: &str) -> Error {
    Error::new(
        ErrorKind::HolderUnresponsive,
        format!("{key}: {who}; nothing was changed. Only its process can release an operating-system lock"),
    )
}

async fn break_lock(client: &Client, tree: &Tree, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
    let key = &request.key;
    let present = read_lock(client, tree, key).await?;
    match present.foreign {
        _ if !request.means_foreign(&[]) => {}
        None => {}
        Some(InTheWay::Process(pid)) if pid > 0 => {
            return Err(unresponsive(
                key,
                &format!("process {pid}, which does not use this library, holds the lock; end it"),
            ));
        }
        Some(_) => {
            return Err(unresponsive(
                key,
                "a process of another container holds the lock, or a child that inherited the file from a \
                 dead holder; find it with `fuser` on the lock's file and end it",
            ));
        }
    }
    let hash = KeyHash::new(key);
    let mut listener = tree.topics.listen(vec![Topic::Lock(hash.clone()), Topic::Deaths]);
    let _watched = tree.watch_lock(&hash);
    let mut asked: Vec<(Entry, HolderRecord)> = present.entries;
    asked.retain(|(_, record)| request.means(record.token));
    for (entry, _) in &asked {
        write_break_request(tree, entry, request)?;
    }
    let deadline = client.context.clock.now() + PATIENCE;
    let mut left = find_remaining(client, tree, key, &asked).await?;
    while !left.is_empty() && client.context.clock.now() < deadline {
        client.context.spawner.timeout(LOOK, listener.heard()).await;
        left = find_remaining(client, tree, key, &asked).await?;
    }
    let mut stubborn = Vec::new();
    for entry in &left {
        let name = keys::break_request(entry.record.owner.session, entry.record.attempt);
        // If the holder's process has taken it already, it is releasing the lock right now.
        let withdrawn = tree.break_requests.remove(&name).map_err(|cause| error::lock_records(key, cause))?;
        if withdrawn {
            stubborn.push(entry.record.owner.process.pid);
        }
    }
    if stubborn.is_empty() && !left.is_empty() {
        client.context.spawner.timeout(LOOK, listener.heard()).await;
        stubborn.extend(
            find_remaining(client, tree, key, &asked).await?.iter().map(|e| e.record.owner.process.pid),
        );
    }
    if !stubborn.is_empty() {
        let pids: Vec<String> = stubborn.iter().map(ToString::to_string).collect();
        let who = format!(
            "process {} holds the lock and did not release it within {PATIENCE:?}; check whether it is \
             stopped, then continue or end it",
            pids.join(" and process ")
        );
        return Err(unresponsive(key, &who));
    }
    let broken: Vec<HolderRecord> = asked.into_iter().map(|(_, record)| record).collect();
    for record in &broken {
        let token = record.token.map(FencingToken::get);
        tracing::warn!(%key, by = %request.by, why = %request.why, ?token, "a lock was broken");
    }
    Ok(broken)
}

/// Which of the grants that are to be broken still have their records.
async fn find_remaining(
    client: &Client,
    tree: &Tree,
    key: &LockKey,
    asked: &[(Entry, HolderRecord)],
) -> Result<Vec<Entry>> {
    let now = read_lock(client, tree, key).await?.entries;
    let still = |entry: &Entry| now.iter().any(|(other, _)| other.name == entry.name);
    Ok(asked.iter().map(|(entry, _)| entry.clone()).filter(still).collect())
}

/// Writes a request where the holder's session is notified of it.
fn write_break_request(tree: &Tree, entry: &Entry, request: &BreakRequest) -> Result<()> {
    let session = entry.record.owner.session;
    let name = keys::break_request(session, entry.record.attempt);
    let content = format!("{}\n{}", keys::hex(request.by.as_bytes()), request.why);
    let written = tree.break_requests.replace(&tree.tmp, &name, content.as_bytes());
    written.map_err(|cause| error::lock_records(&request.key, cause))?;
    tree.notify(&Topic::Session(session));
    Ok(())
}

impl SessionState {
    /// The holder's side: answers the requests to break what this session holds.
    pub(crate) async fn answer_break_requests(&self) -> Result<()> {
        let tree = &self.tree;
        let failed = |cause| error::io(tree.break_requests.path.display(), cause);
        for name in tree.break_requests.names().map_err(failed)? {
            let Some((id, attempt)) = keys::parse_break_request(&name) else { continue };
            if id != self.id() {
                continue;
            }
            let content = error::skip_unreadable(existing(tree.break_requests.read(&name)));
            let Some(content) = content.map_err(failed)?.flatten() else { continue }; // withdrawn, perhaps
            // From here on the process that asked can no longer withdraw the request; it stays on record.
            let kept = tree.break_requests.rename(&name, &tree.broken, &keys::broken(attempt));
            if existing(kept).map_err(failed)?.is_none() {
                continue;
            }
            let content = String::from_utf8_lossy(&content).into_owned();
            let (by, why) = content.split_once('\n').unwrap_or(("", &content));
            let by = keys::unhex(by).and_then(|id| MemberId::new(id).ok());
            let reason = LossReason::Broken { by, why: why.to_owned() };
            self.end_grant(attempt, reason, Previous::Broken).await?;
        }
        Ok(())
    }
}

async fn raise_tokens(client: &Client, tree: &Tree, least: FencingToken) -> Result<()> {
    let deadline = client.deadline();
    while tree.fence.raise(client.context.clock.wall(), least)?.is_none() {
        client.pause(deadline, "the fencing counter", None).await?;
    }
    // A grant takes its token, then writes its record, all under the mutex of its stripe. Once that was free, no
    // grant with an earlier token is still being written.
    for stripe in (0..keys::STRIPES).filter(|stripe| tree.mutexes.has_stripe(*stripe)) {
        let passed = client.in_stripe(tree, stripe, Access::Look, deadline, |_| Ok(Moment::Done(())));
        passed.await.map_err(Error::indeterminate)?;
    }
    Ok(())
}

#[async_trait]
impl Locks for FileDriver {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        let found = async {
            match self.0.enter() {
                Err(error) if error::is_nothing_here(&error) => Ok(Holders::new(Vec::new(), Some(0))),
                tree => read_holders(&self.0, &*tree?, key).await,
            }
        };
        found.await.map_err(|error| error.during("holders"))
    }

    async fn break_lock(&self, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
        let broken = async { break_lock(&self.0, &*self.0.enter()?, request).await };
        broken.await.map_err(|error| error.during("break"))
    }

    async fn raise_tokens(&self, least: FencingToken) -> Result<()> {
        let raised = async { raise_tokens(&self.0, &*self.0.enter()?, least).await };
        raised.await.map_err(|error| error.during("raise tokens"))
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        self.0.check()?;
        watch::holders(&self.0, key).map_err(|error| error.during("watch"))
    }
}
