//! Whether a session lives, and clearing away one that does not.
//!
//! A session is dead only if (a) its file is at its path, is the recorded inode, and its lock is free; or (b) its
//! recorded process lies in our pid namespace and no longer exists, although a child that inherited the descriptor
//! still has the lock, or the file may not be read; or it was recorded under another boot. A missing file is not death: its owner notices and
//! ends the session itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use tooz_core::driver::SessionId;
use tooz_core::{MemberId, Result};

use crate::client::Client;
use crate::error;
use crate::host::os_lock::{FileId, Hold};
use crate::keys::{self, KeyHash, Named, Role};
use crate::tree::directory::Directory;
use crate::tree::lock_records::{self, Entry};
use crate::tree::members;
use crate::tree::open_tree::{Access, Moment, Site};
use crate::tree::owner::Owner;
use crate::tree::topics::Topic;

/// Judges the owners of records, each session once.
#[derive(Debug)]
pub(crate) struct Doctor<'a> {
    site: &'a Site,
    known: BTreeMap<SessionId, bool>,
}

impl<'a> Doctor<'a> {
    pub(crate) fn new(site: &'a Site) -> Self {
        Self { site, known: BTreeMap::new() }
    }

    pub(crate) fn is_dead(&mut self, owner: &Owner) -> bool {
        if let Some(known) = self.known.get(&owner.session) {
            return *known;
        }
        let dead = is_dead(self.site, owner);
        self.known.insert(owner.session, dead);
        dead
    }
}

pub(crate) fn is_dead(site: &Site, owner: &Owner) -> bool {
    if let Some(local) = site.local(owner.session) {
        return local.is_over();
    }
    if owner.boot != site.boot {
        return true;
    }
    let name = owner.session.to_string();
    let found = site.sessions.open(&name).and_then(|file| {
        if FileId::of(&file)?.inode != owner.inode {
            return Ok(true); // a copy says nothing
        }
        Ok(site.flavor.in_the_way(&file, Hold::Alone)?.is_some())
    });
    match found {
        Ok(false) => true,
        Ok(true) => owner.process.is_gone(&site.process),
        // Another user's, perhaps: where the file cannot be asked, the process is.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            owner.process.is_gone(&site.process)
        }
        Err(error) => {
            // What cannot be looked at is not dead.
            tracing::warn!(session = %owner.session, %error, "a session's file cannot be examined");
            false
        }
    }
}

/// What stands in a session's file.
pub(crate) fn write_session(member: &MemberId, owner: &Owner, layout: u32) -> Vec<u8> {
    let member = keys::hex(member.as_bytes());
    format!("owner {owner}\nmember {member}\nlayout {layout}\n").into_bytes()
}

/// In which layout a session works; in layout 1 a session need not say so.
pub(crate) fn layout_of(site: &Site, id: SessionId) -> u32 {
    session_field(site, id, "layout").and_then(|number| number.parse().ok()).unwrap_or(1)
}

fn session_field(site: &Site, id: SessionId, field: &str) -> Option<String> {
    read_session(&site.sessions.read(&id.to_string()).ok()?, field)
}

/// One field of what stands in a session's file.
pub(crate) fn read_session(content: &[u8], field: &str) -> Option<String> {
    let content = std::str::from_utf8(content).ok()?;
    content.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(' ')?.to_owned()))
}

/// Whose session it is, if its file says so.
pub(crate) fn member_of(site: &Site, id: SessionId) -> Option<MemberId> {
    if let Some(local) = site.local(id) {
        return Some(local.member.clone());
    }
    MemberId::new(keys::unhex(&session_field(site, id, "member")?)?).ok()
}

/// How often some process clears the dead away although nobody told it of a death: Python takes a member of ours for
/// dead when it is cleared away, and after its own option `timeout`, of which this is a third by default.
pub(crate) const ROUND: Duration = Duration::from_secs(3);

