//! A directory as this process works in it: open directories, mutexes, the counter and the ears. One for each
//! directory, namespace and kind of lock, shared by all coordinators of the process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tooz_core::driver::{Epoch, LockKey, SessionId, Stamp};
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::error;
use crate::host::os_lock::{FileId, Flavor, Hold, InTheWay, spin};
use crate::host::process::{self, Process};
use crate::keys::{self, KeyHash};
use crate::session_state::Local;
use crate::tree::base::open_base;
use crate::tree::directory::{self, Directory};
use crate::tree::fence::Fence;
use crate::tree::inotify::{Area, Ears, Watch, Watching};
use crate::tree::layout;
use crate::tree::owner::short_boot;
use crate::tree::topics::{Hub, Topic};

/// See [`keys`] for what is where.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) pid: u32,
    pub(crate) process: Process,
    pub(crate) boot: u32,
    pub(crate) flavor: Flavor,
    pub(crate) mode: u32,
    /// For looking alone: nothing is made and nothing is written.
    view: bool,
    pub(crate) directory_mode: u32,
    pub(crate) known_file_system: bool,
    /// Whether this is the namespace in which Python works.
    pub(crate) is_default: bool,
    pub(crate) base: Directory,
    root: Directory,
    pub(crate) home: Directory,
    pub(crate) groups: Directory,
    pub(crate) sessions: Directory,
    pub(crate) claims: Directory,
    pub(crate) breaks: Directory,
    pub(crate) broken: Directory,
    pub(crate) tmp: Directory,
    locks: Directory,
    stripes: Vec<OnceLock<Stripe>>,
    driver_pid: File,
    fence: Fence,
    pub(crate) hub: Arc<Hub>,
    ears: Option<Ears>,
    breaks_watch: OnceLock<Option<Watch>>,
    pub(crate) stamp: Stamp,
    locals: Mutex<BTreeMap<SessionId, Weak<Local>>>,
    warned: AtomicBool,
}

/// Locks that are changed under one mutex.
#[derive(Debug)]
struct Stripe {
    directory: Directory,
    mutex: Mutex<Option<(File, FileId)>>,
}

/// What a lookup of a site is by.
type Identity = (PathBuf, Option<String>, Flavor, Option<String>, u32, u32, bool);

static SITES: Mutex<BTreeMap<Identity, Weak<Site>>> = Mutex::new(BTreeMap::new());

/// What is to be done with the records of locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing is made.
    Look,
    Change,
}

/// What a moment under a mutex gave.
pub(crate) enum Moment<T> {
    Done(T),
    /// Somebody else has it, of this pid as far as that is known.
    Busy(Option<u32>),
}

impl Site {
    /// The site of this directory: the one that the process has, unless its directory was replaced.
    pub(crate) fn open(config: &Config, epoch: Epoch) -> Result<Arc<Self>> {
        let (base, known) = open_base(config)?;
        let fresh = Stamp { layout: config.layout, epoch };
        let identity = (
            base.path.clone(),
            config.namespace.clone(),
            config.flavor,
            config.boot_id.clone(),
            config.mode,
            config.layout,
            config.view,
        );
        let mut sites = SITES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(site) = sites.get(&identity).and_then(Weak::upgrade)
            && site.pid == std::process::id()
            && site.is_in_place()
        {
            let now = marks(&site.home, &site.tmp, site.flavor, site.view, site.mode);
            if now.map_err(|fail| fail.about(&base))? == Some(site.stamp) {
                return Ok(site);
            }
        }
        let shown = base.path.clone();
        let site = Self::prepare(config, base, known, fresh);
        let mut site = site.map_err(|fail| match fail {
            Fail::Io(error) if config.view && error.kind() == io::ErrorKind::NotFound => {
                error::nothing_here(&shown)
            }
            fail => fail.about_path(&shown),
        })?;
        if config.view {
            site.stamp.readable(&shown.display(), config.layout)?;
        } else {
            layout::bring_up(&mut site, fresh)?;
        }
        let site = Arc::new(site);
        sites.retain(|_, site| site.strong_count() > 0);
        sites.insert(identity, Arc::downgrade(&site));
        Ok(site)
    }

