//! What every process has to agree on before it works in a directory: which locks are used, and the stamp of the data.

use std::io;

use tooz_core::driver::Stamp;
use tooz_core::{Error, ErrorKind, Result};
use tooz_local::os_lock::Flavor;

use crate::config::Config;
use crate::error::{self, existing};
use crate::keys;
use crate::tree::directory::Directory;

/// The stamp of the data; `None` in a new directory, or where it was deleted.
pub(crate) fn read(home: &Directory) -> Result<Option<Stamp>> {
    let path = home.path.join(keys::EPOCH);
    let content = existing(home.read(keys::EPOCH)).map_err(|cause| error::io(path.display(), cause))?;
    let unreadable = || {
        Error::new(
            ErrorKind::Corrupt,
            format!("{} is no stamp of tooz; end all programs that use it, then delete it", path.display()),
        )
    };
    content.map(|content| Stamp::parse(&content).ok_or_else(unreadable)).transpose()
}

/// Compares which locks are used here, or writes it in a new directory. A view writes nothing, and fails where nothing
/// is. `failed` makes the error about the directory.
pub(crate) fn check_locks(
    home: &Directory,
    tmp: &Directory,
    config: &Config,
    failed: impl FnOnce(io::Error) -> Error,
) -> Result<()> {
    let word: &[u8] = match config.flavor {
        Flavor::OpenFile => b"ofd\n",
        Flavor::Portable => b"portable\n",
    };
    // What the first process wrote, in one step; this one, if it is the first.
    let agree = || {
        if !config.view && home.stat(keys::BACKEND)?.is_none() {
            home.write_first(tmp, keys::BACKEND, word)?;
        }
        home.read(keys::BACKEND)
    };
    let found = agree().map_err(failed)?;
    if found == word { Ok(()) } else { Err(other_locks(home, &found)) }
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