/// As [`reap_all`], unless another process did so a moment ago: with many processes it would be all that they do.
pub(crate) async fn reap_in_turn(client: &Client, site: &Site) -> Result<()> {
    let failed = |cause| error::io(site.home.path.join(keys::REAPED).display().to_string(), cause);
    let wall = client.context.clock.wall();
    let file = site.home.open_or_create(keys::REAPED, site.mode).map_err(failed)?;
    let data = file.metadata().map_err(failed)?;
    let last = data.modified().map_err(failed)?;
    // Those who came at about the same time are to come at about the same time again.
    let round = ROUND.mul_f32(0.8);
    // A time to come is that of a clock that was set back since, and says nothing; an empty file is a new one.
    if data.len() > 0 && wall.duration_since(last).is_ok_and(|age| age < round) {
        return Ok(());
    }
    let write = || std::os::unix::fs::FileExt::write_all_at(&file, b"\n", 0).map_err(failed);
    if data.len() == 0 {
        write()?;
    }
    match file.set_modified(wall) {
        // A user who does not own the file may set no other time than that of a write.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => write()?,
        answer => answer.map_err(failed)?,
    }
    reap_all(client, site).await
}

/// Clears away every session that is dead.
pub(crate) async fn reap_all(client: &Client, site: &Site) -> Result<()> {
    let names =
        site.sessions.names().map_err(|cause| error::io(site.sessions.path.display().to_string(), cause))?;
    for id in names.iter().filter_map(|name| SessionId::parse(name)) {
        if site.local(id).is_some() {
            continue; // its owner clears it away
        }
        let owner = session_field(site, id, "owner").and_then(|text| Owner::parse(&text));
        if owner.is_some_and(|owner| owner.session == id && is_dead(site, &owner)) {
            reap(client, site, id).await?;
        }
    }
    Ok(())
}

/// Locks the dead session's file, so that only one process clears it away; `None` if another does, or if it lives
/// after all. A child of the dead owner may have inherited the lock: then the file cannot be locked, and whatever
/// two processes then remove twice is named by ids that are never used again.
fn claim(site: &Site, id: SessionId) -> io::Result<Option<(File, FileId)>> {
    let name = id.to_string();
    let file = match site.sessions.open_write(&name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Who may not clear it away as a whole still clears away each record of it that is in the way.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        answer => answer?,
    };
    let file_id = FileId::of(&file)?;
    let locked = site.flavor.try_lock(&file, Hold::Alone)?;
    let owner = session_field(site, id, "owner").and_then(|text| Owner::parse(&text));
    let gone = owner.is_some_and(|owner| owner.boot != site.boot || owner.process.is_gone(&site.process));
    Ok(((locked || gone) && site.sessions.has(&name, file_id)).then_some((file, file_id)))
}

async fn reap(client: &Client, site: &Site, id: SessionId) -> Result<()> {
    let failed = |cause| error::io(format!("clearing away the dead session {id}"), cause);
    // The lock is held until everything is gone.
    let Some((file, file_id)) = claim(site, id).map_err(failed)? else { return Ok(()) };
    remove_lock_records(client, site, id).await?;
    members::remove_members(client, site, id).await?;
    let name = id.to_string();
    if site.sessions.has(&name, file_id) {
        site.sessions.remove(&name).map_err(failed)?;
    }
    tracing::debug!(session = %id, "cleared away a dead session");
    drop(file);
    Ok(())
}

