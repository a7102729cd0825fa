//! Where things run: the library's own runtime thread, or the caller's runtime.
//!
//! What must not stop (connections, the drivers' own tasks, the keeper with the heart) lives on one thread of
//! the library, one per process, started at first use: a user runtime that is starved or has ended neither
//! delays a renewal nor swallows a release.
#![allow(clippy::disallowed_methods)] // this is the room in which tasks are started

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::platform::await_point::{traced, traced_poll};
use crate::platform::descriptors::shortage;
use crate::{Error, ErrorKind, Result};

/// On which runtime a coordinator lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Runtime {
    /// The library's own thread: nothing that the program does on its runtime can delay a renewal.
    #[default]
    Library,
    /// The runtime that calls `connect`: for simulation with a paused clock, for embedders, for the lowest
    /// latency. When it ends, the session is abandoned: guards are lost at once, operating-system locks close,
    /// leases on a network end by their ttl.
    Current,
}

/// The library's runtime, and the process that started it: threads do not survive a fork.
static LIBRARY: Mutex<Option<(u32, Handle)>> = Mutex::new(None);

fn library() -> Result<Handle> {
    let mut library = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    if let Some((owner, handle)) = &*library {
        if *owner == pid {
            return Ok(handle.clone());
        }
        let why = format!(
            "this process was forked from process {owner}, and a fork does not copy tooz's thread; start the process \
             with exec instead"
        );
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    let cannot = |why: &str| {
        Error::new(ErrorKind::NoRuntime, format!("cannot start the library's runtime thread{why}"))
    };
    // A runtime that lacks a descriptor for its signals panics (tokio 1.54, 2026).
    if let Some(remedy) = shortage() {
        return Err(cannot(&format!(": {remedy}")));
    }
    let failed = |error: std::io::Error| cannot("").caused_by(error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("tooz".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))
        .map_err(failed)?;
    *library = Some((pid, handle.clone()));
    Ok(handle)
}

/// Starts tasks and timers on the runtime on which a coordinator lives.
#[derive(Clone)]
pub struct Spawner {
    handle: Handle,
    runtime: Runtime,
}

impl Spawner {
    /// A spawner on `runtime`.
    ///
    /// # Errors
    /// `NoRuntime`: [`Runtime::Current`] outside a tokio runtime, or no thread could be started.
    pub fn new(runtime: Runtime) -> Result<Self> {
        let handle = match runtime {
            Runtime::Library => library()?,
            Runtime::Current => Handle::try_current().map_err(|_| {
                Error::new(
                    ErrorKind::NoRuntime,
                    "Runtime::Current needs a tokio runtime around connect(); call it inside one, \
                     or leave the default Runtime::Library",
                )
            })?,
        };
        // Only trying tells, and it is better tried here than in the keeper.
        let timer = || drop(tokio::time::sleep(Duration::ZERO));
        if runtime == Runtime::Current && std::panic::catch_unwind(timer).is_err() {
            return Err(Error::new(
                ErrorKind::NoRuntime,
                "this runtime has no timers; build it with enable_all(), or leave the default Runtime::Library",
            ));
        }
        Ok(Self { handle, runtime })
    }

    /// Whether this is called on the coordinator's runtime.
    pub(crate) fn is_here(&self) -> bool {
        Handle::try_current().is_ok_and(|current| current.id() == self.handle.id())
    }

    /// Starts a task; it ends when the returned handle is dropped, or with the runtime.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Task(Some(self.handle.spawn(future)))
    }

    /// Sleeps on the coordinator's runtime; it can be awaited on any runtime, or on none.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        // On a foreign runtime that ends, a timer polled from here would panic; a task there is dropped quietly.
        if self.is_here() || self.runtime == Runtime::Library {
            let _context = self.handle.enter();
            Sleep(Asleep::Timer(Box::pin(tokio::time::sleep(duration))))
        } else {
            Sleep(Asleep::Task(self.spawn(tokio::time::sleep(duration))))
        }
    }

    /// Polls `future` for at most `limit`; `None` when the time is over. The future is polled last at the
    /// limit, so an answer that has come is not lost.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        let sleep = self.sleep(limit);
        tokio::select! {
            biased; // an answer counts even when the time is over
            output = future => Some(output),
            () = sleep => None,
        }
    }

    /// Runs blocking work on a thread of the coordinator's runtime.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        traced(pin!(self.handle.spawn_blocking(work)))
            .await
            .map_err(|error| Error::new(ErrorKind::Closed, "the runtime ended").caused_by(error))
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Spawner").field(&self.runtime).finish()
    }
}

/// Blocks this thread on `future` for at most `limit`; `None` when the time is over.
pub(crate) fn block_on<F: Future>(future: F, limit: Duration) -> Option<F::Output> {
    struct Unpark(std::thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let (mut future, began) = (pin!(future), std::time::Instant::now());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        let left = limit.checked_sub(began.elapsed()).filter(|left| !left.is_zero())?;
        std::thread::park_timeout(left);
    }
}

/// A running task; dropping it ends the task at its next await.
#[derive(Debug)]
#[must_use = "dropping a task ends it"]
pub struct Task<T>(Option<tokio::task::JoinHandle<T>>);

impl<T> Task<T> {
    /// Lets the task go on by itself until its end or the runtime's.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Its result; `None` if it panicked or its runtime ended.
impl<T> Future for Task<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match &mut self.0 {
            Some(task) => traced_poll(Pin::new(task).poll(cx)).map(Result::ok),
            None => Poll::Ready(None),
        }
    }
}

/// A sleep on the coordinator's runtime.
#[derive(Debug)]
pub struct Sleep(Asleep);

#[derive(Debug)]
enum Asleep {
    Timer(Pin<Box<tokio::time::Sleep>>),
    Task(Task<()>),
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Asleep::Timer(sleep) => traced_poll(sleep.as_mut().poll(cx)),
            Asleep::Task(task) => Pin::new(task).poll(cx).map(|_| ()),
        }
    }
}
