//! New files and directories: their permissions, and whose they are when root makes them in another user's directory.
//!
//! Root would shut out the directory's owner, so it gives away what it makes. INVARIANT: nothing else is ever given
//! away. The owner of a directory can put another object under a name of it at any moment, so a path proves nothing.
//! Only descriptors change their owner: those from `O_CREAT | O_EXCL | O_NOFOLLOW`, and those that were opened in a
//! directory to which no other user can write.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{self, FileStat, Mode};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, geteuid, unlinkat};

/// Nothing here may wait for another process, or leave the directory.
const SAFE: OFlag = OFlag::O_NOFOLLOW.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);
const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_RDONLY);

/// What a new file or directory gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rights {
    mode: Mode,
    /// `None`: it stays with the user who makes it.
    owner: Option<(Uid, Gid)>,
}

impl Rights {
    /// As for the owner of this directory.
    pub(crate) fn within(directory: impl AsFd, mode: u32) -> io::Result<Self> {
        let mode = Mode::from_bits_truncate(mode);
        if !geteuid().is_root() {
            return Ok(Self { mode, owner: None });
        }
        let data = stat::fstat(directory)?;
        let owner = (data.st_uid != 0).then(|| (Uid::from_raw(data.st_uid), Gid::from_raw(data.st_gid)));
        Ok(Self { mode, owner })
    }

    /// Whether what is made changes its owner.
    pub(crate) fn are_given_away(self) -> bool {
        self.owner.is_some()
    }

    /// INVARIANT: `made` is an object that this process has just made.
    fn give(self, made: impl AsFd) -> io::Result<()> {
        // The umask may have taken something away. A directory keeps the setgid bit that it inherited.
        let inherited = Mode::from_bits_truncate(stat::fstat(&made)?.st_mode) & Mode::S_ISGID;
        stat::fchmod(&made, self.mode | inherited)?;
        if let Some((user, group)) = self.owner
            && let Err(error) = fchown(&made, Some(user), Some(group))
        {
            // Root of a container that may not, or that does not know this user.
            tracing::debug!(%user, %error, "what root makes for another user stays root's");
        }
        Ok(())
    }
}

/// Creates a file that must not exist.
pub(crate) fn create(directory: impl AsFd, name: &Path, rights: Rights) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | SAFE;
    let file = File::from(openat(directory, name, flags, rights.mode)?);
    rights.give(&file)?;
    Ok(file)
}

/// Makes a directory that must not exist, first in another one of the name `staging`.
pub(crate) fn make_directory(
    directory: impl AsFd,
    name: &Path,
    staging: &str,
    rights: Rights,
) -> io::Result<OwnedFd> {
    let staging = Staging::new(directory.as_fd(), staging)?;
    stat::mkdirat(&staging.inside, name, rights.mode)?;
    let made = open_made(&staging.inside, name, DIRECTORY).and_then(|made| {
        rights.give(&made)?;
        rename(&staging.inside, name, &directory, name)?;
        Ok(made)
    });
    if made.is_err() {
        let _ = unlinkat(&staging.inside, name, UnlinkatFlags::RemoveDir);
    }
    made
}

/// Opens what this process has just made.
fn open_made(directory: impl AsFd, name: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    match openat(&directory, name, flags | SAFE, Mode::empty()) {
        // The umask took away even our own rights.
        Err(Errno::EACCES) => {
            let made =
                openat(&directory, name, OFlag::O_PATH | (flags & OFlag::O_DIRECTORY) | SAFE, Mode::empty())?;
            let inherited = stat::fstat(&made)?.st_mode & Mode::S_ISGID.bits();
            // A descriptor without rights can be changed by this name alone.
            let itself = format!("/proc/self/fd/{}", made.as_raw_fd());
            fs::set_permissions(itself, Permissions::from_mode(0o700 | inherited))?;
            Ok(openat(&directory, name, flags | SAFE, Mode::empty())?)
        }
        answer => Ok(answer?),
    }
}

/// A private directory inside of another one, for a moment. No other user can change its names, so that what is opened
/// there is what was made there.
struct Staging<'a> {
    parent: BorrowedFd<'a>,
    name: &'a str,
    inside: OwnedFd,
}

impl<'a> Staging<'a> {
    fn new(parent: BorrowedFd<'a>, name: &'a str) -> io::Result<Self> {
        stat::mkdirat(parent, name, Mode::S_IRWXU)?;
        let inside = open_made(parent, name.as_ref(), DIRECTORY)?;
        // Another directory, put there meanwhile, will do as well if no other user can change what is in it.
        if !is_private(&stat::fstat(&inside)?) {
            return Err(io::Error::other("somebody exchanges the directories in which files are made"));
        }
        Ok(Self { parent, name, inside })
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(self.parent, self.name, UnlinkatFlags::RemoveDir);
    }
}

/// Whether this user alone can change what is in this directory.
fn is_private(data: &FileStat) -> bool {
    let others = Mode::S_IRWXG | Mode::S_IRWXO;
    data.st_uid == geteuid().as_raw() && !Mode::from_bits_truncate(data.st_mode).intersects(others)
}

/// Never replaces anything, where the file system can do that.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn rename(from: impl AsFd, name: &Path, to: impl AsFd, new: &Path) -> io::Result<()> {
    match nix::fcntl::renameat2(&from, name, &to, new, nix::fcntl::RenameFlags::RENAME_NOREPLACE) {
        // A file system that cannot: NFS, and zfs before 2.2.
        Err(Errno::EINVAL | Errno::ENOSYS) => Ok(nix::fcntl::renameat(from, name, to, new)?),
        answer => Ok(answer?),
    }
}

/// Without renameat2 in the C library. Random names have nothing to replace; of two who make one directory at the same
/// moment the slower may replace the other's, as long as it is empty.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn rename(from: impl AsFd, name: &Path, to: impl AsFd, new: &Path) -> io::Result<()> {
    Ok(nix::fcntl::renameat(from, name, to, new)?)
}