    fn prepare(
        config: &Config,
        base: Directory,
        known: bool,
        fresh: Stamp,
    ) -> std::result::Result<Self, Fail> {
        let (mode, directory_mode, flavor) = (config.mode, config.directory_mode(), config.flavor);
        let within = |directory: &Directory, name: &str| {
            if config.view { directory.child(name) } else { directory.make(name, directory_mode) }
        };
        let root = within(&base, keys::OURS)?;
        let (home, groups) = match &config.namespace {
            None => (within(&base, keys::OURS)?, within(&base, keys::GROUPS)?),
            Some(namespace) => {
                let namespaces = within(&root, keys::NAMESPACES)?;
                let home = within(&namespaces, &keys::namespace(namespace))?;
                let groups = within(&home, keys::GROUPS)?;
                (home, groups)
            }
        };
        let tmp = within(&home, "tmp")?;
        // One that is missing is written when it is known that no session of another layout lives.
        let stamp = marks(&home, &tmp, flavor, config.view, mode)?.unwrap_or(fresh);
        let boot_id = config.boot_id.clone().map_or_else(process::boot_id, Ok)?;
        let hub = Arc::<Hub>::default();
        let ears = match flavor {
            Flavor::Portable => None,
            Flavor::OpenFile => Ears::new(&hub)
                .inspect_err(
                    |error| tracing::warn!(%error, "no inotify instance is left; changes are polled"),
                )
                .ok(),
        };
        let site = Self {
            pid: std::process::id(),
            process: Process::this(),
            boot: short_boot(&boot_id),
            flavor,
            mode,
            view: config.view,
            directory_mode,
            known_file_system: known,
            is_default: config.namespace.is_none(),
            sessions: within(&home, "sessions")?,
            claims: within(&home, "claims")?,
            breaks: within(&home, "breaks")?,
            broken: within(&home, "broken")?,
            locks: within(&home, "locks")?,
            driver_pid: if config.view {
                home.open(keys::DRIVER_PID)?
            } else {
                home.open_or_create(keys::DRIVER_PID, mode)?
            },
            stripes: (0..keys::STRIPES).map(|_| OnceLock::new()).collect(),
            fence: Fence::new(flavor, &boot_id, mode),
            hub,
            ears,
            breaks_watch: OnceLock::new(),
            stamp,
            locals: Mutex::default(),
            warned: AtomicBool::new(false),
            base,
            root,
            home,
            groups,
            tmp,
        };
        if !site.view {
            // Looking makes nothing, so it is made here.
            match site.driver_lock_place().open_or_create(keys::DRIVER_LOCK, mode) {
                // It is there, and a program that only uses locks does not need it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                there => drop(there?),
            }
            let _ = site.breaks_watch.set(site.watch(&site.breaks, Area::Breaks));
        }
        Ok(site)
    }

    /// Whether it is still what stands under its path.
    pub(crate) fn is_in_place(&self) -> bool {
        let found = fs::symlink_metadata(&self.home.path);
        matches!((found, self.home.id()), (Ok(found), Ok(id)) if found.ino() == id.inode)
            && self.home.stat(keys::EPOCH).is_ok_and(|stamp| stamp.is_some())
    }

    /// Whether changes are pushed by the kernel.
    pub(crate) fn hears(&self) -> bool {
        self.ears.is_some()
    }

    pub(crate) fn watch(&self, directory: &Directory, area: Area) -> Option<Watch> {
        match self.ears.as_ref()?.watch(&directory.path, area) {
            Watching::Heard(watch) => Some(watch),
            Watching::Gone | Watching::Refused => None,
        }
    }

    pub(crate) fn watch_file(&self, directory: &Directory, name: &str, area: Area) -> Watching {
        self.ears.as_ref().map_or(Watching::Refused, |ears| ears.watch(&directory.path.join(name), area))
    }

    /// Hears of every change of this lock and of every session's end, for those who follow its holders.
    pub(crate) fn watch_lock(&self, hash: &KeyHash) -> Vec<Watch> {
        let number = hash.stripe();
        let records = || self.watch(self.stripe(number).ok()?, Area::Stripe(number));
        // Where there are no records yet, their directory is waited for; it may come right now.
        let first = || self.watch(&self.locks, Area::FirstOf(hash.clone()));
        let changes = records().or_else(|| first().and_then(|first| records().or(Some(first))));
        changes.into_iter().chain(self.watch(&self.sessions, Area::Sessions)).collect()
    }

