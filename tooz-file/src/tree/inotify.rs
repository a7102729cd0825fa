//! What the kernel tells about the directory: one inotify instance for each directory, namespace and process, read
//! by a thread of its own, so that it outlives the runtime of whichever coordinator came first.
//!
//! Who waits for a lock hears of those who are immediately before it, by watches on their very files, and of nobody
//! else: were the directory watched, each acquisition would wake every process that waits. Directories are watched only
//! by those who follow what stands in them. Every watch has the smallest mask that will do, and names that nobody asked
//! for are dropped.

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

use crate::keys::{self, KeyHash};
use crate::tree::topics::{Hub, Topic};

/// What is watched: a directory, by what it holds, or a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Area {
    /// The record of somebody immediately before a waiter for this lock. `together`: the waiter may be granted beside it,
    /// so that its turn is of interest, too, and not only its end.
    Before {
        lock: KeyHash,
        together: bool,
    },
    /// The file of the session of somebody immediately before a waiter for this lock.
    Life(KeyHash),
    /// The file of a session of ours.
    Own(SessionId),
    Sessions,
    Breaks,
    Stripe(usize),
    /// The directory of these, where a lock's own is not there yet.
    FirstOf(KeyHash),
    /// Files of locks; with the directory's path below ours, empty or ending in a slash.
    LockFiles(String),
    Group(String),
}

impl Area {
    fn mask(&self) -> AddWatchFlags {
        let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        let come = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let directory = match self {
            Self::Before { .. } | Self::Life(_) | Self::Own(_) => AddWatchFlags::empty(),
            _ => AddWatchFlags::IN_ONLYDIR,
        };
        directory
            | match self {
                // A record is never open, so that its removal is its end at once.
                Self::Before { together: false, .. } => AddWatchFlags::IN_DELETE_SELF,
                Self::Before { together: true, .. } => {
                    AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF
                }
                Self::Life(_) => AddWatchFlags::IN_CLOSE_WRITE,
                // It is open: what its removal changes at once is the number of its names.
                Self::Own(_) => AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVE_SELF,
                Self::Sessions => gone | AddWatchFlags::IN_CLOSE_WRITE,
                Self::Breaks | Self::FirstOf(_) => come,
                Self::Stripe(_) => gone | come,
                Self::LockFiles(_) => gone | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE,
                Self::Group(_) => gone | come | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_DELETE_SELF,
            }
    }
}

/// The kernel tells of a file's closing a moment before it lets the file's locks go, so that whoever looks at once
/// may find it locked. What was said is said again so often, with this between: the moment is mere microseconds
/// unless the closing process is preempted in it.
const ECHOES: u8 = 3;
const ECHO: Duration = Duration::from_millis(4);

#[derive(Debug)]
struct Shared {
    inotify: Inotify,
    echo: TimerFd,
    stop: EventFd,
    hub: Arc<Hub>,
    /// Who watches what: one file may be watched for several reasons, and by several for the same.
    areas: Mutex<HashMap<WatchDescriptor, Vec<Area>>>,
    pid: u32,
}

/// What became of a wish to watch.
#[derive(Debug)]
pub(crate) enum Watching {
    Heard(Watch),
    /// There is no such file any more.
    Gone,
    /// The kernel refused, so it has to be polled.
    Refused,
}

/// Something is watched as long as it lives.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    descriptor: WatchDescriptor,
    area: Area,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.shared.pid != std::process::id() {
            return; // a forked child's watches are its parent's
        }
        let mut areas = self.shared.areas();
        // It may have gone with what it watched.
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

/// The kernel's events, as long as it lives.
#[derive(Debug)]
pub(crate) struct Ears {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Ears {
    /// Fails where the user has too many inotify instances already.
    pub(crate) fn new(hub: &Arc<Hub>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            echo: TimerFd::new(
                ClockId::CLOCK_MONOTONIC,
                TimerFlags::TFD_CLOEXEC.union(TimerFlags::TFD_NONBLOCK),
            )?,
            stop: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            hub: hub.clone(),
            areas: Mutex::default(),
            pid: std::process::id(),
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
                Watching::Heard(Watch { shared: self.shared.clone(), descriptor, area })
            }
            Err(Errno::ENOENT) => Watching::Gone,
            Err(errno) => {
                tracing::warn!(path = %path.display(), %errno, "cannot be watched; it is polled");
                Watching::Refused
            }
        }
    }
}