/// Removes every record of a lock that a session left, wherever it stands.
pub(crate) async fn remove_lock_records(client: &Client, site: &Site, id: SessionId) -> Result<()> {
    let deadline = client.deadline();
    let belongs = format!(".{id}.");
    for number in 0..keys::STRIPES {
        if !site.has_stripe(number) {
            continue;
        }
        let failed = |cause| error::io("the records of locks", cause);
        let directory = site.stripe(number).map_err(failed)?;
        let names: Vec<String> =
            directory.names().map_err(failed)?.into_iter().filter(|name| name.contains(&belongs)).collect();
        if names.is_empty() {
            continue;
        }
        let work = |directory: &Directory| {
            for name in &names {
                let Some(key) = KeyHash::of_record(name) else { continue };
                let Some(Named::Record(record)) = keys::parse(&key, name) else { continue };
                let (Role::Holder(number) | Role::Waiter(number)) = record.role;
                if record.owner.session == id && directory.stat(name).is_ok_and(|found| found.is_some()) {
                    let entry = Entry { name: name.clone(), record, number };
                    // What is no file of ours stays, and the others go.
                    if skip(lock_records::remove_dead(directory, &key, &entry, site.mode))
                        .map_err(failed)?
                        .is_some()
                    {
                        site.say(&Topic::Lock(key));
                    }
                }
            }
            Ok(Moment::Done(()))
        };
        client.in_stripe_number(site, number, Access::Change, deadline, work).await?;
    }
    Ok(())
}

/// Leftovers of processes that died in the middle of something are taken for such after this long; everything
/// that is under way takes milliseconds.
const LEFTOVER: Duration = Duration::from_mins(1);
/// How long it stays on record who broke a lock (L10).
const BROKEN_KEPT: Duration = Duration::from_hours(1);

/// Removes files that nobody will look for any more.
pub(crate) fn tidy(client: &Client, site: &Site) -> Result<()> {
    let now = client.context.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    for (directory, age) in [(&site.tmp, LEFTOVER), (&site.breaks, LEFTOVER), (&site.broken, BROKEN_KEPT)] {
        let failed = |cause| error::io(directory.path.display().to_string(), cause);
        for name in directory.names().map_err(failed)? {
            let Some(data) = directory.stat(&name).map_err(failed)? else { continue };
            let changed = Duration::from_secs(u64::try_from(data.st_ctime).unwrap_or(0));
            if now.saturating_sub(changed) > age {
                skip(directory.remove(&name)).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// `None`, and a line in the log, for what cannot be understood: one such thing must not keep the others from being
/// cleared away.
pub(crate) fn skip<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Err(error) if error::is_unreadable(&error) || error::is_symlink(&error) => {
            tracing::warn!(%error, "skipped");
            Ok(None)
        }
        answer => answer.map(Some),
    }
}

/// Content of a claim: the owner of a member id.
pub(crate) fn read_owner(directory: &Directory, name: &str) -> io::Result<Option<Owner>> {
    let content = match directory.read(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        answer => answer?,
    };
    let owner = std::str::from_utf8(&content).ok().and_then(|text| Owner::parse(text.trim()));
    owner.map(Some).ok_or_else(|| error::unreadable(&directory.path.join(name), "is no claim on a member id"))
}

/// A living session, other than `except`, that is this member's or may be: its file does not say.
pub(crate) fn namesake(site: &Site, member: &MemberId, except: SessionId) -> io::Result<Option<SessionId>> {
    living(site, |id| id != except && member_of(site, id).is_none_or(|other| other == *member))
}

/// One of the wanted sessions that lives.
pub(crate) fn living(site: &Site, wanted: impl Fn(SessionId) -> bool) -> io::Result<Option<SessionId>> {
    for id in site.sessions.names()?.iter().filter_map(|name| SessionId::parse(name)) {
        if !wanted(id) {
            continue;
        }
        let lives = match site.local(id) {
            Some(local) => !local.is_over(),
            None => match session_field(site, id, "owner").and_then(|text| Owner::parse(&text)) {
                Some(owner) => !is_dead(site, &owner),
                None => is_locked(site, id)?,
            },
        };
        if lives {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn is_locked(site: &Site, id: SessionId) -> io::Result<bool> {
    match site.sessions.open(&id.to_string()) {
        Ok(file) => Ok(site.flavor.in_the_way(&file, Hold::Alone)?.is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
