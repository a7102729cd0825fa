//! Groups and their members, where Python keeps them and in its format.
//!
//! Everything that changes a group happens under Python's `.driver_lock`, and reading holds it together with other
//! readers, so a view is never half of two. A session's member holds the lock of its own file.

use std::io;
use std::time::SystemTime;

use async_trait::async_trait;
use tooz_core::driver::support::errors::{
    group_exists, group_not_empty, joined_before, member_id_taken, member_not_found,
};
use tooz_core::driver::support::msgpack;
use tooz_core::driver::{ChangeStream, Departure, Groups, Join, MemberRecord, SessionGroups};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};
use tooz_local::os_lock::Hold;

use crate::client::{Client, FileDriver};
use crate::error;
use crate::keys;
use crate::session_state::SessionState;
use crate::tree::{Directory, Member, Membership, Topic, Tree, member_record, members};
use crate::view::{is_alive, may_live, read_group};
use crate::watch;

fn create(tree: &Tree, group: &GroupId) -> Result<Directory> {
    let failed = |cause| error::group_files(group, cause);
    let name = keys::group(group);
    let directory = tree.groups.make(&name).map_err(failed)?;
    let content = member_record::write_group(group);
    // Groups outlive a power cut; members do not have to.
    if !directory.write_first(&tree.tmp, keys::METADATA, &content).map_err(failed)? {
        return Err(group_exists(group));
    }
    directory.sync().and_then(|()| tree.groups.sync()).map_err(failed)?;
    tree.notify(&Topic::Group(name));
    Ok(directory)
}

impl SessionState {
    async fn enter(&self, request: &Join) -> Result<()> {
        self.client.check()?;
        let (tree, group) = (&self.tree, &request.group);
        check_readable(tree, &request.capabilities)?;
        let _lock = self.client.driver_lock(tree, Hold::Alone).await?;
        self.check()?;
        let failed = |cause| error::group_files(group, cause);
        let directory = match members::open_group(tree, group) {
            Err(error) if error.kind() == ErrorKind::GroupNotFound && request.create => None,
            answer => Some(answer?),
        };
        let name = keys::member(self.member());
        if let Some(directory) = &directory
            && let Some(data) = directory.stat(&name).map_err(failed)?
        {
            match Member::read(&directory.read(&name).map_err(failed)?) {
                Ok(known) if is_alive(&self.client, tree, &data, &known) => {
                    let ours = known.owner.is_some_and(|owner| owner.session == self.id());
                    let error = if ours {
                        joined_before(group, self.member())
                    } else {
                        member_id_taken(self.member())
                    };
                    return Err(error);
                }
                Ok(_) => {}
                Err(error) if may_live(&self.client, tree, directory, &name).map_err(failed)? => {
                    return Err(members::corrupt(directory, &name, &error));
                }
                // What a power cut left of a record, perhaps.
                Err(error) => {
                    tracing::warn!(path = %directory.path.join(&name).display(), %error, "replaced");
                }
            }
        }
        members::claim(tree, self.member(), &self.owner)?;
        let directory = match directory {
            Some(directory) => directory,
            None => create(tree, group)?,
        };
        let now = Some(self.client.context.clock.wall());
        let incarnation = self.client.context.entropy.id();
        let record =
            MemberRecord::new(self.member().clone(), request.capabilities.clone(), incarnation).at(now, now);
        let member = Member { record, owner: Some(self.owner.clone()) };
        let membership = Membership::write(tree, &directory, member).map_err(failed)?;
        let mut state = self.state();
        if let Err(error) = self.check() {
            drop(state);
            directory.remove(&name).map_err(failed)?;
            return Err(error);
        }
        state.members.insert(group.clone(), membership);
        drop(state);
        tree.notify(&Topic::Group(keys::group(group)));
        Ok(())
    }

    async fn exit(&self, group: &GroupId) -> Result<()> {
        self.client.check()?;
        let tree = &self.tree;
        let _lock = self.client.driver_lock(tree, Hold::Alone).await?;
        self.check()?;
        let directory = members::open_group(tree, group);
        let membership = self.state().members.remove(group);
        let directory = directory?;
        let Some(membership) = membership else { return Err(member_not_found(group, self.member())) };
        membership.remove(tree, group, &directory, Departure::Left)
    }

