//! The paths of the database and of the files beside it, and the checks before they are used.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::lstat;
use nix::unistd::geteuid;
use tooz_core::{Error, ErrorKind, Result};
use tooz_local::file_id::FileId;
use tooz_local::filesystem;
use tooz_local::options::{MODE, directory_mode};
use tooz_local::ownership::{self, Rights};

use crate::engine::wakeup;
use crate::error;

/// The database file and the files beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Without symlinks: every process must find the same names beside it.
    pub(crate) database: PathBuf,
    /// Whether the file system is known to be local.
    pub(crate) known_file_system: bool,
    /// The permissions of new files.
    pub(crate) mode: u32,
}

impl Paths {
    /// Checks the directory and resolves the name.
    pub(crate) fn find(path: &Path, force_filesystem: bool) -> Result<Self> {
        let shown = path.display();
        let invalid = |what: String| Error::new(ErrorKind::InvalidUrl, what);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(invalid(format!("{shown} is no file")));
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let not_a_directory =
            || invalid(format!("{} is not a directory; name a file in a directory", parent.display()));
        let directory = match parent.canonicalize() {
            Ok(directory) if directory.is_dir() => directory,
            Ok(_) => return Err(not_a_directory()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(not_a_directory()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(invalid(format!(
                    "the directory {} does not exist; create it first",
                    parent.display()
                )));
            }
            Err(error) => return Err(error::io(format!("the directory {}", parent.display()), error)),
        };
        let database = follow_symlink(&directory, &directory.join(name))?;
        let known_file_system = filesystem::check_local(&directory, force_filesystem)?;
        Ok(Self { database, known_file_system, mode: MODE })
    }

    /// A file beside the database.
    pub(crate) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(&self.database);
        name.push(suffix);
        PathBuf::from(name)
    }

    /// The directory of session files.
    pub(crate) fn sessions(&self) -> PathBuf {
        self.beside("-sessions")
    }

    /// Creates the database file if it is missing. SQLite gives the files beside it the same permissions and, if root
    /// makes them, the same owner.
    pub(crate) fn prepare(&self) -> Result<FileId> {
        let shown = self.database.display();
        let creating = |error| error::io(format!("creating {shown}"), error);
        if fs::symlink_metadata(&self.database).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            let (directory, name) = self.names("").map_err(creating)?;
            let rights = Rights::within(&directory, self.mode).map_err(creating)?;
            match ownership::create(&directory, &name, rights) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(creating(error)),
                _ => {}
            }
        }
        self.check()
    }

    /// Checks the database file as it is.
    pub(crate) fn check(&self) -> Result<FileId> {
        let shown = self.database.display();
        let data = fs::symlink_metadata(&self.database).map_err(|error| error::io(&shown, error))?;
        let refuse = |kind, what: &str| Err(Error::new(kind, format!("{shown} {what}")));
        if data.is_dir() {
            return refuse(ErrorKind::InvalidUrl, "is a directory; name a file in it");
        }
        if !data.is_file() {
            return refuse(ErrorKind::Invalid, "is not a regular file");
        }
        if data.nlink() > 1 {
            // Two names make two write-ahead logs, and SQLite then corrupts the database.
            return refuse(ErrorKind::Invalid, "has several hard links; remove the others");
        }
        self.check_mount()?;
        for suffix in ["-wal", "-shm", "-journal"] {
            let beside = self.beside(suffix);
            let Ok(found) = fs::symlink_metadata(&beside) else { continue };
            let beside = beside.display();
            let refuse =
                |what: &str| Err(Error::new(ErrorKind::Denied, format!("{beside} {what}; remove it")));
            if found.is_symlink() {
                return refuse("is a symlink");
            }
            if !found.is_file() || found.nlink() > 1 {
                return refuse("is no file of SQLite");
            }
            // SQLite, as root, gives the file to the owner of the database.
            if geteuid().is_root() && found.uid() != data.uid() {
                return refuse("does not belong to the owner of the database");
            }
        }
        Ok(FileId::from(&data))
    }

    /// Refuses a database file that is a mount point itself. Its log and its sessions are beside it, and a process that uses
    /// the file under its other name has others.
    pub(crate) fn check_mount(&self) -> Result<()> {
        let shown = self.database.display();
        if filesystem::is_mount_point(&self.database).map_err(|error| error::io(&shown, error))? {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{shown} is mounted alone, without the log and the sessions beside it, so processes \
                     elsewhere would not be excluded; mount its directory instead"
                ),
            ));
        }
        Ok(())
    }

    /// Creates the directories of session files and of FIFOs if they are missing.
    pub(crate) fn make_sessions(&self) -> Result<()> {
        let sessions = self.sessions();
        let failed = |error| error::io(format!("creating {}", sessions.display()), error);
        let (directory, name) = self.names("-sessions").map_err(failed)?;
        let mode = directory_mode(self.mode);
        // With the rights of the database, since a user of the database needs its sessions. The owner of the directory
        // around both does not matter.
        let database = lstat(&self.database).map_err(|errno| failed(errno.into()))?;
        let rights = Rights::like(&database, mode);
        let inside =
            ownership::open_or_make_directory(&directory, &name, rights, OFlag::O_PATH).map_err(failed)?;
        let rights = Rights::within(&inside, mode).map_err(failed)?;
        let fifos =
            ownership::open_or_make_directory(&inside, wakeup::DIRECTORY.as_ref(), rights, OFlag::O_PATH);
        let shown = sessions.join(wakeup::DIRECTORY);
        fifos.map(drop).map_err(|error| error::io(format!("creating {}", shown.display()), error))
    }

    /// The directory around the database, open, and the name there of a file beside it.
    fn names(&self, suffix: &str) -> io::Result<(OwnedFd, OsString)> {
        let directory = ownership::open_directory(self.database.parent().unwrap_or(Path::new("/")))?;
        Ok((directory, self.beside(suffix).file_name().unwrap_or_default().to_owned()))
    }

    /// Makes new names in the directory survive a power cut.
    pub(crate) fn sync_directory(&self) -> Result<()> {
        let parent = self.database.parent().unwrap_or(Path::new("/"));
        File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| error::io(format!("syncing {}", parent.display()), error))
    }
}