/// What is watched already for another reason stays so; nix 0.31 has no name for it.
const ADD: AddWatchFlags = AddWatchFlags::from_bits_retain(nix::libc::IN_MASK_ADD);

impl Drop for Ears {
    fn drop(&mut self) {
        if self.shared.pid != std::process::id() {
            // A forked child shares the descriptors and has no such thread.
            return std::mem::forget(self.thread.take());
        }
        let told = self.shared.stop.write(1);
        let here = std::thread::current().id();
        if let Some(thread) = self.thread.take()
            && told.is_ok()
            && thread.thread().id() != here
        {
            // It does nothing that takes long. A panic in it was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn areas(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, Vec<Area>>> {
        self.areas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut echoes: Vec<(Topic, u8)> = Vec::new();
        loop {
            let mut descriptors = [
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.echo.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut descriptors, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "no more events are heard; locks and groups are polled");
                    return;
                }
            }
            let [stop, events, echo] = descriptors.map(|descriptor| descriptor.any().unwrap_or(false));
            if stop {
                return;
            }
            let armed = !echoes.is_empty();
            if events {
                self.listen(&mut echoes);
            }
            if echo {
                // Expired: reading it waits for nothing.
                let _ = self.echo.wait();
                for (topic, left) in &mut echoes {
                    self.hub.say(topic);
                    *left -= 1;
                }
                echoes.retain(|(_, left)| *left > 0);
            }
            if !echoes.is_empty() && (echo || !armed) {
                let soon = Expiration::OneShot(TimeSpec::from_duration(ECHO));
                if let Err(errno) = self.echo.set(soon, TimerSetTimeFlags::empty()) {
                    // Then it is found by the poll that everybody does for safety.
                    tracing::debug!(%errno, "no timer");
                    echoes.clear();
                }
            }
        }
    }

    /// Says everything that was heard, each thing once for one reading.
    fn listen(&self, echoes: &mut Vec<(Topic, u8)>) {
        while let Ok(events) = self.inotify.read_events() {
            let mut areas = self.areas();
            let mut said: Vec<Topic> = Vec::new();
            for event in &events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    self.hub.say_all(true);
                    continue;
                }
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    areas.remove(&event.wd);
                    continue;
                }
                let Some(list) = areas.get(&event.wd) else { continue };
                for topic in list.iter().flat_map(|area| topics(area, event)) {
                    if !self.hub.wants(&topic) {
                        continue;
                    }
                    if event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE) {
                        echoes.retain(|(other, _)| *other != topic);
                        echoes.push((topic.clone(), ECHOES));
                    }
                    if !said.contains(&topic) {
                        self.hub.say(&topic);
                        said.push(topic);
                    }
                }
            }
        }
    }
}

fn topics(area: &Area, event: &InotifyEvent) -> Vec<Topic> {
    let name = event.name.as_ref().and_then(|name| name.to_str());
    let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
    match (area, name) {
        (Area::Before { lock, .. }, _) => vec![Topic::Lock(lock.clone())],
        (Area::Life(lock), _) if event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE) => {
            vec![Topic::Lock(lock.clone())]
        }
        (Area::Own(id), _) => vec![Topic::Session(*id)],
        (Area::Sessions, Some(name)) => match SessionId::parse(name) {
            Some(id) => vec![Topic::Deaths, Topic::Session(id)],
            None => Vec::new(),
        },
        (Area::Breaks, Some(name)) => {
            keys::parse_break_request(name).map(|(session, _)| Topic::Session(session)).into_iter().collect()
        }
        // Somebody else's place at the end of the queue is of no interest to those before.
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