    /// The path at which Python keeps this lock's file, if it is shared with Python.
    pub(crate) fn python_path<'a>(&self, key: &'a LockKey) -> Option<Vec<&'a str>> {
        if !self.is_default || self.flavor == Flavor::Portable {
            return None;
        }
        let path = keys::python_path(key);
        if path.is_none() && matches!(key, LockKey::Named(_)) && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(%key, "this name cannot be shared with Python tooz; it excludes Rust peers only");
        }
        path
    }

    /// `NotFound` if nobody ever changed a lock of it.
    pub(crate) fn stripe(&self, number: usize) -> io::Result<&Directory> {
        self.open_stripe(number, Access::Look).map(|stripe| &stripe.directory)
    }

    fn open_stripe(&self, number: usize, access: Access) -> io::Result<&Stripe> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let slot = self.stripes.get(number).ok_or_else(missing)?;
        if slot.get().is_none() {
            let name = keys::stripe(number);
            let directory = match access {
                Access::Look => self.locks.child(&name)?,
                Access::Change => self.locks.make(&name, self.directory_mode)?,
            };
            // Another thread may have been faster; then this one is dropped.
            let _ = slot.set(Stripe { directory, mutex: Mutex::new(None) });
        }
        slot.get().ok_or_else(missing)
    }

    /// Whether there are records in this stripe.
    pub(crate) fn has_stripe(&self, number: usize) -> bool {
        self.locks.stat(&keys::stripe(number)).is_ok_and(|found| found.is_some())
    }

    /// Does something while nobody else, in any process, changes the locks of this stripe.
    pub(crate) fn try_in_stripe<T>(
        &self,
        number: usize,
        access: Access,
        work: impl FnOnce(&Directory) -> Result<Moment<T>>,
    ) -> Result<Moment<T>> {
        let failed =
            |cause| error::io(format!("{}", self.locks.path.join(keys::stripe(number)).display()), cause);
        let stripe = self.open_stripe(number, access).map_err(failed)?;
        let mut mutex = stripe.mutex.lock().unwrap_or_else(PoisonError::into_inner);
        let in_place = mutex.as_ref().is_some_and(|(_, id)| stripe.directory.has(keys::MUTEX, *id));
        if !in_place {
            let file = match access {
                Access::Change => stripe.directory.open_or_create(keys::MUTEX, self.mode),
                Access::Look => match self.open_to_lock(&stripe.directory, keys::MUTEX) {
                    // Whoever makes a change makes it first.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return work(&stripe.directory),
                    answer => answer,
                },
            };
            let file = file.map_err(failed)?;
            let id = FileId::of(&file).map_err(failed)?;
            *mutex = Some((file, id));
        }
        let Some((file, id)) = mutex.as_ref() else { return Ok(Moment::Busy(None)) };
        // Together with other views, and with nobody who writes.
        let hold = if self.view { Hold::Together } else { Hold::Alone };
        if !spin(|| self.flavor.try_lock(file, hold)).map_err(failed)? {
            return Ok(Moment::Busy(read_pid(file)));
        }
        // Deleted between opening and locking: another process may have locked a new one.
        let answer = if stripe.directory.has(keys::MUTEX, *id) {
            let written = self.say_who(file).map_err(failed);
            written.and_then(|()| work(&stripe.directory))
        } else {
            Ok(Moment::Busy(None))
        };
        self.flavor.unlock(file).map_err(failed)?;
        answer
    }

    /// A shared lock needs no more than the right to read.
    fn open_to_lock(&self, directory: &Directory, name: &str) -> io::Result<File> {
        if self.view { directory.open(name) } else { directory.open_write(name) }
    }

    /// For whoever waits for a lock of ours. A view, which may not write, stays unnamed.
    fn say_who(&self, file: &File) -> io::Result<()> {
        if self.view { Ok(()) } else { write_pid(file, self.pid) }
    }

    /// Python's is in the directory itself; another namespace has one of its own.
    fn driver_lock_place(&self) -> &Directory {
        if self.is_default { &self.base } else { &self.home }
    }

    /// Tries Python's lock around changes of groups.
    pub(crate) fn try_driver_lock(&self, hold: Hold) -> io::Result<Moment<DriverLock>> {
        let place = self.driver_lock_place();
        let file = match hold {
            Hold::Alone => place.open_or_create(keys::DRIVER_LOCK, self.mode)?,
            Hold::Together => match self.open_to_lock(place, keys::DRIVER_LOCK) {
                // Connecting has made it: somebody has just deleted it, and whoever makes a change makes it first.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Moment::Done(DriverLock { _file: None }));
                }
                answer => answer?,
            },
        };
        if !spin(|| self.flavor.try_lock(&file, hold))? {
            let who = match self.flavor.in_the_way(&file, hold)? {
                Some(InTheWay::Process(pid)) => Some(pid),
                Some(InTheWay::OpenFile) => read_pid(&self.driver_pid),
                None => None,
            };
            return Ok(Moment::Busy(who.filter(|pid| *pid > 0)));
        }
        if !place.has(keys::DRIVER_LOCK, FileId::of(&file)?) {
            return Ok(Moment::Busy(None));
        }
        self.say_who(&self.driver_pid)?;
        Ok(Moment::Done(DriverLock { _file: Some(file) }))
    }

    pub(crate) fn fence(&self, wall: std::time::SystemTime) -> Result<Option<tooz_core::FencingToken>> {
        self.fence.take(&self.root, &self.tmp, wall)
    }

    pub(crate) fn raise_fence(
        &self,
        wall: std::time::SystemTime,
        least: tooz_core::FencingToken,
    ) -> Result<Option<()>> {
        self.fence.raise(&self.root, &self.tmp, wall, least)
    }

    pub(crate) fn locals(&self) -> MutexGuard<'_, BTreeMap<SessionId, Weak<Local>>> {
        self.locals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of this process.
    pub(crate) fn local(&self, id: SessionId) -> Option<Arc<Local>> {
        self.locals().get(&id).and_then(Weak::upgrade)
    }

    pub(crate) fn say(&self, topic: &Topic) {
        self.hub.say(topic);
    }
}

