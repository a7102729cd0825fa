//! Which file system a directory is on, and whether it is one of this host alone.

use std::io;
use std::path::Path;

use nix::sys::statfs::{self, FsType};

/// File systems by what `statfs(2)` calls them, and whether they are known to be local: there, locks, syncs and
/// change events work between the processes of one host. ZFS, SMB and their numbers are not in the C headers.
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
pub(crate) struct FileSystem(FsType);

impl FileSystem {
    /// That of this directory.
    pub(crate) fn of(directory: &Path) -> io::Result<Self> {
        Ok(Self(statfs::statfs(directory)?.filesystem_type()))
    }

    fn known(self) -> Option<(&'static str, bool)> {
        KNOWN.iter().find(|(number, ..)| *number == self.0).map(|(_, name, local)| (*name, *local))
    }

    /// Whether locks between the processes of this host are known to work there.
    pub(crate) fn is_local(self) -> bool {
        self.known().is_some_and(|(_, local)| local)
    }

    /// Whether a restart of the machine empties it.
    pub(crate) fn is_in_memory(self) -> bool {
        self.0 == statfs::TMPFS_MAGIC
    }

    pub(crate) fn name(self) -> String {
        self.known().map_or_else(|| format!("file system {:#x}", self.0.0), |(name, _)| name.to_owned())
    }
}
