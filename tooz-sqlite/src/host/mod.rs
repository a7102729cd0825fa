//! What the operating system of this host says about files and processes, and does for them. Nothing here knows SQLite's
//! driver.

pub(crate) mod filesystem;
pub(crate) mod os_lock;
pub(crate) mod ownership;
pub(crate) mod process;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The identity of a file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    pub(crate) inode: u64,
}

impl FileId {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|data| Self::from(&data))
    }

    /// The file at `path`, without following a symlink there.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        fs::symlink_metadata(path).map(|data| Self::from(&data))
    }
}

impl From<&fs::Metadata> for FileId {
    fn from(data: &fs::Metadata) -> Self {
        Self { device: data.dev(), inode: data.ino() }
    }
}

/// The id of this boot of the machine.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Opens a file; `None` if there is none.
pub(crate) fn open_existing(options: &OpenOptions, path: &Path) -> io::Result<Option<File>> {
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}
