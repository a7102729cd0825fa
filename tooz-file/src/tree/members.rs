//! Members' files and the claims of sessions on member ids. All changes of either happen under the driver lock.

use std::fs::File;
use std::io;

use tooz_core::driver::support::errors::{group_not_found, member_id_taken, member_not_found};
use tooz_core::driver::{Departure, MemberRecord, SessionId};
use tooz_core::{Error, ErrorKind, GroupId, MemberId, Result};
use tooz_local::file_id::FileId;
use tooz_local::os_lock::Hold;

use crate::error::{self, existing};
use crate::keys;
use crate::tree::directory::{self, Directory};
use crate::tree::member_record::{self, Member};
use crate::tree::open_tree::Tree;
use crate::tree::owner::Owner;
use crate::tree::topics::Topic;

/// A group that a session joined: its member's file, which is locked as long as this lives.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) file: File,
    id: FileId,
    pub(crate) member: Member,
}

fn claim_failed(member: &MemberId, cause: io::Error) -> Error {
    error::io(format!("the claim of member id \"{member}\""), cause)
}

/// The owner of a member id.
fn read_claim(tree: &Tree, name: &str) -> io::Result<Option<Owner>> {
    let Some(content) = existing(tree.claims.read(name))? else { return Ok(None) };
    let owner = std::str::from_utf8(&content).ok().and_then(|text| Owner::parse(text.trim()));
    let path = || tree.claims.path.join(name);
    owner.map(Some).ok_or_else(|| error::unreadable(&path(), "is no claim on a member id"))
}

fn write_claim(tree: &Tree, name: &str, owner: &Owner) -> io::Result<()> {
    tree.claims.replace(&tree.tmp, name, owner.to_string().as_bytes())
}

/// Claims the member id for a session (S9).
pub(crate) fn claim(tree: &Tree, member: &MemberId, session: &Owner) -> Result<()> {
    let name = keys::claim(member);
    let failed = |cause| claim_failed(member, cause);
    match read_claim(tree, &name) {
        Ok(Some(owner)) if owner.session == session.session => return Ok(()),
        Ok(Some(owner)) if !tree.sessions.is_dead(&owner) => {
            return Err(member_id_taken(member));
        }
        // A live session may have written it. If there is none that could be this member's, a crash has left it.
        Err(error) if error::is_unreadable(&error) => {
            let sessions = &tree.sessions;
            let may_own = |id: SessionId| {
                id != session.session && sessions.member_of(id).is_none_or(|other| other == *member)
            };
            if let Some(id) = sessions.find_living(may_own).map_err(failed)? {
                let what = format!("the claim of member id \"{member}\", which may be session {id}'s");
                return Err(error::io(what, error));
            }
        }
        Err(error) => return Err(failed(error)),
        Ok(_) => {} // no session's, or a dead one's
    }
    write_claim(tree, &name, session).map_err(failed)
}

/// Whether the member id is this session's.
pub(crate) fn is_claimed_by(tree: &Tree, member: &MemberId, session: SessionId) -> Result<bool> {
    let owner = error::skip_unreadable(read_claim(tree, &keys::claim(member)));
    let owner = owner.map_err(|cause| claim_failed(member, cause))?.flatten();
    Ok(owner.is_some_and(|owner| owner.session == session))
}

/// Passes the member id on to another session without a gap, so that no other coordinator takes it meanwhile (S7).
pub(crate) fn pass_claim(tree: &Tree, member: &MemberId, from: SessionId, to: &Owner) -> Result<()> {
    if is_claimed_by(tree, member, from)? {
        write_claim(tree, &keys::claim(member), to).map_err(|cause| claim_failed(member, cause))?;
    }
    Ok(())
}

/// Gives the member id back, if it is this session's.
pub(crate) fn remove_claim(tree: &Tree, member: &MemberId, session: SessionId) -> Result<()> {
    if is_claimed_by(tree, member, session)? {
        tree.claims.remove(&keys::claim(member)).map_err(|cause| claim_failed(member, cause))?;
    }
    Ok(())
}

