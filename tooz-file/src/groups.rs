//! Groups and their members, where Python keeps them and in its format.
//!
//! Everything that changes a group happens under Python's `.driver_lock`, and reading holds it together with other
//! readers, so a view is never half of two. A member of ours holds the lock of its own file; a file whose owner is
//! dead is no member, whether it was cleared away yet or not. Python's members live by the time of their file.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use nix::sys::stat::FileStat;
use tooz_core::driver::{ChangeStream, Groups, Join, MemberRecord, SessionGroups};
use tooz_core::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};

use crate::client::{Client, FileDriver};
use crate::error;
use crate::host::os_lock::Hold;
use crate::keys;
use crate::reaper::{self, Doctor};
use crate::session_state::Local;
use crate::tree::directory::{self, Directory};
use crate::tree::member_record::{self, Member};
use crate::tree::members::{claim, place, remove};
use crate::tree::msgpack;
use crate::tree::open_tree::Site;
use crate::tree::topics::Topic;
use crate::watch;

#[derive(Debug)]
pub(crate) struct FileSessionGroups {
    pub(crate) client: Arc<Client>,
    pub(crate) local: Arc<Local>,
}

pub(crate) fn no_group(group: &GroupId) -> Error {
    Error::new(ErrorKind::GroupNotFound, format!("group \"{group}\"; create it first"))
}

pub(crate) fn no_member(group: &GroupId, member: &MemberId) -> Error {
    Error::new(ErrorKind::MemberNotFound, format!("member \"{member}\" in group \"{group}\""))
}

pub(crate) fn failed(group: &GroupId, cause: io::Error) -> Error {
    error::io(format!("the files of group \"{group}\""), cause)
}

/// The directory of an existing group.
pub(crate) fn open(site: &Site, group: &GroupId) -> Result<Directory> {
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let directory = match site.groups.child(&keys::group(group)) {
        Err(error) if missing(&error) => return Err(no_group(group)),
        answer => answer.map_err(|cause| failed(group, cause))?,
    };
    let metadata = match directory.read(keys::METADATA) {
        Err(error) if missing(&error) => return Err(no_group(group)),
        answer => answer.map_err(|cause| failed(group, cause))?,
    };
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

fn corrupt(directory: &Directory, name: &str, error: &Error) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("{}: {}; look at it, then delete it", directory.path.join(name).display(), error.context()),
    )
}

fn create(site: &Site, group: &GroupId) -> Result<Directory> {
    let failed = |cause| failed(group, cause);
    let name = keys::group(group);
    let directory = site.groups.make(&name, site.directory_mode).map_err(failed)?;
    let temporary = directory::unique("group");
    let content = member_record::write_group(group);
    // Groups outlive a power cut; members do not have to.
    let written = site.tmp.write_new(&temporary, &content, site.mode).and_then(|file| file.sync_all());
    let placed = written.and_then(|()| site.tmp.publish(&temporary, &directory, keys::METADATA));
    match placed.and_then(|()| directory.sync()).and_then(|()| site.groups.sync()) {
        Ok(()) => {
            site.say(&Topic::Group(name));
            Ok(directory)
        }
        Err(error) => {
            let _ = site.tmp.remove(&temporary);
            if error.kind() == io::ErrorKind::AlreadyExists {
                return Err(Error::new(ErrorKind::GroupExists, format!("group \"{group}\"")));
            }
            Err(failed(error))
        }
    }
}

fn since_epoch(seconds: i64, nanos: i64) -> Duration {
    Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0))
}

/// How long Python's member still lives by the time of its file; `None`: it is dead. A time in the future is dead, as
/// for Python itself.
fn python_life(data: &FileStat, wall: SystemTime, timeout: Duration) -> Option<Duration> {
    let now = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = now.checked_sub(since_epoch(data.st_mtime, data.st_mtime_nsec))?;
    timeout.checked_sub(age)
}

/// A group as it stands.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// By member id, sorted by bytes.
    pub(crate) members: BTreeMap<MemberId, MemberRecord>,
    /// When the first of Python's members dies unless it is heard of.
    pub(crate) expires: Option<Duration>,
}

