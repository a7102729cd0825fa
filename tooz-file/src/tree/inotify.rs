//! What the kernel tells about the tree: one inotify instance for each directory, namespace and process. A thread of
//! its own reads it, so that it outlives the runtime of the coordinator that came first.
//!
//! A waiter for a lock watches the files of the holders or the waiter immediately before it, and no others. If it
//! watched the directory, each acquisition would wake every process that waits. Only those who follow the content of
//! a directory watch the directory. Every watch has the smallest mask that suffices, and events without a listener
//! are dropped.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tooz_core::driver::SessionId;
use tooz_core::driver::support::fork::OwnerProcess;

use crate::keys::{self, KeyHash};
use crate::tree::topics::{Topic, Topics};

/// What is watched: a directory, by what it holds, or a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Area {
    /// The record of a holder or waiter immediately before a waiter for this lock. `together`: the waiter may be
    /// granted beside it, so that its grant is of interest, too, and not only its end.
    Before {
        lock: KeyHash,
        together: bool,
    },
    /// The file of the session that has such a record.
    SessionBefore(KeyHash),
    /// The file of a session of this process.
    OwnSession(SessionId),
    Sessions,
    BreakRequests,
    Stripe(usize),
    /// The directory of the stripes, while this lock's own is not there yet.
    FirstOf(KeyHash),
    /// Files of locks; with the path of their directory below the base, empty or ending in a slash.
    LockFiles(String),
    Group(String),
}

impl Area {
    fn mask(&self) -> AddWatchFlags {
        let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        let come = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let directory = match self {
            Self::Before { .. } | Self::SessionBefore(_) | Self::OwnSession(_) => AddWatchFlags::empty(),
            _ => AddWatchFlags::IN_ONLYDIR,
        };
        directory
            | match self {
                // A record is never open, so that its removal is its end at once.
                Self::Before { together: false, .. } => AddWatchFlags::IN_DELETE_SELF,
                Self::Before { together: true, .. } => {
                    AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF
                }
                Self::SessionBefore(_) => AddWatchFlags::IN_CLOSE_WRITE,
                // It is open: what its removal changes at once is the number of its names.
                Self::OwnSession(_) => AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVE_SELF,
                Self::Sessions => gone | AddWatchFlags::IN_CLOSE_WRITE,
                Self::BreakRequests | Self::FirstOf(_) => come,
                Self::Stripe(_) => gone | come,
                Self::LockFiles(_) => gone | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE,
                Self::Group(_) => gone | come | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_DELETE_SELF,
            }
    }
}

/// The kernel reports a file's closing a moment before it releases the file's locks, so that a look at once may find
/// the file locked. The moment is a few microseconds, unless the closing process is preempted in it. So the
/// notification is repeated this often.
const REPEATS: u8 = 3;
/// The time between these repetitions.
const REPEAT_AFTER: Duration = Duration::from_millis(4);

#[derive(Debug)]
struct Shared {
    inotify: Inotify,
    repeat: TimerFd,
    stop: EventFd,
    topics: Arc<Topics>,
    /// What each watch is for: one file may be watched for several reasons, and by several tasks for the same.
    areas: Mutex<HashMap<WatchDescriptor, Vec<Area>>>,
    owner: OwnerProcess,
}

/// Whether the kernel watches a file.
#[derive(Debug)]
pub(crate) enum Watching {
    Watched(Watch),
    /// There is no such file any more.
    Gone,
    /// The kernel refused, so the file has to be polled.
    Refused,
}

/// A file or directory is watched as long as this lives.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    descriptor: WatchDescriptor,
    area: Area,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.shared.owner.is_current() {
            return; // a forked child's watches are its parent's
        }
        let mut areas = self.shared.areas();
        // The watch may have ended with the file.
        let Some(list) = areas.get_mut(&self.descriptor) else { return };
        if let Some(index) = list.iter().position(|area| *area == self.area) {
            list.swap_remove(index);
        }
        if list.is_empty() {
            areas.remove(&self.descriptor);
            let _ = self.shared.inotify.rm_watch(self.descriptor);
        }
    }
}

/// Turns the kernel's events into notifications, as long as it lives.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Fails where the user has too many inotify instances already.
    pub(crate) fn new(topics: &Arc<Topics>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            repeat: TimerFd::new(
                ClockId::CLOCK_MONOTONIC,
                TimerFlags::TFD_CLOEXEC.union(TimerFlags::TFD_NONBLOCK),
            )?,
            stop: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            topics: topics.clone(),
            areas: Mutex::default(),
            owner: OwnerProcess::current(),
        });
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new().name("tooz-file".into()).spawn(move || shared.run())?
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn watch(&self, path: &Path, area: Area) -> Watching {
        let mut areas = self.shared.areas();
        let flags = area.mask() | ADD | AddWatchFlags::IN_DONT_FOLLOW;
        match self.shared.inotify.add_watch(path, flags) {
            Ok(descriptor) => {
                areas.entry(descriptor).or_default().push(area.clone());
                Watching::Watched(Watch { shared: self.shared.clone(), descriptor, area })
            }
            Err(Errno::ENOENT) => Watching::Gone,
            Err(errno) => {
                tracing::warn!(path = %path.display(), %errno, "cannot be watched; it is polled");
                Watching::Refused
            }
        }
    }
}

