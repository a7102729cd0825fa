//! Whether a session is dead, by the lock on its file and by its process.
//!
//! A session has a file of its own, locked as long as the session lives. A session is dead only in three cases. (a) Its file
//! is at its path, has the recorded inode, and is not locked. (b) Its recorded process is of our pid namespace and boot and
//! no longer exists, although a child that inherited the descriptor still has the lock, or the file may not be read. (c) The
//! session was recorded under another boot. A session whose file is missing is not dead: its owner notices and ends the
//! session itself.

use std::fmt::Display;
use std::fs::File;
use std::io;

use crate::error::existing;
use crate::file_id::FileId;
use crate::os_lock::Flavor;

/// The state of a session's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Its owner has the lock.
    Locked,
    /// No process has the lock.
    Free,
    /// The file is not there, or it is another file: this says nothing about the owner.
    Missing,
}

/// Looks at a session's file, which was opened for reading; it is the session's if it has this inode.
pub fn look(file: io::Result<File>, inode: u64, flavor: Flavor) -> io::Result<Look> {
    let Some(file) = existing(file)? else { return Ok(Look::Missing) };
    if FileId::of(&file)?.inode != inode {
        return Ok(Look::Missing); // a copy that a backup put there proves nothing
    }
    Ok(if flavor.is_locked(&file)? { Look::Locked } else { Look::Free })
}

/// Whether a session of this boot is dead. `is_gone`: whether its process is certainly gone.
pub fn is_dead(look: io::Result<Look>, session: impl Display, is_gone: impl FnOnce() -> bool) -> bool {
    match look {
        Ok(Look::Free) => true,
        Ok(Look::Locked | Look::Missing) => is_gone(),
        // Another user's file, perhaps: where the file may not be read, the process decides.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => is_gone(),
        Err(error) => {
            // A session that cannot be examined is not dead.
            tracing::warn!(%session, %error, "a session's file cannot be examined");
            false
        }
    }
}
