//! Which file it is, whatever its name.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use nix::sys::stat::FileStat;

/// The identity of a file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    /// Its number on its file system.
    pub inode: u64,
}

impl FileId {
    /// That of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|data| Self::from(&data))
    }

    /// That of the file at `path`, without following a symlink there.
    pub fn at(path: &Path) -> io::Result<Self> {
        fs::symlink_metadata(path).map(|data| Self::from(&data))
    }
}

impl From<&Metadata> for FileId {
    fn from(data: &Metadata) -> Self {
        Self { device: data.dev(), inode: data.ino() }
    }
}

impl From<&FileStat> for FileId {
    fn from(data: &FileStat) -> Self {
        Self { device: data.st_dev, inode: data.st_ino }
    }
}

/// No symlink is followed, and no FIFO waits for another process.
const SAFE: libc::c_int = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Opens a file for reading: closing it makes no event. Follows no symlink there, and waits for no process.
pub fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(SAFE).open(path)
}

/// As [`open`], for reading and writing.
pub fn open_write(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(SAFE).open(path)
}
