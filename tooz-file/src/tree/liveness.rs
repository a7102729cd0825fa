//! The files of sessions, and whether a session lives, by the rule of [`tooz_local::liveness`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tooz_core::driver::SessionId;
use tooz_core::{LossReason, MemberId};
use tooz_local::file_id::FileId;
use tooz_local::liveness;
use tooz_local::os_lock::{Flavor, Hold};
use tooz_local::process::Process;

use crate::error::existing;
use crate::keys;
use crate::tree::directory::Directory;
use crate::tree::owner::Owner;

/// All sessions of a tree. Those of this process are asked directly, others by the locks of their files.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) directory: Directory,
    pub(crate) process: Process,
    pub(crate) boot: u32,
    flavor: Flavor,
    local: Mutex<BTreeMap<SessionId, Weak<LocalSession>>>,
}

/// A session of this process, as far as its life goes.
#[derive(Debug)]
pub(crate) struct LocalSession {
    pub(crate) member: MemberId,
    /// Why it ended, once it did.
    pub(crate) ended: OnceLock<LossReason>,
}

impl Sessions {
    pub(crate) fn new(directory: Directory, flavor: Flavor, boot: u32) -> Self {
        Self { directory, process: Process::this(), boot, flavor, local: Mutex::default() }
    }

    pub(crate) fn locals(&self) -> MutexGuard<'_, BTreeMap<SessionId, Weak<LocalSession>>> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn local(&self, id: SessionId) -> Option<Arc<LocalSession>> {
        self.locals().get(&id).and_then(Weak::upgrade)
    }

    /// Whether it is a session of this process.
    pub(crate) fn is_local(&self, id: SessionId) -> bool {
        self.local(id).is_some()
    }

    pub(crate) fn is_dead(&self, owner: &Owner) -> bool {
        if let Some(local) = self.local(owner.session) {
            return local.ended.get().is_some();
        }
        if owner.boot != self.boot {
            return true;
        }
        let name = owner.session.to_string();
        let look = liveness::look(self.directory.open(&name), owner.inode, self.flavor);
        liveness::is_dead(look, owner.session, || owner.process.is_gone(&self.process))
    }

    /// In which layout a session works; in layout 1 a session need not say so.
    pub(crate) fn layout_of(&self, id: SessionId) -> u32 {
        self.field(id, "layout").and_then(|number| number.parse().ok()).unwrap_or(1)
    }

    /// Whose session it is, if its file says so.
    pub(crate) fn member_of(&self, id: SessionId) -> Option<MemberId> {
        if let Some(local) = self.local(id) {
            return Some(local.member.clone());
        }
        MemberId::new(keys::unhex(&self.field(id, "member")?)?).ok()
    }

    /// The session, its file and its process, if the file says so.
    pub(crate) fn owner_of(&self, id: SessionId) -> Option<Owner> {
        self.field(id, "owner").and_then(|text| Owner::parse(&text))
    }

    fn field(&self, id: SessionId, field: &str) -> Option<String> {
        read_field(&self.directory.read(&id.to_string()).ok()?, field)
    }

    /// The ids of all sessions that have a file.
    pub(crate) fn ids(&self) -> io::Result<Vec<SessionId>> {
        Ok(self.directory.names()?.iter().filter_map(|name| SessionId::parse(name)).collect())
    }

    /// One of the wanted sessions that lives.
    pub(crate) fn find_living(&self, wanted: impl Fn(SessionId) -> bool) -> io::Result<Option<SessionId>> {
        for id in self.ids()? {
            if !wanted(id) {
                continue;
            }
            let lives = match self.owner_of(id).filter(|owner| owner.session == id) {
                Some(owner) => !self.is_dead(&owner),
                // The file does not name its owner, but its lock says whether it lives.
                None => match existing(self.directory.open(&id.to_string()))? {
                    Some(file) => self.flavor.is_locked(&file)?,
                    None => false,
                },
            };
            if lives {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Locks a dead session's file, so that only one process clears the session away. `None` if another process does,
    /// or if the session lives after all. A child of the dead owner may have inherited the lock, and then the file
    /// cannot be locked: what two processes then remove twice is named by ids that are never used again.
    pub(crate) fn lock_dead(&self, id: SessionId) -> io::Result<Option<(File, FileId)>> {
        let name = id.to_string();
        let file = match self.directory.open_write(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A user who may not clear the session away still removes each record of it that is in the way.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            answer => answer?,
        };
        let file_id = FileId::of(&file)?;
        let locked = self.flavor.try_lock(&file, Hold::Alone)?;
        let gone = self
            .owner_of(id)
            .is_some_and(|owner| owner.boot != self.boot || owner.process.is_gone(&self.process));
        Ok(((locked || gone) && self.directory.has(&name, file_id)).then_some((file, file_id)))
    }
}

/// What stands in a session's file.
pub(crate) fn write_session(member: &MemberId, owner: &Owner, layout: u32) -> Vec<u8> {
    let member = keys::hex(member.as_bytes());
    format!("owner {owner}\nmember {member}\nlayout {layout}\n").into_bytes()
}

/// One field of what stands in a session's file.
pub(crate) fn read_field(content: &[u8], field: &str) -> Option<String> {
    let content = std::str::from_utf8(content).ok()?;
    content.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(' ')?.to_owned()))
}

/// Judges the owners of records, each session once.
#[derive(Debug)]
pub(crate) struct LivenessMemo<'a> {
    sessions: &'a Sessions,
    known: BTreeMap<SessionId, bool>,
}

impl<'a> LivenessMemo<'a> {
    pub(crate) fn new(sessions: &'a Sessions) -> Self {
        Self { sessions, known: BTreeMap::new() }
    }

    pub(crate) fn is_dead(&mut self, owner: &Owner) -> bool {
        *self.known.entry(owner.session).or_insert_with(|| self.sessions.is_dead(owner))
    }
}
