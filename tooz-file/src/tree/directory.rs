//! Directories as open files: every name is looked up beside the directory that was opened, and no symlink is ever
//! followed, so nothing outside the given directory can be reached (X5).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{self, FileStat, Mode};
use nix::unistd::{UnlinkatFlags, unlinkat};
use tooz_local::file_id::FileId;
use tooz_local::options::directory_mode;
pub(crate) use tooz_local::ownership::unique;
use tooz_local::ownership::{self, Rights, STAGING};

use crate::error::{existing, unreadable};

/// This driver writes no more: 64 KiB of capabilities and some hundred bytes around them.
const MOST_BYTES: u64 = 256 * 1024;

/// An open directory. Names are single components.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    /// For messages and for inotify, which wants a path.
    pub(crate) path: PathBuf,
    /// The permissions of new files in it and below.
    mode: u32,
}

// O_NONBLOCK: opening a FIFO must not wait for a writer.
const SAFE: OFlag = OFlag::O_NOFOLLOW.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);

impl Directory {
    pub(crate) fn open_path(path: &Path, mode: u32) -> io::Result<Self> {
        Self::open_with(path, OFlag::O_RDONLY, mode)
    }

    /// Opens one to make something in it; it need not be readable.
    pub(crate) fn open_to_make(path: &Path, mode: u32) -> io::Result<Self> {
        Self::open_with(path, OFlag::O_PATH, mode)
    }

    fn open_with(path: &Path, flags: OFlag, mode: u32) -> io::Result<Self> {
        let fd = nix::fcntl::open(path, flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned(), mode })
    }

    pub(crate) fn id(&self) -> io::Result<FileId> {
        Ok(FileId::from(&stat::fstat(&self.fd)?))
    }

    pub(crate) fn child(&self, name: &(impl AsRef<Path> + ?Sized)) -> io::Result<Self> {
        let name = name.as_ref();
        let fd = openat(&self.fd, name, OFlag::O_DIRECTORY | OFlag::O_RDONLY | SAFE, Mode::empty())?;
        Ok(Self { fd, path: self.path.join(name), mode: self.mode })
    }

    /// Opens a directory in this one, made if it is missing.
    pub(crate) fn make(&self, name: &(impl AsRef<Path> + ?Sized)) -> io::Result<Self> {
        let (name, rights) = (name.as_ref(), Rights::within(&self.fd, directory_mode(self.mode))?);
        let fd = ownership::open_or_make_directory(&self.fd, name.as_os_str(), rights, OFlag::O_RDONLY)?;
        Ok(Self { fd, path: self.path.join(name), mode: self.mode })
    }

    /// Opens a file for reading: closing it makes no event.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        Ok(openat(&self.fd, name, OFlag::O_RDONLY | SAFE, Mode::empty())?.into())
    }

    pub(crate) fn open_write(&self, name: &str) -> io::Result<File> {
        Ok(openat(&self.fd, name, OFlag::O_RDWR | SAFE, Mode::empty())?.into())
    }

    /// Opens a file for writing, made if it is missing.
    pub(crate) fn open_or_create(&self, name: &str) -> io::Result<File> {
        loop {
            if let Some(file) = existing(self.open_write(name))? {
                return Ok(file);
            }
            let file = if Rights::within(&self.fd, self.mode)?.are_given_away() {
                // Complete before it is visible: its owner may be about to open it. It is opened again by its own
                // name, so that its closing makes an event for that name.
                let temporary = unique(STAGING);
                let published = self.create(&temporary).and_then(|_| self.publish(&temporary, self, name));
                if published.is_err() {
                    let _ = self.remove(&temporary);
                }
                published.and_then(|()| self.open_write(name))
            } else {
                self.create(name)
            };
            match file {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                answer => return answer,
            }
        }
    }

    /// Creates a file that must not exist.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        ownership::create(&self.fd, name.as_ref(), Rights::within(&self.fd, self.mode)?)
    }

    /// Reads a whole file of sensible size.
    pub(crate) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.open(name)?;
        if !file.metadata()?.is_file() {
            return Err(unreadable(&self.path.join(name), "is not a regular file"));
        }
        let mut content = Vec::new();
        file.take(MOST_BYTES + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MOST_BYTES {
            return Err(unreadable(&self.path.join(name), "is larger than any record of ours"));
        }
        Ok(content)
    }

    /// Replaces what stands there. A process that has the file open makes an event for the new name when it closes the
    /// file, which is not so after a link.
    pub(crate) fn rename(&self, from: &str, target: &Self, to: &str) -> io::Result<()> {
        Ok(nix::fcntl::renameat(&self.fd, from, &target.fd, to)?)
    }

    /// As [`Directory::rename`], but never replaces anything; for files whose closing is not listened for. It links,
    /// since renameat2 is missing from some C libraries.
    pub(crate) fn publish(&self, from: &str, target: &Self, to: &str) -> io::Result<()> {
        nix::unistd::linkat(&self.fd, from, &target.fd, to, AtFlags::empty())?;
        self.unlink(from)
    }

    pub(crate) fn unlink(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => Err(unreadable(&self.path.join(name), "is a directory")),
            answer => Ok(answer?),
        }
    }

    /// As [`Directory::unlink`]; `false` if there was no such file.
    pub(crate) fn remove(&self, name: &str) -> io::Result<bool> {
        Ok(existing(self.unlink(name))?.is_some())
    }

    pub(crate) fn remove_directory(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)?)
    }

    /// `None` if it is missing.
    pub(crate) fn stat(&self, name: &str) -> io::Result<Option<FileStat>> {
        existing(stat::fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(io::Error::from))
    }

    /// Whether the file of this id stands under this name.
    pub(crate) fn has(&self, name: &str, id: FileId) -> bool {
        matches!(self.stat(name), Ok(Some(data)) if FileId::from(&data) == id)
    }

    /// The names in it, but for those that are not UTF-8, which this driver never writes.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        // A descriptor of its own: copies of one share their position.
        let mut entries = Dir::openat(&self.fd, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut names = Vec::new();
        for entry in entries.iter() {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            match name.into_string() {
                Ok(name) if name != "." && name != ".." => names.push(name),
                _ => {}
            }
        }
        Ok(names)
    }

    /// Makes new names in it survive a power cut.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(nix::unistd::fsync(&self.fd)?)
    }

    /// Writes a file as a whole, where there is none of this name; whether there was none. The content survives a power
    /// cut. `tmp` is on the same file system.
    pub(crate) fn write_first(&self, tmp: &Self, name: &str, content: &[u8]) -> io::Result<bool> {
        let temporary = unique(name);
        let written = tmp.write_new(&temporary, content).and_then(|file| file.sync_all());
        let published = written.and_then(|()| tmp.publish(&temporary, self, name));
        if published.is_err() {
            let _ = tmp.remove(&temporary);
        }
        match published {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            answer => answer.map(|()| true),
        }
    }

    /// Writes a file as a whole in place of what stands there; `tmp` is on the same file system.
    pub(crate) fn replace(&self, tmp: &Self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = unique(name);
        tmp.write_new(&temporary, content)?;
        tmp.rename(&temporary, self, name)
    }

    /// Creates a file with this content under a temporary name.
    pub(crate) fn write_new(&self, name: &str, content: &[u8]) -> io::Result<File> {
        let mut file = self.create(name)?;
        match file.write_all(content) {
            Ok(()) => Ok(file),
            Err(error) => {
                // A full disk: nothing half-written stays.
                let _ = self.unlink(name);
                Err(error)
            }
        }
    }
}
