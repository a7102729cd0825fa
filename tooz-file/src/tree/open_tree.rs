//! A directory as this process works in it: open directories, mutexes, the fencing counter, and what the kernel tells.
//! All coordinators of the process share one for each directory, namespace and kind of lock.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tooz_core::driver::support::fork::OwnerProcess;
use tooz_core::driver::{LockKey, Stamp};
use tooz_core::{Error, Result};
use tooz_local::os_lock::Flavor;
use tooz_local::process;

use crate::config::Config;
use crate::error;
use crate::keys::{self, KeyHash};
use crate::tree::directory::Directory;
use crate::tree::fence::Fence;
use crate::tree::inotify::{Area, Watch, Watcher, Watching};
use crate::tree::liveness::Sessions;
use crate::tree::mutex::Mutexes;
use crate::tree::owner::short_boot;
use crate::tree::stamp;
use crate::tree::topics::{Topic, Topics};

/// See [`keys`] for what is where.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The process that opened it.
    pub(crate) owner: OwnerProcess,
    pub(crate) flavor: Flavor,
    pub(crate) known_file_system: bool,
    /// Whether this is the namespace in which Python works.
    pub(crate) is_default: bool,
    pub(crate) base: Directory,
    pub(crate) home: Directory,
    pub(crate) groups: Directory,
    pub(crate) claims: Directory,
    pub(crate) break_requests: Directory,
    pub(crate) broken: Directory,
    pub(crate) tmp: Arc<Directory>,
    pub(crate) sessions: Sessions,
    pub(crate) mutexes: Mutexes,
    pub(crate) fence: Fence,
    pub(crate) topics: Arc<Topics>,
    watcher: Option<Watcher>,
    break_requests_watch: OnceLock<Option<Watch>>,
    pub(crate) stamp: Stamp,
    /// Whether the log says already that a name cannot be shared with Python.
    warned: AtomicBool,
}

impl Tree {
    /// Opens what is below `base`. A new directory's stamp is `fresh`; it is written when it is known that no session
    /// of another layout lives.
    pub(crate) fn open(
        config: &Config,
        base: Directory,
        known_file_system: bool,
        fresh: Stamp,
    ) -> Result<Self> {
        let (flavor, view) = (config.flavor, config.view);
        let path = base.path.clone();
        let failed = |cause: io::Error| match cause.kind() {
            io::ErrorKind::NotFound if view => error::nothing_here(&path),
            _ => cannot_open(&path, cause),
        };
        let within = |directory: &Directory, name: &str| {
            let opened = if view { directory.child(name) } else { directory.make(name) };
            opened.map_err(failed)
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
        let tmp = Arc::new(within(&home, "tmp")?);
        stamp::check_locks(&home, &tmp, config, failed)?;
        let stamp = match stamp::read(&home)? {
            None if view => return Err(error::nothing_here(&path)),
            stamp => stamp.unwrap_or(fresh),
        };
        let boot_id = process::boot_id(config.boot_id.as_deref()).map_err(failed)?;
        let topics = Arc::<Topics>::default();
        let watcher = match flavor {
            Flavor::Portable => None,
            Flavor::OpenFile => Watcher::new(&topics)
                .inspect_err(
                    |error| tracing::warn!(%error, "no inotify instance is left; changes are polled"),
                )
                .ok(),
        };
        let sessions = Sessions::new(within(&home, "sessions")?, flavor, short_boot(&boot_id));
        let claims = within(&home, "claims")?;
        let break_requests = within(&home, "breaks")?;
        let broken = within(&home, "broken")?;
        let locks = within(&home, "locks")?;
        let driver_pid =
            if view { home.open(keys::DRIVER_PID) } else { home.open_or_create(keys::DRIVER_PID) };
        let tree = Self {
            owner: OwnerProcess::current(),
            flavor,
            known_file_system,
            is_default: config.namespace.is_none(),
            sessions,
            claims,
            break_requests,
            broken,
            mutexes: Mutexes::new(config, locks, driver_pid.map_err(failed)?),
            fence: Fence::new(root, tmp.clone(), flavor, &boot_id),
            topics,
            watcher,
            break_requests_watch: OnceLock::new(),
            stamp,
            warned: AtomicBool::new(false),
            base,
            home,
            groups,
            tmp,
        };
        if !view {
            // Looking makes nothing, so it is made here.
            match tree.driver_lock_directory().open_or_create(keys::DRIVER_LOCK) {
                // It is there, and a program that only uses locks does not need it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                there => drop(there.map_err(failed)?),
            }
            let _ = tree.break_requests_watch.set(tree.watch(&tree.break_requests, Area::BreakRequests));
        }
        Ok(tree)
    }

    /// Whether this still is what stands under its path.
    pub(crate) fn is_in_place(&self) -> bool {
        let found = fs::symlink_metadata(&self.home.path);
        matches!((found, self.home.id()), (Ok(found), Ok(id)) if found.ino() == id.inode)
            && self.home.stat(keys::EPOCH).is_ok_and(|stamp| stamp.is_some())
    }

    /// Whether changes are pushed by the kernel.
    pub(crate) fn pushes_changes(&self) -> bool {
        self.watcher.is_some()
    }

    pub(crate) fn watch(&self, directory: &Directory, area: Area) -> Option<Watch> {
        match self.watcher.as_ref()?.watch(&directory.path, area) {
            Watching::Watched(watch) => Some(watch),
            Watching::Gone | Watching::Refused => None,
        }
    }

    pub(crate) fn watch_file(&self, directory: &Directory, name: &str, area: Area) -> Watching {
        self.watcher
            .as_ref()
            .map_or(Watching::Refused, |watcher| watcher.watch(&directory.path.join(name), area))
    }

    /// Watches the records of this lock and every session's end, for those who follow its holders.
    pub(crate) fn watch_lock(&self, hash: &KeyHash) -> Vec<Watch> {
        let number = hash.stripe();
        let records = || self.watch(self.mutexes.stripe(number).ok()?, Area::Stripe(number));
        // Where there are no records yet, their directory is waited for; it may come right now.
        let first = || self.watch(&self.mutexes.locks, Area::FirstOf(hash.clone()));
        let changes = records().or_else(|| first().and_then(|first| records().or(Some(first))));
        changes.into_iter().chain(self.watch(&self.sessions.directory, Area::Sessions)).collect()
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

    /// Where the lock around changes of groups is. Python's is in the directory itself; another namespace has one of its
    /// own.
    pub(crate) fn driver_lock_directory(&self) -> &Directory {
        if self.is_default { &self.base } else { &self.home }
    }

    pub(crate) fn notify(&self, topic: &Topic) {
        self.topics.notify(topic);
    }
}

/// The directory cannot be opened.
pub(super) fn cannot_open(base: &Path, cause: io::Error) -> Error {
    error::io(format!("the directory {}", base.join(keys::OURS).display()), cause)
}
