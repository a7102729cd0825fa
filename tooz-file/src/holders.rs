//! Locks as an operator sees them: who holds one, and breaking it.
//!
//! Nobody can take an operating-system lock from a process, and replacing its file would split the lock between those
//! who have the old one open and those who open the new one. So the holder's process is asked, by a file that its
//! session hears; if it does not let go in time, nothing is changed and the error names the process to end.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tooz_core::driver::{
    AttemptId, BreakRequest, HolderRecord, HolderStream, Holders, LockKey, LockMode, Locks, Notice, Previous,
};
use tooz_core::{Error, ErrorKind, FencingToken, LossReason, MemberId, Result};

use crate::client::{Client, FileDriver};
use crate::error;
use crate::host::os_lock::InTheWay;
use crate::keys::{self, KeyHash};
use crate::locks::failed;
use crate::reaper::{self, Doctor};
use crate::session_state::Local;
use crate::tree::directory::{self, Directory};
use crate::tree::lock_records::{self, Book, Entry};
use crate::tree::open_tree::{Access, Moment, Site};
use crate::tree::python_lock;
use crate::tree::topics::Topic;
use crate::watch;

/// How long the holder's process may take to let go (L10).
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether it did, where nothing is heard; an answer is a matter of milliseconds.
const LOOK: Duration = Duration::from_millis(20);

/// What stands now: the holders that live, and how many wait.
struct Present {
    entries: Vec<(Entry, HolderRecord)>,
    foreign: Option<InTheWay>,
    waiters: usize,
}

async fn present(client: &Client, site: &Site, key: &LockKey) -> Result<Present> {
    let hash = KeyHash::new(key);
    let work = |directory: &Directory| {
        let failed = |cause| failed(key, cause);
        let mut book = Book::read(directory, &hash).map_err(failed)?;
        book.bury(&mut Doctor::new(site), None).map_err(failed)?;
        let mut entries = Vec::new();
        for entry in book.holders {
            let since = directory.stat(&entry.name).map_err(failed)?;
            // Renaming a waiter's record to a holder's changes it.
            let since = since.and_then(|data| time(data.st_ctime, data.st_ctime_nsec));
            let member = reaper::member_of(site, entry.record.owner.session);
            let token = FencingToken::new(entry.number);
            let record = HolderRecord::new(member, token, entry.record.mode, since);
            entries.push((entry, record));
        }
        let foreign = if entries.is_empty() { foreign(site, key) } else { None };
        Ok(Moment::Done(Present { entries, foreign, waiters: book.queue.len() }))
    };
    match site.stripe(hash.stripe()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Present { entries: Vec::new(), foreign: foreign(site, key), waiters: 0 })
        }
        _ => client.in_stripe_number(site, hash.stripe(), Access::Look, client.deadline(), work).await,
    }
}

/// Who holds it without a record: Python.
fn foreign(site: &Site, key: &LockKey) -> Option<InTheWay> {
    python_lock::in_the_way(site, &site.python_path(key)?)
}

fn time(seconds: i64, nanos: i64) -> Option<SystemTime> {
    let since = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
    UNIX_EPOCH.checked_add(since)
}

pub(crate) async fn holders(client: &Client, site: &Site, key: &LockKey) -> Result<Holders> {
    let present = present(client, site, key).await?;
    let mut holders: Vec<HolderRecord> = present.entries.into_iter().map(|(_, record)| record).collect();
    if present.foreign.is_some() {
        // Python writes down neither who nor since when, and takes no token.
        holders.push(HolderRecord::new(None, None, LockMode::Exclusive, None));
    }
    Ok(Holders::new(holders, u64::try_from(present.waiters).ok()))
}

fn unresponsive(key: &LockKey, who: &str) -> Error {
    Error::new(
        ErrorKind::HolderUnresponsive,
        format!(
            "{key}: {who}; nothing was changed. An operating-system lock can only be freed by its process"
        ),
    )
}

