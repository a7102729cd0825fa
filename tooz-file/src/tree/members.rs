//! What a session has in groups: its claim on the member id and its files, from being written to being removed.

use std::io;
use std::time::SystemTime;

use tooz_core::driver::SessionId;
use tooz_core::{Error, ErrorKind, GroupId, MemberId, Result};

use crate::client::Client;
use crate::error;
use crate::groups::{failed, no_member, open};
use crate::host::os_lock::{FileId, Hold};
use crate::keys;
use crate::reaper;
use crate::session_state::{Local, Membership};
use crate::tree::directory::{self, Directory};
use crate::tree::member_record::Member;
use crate::tree::open_tree::Site;
use crate::tree::owner::Owner;
use crate::tree::topics::Topic;

/// Claims the member id for this session; under the driver lock (S9).
pub(crate) fn claim(site: &Site, local: &Local) -> Result<()> {
    let name = keys::claim(&local.member);
    let failed = |cause| error::io(format!("the claim of member id \"{}\"", local.member), cause);
    match reaper::read_owner(&site.claims, &name) {
        Ok(Some(owner)) if owner.session == local.session() => return Ok(()),
        Ok(Some(owner)) if !reaper::is_dead(site, &owner) => {
            return Err(Error::new(
                ErrorKind::MemberExists,
                format!("member id \"{}\" belongs to another live coordinator; use another id", local.member),
            ));
        }
        // Whoever it belonged to may live. If nobody does who could be that, it is what a crash has left.
        Err(error) if error::is_unreadable(&error) => {
            if let Some(session) = reaper::namesake(site, &local.member, local.session()).map_err(failed)? {
                let what =
                    format!("the claim of member id \"{}\", which may be session {session}'s", local.member);
                return Err(error::io(what, error));
            }
        }
        Err(error) => return Err(failed(error)),
        Ok(_) => {} // nobody's, or a dead session's
    }
    write_claim(site, &name, &local.owner).map_err(failed)
}

fn write_claim(site: &Site, name: &str, owner: &Owner) -> io::Result<()> {
    let temporary = directory::unique("claim");
    site.tmp.write_new(&temporary, owner.to_string().as_bytes(), site.mode)?;
    site.tmp.rename(&temporary, &site.claims, name)
}

/// The id passes on to a coordinator's next session without a gap, so that nobody takes it meanwhile (S7).
pub(crate) async fn pass_claim(client: &Client, site: &Site, from: &Local, to: &Local) -> Result<()> {
    let _lock = client.driver_lock(site, Hold::Alone, client.deadline()).await?;
    let name = keys::claim(&from.member);
    let failed = |cause| error::io(format!("the claim of member id \"{}\"", from.member), cause);
    let owner = reaper::skip(reaper::read_owner(&site.claims, &name)).map_err(failed)?.flatten();
    if owner.is_some_and(|owner| owner.session == from.session()) {
        write_claim(site, &name, &to.owner).map_err(failed)?;
    }
    Ok(())
}

/// Writes a member's file, locked before it is seen, in place of whatever stands there.
pub(crate) fn place(site: &Site, directory: &Directory, member: Member) -> io::Result<Membership> {
    let name = keys::member(&member.record.member);
    let temporary = directory::unique("member");
    let file = site.tmp.write_new(&temporary, &member.write(), site.mode)?;
    let placed = (|| {
        if !site.flavor.try_lock(&file, Hold::Alone)? {
            return Err(io::Error::other("a new file is locked by somebody else"));
        }
        // INVARIANT: under the driver lock, and what stands there may be replaced: nobody comes between.
        site.tmp.rename(&temporary, directory, &name)
    })();
    if let Err(error) = placed {
        let _ = site.tmp.remove(&temporary);
        return Err(error);
    }
    let id = FileId::of(&file)?;
    Ok(Membership { file, id, member })
}