/// Follows symlinks of the last name as long as they stay in the directory (X5).
fn follow_symlink(directory: &Path, path: &Path) -> Result<PathBuf> {
    if !fs::symlink_metadata(path).is_ok_and(|data| data.is_symlink()) {
        return Ok(path.to_owned());
    }
    let target = path.canonicalize();
    let target = target.map_err(|error| error::io(format!("the symlink {}", path.display()), error))?;
    if target.parent() == Some(directory) {
        return Ok(target);
    }
    Err(Error::new(
        ErrorKind::Denied,
        format!(
            "{} is a symlink out of its directory and is not followed; name {} itself",
            path.display(),
            target.display()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_are_not_followed_out_of_the_directory() {
        let (here, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = elsewhere.path().join("victim");
        File::create(&target).unwrap();
        std::os::unix::fs::symlink(&target, here.path().join("out.db")).unwrap();
        let error = Paths::find(&here.path().join("out.db"), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        File::create(here.path().join("real.db")).unwrap();
        std::os::unix::fs::symlink("real.db", here.path().join("in.db")).unwrap();
        let paths = Paths::find(&here.path().join("in.db"), false).unwrap();
        assert!(paths.database.ends_with("real.db"));
    }

    #[test]
    fn proc_is_no_place_for_a_database() {
        let error = Paths::find(Path::new("/proc/tooz.db"), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(!Paths::find(Path::new("/proc/tooz.db"), true).unwrap().known_file_system);
    }

    #[test]
    fn what_cannot_be_a_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("none/tooz.db");
        assert!(Paths::find(&missing, false).unwrap_err().to_string().contains("create it first"));
        let paths = Paths::find(directory.path(), false).unwrap();
        assert_eq!(paths.prepare().unwrap_err().kind(), ErrorKind::InvalidUrl);
        let linked = directory.path().join("tooz.db");
        File::create(&linked).unwrap();
        fs::hard_link(&linked, directory.path().join("other.db")).unwrap();
        let error = Paths::find(&linked, false).unwrap().prepare().unwrap_err();
        assert!(error.to_string().contains("hard links"), "{error}");
    }
}
