//! What every process has to agree on before it works in a directory: which locks are used, and the stamp of the data.

use std::io;

use tooz_core::driver::Stamp;
use tooz_core::{Error, ErrorKind, Result};
use tooz_local::os_lock::Flavor;

use crate::config::Config;
use crate::keys;
use crate::tree::directory::{self, Directory};

pub(crate) fn parse(home: &Directory, content: &[u8]) -> Result<Stamp> {
    Stamp::parse(content).ok_or_else(|| {
        let path = home.path.join(keys::EPOCH);
        Error::new(
            ErrorKind::Corrupt,
            format!("{} is no stamp of tooz; end all programs that use it, then delete it", path.display()),
        )
    })
}

/// Compares which locks are used here, or writes it in a new directory; returns the stamp of the data, if there is
/// one. A view writes nothing, and fails where nothing is. `failed` makes the error about the directory.
pub(crate) fn read(
    home: &Directory,
    tmp: &Directory,
    config: &Config,
    failed: impl Fn(io::Error) -> Error,
) -> Result<Option<Stamp>> {
    let word: &[u8] = match config.flavor {
        Flavor::OpenFile => b"ofd\n",
        Flavor::Portable => b"portable\n",
    };
    let found = read_or_write_backend(home, tmp, word, config).map_err(&failed)?;
    if found != word {
        return Err(other_locks(home, &found));
    }
    match home.read(keys::EPOCH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !config.view => Ok(None),
        written => Ok(Some(parse(home, &written.map_err(failed)?)?)),
    }
}

/// Why the directory cannot be used with this kind of lock.
fn other_locks(home: &Directory, found: &[u8]) -> Error {
    let path = home.path.join(keys::BACKEND);
    if found.starts_with(b"ofd") || found.starts_with(b"portable") {
        return Error::new(
            ErrorKind::Incompatible,
            format!(
                "the directory is used with the other of backend=ofd and backend=portable, whose locks do not see each \
                 other; use the same everywhere, or stop all users and delete {}",
                path.display()
            ),
        );
    }
    Error::new(
        ErrorKind::Corrupt,
        format!("{} says neither ofd nor portable; look at it, then delete it", path.display()),
    )
}

/// What the first process wrote, in one step, about the locks that are used; this one, if it is the first.
fn read_or_write_backend(
    home: &Directory,
    tmp: &Directory,
    word: &[u8],
    config: &Config,
) -> io::Result<Vec<u8>> {
    match home.read(keys::BACKEND) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !config.view => {
            let temporary = directory::unique(keys::BACKEND);
            tmp.write_new(&temporary, word, config.mode)?.sync_all()?;
            match tmp.publish(&temporary, home, keys::BACKEND) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    tmp.remove(&temporary)?;
                }
                answer => answer?,
            }
            home.read(keys::BACKEND)
        }
        answer => answer,
    }
}
