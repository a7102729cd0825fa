//! A client: one driver's share in the database thread of this process.
//!
//! Nothing else in a process may open and close the database file: closing any descriptor of a file drops the process's POSIX
//! locks on the file, and with them SQLite's. So all drivers on one database share one thread, and a new thread waits for the
//! end of the one before it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tooz_core::driver::{Context, LockKey};
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::engine::jobs::{self, Jobs, Level};
use crate::engine::paths::Paths;
use crate::engine::tx::Tx;
use crate::error::Work;
use crate::keys::Lock;
use crate::{engine, error};

struct Entry {
    jobs: Arc<Jobs>,
    clients: usize,
    thread: JoinHandle<()>,
}

/// The threads of this process: those that run, and those that are ending.
#[derive(Default)]
struct Threads {
    open: Vec<Entry>,
    ending: Vec<(PathBuf, JoinHandle<()>)>,
}

static THREADS: Mutex<Threads> = Mutex::new(Threads { open: Vec::new(), ending: Vec::new() });

fn threads() -> MutexGuard<'static, Threads> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One driver's share in a thread. The thread ends with the last client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) config: Config,
    done: AtomicBool,
}

impl Client {
    /// Finds the thread of a database, or starts one.
    pub(crate) fn new(config: Config, context: &Context) -> Result<Self> {
        let paths = Paths { mode: config.mode, ..Paths::find(&config.path, config.force_filesystem)? };
        let mut threads = threads();
        // A thread is finished only if it panicked. Its clients get errors, and a new thread starts.
        threads.open.retain(|entry| !entry.thread.is_finished());
        let found = threads.open.iter_mut().find(|entry| entry.jobs.paths.database == paths.database);
        if let Some(Entry { jobs, clients, .. }) = found {
            jobs.check_process()?;
            let other = [
                ("boot_id", jobs.boot_id != config.boot_id),
                ("layout", jobs.layout != config.layout),
                ("mode", jobs.paths.mode != config.mode),
            ];
            if let Some((name, _)) = other.iter().find(|(_, differs)| *differs) {
                let what = format!("option \"{name}\": this process has the database open with another one");
                return Err(Error::new(ErrorKind::InvalidOption, what));
            }
            *clients += 1;
            jobs.adopt.fetch_or(config.adopt, Ordering::SeqCst);
            return Ok(Self { jobs: jobs.clone(), config, done: AtomicBool::new(false) });
        }
        let jobs = Arc::new(Jobs::new(paths, &config, context)?);
        let ending = threads.ending.iter().position(|(database, _)| *database == jobs.paths.database);
        let predecessor = ending.map(|index| threads.ending.swap_remove(index).1);
        threads.ending.retain(|(_, thread)| !thread.is_finished());
        let thread = {
            let jobs = jobs.clone();
            std::thread::Builder::new().name("tooz-sqlite".into()).spawn(move || {
                if let Some(thread) = predecessor {
                    let _ = thread.join(); // it has no result; a panic there has been reported
                }
                engine::run(&jobs);
            })
        };
        let thread = thread.map_err(|error| error::io("starting the database thread", error))?;
        threads.open.push(Entry { jobs: jobs.clone(), clients: 1, thread });
        Ok(Self { jobs, config, done: AtomicBool::new(false) })
    }

    pub(crate) fn lock(&self, key: &LockKey) -> Lock {
        Lock::new(&self.config.namespace, key)
    }

    /// Runs `work` within the operation's time limit.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        level: Level,
        work: impl FnMut(&mut Tx<'_>) -> Work<T> + Send + 'static,
    ) -> Result<T> {
        self.call_within(level, self.config.limits.operation_timeout, work).await
    }

    pub(crate) async fn call_within<T: Send + 'static>(
        &self,
        level: Level,
        limit: Duration,
        work: impl FnMut(&mut Tx<'_>) -> Work<T> + Send + 'static,
    ) -> Result<T> {
        if self.done.load(Ordering::SeqCst) {
            return Err(jobs::closed());
        }
        let level = if self.config.durable && level == Level::Write { Level::Durable } else { level };
        self.jobs.call(level, limit, work).await
    }

    /// Gives the share back. A forked child changes nothing: everything belongs to the parent.
    fn leave(&self) {
        if self.jobs.check_process().is_err() || self.done.swap(true, Ordering::SeqCst) {
            return;
        }
        if self.config.adopt {
            self.jobs.adopt.store(false, Ordering::SeqCst);
        }
        let mut threads = threads();
        let Some(index) = threads.open.iter().position(|entry| Arc::ptr_eq(&entry.jobs, &self.jobs)) else {
            return;
        };
        threads.open[index].clients -= 1;
        if threads.open[index].clients == 0 {
            let Entry { jobs, thread, .. } = threads.open.swap_remove(index);
            jobs.close();
            threads.ending.push((jobs.paths.database.clone(), thread));
        }
    }

    /// Gives the share back and, if it was the last one, waits until the thread has closed the database.
    pub(crate) async fn close(&self) -> Result<()> {
        self.jobs.check_process()?;
        self.leave();
        self.jobs.wait_for_end().await;
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.leave();
    }
}