    async fn publish(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        self.client.check()?;
        let tree = &self.tree;
        check_readable(tree, capabilities)?;
        let _lock = self.client.driver_lock(tree, Hold::Alone).await?;
        self.check()?;
        let directory = members::open_group(tree, group)?;
        let member = {
            let state = self.state();
            let known = state.members.get(group).filter(|known| known.is_in_place(&directory));
            known.ok_or_else(|| member_not_found(group, self.member()))?.member.clone()
        };
        let MemberRecord { member: id, incarnation, joined_at, .. } = member.record;
        let record = MemberRecord::new(id, capabilities.clone(), incarnation)
            .at(joined_at, Some(self.client.context.clock.wall()));
        let member = Member { record, owner: member.owner };
        let membership =
            Membership::write(tree, &directory, member).map_err(|cause| error::group_files(group, cause))?;
        // The old file is closed after the new one is in place, so that its closing is not taken for a death.
        let old = self.state().members.insert(group.clone(), membership);
        drop(old);
        tree.notify(&Topic::Group(keys::group(group)));
        Ok(())
    }

    /// Leaves these groups of a session that ends, and gives its member id back.
    pub(crate) async fn leave_all(&self, groups: Vec<GroupId>, how: Departure) -> Result<()> {
        let (tree, member) = (&self.tree, self.member());
        if groups.is_empty() && !members::is_claimed_by(tree, member, self.id())? {
            return Ok(()); // the usual end of a session that only locked
        }
        let _lock = self.client.driver_lock(tree, Hold::Alone).await?;
        for group in groups {
            let Some(membership) = self.state().members.remove(&group) else { continue };
            match members::open_group(tree, &group)
                .and_then(|directory| membership.remove(tree, &group, &directory, how))
            {
                Err(error)
                    if !matches!(error.kind(), ErrorKind::GroupNotFound | ErrorKind::MemberNotFound) =>
                {
                    return Err(error);
                }
                _ => {}
            }
        }
        members::remove_claim(tree, member, self.id())
    }

    /// The groups in which the session's file is missing or another one. The session forgets them.
    pub(crate) async fn forget_missing(&self) -> Result<Vec<GroupId>> {
        let tree = &self.tree;
        let find = || -> Vec<GroupId> {
            let state = self.state();
            let gone = state.members.iter().filter(|(group, membership)| {
                let directory = tree.groups.child(&keys::group(group));
                !directory.is_ok_and(|directory| membership.is_in_place(&directory))
            });
            gone.map(|(group, _)| group.clone()).collect()
        };
        if find().is_empty() {
            return Ok(Vec::new());
        }
        // An update of this session may be under way: what is missing under the lock is missing.
        let _lock = self.client.driver_lock(tree, Hold::Together).await?;
        let gone = find();
        let mut state = self.state();
        for group in &gone {
            state.members.remove(group);
        }
        Ok(gone)
    }

    /// Shows Python that the session's members live.
    pub(crate) fn touch_members(&self, wall: SystemTime) {
        for (group, membership) in &self.state().members {
            if let Err(error) = membership.file.set_modified(wall) {
                tracing::warn!(%group, %error, "a member's file cannot be touched; Python may take it for dead");
            }
        }
    }
}

/// One unreadable member makes every Python process of the group fail.
fn check_readable(tree: &Tree, capabilities: &Capabilities) -> Result<()> {
    if tree.is_default && !msgpack::python_can_read(capabilities.as_msgpack()) {
        return Err(Error::new(
            ErrorKind::Invalid,
            "the capabilities hold a map whose keys are not text, which Python members of the group cannot \
             read; use text keys, or another namespace",
        ));
    }
    Ok(())
}

