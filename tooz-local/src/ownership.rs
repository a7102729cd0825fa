//! New files and directories: their permissions, and their owners when root makes them in another user's directory.
//!
//! Root would shut out the owner of the directory, so root gives away what it makes. INVARIANT: nothing else is ever given
//! away. The owner of a directory can put another object under one of its names at any moment, so a path proves nothing. What
//! changes its owner is a descriptor from `O_CREAT | O_EXCL | O_NOFOLLOW`, or one that was opened in a directory that no other
//! user can write to.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{self, FileStat, Mode};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, geteuid, mkfifoat, unlinkat};

use crate::error::existing;
use crate::process::Process;

/// What names of something that is being made begin with.
pub const STAGING: &str = ".staging";
/// Nothing here may wait for another process, or leave the directory.
const SAFE: OFlag = OFlag::O_NOFOLLOW.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);
const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_RDONLY);

/// What a new file or directory gets.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    mode: Mode,
    /// `None`: the object stays with the user who makes it.
    owner: Option<(Uid, Gid)>,
}

impl Rights {
    /// As for the owner of the object that this describes.
    pub fn like(data: &FileStat, mode: u32) -> Self {
        let theirs = geteuid().is_root() && data.st_uid != 0;
        let owner = theirs.then(|| (Uid::from_raw(data.st_uid), Gid::from_raw(data.st_gid)));
        Self { mode: Mode::from_bits_truncate(mode), owner }
    }

    /// As for the owner of this directory.
    pub fn within(directory: impl AsFd, mode: u32) -> io::Result<Self> {
        Ok(Self::like(&stat::fstat(directory)?, mode))
    }

    /// Whether what is made changes its owner.
    pub fn are_given_away(self) -> bool {
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
            // Root of a container that may not do this, or that does not know this user.
            tracing::debug!(%user, %error, "what root makes for another user stays root's");
        }
        Ok(())
    }
}

/// A name for something that is not in place yet. No other call, in any process, gives the same.
pub fn unique(what: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // A pid is used again, and may be used in two containers at once; the namespace and the start tell them apart.
    let Process { pid, started, pid_namespace } = Process::this();
    let (started, namespace) = (started.unwrap_or_default(), pid_namespace.unwrap_or_default());
    format!("{what}-{namespace:x}-{pid:x}-{started:x}-{number:x}")
}

/// Opens a directory to make something in it. Its last name is no symlink, and it need not be readable.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | SAFE, Mode::empty())?)
}

/// Creates a file that must not exist.
pub fn create(directory: impl AsFd, name: &OsStr, rights: Rights) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | SAFE;
    let file = File::from(openat(directory, name, flags, rights.mode)?);
    rights.give(&file)?;
    Ok(file)
}

/// Opens a directory, which is made if it is missing: with `O_RDONLY`, or with `O_PATH` where it need not be readable.
pub fn open_or_make_directory(
    parent: impl AsFd,
    name: &OsStr,
    rights: Rights,
    access: OFlag,
) -> io::Result<OwnedFd> {
    let flags = access | OFlag::O_DIRECTORY | SAFE;
    let open = || -> io::Result<OwnedFd> { Ok(openat(&parent, name, flags, Mode::empty())?) };
    if let Some(there) = existing(open())? {
        return Ok(there);
    }
    match make(parent.as_fd(), name, rights, DIRECTORY, |inside| stat::mkdirat(inside, name, rights.mode)) {
        // Another process may have made it at the same moment, and may have replaced the one that was made here.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => open(),
    }
}

/// Makes a FIFO that must not exist, and opens it for reading and writing.
pub fn make_fifo(directory: impl AsFd, name: &OsStr, rights: Rights) -> io::Result<File> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    make(directory.as_fd(), name, rights, OFlag::O_RDWR, |inside| mkfifoat(inside, name, mode))
        .map(File::from)
}

/// Makes an object that cannot be made and opened in one step, first in a directory that no other user can change.
fn make(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    rights: Rights,
    flags: OFlag,
    make_in: impl FnOnce(&OwnedFd) -> nix::Result<()>,
) -> io::Result<OwnedFd> {
    let staging = Staging::new(directory)?;
    make_in(&staging.inside)?;
    let made = open_made(&staging.inside, name, flags).and_then(|made| {
        rights.give(&made)?;
        rename(&staging.inside, name, directory, name)?;
        Ok(made)
    });
    if made.is_err() {
        let is_directory = flags.contains(OFlag::O_DIRECTORY);
        let how = if is_directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        let _ = unlinkat(&staging.inside, name, how);
    }
    made
}

/// Opens what we have just made.
fn open_made(directory: impl AsFd, name: &OsStr, flags: OFlag) -> io::Result<OwnedFd> {
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

/// A directory of our own inside another one, for a moment. No other user can change its names, so an object that is opened
/// there is the one that was made there.
struct Staging<'a> {
    parent: BorrowedFd<'a>,
    name: String,
    inside: OwnedFd,
}

impl<'a> Staging<'a> {
    fn new(parent: BorrowedFd<'a>) -> io::Result<Self> {
        let name = unique(STAGING);
        stat::mkdirat(parent, name.as_str(), Mode::S_IRWXU)?;
        let inside = open_made(parent, name.as_ref(), DIRECTORY)?;
        // Another directory, put there meanwhile, will do as well if no other user can change its names.
        if !is_private(&stat::fstat(&inside)?) {
            return Err(io::Error::other("another user exchanges the directories in which files are made"));
        }
        Ok(Self { parent, name, inside })
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(self.parent, self.name.as_str(), UnlinkatFlags::RemoveDir);
    }
}

/// Whether no other user can change the names in this directory.
fn is_private(data: &FileStat) -> bool {
    let others = Mode::S_IRWXG | Mode::S_IRWXO;
    data.st_uid == geteuid().as_raw() && !Mode::from_bits_truncate(data.st_mode).intersects(others)
}

/// Renames; never replaces anything, where the file system can do that.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn rename(from: impl AsFd, name: &OsStr, to: impl AsFd, new: &OsStr) -> io::Result<()> {
    match nix::fcntl::renameat2(&from, name, &to, new, nix::fcntl::RenameFlags::RENAME_NOREPLACE) {
        // A file system that cannot: NFS, and zfs before 2.2.
        Err(Errno::EINVAL | Errno::ENOSYS) => Ok(nix::fcntl::renameat(from, name, to, new)?),
        answer => Ok(answer?),
    }
}

/// Renames, without renameat2 in the C library. Random names have nothing to replace. If two processes make one directory at the same
/// moment, the slower may replace the other's directory, as long as that is empty.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn rename(from: impl AsFd, name: &OsStr, to: impl AsFd, new: &OsStr) -> io::Result<()> {
    Ok(nix::fcntl::renameat(from, name, to, new)?)
}