/// The living members; under the driver lock. What cannot be read is skipped and logged.
pub(crate) fn view(client: &Client, site: &Site, group: &GroupId, directory: &Directory) -> Result<View> {
    let failed = |cause| failed(group, cause);
    let mut doctor = Doctor::new(site);
    let mut view = View::default();
    let wall = client.context.clock.wall();
    for name in directory.names().map_err(failed)? {
        if !keys::is_member(&name) {
            continue;
        }
        let Some(data) = directory.stat(&name).map_err(failed)? else { continue }; // removed by hand just now
        let content = match directory.read(&name) {
            Err(error) => {
                tracing::warn!(path = %directory.path.join(&name).display(), %error, "skipped a member's file");
                continue;
            }
            Ok(content) => content,
        };
        let member = match Member::read(&content) {
            Ok(member) if keys::member(&member.record.member) == name => member,
            Ok(_) => {
                tracing::warn!(path = %directory.path.join(&name).display(), "a member's file has another's name");
                continue;
            }
            Err(error) => {
                tracing::warn!(path = %directory.path.join(&name).display(), %error, "skipped a member's file");
                continue;
            }
        };
        match &member.owner {
            Some(owner) if doctor.is_dead(owner) => continue,
            Some(_) => {}
            None => match python_life(&data, wall, client.config.python_timeout) {
                None => continue,
                Some(left) => view.expires = Some(view.expires.map_or(left, |first| first.min(left))),
            },
        }
        view.members.insert(member.record.member.clone(), member.record);
    }
    Ok(view)
}

/// Whether the file is that of a member that lives.
fn is_alive(client: &Client, site: &Site, data: &FileStat, member: &Member) -> bool {
    match &member.owner {
        Some(owner) => !reaper::is_dead(site, owner),
        None => python_life(data, client.context.clock.wall(), client.config.python_timeout).is_some(),
    }
}

/// Whether a file that cannot be read may be that of a member that lives: our own hold its lock, Python's touch it.
fn may_live(client: &Client, site: &Site, directory: &Directory, name: &str) -> io::Result<bool> {
    let Some(data) = directory.stat(name)? else { return Ok(false) };
    let locked = site.flavor.in_the_way(&directory.open(name)?, Hold::Alone)?.is_some();
    Ok(locked || python_life(&data, client.context.clock.wall(), client.config.python_timeout).is_some())
}

impl FileSessionGroups {
    async fn enter(&self, request: &Join) -> Result<()> {
        self.client.check()?;
        let (site, local, group) = (&self.local.site, &self.local, &request.group);
        readable(site, &request.capabilities)?;
        let _lock = self.client.driver_lock(site, Hold::Alone, self.client.deadline()).await?;
        local.check()?;
        let failed = |cause| failed(group, cause);
        let directory = match open(site, group) {
            Err(error) if error.kind() == ErrorKind::GroupNotFound && request.create => None,
            answer => Some(answer?),
        };
        let name = keys::member(&local.member);
        if let Some(directory) = &directory
            && let Some(data) = directory.stat(&name).map_err(failed)?
        {
            match Member::read(&directory.read(&name).map_err(failed)?) {
                Ok(known) if is_alive(&self.client, site, &data, &known) => {
                    let ours = known.owner.is_some_and(|owner| owner.session == local.session());
                    let who = if ours { "joined before" } else { "belongs to another live process" };
                    return Err(Error::new(
                        ErrorKind::MemberExists,
                        format!("member \"{}\" {who} in group \"{group}\"", local.member),
                    ));
                }
                Ok(_) => {}
                Err(error) if may_live(&self.client, site, directory, &name).map_err(failed)? => {
                    return Err(corrupt(directory, &name, &error));
                }
                // What a power cut left of a record, perhaps.
                Err(error) => {
                    tracing::warn!(path = %directory.path.join(&name).display(), %error, "replaced");
                }
            }
        }
        claim(site, local)?;
        let directory = match directory {
            Some(directory) => directory,
            None => create(site, group)?,
        };
        let now = Some(self.client.context.clock.wall());
        let incarnation = self.client.context.entropy.id();
        let record =
            MemberRecord::new(local.member.clone(), request.capabilities.clone(), incarnation).at(now, now);
        let member = Member { record, owner: Some(local.owner.clone()) };
        let membership = place(site, &directory, member).map_err(failed)?;
        let mut state = local.state();
        if let Err(error) = state.check() {
            drop(state);
            directory.remove(&name).map_err(failed)?;
            return Err(error);
        }
        state.members.insert(group.clone(), membership);
        drop(state);
        site.say(&Topic::Group(keys::group(group)));
        Ok(())
    }

    async fn exit(&self, group: &GroupId) -> Result<()> {
        self.client.check()?;
        let (site, local) = (&self.local.site, &self.local);
        let _lock = self.client.driver_lock(site, Hold::Alone, self.client.deadline()).await?;
        local.check()?;
        let directory = open(site, group);
        let membership = local.state().members.remove(group);
        let directory = directory?;
        let Some(membership) = membership else { return Err(no_member(group, &local.member)) };
        remove(site, group, &directory, &local.member, &membership)
    }

