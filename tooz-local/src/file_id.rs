//! Which file it is, whatever its name.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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

/// Opens a file; `None` if there is none.
pub fn open_existing(options: &OpenOptions, path: &Path) -> io::Result<Option<File>> {
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}
