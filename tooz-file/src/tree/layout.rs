//! The layout's number, which stands in the stamp, and the file that is locked while it matters: together by processes that
//! open a session, alone by one that changes it.

use std::cmp::Ordering;
use std::fs::File;
use std::io;

use tooz_core::driver::{SessionId, Stamp, earlier_layout_in_use, later_layout};
use tooz_core::{Error, ErrorKind, Result};

use crate::error;
use crate::host::os_lock::{FileId, Hold, spin};
use crate::keys;
use crate::reaper;
use crate::tree::directory::{self, Directory};
use crate::tree::open_tree::Site;

pub(crate) fn parse(home: &Directory, content: &[u8]) -> Result<Stamp> {
    Stamp::parse(content).ok_or_else(|| {
        let path = home.path.join(keys::EPOCH);
        Error::new(
            ErrorKind::Corrupt,
            format!("{} is no stamp of tooz; end all programs that use it, then delete it", path.display()),
        )
    })
}

/// Places a session's file while no process changes the layout.
///
/// # Errors
/// `Incompatible`: a later version has changed it.
pub(crate) fn while_it_stays<T>(site: &Site, place: impl FnOnce() -> Result<T>) -> Result<T> {
    let guard = guard(site, Hold::Together)?;
    let placed = match read(site)?.compare(&site.base.path.display(), site.stamp.layout)? {
        Ordering::Less => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{} was replaced by that of an earlier version; connect again", site.home.path.display()),
        )),
        _ => place(),
    };
    drop(guard);
    placed
}

/// Writes the stamp of a new directory, `fresh`, or brings a directory of an earlier layout to that of `fresh`.
///
/// # Errors
/// `Incompatible`: it is a later one, or a session of another one lives.
pub(crate) fn bring_up(site: &mut Site, fresh: Stamp) -> Result<()> {
    let (shown, layout) = (site.base.path.display().to_string(), fresh.layout);
    if site.stamp != fresh && site.stamp.compare(&shown, layout)? == Ordering::Equal {
        return Ok(());
    }
    let failed = |cause| error::io(site.home.path.join(keys::EPOCH).display().to_string(), cause);
    let guard = guard(site, Hold::Alone)?;
    // Missing in a new directory, or because it was deleted beside sessions that live.
    let found = match site.home.read(keys::EPOCH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        content => Some(parse(&site.home, &content.map_err(failed)?)?),
    };
    let stamp = Stamp { layout, ..found.unwrap_or(fresh) };
    let current = match found {
        Some(found) => found.compare(&shown, layout)? == Ordering::Equal,
        None => false,
    };
    if !current {
        let other = |session: SessionId| reaper::layout_of(site, session) != layout;
        if let Some(who) = reaper::living(site, other).map_err(failed)? {
            let lives = reaper::layout_of(site, who);
            return Err(if lives > layout {
                later_layout(&shown, lives, layout)
            } else {
                earlier_layout_in_use(&shown, lives, layout, &who_is(site, who))
            });
        }
        // A layout that changes more than the number changes it here.
        let temporary = directory::unique(keys::EPOCH);
        let write = || -> io::Result<()> {
            site.tmp.write_new(&temporary, stamp.to_string().as_bytes(), site.mode)?.sync_all()?;
            site.tmp.rename(&temporary, &site.home, keys::EPOCH)?;
            site.home.sync()
        };
        write().map_err(failed)?;
    }
    drop(guard);
    site.stamp = stamp;
    Ok(())
}

fn who_is(site: &Site, session: SessionId) -> String {
    reaper::member_of(site, session)
        .map_or_else(|| format!("session {session}"), |member| format!("member \"{member}\""))
}

fn read(site: &Site) -> Result<Stamp> {
    let failed = |cause| error::io(site.home.path.join(keys::EPOCH).display().to_string(), cause);
    parse(&site.home, &site.home.read(keys::EPOCH).map_err(failed)?)
}

/// How often a series of tries is made: a second and more, for many who come to a new directory at the same time. Each has the
/// file for as long as a look at the sessions or the placing of one takes.
const ROUNDS: usize = 2_000;

/// Unlocked when it is dropped: closing would not do where a forked child has a copy.
struct Guard<'a>(&'a Site, File);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let _ = self.0.flavor.unlock(&self.1); // closing does it, too
    }
}

fn guard(site: &Site, hold: Hold) -> Result<Guard<'_>> {
    let path = site.home.path.join(keys::BACKEND);
    let failed = |cause| error::io(path.display().to_string(), cause);
    for _ in 0..ROUNDS {
        // Opened anew each time: it may have been replaced.
        let file = match hold {
            Hold::Together => site.home.open(keys::BACKEND),
            Hold::Alone => site.home.open_write(keys::BACKEND),
        };
        let file = file.map_err(failed)?;
        if spin(|| site.flavor.try_lock(&file, hold)).map_err(failed)? {
            let id = FileId::of(&file).map_err(failed)?;
            let guard = Guard(site, file);
            if site.home.has(keys::BACKEND, id) {
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