fn delete(client: &Client, tree: &Tree, group: &GroupId) -> Result<()> {
    let failed = |cause| error::group_files(group, cause);
    let directory = members::open_group(tree, group)?;
    let mut names = directory.names().map_err(failed)?;
    names.retain(|name| name != keys::METADATA);
    let mut living = 0;
    for name in &names {
        if !keys::is_member(name) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} is not the file of a member; look at it, then delete it",
                    directory.path.join(name).display()
                ),
            ));
        }
        let Some(data) = directory.stat(name).map_err(failed)? else { continue };
        let member = Member::read(&directory.read(name).map_err(failed)?);
        living += u64::from(match member {
            Ok(member) => is_alive(client, tree, &data, &member),
            // Half written by a process that died, perhaps.
            Err(_) => may_live(client, tree, &directory, name).map_err(failed)?,
        });
    }
    if living > 0 {
        return Err(group_not_empty(group, living));
    }
    for name in names {
        directory.remove(&name).map_err(failed)?;
    }
    directory.remove(keys::METADATA).map_err(failed)?;
    let name = keys::group(group);
    tree.groups.remove_directory(&name).map_err(failed)?;
    tree.notify(&Topic::Group(name));
    remove_left(tree, group).unwrap_or_else(|error| tracing::debug!(%error, "left to the next who tidies"));
    Ok(())
}

/// Removes the files of members that left.
fn remove_left(tree: &Tree, group: &GroupId) -> io::Result<()> {
    let all = keys::all_left(group);
    let names = tree.tmp.names()?;
    names.iter().filter(|name| name.starts_with(&all)).try_for_each(|name| tree.tmp.remove(name).map(drop))
}

#[async_trait]
impl SessionGroups for SessionState {
    async fn join(&self, request: &Join) -> Result<()> {
        self.enter(request).await.map_err(|error| error.during("join"))
    }

    async fn leave(&self, group: &GroupId) -> Result<()> {
        self.exit(group).await.map_err(|error| error.during("leave"))
    }

    async fn update(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        self.publish(group, capabilities).await.map_err(|error| error.during("update"))
    }
}

impl FileDriver {
    async fn locked<T>(
        &self,
        name: &'static str,
        hold: Hold,
        work: impl FnOnce(&Client, &Tree) -> Result<T>,
    ) -> Result<T> {
        let done = async {
            let tree = self.0.enter()?;
            let _lock = self.0.driver_lock(&tree, hold).await?;
            work(&self.0, &tree)
        };
        done.await.map_err(|error: Error| error.during(name))
    }
}

#[async_trait]
impl Groups for FileDriver {
    async fn create(&self, group: &GroupId) -> Result<()> {
        self.locked("create", Hold::Alone, |_, tree| create(tree, group).map(drop)).await
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        self.locked("delete", Hold::Alone, |client, tree| delete(client, tree, group)).await
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        let list = |_: &Client, tree: &Tree| {
            let failed = |cause| error::io("the groups", cause);
            let mut groups = Vec::new();
            for name in tree.groups.names().map_err(failed)? {
                let Ok(content) = tree.groups.child(&name).and_then(|group| group.read(keys::METADATA))
                else {
                    continue; // half made, or no group
                };
                match member_record::read_group(&content) {
                    Ok(group) if keys::group(&group) == name => groups.push(group),
                    _ => tracing::warn!(name, "skipped a group whose metadata cannot be read"),
                }
            }
            groups.sort_unstable();
            Ok(groups)
        };
        match self.locked("list", Hold::Together, list).await {
            Err(error) if error::is_nothing_here(&error) => Ok(Vec::new()),
            listed => listed,
        }
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        let members = |client: &Client, tree: &Tree| {
            let directory = members::open_group(tree, group)?;
            Ok(read_group(client, tree, group, &directory)?.members.into_values().collect())
        };
        self.locked("members", Hold::Together, members).await
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        let found = |client: &Client, tree: &Tree| {
            let directory = members::open_group(tree, group)?;
            let name = keys::member(member);
            let failed = |cause| error::group_files(group, cause);
            let Some(data) = directory.stat(&name).map_err(failed)? else {
                return Err(member_not_found(group, member));
            };
            let known = Member::read(&directory.read(&name).map_err(failed)?)
                .map_err(|error| members::corrupt(&directory, &name, &error))?;
            if known.record.member == *member && is_alive(client, tree, &data, &known) {
                Ok(known.record)
            } else {
                Err(member_not_found(group, member))
            }
        };
        self.locked("member", Hold::Together, found).await
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        watch::group(&self.0, group).await.map_err(|error| error.during("watch"))
    }
}
