//! The layout's number, which stands in the stamp, and the file that is locked while it matters. Processes that open
//! a session lock it together, one that changes the layout locks it alone.

use std::cmp::Ordering;
use std::fs::File;
use std::io;

use tooz_core::driver::{SessionId, Stamp, earlier_layout_in_use, later_layout};
use tooz_core::{Error, ErrorKind, Result};
use tooz_local::file_id::FileId;
use tooz_local::os_lock::{Hold, spin};

use crate::error;
use crate::keys;
use crate::tree::directory;
use crate::tree::open_tree::Tree;
use crate::tree::stamp;

/// Creates a session's file while no process changes the layout.
///
/// # Errors
/// `Incompatible`: a later version has changed it.
pub(crate) fn while_it_stays<T>(tree: &Tree, create: impl FnOnce() -> Result<T>) -> Result<T> {
    let guard = lock(tree, Hold::Together)?;
    let Some(stamp) = stamp::read(&tree.home)? else {
        return Err(error::io(tree.home.path.join(keys::EPOCH).display(), io::ErrorKind::NotFound.into()));
    };
    let created = match stamp.compare(&tree.base.path.display(), tree.stamp.layout)? {
        Ordering::Less => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{} was replaced by that of an earlier version; connect again", tree.home.path.display()),
        )),
        _ => create(),
    };
    drop(guard);
    created
}

/// Writes the stamp of a new directory, `fresh`, or brings a directory of an earlier layout to that of `fresh`.
///
/// # Errors
/// `Incompatible`: it is a later one, or a session of another one lives.
pub(crate) fn bring_up(tree: &mut Tree, fresh: Stamp) -> Result<()> {
    let (shown, layout) = (tree.base.path.display().to_string(), fresh.layout);
    if tree.stamp != fresh && tree.stamp.compare(&shown, layout)? == Ordering::Equal {
        return Ok(());
    }
    let failed = |cause| error::io(tree.home.path.join(keys::EPOCH).display(), cause);
    let guard = lock(tree, Hold::Alone)?;
    // Missing in a new directory, or because it was deleted beside sessions that live.
    let found = stamp::read(&tree.home)?;
    let stamp = Stamp { layout, ..found.unwrap_or(fresh) };
    let current = match found {
        Some(found) => found.compare(&shown, layout)? == Ordering::Equal,
        None => false,
    };
    if !current {
        let other = |session: SessionId| tree.sessions.layout_of(session) != layout;
        if let Some(who) = tree.sessions.find_living(other).map_err(failed)? {
            let lives = tree.sessions.layout_of(who);
            return Err(if lives > layout {
                later_layout(&shown, lives, layout)
            } else {
                earlier_layout_in_use(&shown, lives, layout, &name_of(tree, who))
            });
        }
        // A layout that changes more than the number changes it here.
        let temporary = directory::unique(keys::EPOCH);
        let write = || -> io::Result<()> {
            tree.tmp.write_new(&temporary, stamp.to_string().as_bytes())?.sync_all()?;
            tree.tmp.rename(&temporary, &tree.home, keys::EPOCH)?;
            tree.home.sync()
        };
        write().map_err(failed)?;
    }
    drop(guard);
    tree.stamp = stamp;
    Ok(())
}

fn name_of(tree: &Tree, session: SessionId) -> String {
    tree.sessions
        .member_of(session)
        .map_or_else(|| format!("session {session}"), |member| format!("member \"{member}\""))
}

/// How often a series of tries is made: a second and more, for many processes that come to a new directory at the
/// same time. Each has the file for as long as a look at the sessions or the creation of one takes.
const ROUNDS: usize = 2_000;

/// Unlocked when it is dropped: closing would not do where a forked child has a copy.
struct Guard<'a>(&'a Tree, File);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let _ = self.0.flavor.unlock(&self.1); // closing does it, too
    }
}

fn lock(tree: &Tree, hold: Hold) -> Result<Guard<'_>> {
    let path = tree.home.path.join(keys::BACKEND);
    let failed = |cause| error::io(path.display(), cause);
    for _ in 0..ROUNDS {
        // Opened anew each time: it may have been replaced.
        let file = match hold {
            Hold::Together => tree.home.open(keys::BACKEND),
            Hold::Alone => tree.home.open_write(keys::BACKEND),
        };
        let file = file.map_err(failed)?;
        if spin(|| tree.flavor.try_lock(&file, hold)).map_err(failed)? {
            let id = FileId::of(&file).map_err(failed)?;
            let guard = Guard(tree, file);
            if tree.home.has(keys::BACKEND, id) {
                return Ok(guard);
            }
        }
    }
    Err(Error::new(
        ErrorKind::Unavailable,
        format!(
            "{} is replaced, or locked by another process that opens a session or changes the layout; try again",
            path.display()
        ),
    ))
}
