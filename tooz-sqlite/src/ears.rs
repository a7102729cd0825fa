//! What the kernel tells about the database's files: one inotify instance per database and process.
//!
//! Every watch has the smallest mask that will do, and events of names that are no session's are dropped: an
//! unfiltered watcher is woken by every look of every other process.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tooz_core::driver::SessionId;

use crate::place::Place;

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Somebody, perhaps we ourselves, wrote to the write-ahead log.
    Written,
    /// The database or the directory of sessions was moved, deleted or replaced, perhaps.
    Moved,
    /// The file of a session was closed by somebody who could write to it: its owner died, perhaps.
    Closed(SessionId),
    /// The file of a session was removed.
    Removed(SessionId),
    /// Events were lost: look at everything.
    Overflow,
}

#[derive(Debug)]
pub(crate) struct Ears {
    inotify: Inotify,
    log: WatchDescriptor,
    sessions: WatchDescriptor,
}

impl Ears {
    /// Fails where the user has too many instances or watches already.
    pub(crate) fn new(place: &Place) -> Result<Self, Errno> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let gone = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        // An unlinked file that is still open changes its attributes (the number of links) only.
        inotify.add_watch(&place.database, gone | AddWatchFlags::IN_ATTRIB)?;
        let log = inotify.add_watch(&place.beside("-wal"), AddWatchFlags::IN_MODIFY)?;
        let sessions = inotify.add_watch(
            &place.sessions(),
            gone | AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_ONLYDIR,
        )?;
        Ok(Self { inotify, log, sessions })
    }

    /// Everything that was heard since the last call, without waiting.
    pub(crate) fn listen(&self) -> Vec<Heard> {
        let mut heard = Vec::new();
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in events {
                        let what = if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                            Some(Heard::Overflow)
                        } else if event.wd == self.log {
                            Some(Heard::Written)
                        } else if event.wd == self.sessions {
                            let id = event.name.as_ref().and_then(|name| name.to_str());
                            match id.map(SessionId::parse) {
                                None => Some(Heard::Moved), // about the directory itself
                                Some(None) => None,
                                Some(Some(id)) if event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE) => {
                                    Some(Heard::Closed(id))
                                }
                                Some(Some(id)) => Some(Heard::Removed(id)),
                            }
                        } else {
                            Some(Heard::Moved)
                        };
                        if let Some(what) = what
                            && heard.last() != Some(&what)
                        {
                            heard.push(what);
                        }
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return heard, // nothing more (EAGAIN)
            }
        }
    }
}

impl AsFd for Ears {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
