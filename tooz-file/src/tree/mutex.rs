//! The mutexes between processes, each held for a moment: one for each stripe of locks, and Python's around groups.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, OnceLock, PoisonError};

use tooz_core::Result;
use tooz_local::file_id::FileId;
use tooz_local::os_lock::{Hold, InTheWay, spin};

use crate::config::Config;
use crate::error::{self, existing};
use crate::keys;
use crate::tree::directory::Directory;

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
    /// Another thread or process has the mutex: the process of this pid, as far as that is known.
    Busy(Option<u32>),
}

/// The mutexes of a tree, as this process has them open.
#[derive(Debug)]
pub(crate) struct Mutexes {
    config: Config,
    /// The directory of the stripes.
    pub(crate) locks: Directory,
    stripes: Vec<OnceLock<Stripe>>,
    driver_pid: File,
}

/// Locks that are changed under one mutex.
#[derive(Debug)]
struct Stripe {
    directory: Directory,
    mutex: Mutex<Option<(File, FileId)>>,
}

/// As long as it lives, no other process changes groups (or, when held together, no process does).
#[derive(Debug)]
pub(crate) struct DriverLock {
    _file: Option<File>,
}

impl Mutexes {
    /// `locks` is the directory of the stripes; in `driver_pid` stands the process that has Python's mutex.
    pub(crate) fn new(config: &Config, locks: Directory, driver_pid: File) -> Self {
        let stripes = (0..keys::STRIPES).map(|_| OnceLock::new()).collect();
        Self { config: config.clone(), locks, stripes, driver_pid }
    }

    /// `NotFound` if no process ever changed a lock of it.
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
                Access::Change => self.locks.make(&name)?,
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

    /// Does something while no other thread or process changes the locks of this stripe.
    pub(crate) fn try_in_stripe<T>(
        &self,
        number: usize,
        access: Access,
        work: impl FnOnce(&Directory) -> Result<Moment<T>>,
    ) -> Result<Moment<T>> {
        let failed = |cause| error::io(self.locks.path.join(keys::stripe(number)).display(), cause);
        let stripe = self.open_stripe(number, access).map_err(failed)?;
        let mut mutex = stripe.mutex.lock().unwrap_or_else(PoisonError::into_inner);
        let in_place = mutex.as_ref().is_some_and(|(_, id)| stripe.directory.has(keys::MUTEX, *id));
        if !in_place {
            let file = match access {
                Access::Change => stripe.directory.open_or_create(keys::MUTEX).map(Some),
                Access::Look => existing(self.open_to_lock(&stripe.directory, keys::MUTEX)),
            };
            // A process that makes a change makes the mutex first.
            let Some(file) = file.map_err(failed)? else { return work(&stripe.directory) };
            let id = FileId::of(&file).map_err(failed)?;
            *mutex = Some((file, id));
        }
        let Some((file, id)) = mutex.as_ref() else { return Ok(Moment::Busy(None)) };
        // Together with other views, and with no process that writes.
        let hold = if self.config.view { Hold::Together } else { Hold::Alone };
        if !spin(|| self.config.flavor.try_lock(file, hold)).map_err(failed)? {
            return Ok(Moment::Busy(read_pid(file)));
        }
        // Deleted between opening and locking: another process may have locked a new one.
        let answer = if stripe.directory.has(keys::MUTEX, *id) {
            let written = self.write_pid(file).map_err(failed);
            written.and_then(|()| work(&stripe.directory))
        } else {
            Ok(Moment::Busy(None))
        };
        self.config.flavor.unlock(file).map_err(failed)?;
        answer
    }

    /// Tries Python's lock around changes of groups, which is a file in this directory.
    pub(crate) fn try_driver_lock(
        &self,
        directory: &Directory,
        hold: Hold,
    ) -> io::Result<Moment<DriverLock>> {
        let file = match hold {
            Hold::Alone => Some(directory.open_or_create(keys::DRIVER_LOCK)?),
            Hold::Together => existing(self.open_to_lock(directory, keys::DRIVER_LOCK))?,
        };
        // Connecting has made it, so it was deleted just now; a process that makes a change makes it first.
        let Some(file) = file else { return Ok(Moment::Done(DriverLock { _file: None })) };
        if !spin(|| self.config.flavor.try_lock(&file, hold))? {
            let pid = match self.config.flavor.in_the_way(&file, hold)? {
                Some(InTheWay::Process(pid)) => Some(pid),
                Some(InTheWay::OpenFile) => read_pid(&self.driver_pid),
                None => None,
            };
            return Ok(Moment::Busy(pid.filter(|pid| *pid > 0)));
        }
        if !directory.has(keys::DRIVER_LOCK, FileId::of(&file)?) {
            return Ok(Moment::Busy(None));
        }
        self.write_pid(&self.driver_pid)?;
        Ok(Moment::Done(DriverLock { _file: Some(file) }))
    }

    /// A shared lock needs no more than the right to read.
    fn open_to_lock(&self, directory: &Directory, name: &str) -> io::Result<File> {
        if self.config.view { directory.open(name) } else { directory.open_write(name) }
    }

    /// Tells processes that wait for a mutex which process has it. A view, which may not write, stays unnamed.
    fn write_pid(&self, file: &File) -> io::Result<()> {
        if self.config.view { Ok(()) } else { file.write_all_at(&std::process::id().to_be_bytes(), 0) }
    }
}

/// The process that wrote its number there last.
pub(crate) fn read_pid(file: &File) -> Option<u32> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(u32::from_be_bytes(bytes)).filter(|pid| *pid > 0)
}
