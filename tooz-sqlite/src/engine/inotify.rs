//! The kernel's events about the database's files: one inotify instance per database and process.
//!
//! Every watch has the smallest mask that will do, and events of names that are no session's are dropped. Otherwise every look
//! of every other process would wake this one.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tooz_core::driver::SessionId;

use crate::engine::paths::Paths;

/// What was watched is no longer at its path.
const GONE: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF.union(AddWatchFlags::IN_MOVE_SELF);

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileEvent {
    /// A process, perhaps this one, wrote to the write-ahead log.
    Written,
    /// The database or the directory of sessions may have been moved, deleted or replaced.
    Moved,
    /// A process that could write to a session's file closed it: the owner may have died.
    Closed(SessionId),
    /// The file of a session of this process may have been removed.
    Touched(SessionId),
    /// Events were lost: everything has to be checked.
    Overflow,
}

#[derive(Debug)]
pub(crate) struct FileEvents {
    inotify: Inotify,
    database: WatchDescriptor,
    log: Option<WatchDescriptor>,
    sessions: WatchDescriptor,
    /// The files of this process's sessions.
    own: HashMap<WatchDescriptor, SessionId>,
}

impl FileEvents {
    /// Fails where the user has too many instances or watches already.
    pub(crate) fn new(paths: &Paths) -> Result<Self, Errno> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // An unlinked file that is still open changes its attributes (the number of links) only.
        let database = inotify.add_watch(&paths.database, GONE | AddWatchFlags::IN_ATTRIB)?;
        let sessions = inotify.add_watch(&paths.sessions(), GONE | AddWatchFlags::IN_ONLYDIR)?;
        Ok(Self { inotify, database, log: None, sessions, own: HashMap::new() })
    }

    /// Whether every commit and every death makes an event.
    pub(crate) fn watches_all(&self) -> bool {
        self.log.is_some()
    }

    /// Listens for every commit and every death.
    pub(crate) fn watch_all(&mut self, paths: &Paths) -> Result<(), Errno> {
        // A session that is closed in order removes its file before it closes the file, and must not look like a death.
        // (nix 0.31 has no name for the flag.)
        let linked = AddWatchFlags::from_bits_retain(libc::IN_EXCL_UNLINK);
        self.listen_to_sessions(paths, AddWatchFlags::IN_CLOSE_WRITE | linked)?;
        self.log = Some(self.inotify.add_watch(&paths.beside("-wal"), AddWatchFlags::IN_MODIFY)?);
        Ok(())
    }

    /// Listens only for what concerns this process: otherwise each death would wake every process.
    pub(crate) fn watch_own(&mut self, paths: &Paths) {
        if let Some(log) = self.log.take() {
            let _ = self.inotify.rm_watch(log); // the watch is gone already if the file is
        }
        let _ = self.listen_to_sessions(paths, AddWatchFlags::empty()); // if it fails, more events than needed go on
    }

    /// Adding the same path again replaces the mask of its watch.
    fn listen_to_sessions(&mut self, paths: &Paths, what: AddWatchFlags) -> Result<(), Errno> {
        self.sessions = self.inotify.add_watch(&paths.sessions(), GONE | AddWatchFlags::IN_ONLYDIR | what)?;
        Ok(())
    }

    /// Listens for the loss of a session's file. Where that fails, the check every second has to do.
    pub(crate) fn watch_session(&mut self, path: &Path, id: SessionId) {
        match self.inotify.add_watch(path, GONE | AddWatchFlags::IN_ATTRIB) {
            Ok(watch) => drop(self.own.insert(watch, id)),
            Err(error) => {
                tracing::debug!(%error, session = %id, "the loss of the session's file makes no event");
            }
        }
    }

    /// Stops listening: the session has ended.
    pub(crate) fn forget_session(&mut self, id: SessionId) {
        for (watch, _) in self.own.extract_if(|_, own| *own == id) {
            let _ = self.inotify.rm_watch(watch); // the watch is gone already if the file is
        }
    }

    /// The events since the last call, without waiting.
    pub(crate) fn read(&self) -> Vec<FileEvent> {
        let mut found = Vec::new();
        while let Ok(events) = self.inotify.read_events() {
            found.extend(events.iter().filter_map(|event| self.meaning(event)));
        }
        found.dedup();
        found
    }

    fn meaning(&self, event: &InotifyEvent) -> Option<FileEvent> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            Some(FileEvent::Overflow)
        } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            None // a watch ended; the event before it said why
        } else if Some(event.wd) == self.log {
            Some(FileEvent::Written)
        } else if let Some(id) = self.own.get(&event.wd) {
            Some(FileEvent::Touched(*id))
        } else if event.wd == self.sessions {
            match &event.name {
                None => Some(FileEvent::Moved), // about the directory itself
                Some(name) => SessionId::parse(name.to_str()?).map(FileEvent::Closed),
            }
        } else {
            // Otherwise of a watch that has ended meanwhile.
            (event.wd == self.database).then_some(FileEvent::Moved)
        }
    }
}

impl AsFd for FileEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
