//! The directory that the URL names: the checks before anything is written into it.

use std::io;
use std::path::Path;

use nix::sys::statfs::{self, FsType};
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::error;
use crate::tree::directory::Directory;

/// File systems on which locks, syncs and change events are known to work between the processes of one host.
/// ZFS is not in the C headers.
const LOCAL: &[FsType] = &[
    statfs::EXT4_SUPER_MAGIC, // ext2, ext3 and ext4 share it
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    FsType(0x2fc1_2fc1), // zfs
    statfs::F2FS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
];

/// Creates the directory if it is missing, as Python does, unless for a view, and answers its path without symlinks, so that every
/// process comes to the same names, and whether its file system is known to be local.
pub(crate) fn prepare(config: &Config) -> Result<(Directory, bool)> {
    let shown = config.path.display();
    let there = if config.view { look(&config.path) } else { make(&config.path, config.directory_mode()) };
    match there {
        Ok(()) => {}
        Err(error) if config.view && error.kind() == io::ErrorKind::NotFound => {
            return Err(error::nothing_here(&config.path));
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
            return Err(Error::new(
                ErrorKind::InvalidUrl,
                format!("{shown} is not a directory, or lies below something that is not; name a directory"),
            ));
        }
        Err(error) => return Err(error::io(format!("the directory {shown}"), error)),
    }
    let path =
        config.path.canonicalize().map_err(|error| error::io(format!("the directory {shown}"), error))?;
    let local = is_local(&path)?;
    if !local && !config.force_filesystem {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{shown} is not on a known local file system (ext, xfs, btrfs, zfs, f2fs, tmpfs, overlay), where \
                 locks between processes are not to be relied on; move it, or add force_filesystem=true"
            ),
        ));
    }
    let base =
        Directory::open_path(&path).map_err(|error| error::io(format!("the directory {shown}"), error))?;
    Ok((base, local))
}

fn look(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// Makes a directory and those above it that are missing. Each belongs to the owner of the one above, if root makes it.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    let there = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("."));
    let missing = path.strip_prefix(there).unwrap_or(path);
    let mut directory = Directory::open_to_make(there)?;
    for name in missing.components() {
        directory = directory.make(name.as_os_str(), mode)?;
    }
    Ok(())
}

pub(crate) fn is_local(directory: &Path) -> Result<bool> {
    let answer = statfs::statfs(directory);
    let answer = answer
        .map_err(|errno| error::io(format!("the file system of {}", directory.display()), errno.into()))?;
    Ok(LOCAL.contains(&answer.filesystem_type()))
}

#[cfg(test)]
mod tests {
    use tooz_core::BackendUrl;

    use super::*;

    #[test]
    fn proc_is_no_place_for_it() {
        let read = |url| Config::read(&BackendUrl::parse(url).unwrap()).unwrap();
        let error = prepare(&read("file:///proc")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(!prepare(&read("file:///proc?force_filesystem=true")).unwrap().1);
        let error = prepare(&read("file:///proc/version")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUrl);
    }
}