/// Removes a member's file if it is still the one that we wrote.
pub(crate) fn remove(
    site: &Site,
    group: &GroupId,
    directory: &Directory,
    member: &MemberId,
    membership: &Membership,
) -> Result<()> {
    let name = keys::member(member);
    let ours = directory.has(&name, membership.id);
    if !ours || !directory.remove(&name).map_err(|cause| failed(group, cause))? {
        return Err(no_member(group, member));
    }
    site.say(&Topic::Group(keys::group(group)));
    Ok(())
}

/// Leaves these groups and gives the member id back.
pub(crate) async fn leave_all(client: &Client, local: &Local, groups: Vec<GroupId>) -> Result<()> {
    let site = &local.site;
    let name = keys::claim(&local.member);
    let failed = |cause| error::io(format!("the claim of member id \"{}\"", local.member), cause);
    let ours = |site: &Site| -> Result<bool> {
        let owner = reaper::skip(reaper::read_owner(&site.claims, &name)).map_err(failed)?.flatten();
        Ok(owner.is_some_and(|owner| owner.session == local.session()))
    };
    if groups.is_empty() && !ours(site)? {
        return Ok(()); // the usual end of a session that only locked
    }
    let _lock = client.driver_lock(site, Hold::Alone, client.deadline()).await?;
    for group in groups {
        let Some(membership) = local.state().members.remove(&group) else { continue };
        match open(site, &group)
            .and_then(|directory| remove(site, &group, &directory, &local.member, &membership))
        {
            Err(error) if !matches!(error.kind(), ErrorKind::GroupNotFound | ErrorKind::MemberNotFound) => {
                return Err(error);
            }
            _ => {}
        }
    }
    if ours(site)? {
        site.claims.remove(&name).map_err(failed)?;
    }
    Ok(())
}

/// Groups in which our file is missing or another one; they are forgotten.
pub(crate) async fn missing(client: &Client, local: &Local) -> Result<Vec<GroupId>> {
    let site = &local.site;
    let name = keys::member(&local.member);
    let find = || -> Vec<GroupId> {
        let state = local.state();
        let gone = state.members.iter().filter(|(group, membership)| {
            let directory = site.groups.child(&keys::group(group));
            !directory.is_ok_and(|directory| directory.has(&name, membership.id))
        });
        gone.map(|(group, _)| group.clone()).collect()
    };
    if find().is_empty() {
        return Ok(Vec::new());
    }
    // An update of our own may be under way: what is missing under the lock is missing.
    let _lock = client.driver_lock(site, Hold::Together, client.deadline()).await?;
    let gone = find();
    let mut state = local.state();
    for group in &gone {
        state.members.remove(group);
    }
    Ok(gone)
}

/// Shows Python that our members live.
pub(crate) fn touch(local: &Local, wall: SystemTime) {
    for (group, membership) in &local.state().members {
        if let Err(error) = membership.file.set_modified(wall) {
            tracing::warn!(%group, %error, "a member's file cannot be touched; Python may take it for dead");
        }
    }
}

/// Removes the members and the claim of a session that is dead.
pub(crate) async fn remove_members(client: &Client, site: &Site, session: SessionId) -> Result<()> {
    let _lock = client.driver_lock(site, Hold::Alone, client.deadline()).await?;
    let failed = |cause| error::io("the files of a dead member", cause);
    for group in site.groups.names().map_err(failed)? {
        let Ok(directory) = site.groups.child(&group) else { continue };
        for name in directory.names().map_err(failed)? {
            let member = directory.read(&name).ok().filter(|_| keys::is_member(&name));
            let owner =
                member.and_then(|content| Member::read(&content).ok()).and_then(|member| member.owner);
            if owner.is_some_and(|owner| owner.session == session) {
                reaper::skip(directory.remove(&name)).map_err(failed)?;
                site.say(&Topic::Group(group.clone()));
            }
        }
    }
    for name in site.claims.names().map_err(failed)? {
        let owner = reaper::skip(reaper::read_owner(&site.claims, &name)).map_err(failed)?.flatten();
        if owner.is_some_and(|owner| owner.session == session) {
            site.claims.remove(&name).map_err(failed)?;
        }
    }
    Ok(())
}