    async fn publish(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        self.client.check()?;
        let (site, local) = (&self.local.site, &self.local);
        readable(site, capabilities)?;
        let _lock = self.client.driver_lock(site, Hold::Alone, self.client.deadline()).await?;
        local.check()?;
        let directory = open(site, group)?;
        let name = keys::member(&local.member);
        let member = {
            let state = local.state();
            let known = state.members.get(group).filter(|known| directory.has(&name, known.id));
            known.ok_or_else(|| no_member(group, &local.member))?.member.clone()
        };
        let MemberRecord { member: id, incarnation, joined_at, .. } = member.record;
        let record = MemberRecord::new(id, capabilities.clone(), incarnation)
            .at(joined_at, Some(self.client.context.clock.wall()));
        let member = Member { record, owner: member.owner };
        let membership = place(site, &directory, member).map_err(|cause| failed(group, cause))?;
        // The old file is closed after the new one is in place: its closing is no death.
        let old = local.state().members.insert(group.clone(), membership);
        drop(old);
        site.say(&Topic::Group(keys::group(group)));
        Ok(())
    }
}

/// One unreadable member makes every Python process of the group fail.
fn readable(site: &Site, capabilities: &Capabilities) -> Result<()> {
    if site.is_default && !msgpack::python_can_read(capabilities.as_msgpack()) {
        return Err(Error::new(
            ErrorKind::Invalid,
            "the capabilities hold a map with keys that are not text, which no Python member of the group could read; \
             use text, or another namespace",
        ));
    }
    Ok(())
}

fn delete(client: &Client, site: &Site, group: &GroupId) -> Result<()> {
    let failed = |cause| failed(group, cause);
    let directory = open(site, group)?;
    let mut names = directory.names().map_err(failed)?;
    names.retain(|name| name != keys::METADATA);
    let mut living = 0;
    for name in &names {
        if !keys::is_member(name) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} is no member's file; look at it, then delete it",
                    directory.path.join(name).display()
                ),
            ));
        }
        let Some(data) = directory.stat(name).map_err(failed)? else { continue };
        let member = Member::read(&directory.read(name).map_err(failed)?);
        living += u32::from(match member {
            Ok(member) => is_alive(client, site, &data, &member),
            // Half written by a process that died, perhaps.
            Err(_) => may_live(client, site, &directory, name).map_err(failed)?,
        });
    }
    if living > 0 {
        return Err(Error::new(
            ErrorKind::GroupNotEmpty,
            format!("group \"{group}\" has {living} members; let them leave first"),
        ));
    }
    for name in names {
        directory.remove(&name).map_err(failed)?;
    }
    directory.remove(keys::METADATA).map_err(failed)?;
    let name = keys::group(group);
    site.groups.remove_directory(&name).map_err(failed)?;
    site.say(&Topic::Group(name));
    Ok(())
}

#[async_trait]
impl SessionGroups for FileSessionGroups {
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
        work: impl FnOnce(&Client, &Site) -> Result<T>,
    ) -> Result<T> {
        let done = async {
            let site = self.0.enter()?;
            let _lock = self.0.driver_lock(&site, hold, self.0.deadline()).await?;
            work(&self.0, &site)
        };
        done.await.map_err(|error: Error| error.during(name))
    }
}

#[async_trait]
impl Groups for FileDriver {
    async fn create(&self, group: &GroupId) -> Result<()> {
        self.locked("create", Hold::Alone, |_, site| create(site, group).map(drop)).await
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        self.locked("delete", Hold::Alone, |client, site| delete(client, site, group)).await
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        let list = |_: &Client, site: &Site| {
            let failed = |cause| error::io("the groups", cause);
            let mut groups = Vec::new();
            for name in site.groups.names().map_err(failed)? {
                let Ok(content) = site.groups.child(&name).and_then(|group| group.read(keys::METADATA))
                else {
                    continue; // half made, or nothing of ours
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
        let members = |client: &Client, site: &Site| {
            let directory = open(site, group)?;
            Ok(view(client, site, group, &directory)?.members.into_values().collect())
        };
        self.locked("members", Hold::Together, members).await
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        let found = |client: &Client, site: &Site| {
            let directory = open(site, group)?;
            let name = keys::member(member);
            let failed = |cause| failed(group, cause);
            let Some(data) = directory.stat(&name).map_err(failed)? else {
                return Err(no_member(group, member));
            };
            let known = Member::read(&directory.read(&name).map_err(failed)?)
                .map_err(|error| corrupt(&directory, &name, &error))?;
            if known.record.member == *member && is_alive(client, site, &data, &known) {
                Ok(known.record)
            } else {
                Err(no_member(group, member))
            }
        };
        self.locked("member", Hold::Together, found).await
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        watch::group(&self.0, group).await.map_err(|error| error.during("watch"))
    }
}
