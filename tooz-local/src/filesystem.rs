//! File systems: which are local, and what is a mount point.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::{self, FsType};
use tooz_core::{Characteristics, Error, ErrorKind, Result};

use crate::error;

/// File systems by what `statfs(2)` calls them, and whether locks, syncs and change events are known to work on them
/// between the processes of one host. ZFS, SMB and their numbers are not in the C headers.
const KNOWN: &[(FsType, &str, bool)] = &[
    (statfs::EXT4_SUPER_MAGIC, "ext4", true), // ext2, ext3 and ext4 share it
    (statfs::XFS_SUPER_MAGIC, "xfs", true),
    (statfs::BTRFS_SUPER_MAGIC, "btrfs", true),
    (FsType(0x2fc1_2fc1), "zfs", true),
    (statfs::F2FS_SUPER_MAGIC, "f2fs", true),
    (statfs::TMPFS_MAGIC, "tmpfs", true),
    (statfs::OVERLAYFS_SUPER_MAGIC, "overlay", true),
    (statfs::NFS_SUPER_MAGIC, "nfs", false),
    (FsType(0xff53_4d42), "smb", false),
    (statfs::FUSE_SUPER_MAGIC, "fuse", false),
];

/// The kind of a file system.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem(FsType);

impl FileSystem {
    /// That of this directory.
    pub fn of(directory: &Path) -> Result<Self> {
        let answer = statfs::statfs(directory);
        let failed =
            |errno: Errno| error::io(format!("the file system of {}", directory.display()), errno.into());
        Ok(Self(answer.map_err(failed)?.filesystem_type()))
    }

    fn known(self) -> Option<(&'static str, bool)> {
        KNOWN.iter().find(|(number, ..)| *number == self.0).map(|(_, name, local)| (*name, *local))
    }

    /// Whether locks, syncs and change events are known to work there between the processes of this host.
    pub fn is_local(self) -> bool {
        self.known().is_some_and(|(_, local)| local)
    }

    /// Whether a restart of the machine empties it.
    pub fn is_in_memory(self) -> bool {
        self.0 == statfs::TMPFS_MAGIC
    }

    /// Its name for operators.
    pub fn name(self) -> String {
        self.known().map_or_else(|| format!("file system {:#x}", self.0.0), |(name, _)| name.to_owned())
    }
}

/// Whether the file system of this directory is known to be local.
///
/// # Errors
/// `Unsupported`: it is not, and its use is not `forced`.
pub fn check_local(directory: &Path, forced: bool) -> Result<bool> {
    let local = FileSystem::of(directory)?.is_local();
    if !local && !forced {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} is not on a known local file system (ext, xfs, btrfs, zfs, f2fs, tmpfs, overlay), where \
                 locks between processes may not work; move it, or add force_filesystem=true",
                directory.display()
            ),
        ));
    }
    Ok(local)
}

/// What a driver guarantees on a file system that is known to be local or not; `best` is what it guarantees on one that is.
/// On any other, its locks, its syncs and its change events may not reach every process.
pub fn guarantees(best: Characteristics, known: bool) -> Characteristics {
    let anywhere = Characteristics::DISTRIBUTED_ACROSS_THREADS
        | Characteristics::DISTRIBUTED_ACROSS_PROCESSES
        | Characteristics::SEQUENTIAL
        | Characteristics::SHARED_LOCKS
        | Characteristics::FAIR_LOCKS;
    if known { best } else { best & anywhere }
}

/// Whether something is mounted at exactly this path.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    if let (Some(at), Some(above)) = (mount_of(path)?, mount_of(parent)?) {
        return Ok(at != above);
    }
    Ok(is_listed(&fs::read("/proc/self/mountinfo")?, path))
}

/// The number of the mount through which a path is reached; `None` where the kernel does not say it, for example to a
/// process that may not be traced.
fn mount_of(path: &Path) -> io::Result<Option<u64>> {
    // O_PATH: closing any other descriptor of the file would drop the POSIX locks of this process on it.
    let file = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    let Ok(text) = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())) else {
        return Ok(None);
    };
    Ok(text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()))
}

/// Whether `/proc/self/mountinfo` lists this mount point; there, spaces and the like are escaped as `\ooo`.
fn is_listed(mounts: &[u8], path: &Path) -> bool {
    let escaped: Vec<u8> = path
        .as_os_str()
        .as_bytes()
        .iter()
        .flat_map(|byte| match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
            _ => vec![*byte],
        })
        .collect();
    let point = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(<[u8]>::to_vec);
    mounts.split(|byte| *byte == b'\n').any(|line| point(line).is_some_and(|point| point == escaped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_refused_unless_forced() {
        let proc = Path::new("/proc");
        assert_eq!(check_local(proc, false).unwrap_err().kind(), ErrorKind::Unsupported);
        assert!(!check_local(proc, true).unwrap());
    }

    #[test]
    fn mount_points_are_told_from_what_lies_below() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/version")).unwrap());
        let mounts =
            b"36 35 98:0 / /a\\040b rw,noatime shared:1 - ext4 /dev/x rw\n37 35 98:0 / /c rw - ext4 x rw\n";
        assert!(is_listed(mounts, Path::new("/a b")) && is_listed(mounts, Path::new("/c")));
        assert!(!is_listed(mounts, Path::new("/a")) && !is_listed(mounts, Path::new("/")));
    }
}
