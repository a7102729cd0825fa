//! The queue of jobs in front of the database thread, and what else callers and the thread share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{oneshot, watch};
use tooz_core::driver::support::fork::OwnerProcess;
use tooz_core::driver::{Context, Instant};
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::engine::paths::Paths;
use crate::engine::spin::Spin;
use crate::engine::tx::Tx;
use crate::error::{self, Work};

/// How long a caller looks for an answer before it sleeps. Less than the time for which a task may block its runtime.
const SPIN: Duration = Duration::from_micros(50);

/// What a job does to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// The job only reads, and does not wait for a writer.
    Read,
    /// The job writes; a power cut may undo it.
    Write,
    /// The job writes; a power cut does not undo it.
    Durable,
}

/// A job for the database thread.
pub(crate) struct Job {
    pub(crate) level: Level,
    pub(crate) deadline: Instant,
    pub(crate) call: Box<dyn Run>,
}

/// The work of a job and its reply.
pub(crate) trait Run: Send {
    /// May run again if the transaction was rolled back.
    fn run(&mut self, tx: &mut Tx<'_>) -> Work<()>;
    /// Ends the job; `outcome` is the error of the whole transaction, if there was one.
    fn finish(self: Box<Self>, outcome: Result<()>);
}

struct Call<T, W, R> {
    work: W,
    answer: Option<T>,
    reply: R,
}

impl<T, W, R> Run for Call<T, W, R>
where
    T: Send,
    W: FnMut(&mut Tx<'_>) -> Work<T> + Send,
    R: FnOnce(Result<T>) + Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> Work<()> {
        self.answer = None;
        self.answer = Some((self.work)(tx)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<()>) {
        let Self { work, answer, reply } = *self;
        // It may hold the client, which the caller may drop as soon as it has the answer.
        drop(work);
        let missing = || Error::new(ErrorKind::Backend, "the job was not run");
        reply(outcome.and_then(|()| answer.ok_or_else(missing)));
    }
}

/// One database as the callers of this process and its thread share it.
pub(crate) struct Jobs {
    pub(crate) paths: Paths,
    pub(crate) context: Context,
    /// A boot that a test pretends.
    pub(crate) boot_id: Option<String>,
    pub(crate) layout: u32,
    /// An operator adopts the database. False again when that is done, or the client that wanted it has left.
    pub(crate) adopt: AtomicBool,
    /// Neither the thread nor SQLite's locks come along in a fork.
    owner: OwnerProcess,
    queue: Mutex<Queue>,
    pub(crate) wakeup: EventFd,
    /// A copy is with each caller that waits for an answer, or has one that it has not looked at yet.
    callers: Arc<()>,
    /// Whether waiting for an answer without sleeping pays.
    spin: Spin,
    /// A session was dropped without being closed.
    abandoned: AtomicBool,
    ended: watch::Sender<bool>,
}

#[derive(Default)]
#[allow(clippy::struct_excessive_bools)] // independent facts, not one state
struct Queue {
    jobs: VecDeque<Job>,
    /// The thread sleeps, or is about to look once more and sleep: a new job has to wake it.
    asleep: bool,
    /// The thread is running jobs that it took.
    working: bool,
    /// No client is left: the thread ends when the jobs are done.
    closing: bool,
    /// The thread takes no more jobs.
    ended: bool,
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("database", &self.paths.database).finish_non_exhaustive()
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the connection to the database was closed")
}

impl Jobs {
    pub(crate) fn new(paths: Paths, config: &Config, context: &Context) -> Result<Self> {
        let wakeup = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| error::io("creating an event descriptor", errno.into()))?;
        Ok(Self {
            paths,
            context: context.clone(),
            boot_id: config.boot_id.clone(),
            layout: config.layout,
            adopt: AtomicBool::new(config.adopt),
            owner: OwnerProcess::current(),
            queue: Mutex::default(),
            wakeup,
            callers: Arc::default(),
            spin: Spin::default(),
            abandoned: AtomicBool::new(false),
            ended: watch::Sender::new(false),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails in a process that was forked from the one that connected.
    pub(crate) fn check_process(&self) -> Result<()> {
        self.owner.check("connection")
    }

    /// Queues `work`; `reply` gets its outcome on the thread. Whether the outcome comes at once: the thread is awake and
    /// has nothing else to do.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        level: Level,
        limit: Duration,
        work: impl FnMut(&mut Tx<'_>) -> Work<T> + Send + 'static,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) -> bool {
        let deadline = self.context.clock.now() + limit;
        let job = Job { level, deadline, call: Box::new(Call { work, answer: None, reply }) };
        let mut queue = self.queue();
        if queue.ended {
            drop(queue);
            job.call.finish(Err(closed()));
            return true;
        }
        queue.jobs.push_back(job);
        let asleep = std::mem::take(&mut queue.asleep);
        let next = !asleep && !queue.working && queue.jobs.len() == 1;
        drop(queue);
        if asleep {
            self.wake();
        }
        next
    }

    /// Notes that a session was dropped, for the thread to clear it away. The note is in memory; no job is queued.
    pub(crate) fn note_abandoned(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(crate) fn take_abandoned(&self) -> bool {
        self.abandoned.swap(false, Ordering::SeqCst)
    }

    /// Wakes the thread.
    fn wake(&self) {
        // It fails only when the counter is full: then the thread wakes already.
        let _ = self.wakeup.write(1);
    }

    /// Runs `work` in a transaction on the database thread.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        level: Level,
        limit: Duration,
        work: impl FnMut(&mut Tx<'_>) -> Work<T> + Send + 'static,
    ) -> Result<T> {
        self.check_process()?;
        let _caller = self.callers.clone();
        let (sender, mut receiver) = oneshot::channel();
        // The reply may find no receiver: the caller has gone, and the job was done all the same.
        let next = self.submit(level, limit, work, move |answer| drop(sender.send(answer)));
        if next && self.callers() == 1 {
            // A transaction takes less time than a sleep and a wake-up, which would double the cost of an
            // uncontended acquire.
            let look = || match receiver.try_recv() {
                Ok(answer) => Some(answer),
                Err(oneshot::error::TryRecvError::Empty) => None,
                Err(oneshot::error::TryRecvError::Closed) => Some(Err(closed())),
            };
            if let Some(answer) = self.spin.wait(&self.context.clock, SPIN, look) {
                return answer;
            }
        }
        receiver.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Lets the thread end when the jobs are done.
    pub(crate) fn close(&self) {
        self.queue().closing = true;
        self.wake();
    }

    /// If the thread is to end, waits until it has closed the database.
    pub(crate) async fn wait_for_end(&self) {
        let closing = self.queue().closing;
        if closing {
            // The sender lives as long as `self`, so the channel cannot be closed.
            let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
        }
    }

    // What follows is the thread's side.

    pub(crate) fn callers(&self) -> usize {
        Arc::strong_count(&self.callers) - 1
    }

    /// Takes at most `most` jobs.
    pub(crate) fn take(&self, most: usize) -> Vec<Job> {
        let mut queue = self.queue();
        let count = queue.jobs.len().min(most);
        queue.working = count > 0;
        queue.jobs.drain(..count).collect()
    }

    /// Puts jobs back in front, in their order.
    pub(crate) fn put_back(&self, jobs: Vec<Job>) {
        let mut queue = self.queue();
        for job in jobs.into_iter().rev() {
            queue.jobs.push_front(job);
        }
    }

    /// The thread is done with the jobs that it took; how many have come since.
    pub(crate) fn waiting(&self) -> usize {
        let mut queue = self.queue();
        queue.working = false;
        queue.jobs.len()
    }

    /// Whether the thread may sleep; from now on a new job wakes it.
    pub(crate) fn fall_asleep(&self) -> bool {
        let mut queue = self.queue();
        queue.asleep = queue.jobs.is_empty() && !queue.closing;
        queue.asleep
    }

    pub(crate) fn awake(&self) {
        self.queue().asleep = false;
    }

    /// Whether the thread is to end: no client is left, and no job.
    pub(crate) fn is_over(&self) -> bool {
        let queue = self.queue();
        queue.closing && queue.jobs.is_empty()
    }

    /// Fails the jobs that are left, and tells those who wait for the end of the thread.
    pub(crate) fn end(&self) {
        let jobs = {
            let mut queue = self.queue();
            queue.ended = true;
            std::mem::take(&mut queue.jobs)
        };
        for job in jobs {
            job.call.finish(Err(closed()));
        }
        self.ended.send_replace(true);
    }
}