/// Adds to the mask of a file that is watched already for another reason; nix 0.31 has no name for it.
const ADD: AddWatchFlags = AddWatchFlags::from_bits_retain(nix::libc::IN_MASK_ADD);

impl Drop for Watcher {
    fn drop(&mut self) {
        if !self.shared.owner.is_current() {
            // A forked child shares the descriptors and has no such thread.
            return std::mem::forget(self.thread.take());
        }
        let stopped = self.shared.stop.write(1);
        let here = std::thread::current().id();
        if let Some(thread) = self.thread.take()
            && stopped.is_ok()
            && thread.thread().id() != here
        {
            // The thread does nothing that takes long. The panic hook reported a panic in it.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn areas(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, Vec<Area>>> {
        self.areas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut repeats: Vec<(Topic, u8)> = Vec::new();
        loop {
            let mut descriptors = [
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.repeat.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut descriptors, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "no more events are heard; locks and groups are polled");
                    return;
                }
            }
            let [stop, events, repeat] = descriptors.map(|descriptor| descriptor.any().unwrap_or(false));
            if stop {
                return;
            }
            let armed = !repeats.is_empty();
            if events {
                self.read_events(&mut repeats);
            }
            if repeat {
                // The timer expired, so reading it does not wait.
                let _ = self.repeat.wait();
                for (topic, left) in &mut repeats {
                    self.topics.notify(topic);
                    *left -= 1;
                }
                repeats.retain(|(_, left)| *left > 0);
            }
            if !repeats.is_empty() && (repeat || !armed) {
                let soon = Expiration::OneShot(TimeSpec::from_duration(REPEAT_AFTER));
                if let Err(errno) = self.repeat.set(soon, TimerSetTimeFlags::empty()) {
                    // Then the safety poll of each waiter and watcher finds the change.
                    tracing::debug!(%errno, "no timer");
                    repeats.clear();
                }
            }
        }
    }

    /// Notifies of all events that are there, of each topic once for one reading.
    fn read_events(&self, repeats: &mut Vec<(Topic, u8)>) {
        while let Ok(events) = self.inotify.read_events() {
            let mut areas = self.areas();
            let mut notified: Vec<Topic> = Vec::new();
            for event in &events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    self.topics.notify_all(true);
                    continue;
                }
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    areas.remove(&event.wd);
                    continue;
                }
                let Some(list) = areas.get(&event.wd) else { continue };
                for topic in list.iter().flat_map(|area| topics_of(area, event)) {
                    if !self.topics.has_listener(&topic) {
                        continue;
                    }
                    if event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE) {
                        repeats.retain(|(other, _)| *other != topic);
                        repeats.push((topic.clone(), REPEATS));
                    }
                    if !notified.contains(&topic) {
                        self.topics.notify(&topic);
                        notified.push(topic);
                    }
                }
            }
        }
    }
}

fn topics_of(area: &Area, event: &InotifyEvent) -> Vec<Topic> {
    let name = event.name.as_ref().and_then(|name| name.to_str());
    let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
    match (area, name) {
        (Area::Before { lock, .. }, _) => vec![Topic::Lock(lock.clone())],
        (Area::SessionBefore(lock), _) if event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE) => {
            vec![Topic::Lock(lock.clone())]
        }
        (Area::OwnSession(id), _) => vec![Topic::Session(*id)],
        (Area::Sessions, Some(name)) => match SessionId::parse(name) {
            Some(id) => vec![Topic::Deaths, Topic::Session(id)],
            None => Vec::new(),
        },
        (Area::BreakRequests, Some(name)) => {
            keys::parse_break_request(name).map(|(session, _)| Topic::Session(session)).into_iter().collect()
        }
        // A new waiter at the end of the queue is of no interest to those before it.
        (Area::Stripe(_), Some(name)) if !keys::is_waiter(name) || event.mask.intersects(gone) => {
            KeyHash::of_record(name).map(Topic::Lock).into_iter().collect()
        }
        (Area::FirstOf(lock), Some(name)) if keys::stripe(lock.stripe()) == name => {
            vec![Topic::Lock(lock.clone())]
        }
        (Area::LockFiles(parent), Some(name)) => {
            let file = Topic::LockFile(format!("{parent}{name}"));
            if event.mask.intersects(AddWatchFlags::IN_CLOSE_WRITE) {
                vec![file]
            } else {
                vec![file, Topic::LockFileGone]
            }
        }
        (Area::Group(group), Some(name)) if keys::is_member(name) || name == keys::METADATA => {
            vec![Topic::Group(group.clone())]
        }
        // About the directory itself.
        (Area::Group(group), None) => vec![Topic::Group(group.clone())],
        _ => Vec::new(),
    }
}