async fn break_lock(client: &Client, site: &Site, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
    let key = &request.key;
    let present = present(client, site, key).await?;
    match present.foreign {
        _ if request.token.is_some() => {} // Python's has none
        None => {}
        Some(InTheWay::Process(pid)) if pid > 0 => {
            return Err(unresponsive(
                key,
                &format!("process {pid}, which is not of this library, holds it; end it"),
            ));
        }
        Some(_) => {
            return Err(unresponsive(
                key,
                "it is held by a process of another container, or by a child of a dead holder that inherited the \
                 file; find it with `fuser` on the lock's file and end it",
            ));
        }
    }
    let hash = KeyHash::new(key);
    let mut listener = site.hub.listen(vec![Topic::Lock(hash.clone()), Topic::Deaths]);
    let _watched = site.watch_lock(&hash);
    let mut asked: Vec<(Entry, HolderRecord)> = present.entries;
    asked.retain(|(_, record)| request.token.is_none() || record.token == request.token);
    for (entry, _) in &asked {
        ask(site, entry, request)?;
    }
    let deadline = client.context.clock.now() + PATIENCE;
    let mut left = standing(client, site, key, &asked).await?;
    while !left.is_empty() && client.context.clock.now() < deadline {
        client.context.spawner.timeout(LOOK, listener.heard()).await;
        left = standing(client, site, key, &asked).await?;
    }
    let mut stubborn = Vec::new();
    for entry in &left {
        let name = keys::break_request(entry.record.owner.session, entry.record.attempt);
        // Whoever took it away before us is letting go right now.
        let withdrawn = site.breaks.remove(&name).map_err(|cause| failed(key, cause))?;
        if withdrawn {
            stubborn.push(entry.record.owner.process.pid);
        }
    }
    if stubborn.is_empty() && !left.is_empty() {
        client.context.spawner.timeout(LOOK, listener.heard()).await;
        stubborn
            .extend(standing(client, site, key, &asked).await?.iter().map(|e| e.record.owner.process.pid));
    }
    if !stubborn.is_empty() {
        let pids: Vec<String> = stubborn.iter().map(ToString::to_string).collect();
        let who = format!(
            "process {} holds it and did not let go within {PATIENCE:?}; see whether it is stopped, continue it or \
             end it",
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

/// Which of the grants that are to be broken still stand.
async fn standing(
    client: &Client,
    site: &Site,
    key: &LockKey,
    asked: &[(Entry, HolderRecord)],
) -> Result<Vec<Entry>> {
    let now = present(client, site, key).await?.entries;
    let still = |entry: &Entry| now.iter().any(|(other, _)| other.name == entry.name);
    Ok(asked.iter().map(|(entry, _)| entry.clone()).filter(still).collect())
}

/// Puts a request where the holder's process hears it.
fn ask(site: &Site, entry: &Entry, request: &BreakRequest) -> Result<()> {
    let failed = |cause| failed(&request.key, cause);
    let session = entry.record.owner.session;
    let name = keys::break_request(session, entry.record.attempt);
    let content = format!("{}\n{}", keys::hex(request.by.as_bytes()), request.why);
    let temporary = directory::unique("break");
    site.tmp.write_new(&temporary, content.as_bytes(), site.mode).map_err(failed)?;
    site.tmp.rename(&temporary, &site.breaks, &name).map_err(failed)?;
    site.say(&Topic::Session(session));
    Ok(())
}

/// The holder's side: answers the requests to break what this session holds.
pub(crate) async fn answer(client: &Client, local: &Arc<Local>) -> Result<()> {
    let site = &local.site;
    let failed = |cause| error::io(site.breaks.path.display().to_string(), cause);
    for name in site.breaks.names().map_err(failed)? {
        let Some((session, attempt)) = keys::parse_break_request(&name) else { continue };
        if session != local.session() {
            continue;
        }
        let content = match site.breaks.read(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // withdrawn
            answer => match reaper::skip(answer).map_err(failed)? {
                Some(content) => content,
                None => continue,
            },
        };
        // From here on whoever asked can no longer withdraw it; it stays on record.
        match site.breaks.rename(&name, &site.broken, &keys::broken(attempt)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            answer => answer.map_err(failed)?,
        }
        let content = String::from_utf8_lossy(&content).into_owned();
        let (by, why) = content.split_once('\n').unwrap_or(("", &content));
        let by = keys::unhex(by).and_then(|id| MemberId::new(id).ok());
        let reason = LossReason::Broken { by, why: why.to_owned() };
        let_go(client, local, attempt, reason, Some(Previous::Broken)).await?;
    }
    Ok(())
}

/// Ends one grant of a living session, and tells its owner first.
pub(crate) async fn let_go(
    client: &Client,
    local: &Arc<Local>,
    attempt: AttemptId,
    reason: LossReason,
    mark: Option<Previous>,
) -> Result<()> {
    let site = &local.site;
    let Some(mut held) = local.state().held.remove(&attempt) else { return Ok(()) };
    local.withdraw(attempt);
    local.tell(Notice::GrantLost(attempt, reason));
    let key = held.grant.key.clone();
    // First: whoever finds the record gone finds the file free.
    held.files.clear();
    let work = |directory: &Directory| {
        let failed = |cause| failed(&key, cause);
        if let Some(how) = mark {
            lock_records::mark(directory, &held.hash, how, attempt, site.mode).map_err(failed)?;
        }
        directory.remove(&held.record).map_err(failed)?;
        Ok(Moment::Done(()))
    };
    client.in_stripe(site, &held.hash, client.deadline(), work).await?;
    site.say(&Topic::Lock(held.hash));
    Ok(())
}

async fn raise_tokens(client: &Client, site: &Site, least: FencingToken) -> Result<()> {
    let deadline = client.deadline();
    while site.raise_fence(client.context.clock.wall(), least)?.is_none() {
        client.pause(deadline, "the fencing counter", None).await?;
    }
    // A grant takes its token, then writes its record, all under the mutex of its stripe. Once that was free, no grant with a
    // token from before is still being written.
    for stripe in (0..keys::STRIPES).filter(|stripe| site.has_stripe(*stripe)) {
        let passed = client.in_stripe_number(site, stripe, Access::Look, deadline, |_| Ok(Moment::Done(())));
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
                site => holders(&self.0, &*site?, key).await,
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