/// As long as it lives, no other process changes groups (or, when held together, nobody does).
#[derive(Debug)]
pub(crate) struct DriverLock {
    _file: Option<File>,
}

enum Fail {
    Io(io::Error),
    Tooz(Error),
}

impl Fail {
    fn about(self, base: &Directory) -> Error {
        self.about_path(&base.path)
    }

    fn about_path(self, base: &Path) -> Error {
        match self {
            Self::Io(cause) => error::io(format!("the directory {}", base.join(keys::OURS).display()), cause),
            Self::Tooz(error) => error,
        }
    }
}

impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::Tooz(error)
    }
}

/// Says, or compares, which locks are used here; answers the stamp of the data, if there is one. A view writes nothing, and
/// fails where nothing is.
fn marks(
    home: &Directory,
    tmp: &Directory,
    flavor: Flavor,
    view: bool,
    mode: u32,
) -> std::result::Result<Option<Stamp>, Fail> {
    let word: &[u8] = match flavor {
        Flavor::OpenFile => b"ofd\n",
        Flavor::Portable => b"portable\n",
    };
    let found = once(home, tmp, keys::BACKEND, (!view).then(|| word.to_vec()), mode)?;
    if found != word {
        return Err(Fail::Tooz(other_locks(home, &found)));
    }
    match home.read(keys::EPOCH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !view => Ok(None),
        written => Ok(Some(layout::parse(home, &written?)?)),
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

/// The content of a file that whoever came first wrote, in one step.
pub(crate) fn once(
    home: &Directory,
    tmp: &Directory,
    name: &str,
    content: Option<Vec<u8>>,
    mode: u32,
) -> io::Result<Vec<u8>> {
    match (home.read(name), content) {
        (Err(error), Some(content)) if error.kind() == io::ErrorKind::NotFound => {
            let temporary = directory::unique(name);
            tmp.write_new(&temporary, &content, mode)?.sync_all()?;
            match tmp.publish(&temporary, home, name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    tmp.remove(&temporary)?;
                }
                answer => answer?,
            }
            home.read(name)
        }
        (answer, _) => answer,
    }
}

fn write_pid(file: &File, pid: u32) -> io::Result<()> {
    file.write_all_at(&pid.to_be_bytes(), 0)
}

/// The process that wrote its number there last.
pub(crate) fn read_pid(file: &File) -> Option<u32> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(u32::from_be_bytes(bytes)).filter(|pid| *pid > 0)
}