/// The directory of an existing group.
pub(crate) fn open_group(tree: &Tree, group: &GroupId) -> Result<Directory> {
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => group_not_found(group),
        _ => error::group_files(group, cause),
    };
    let directory = tree.groups.child(&keys::group(group)).map_err(failed)?;
    let metadata = directory.read(keys::METADATA).map_err(failed)?;
    let found =
        member_record::read_group(&metadata).map_err(|error| corrupt(&directory, keys::METADATA, &error))?;
    if found != *group {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("{} belongs to group \"{found}\", not to \"{group}\"", directory.path.display()),
        ));
    }
    Ok(directory)
}

/// A file in a group's directory cannot be understood.
pub(crate) fn corrupt(directory: &Directory, name: &str, error: &Error) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("{}: {}; look at it, then delete it", directory.path.join(name).display(), error.context()),
    )
}

impl Membership {
    /// Writes a member's file in place of what stands there. It is locked before it is visible.
    pub(crate) fn write(tree: &Tree, directory: &Directory, member: Member) -> io::Result<Self> {
        let name = keys::member(&member.record.member);
        let temporary = directory::unique("member");
        let file = tree.tmp.write_new(&temporary, &member.write())?;
        let placed = (|| {
            if !tree.flavor.try_lock(&file, Hold::Alone)? {
                return Err(io::Error::other("another process has locked the new file"));
            }
            // INVARIANT: under the driver lock, and what stands there may be replaced: no process changes it meanwhile.
            tree.tmp.rename(&temporary, directory, &name)
        })();
        if let Err(error) = placed {
            let _ = tree.tmp.remove(&temporary);
            return Err(error);
        }
        let id = FileId::of(&file)?;
        Ok(Self { file, id, member })
    }

    /// Whether the member's file still is the one that was written.
    pub(crate) fn is_in_place(&self, directory: &Directory) -> bool {
        directory.has(&keys::member(&self.member.record.member), self.id)
    }

    /// Removes the member's file, if it still is the one that was written. That of a member that leaves is moved to where
    /// watches look for it.
    pub(crate) fn remove(
        &self,
        tree: &Tree,
        group: &GroupId,
        directory: &Directory,
        how: Departure,
    ) -> Result<()> {
        let MemberRecord { member, incarnation, .. } = &self.member.record;
        let failed = |cause| error::group_files(group, cause);
        let name = keys::member(member);
        let remove = || {
            let left = keys::left(group, *incarnation);
            if how == Departure::Left && directory.rename(&name, &tree.tmp, &left).is_ok() {
                return Ok(true);
            }
            // Also where a full disk has no room for another name.
            directory.remove(&name)
        };
        if !self.is_in_place(directory) || !remove().map_err(failed)? {
            return Err(member_not_found(group, member));
        }
        tree.notify(&Topic::Group(keys::group(group)));
        Ok(())
    }
}

/// Removes the members and the claim of a session that is dead.
pub(crate) fn remove_dead(tree: &Tree, session: SessionId) -> Result<()> {
    let failed = |cause| error::io("the files of a dead member", cause);
    for group in tree.groups.names().map_err(failed)? {
        let Ok(directory) = tree.groups.child(&group) else { continue };
        for name in directory.names().map_err(failed)? {
            let member = directory.read(&name).ok().filter(|_| keys::is_member(&name));
            let owner =
                member.and_then(|content| Member::read(&content).ok()).and_then(|member| member.owner);
            if owner.is_some_and(|owner| owner.session == session) {
                error::skip_unreadable(directory.remove(&name)).map_err(failed)?;
                tree.notify(&Topic::Group(group.clone()));
            }
        }
    }
    for name in tree.claims.names().map_err(failed)? {
        let owner = error::skip_unreadable(read_claim(tree, &name)).map_err(failed)?.flatten();
        if owner.is_some_and(|owner| owner.session == session) {
            tree.claims.remove(&name).map_err(failed)?;
        }
    }
    Ok(())
}
