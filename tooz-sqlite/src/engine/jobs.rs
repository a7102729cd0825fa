//! One client per database and process: the queue in front of the database thread.
//!
//! Nothing else in a process may open and close the database file: closing any descriptor of a file drops the
//! process's POSIX locks on it, and with them SQLite's. So all drivers on one database share a client, and a new
//! client's thread waits for the end of its predecessor's.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{oneshot, watch};
use tooz_core::clock::{Clock, Instant};
use tooz_core::driver::Context;
use tooz_core::entropy::Entropy;
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::engine;
use crate::engine::paths::Place;
use crate::engine::spin::Spin;
use crate::engine::tx::{Effect, Tx};
use crate::error::{self, Work};
use crate::groups;
use crate::watch::GroupWatch;

/// How long a caller looks for an answer before it sleeps; less than a task may keep its runtime from others.
const PATIENCE: Duration = Duration::from_micros(50);

/// What a job does to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// It only reads, and does not wait for a writer.
    Read,
    /// It writes; a power cut may undo it.
    Write,
    /// It writes; a power cut does not undo it.
    Durable,
}

/// Work for the database thread.
pub(crate) trait Job: Send {
    fn level(&self) -> Level;
    fn deadline(&self) -> Instant;
    /// May be called again if the transaction could not be kept.
    fn run(&mut self, tx: &mut Tx<'_>) -> Work<()>;
    /// Called once: with the error of the whole transaction, if there was one.
    fn finish(self: Box<Self>, outcome: Result<()>);
}

/// Counts itself as long as it lives.
struct Caller<'a>(&'a AtomicUsize);

impl<'a> Caller<'a> {
    fn new(callers: &'a AtomicUsize) -> Self {
        callers.fetch_add(1, Ordering::Relaxed);
        Self(callers)
    }

    fn is_alone(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Call<T, W, R> {
    level: Level,
    deadline: Instant,
    work: W,
    answer: Option<T>,
    reply: R,
}

impl<T, W, R> Job for Call<T, W, R>
where
    T: Send,
    W: FnMut(&mut Tx<'_>) -> Work<T> + Send,
    R: FnOnce(Result<T>) + Send,
{
    fn level(&self) -> Level {
        self.level
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn run(&mut self, tx: &mut Tx<'_>) -> Work<()> {
        self.answer = None;
        self.answer = Some((self.work)(tx)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<()>) {
        let Self { answer, reply, .. } = *self;
        let missing = || Error::new(ErrorKind::Backend, "the job was not run");
        reply(outcome.and_then(|()| answer.ok_or_else(missing)));
    }
}

pub(crate) struct Client {
    pub(crate) place: Place,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    /// Pretended by a test.
    pub(crate) boot_id: Option<String>,
    pub(crate) layout: u32,
    /// An operator adopts the database.
    adopt: AtomicBool,
    /// The process that started the thread: neither it nor SQLite's locks come along in a fork.
    pid: u32,
    queue: Mutex<Queue>,
    bell: EventFd,
    /// How many callers wait for an answer, or have one that they have not looked at yet.
    callers: AtomicUsize,
    /// Whether waiting for an answer without sleeping pays.
    spin: Spin,
    /// A session was dropped without being closed.
    abandoned: AtomicBool,
    ended: watch::Sender<bool>,
}

#[derive(Default)]
#[allow(clippy::struct_excessive_bools)] // independent facts, not one state
struct Queue {
    jobs: VecDeque<Box<dyn Job>>,
    /// The thread sleeps, or is about to look once more and sleep: ring the bell.
    asleep: bool,
    /// The thread is running jobs that it took.
    working: bool,
    /// No user is left: the thread ends when the jobs are done.
    closing: bool,
    /// The thread takes no more jobs.
    ended: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("database", &self.place.database).finish_non_exhaustive()
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the connection to the database was closed")
}

fn check_process(connected: u32, here: u32) -> Result<()> {
    if here == connected {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!(
            "this process was forked from process {connected}, which connected; nothing it holds is ours: start \
             processes with exec, and connect in each"
        ),
    ))
}

impl Client {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails in a process that was forked from the one that connected.
    pub(crate) fn check_process(&self) -> Result<()> {
        check_process(self.pid, std::process::id())
    }

    /// Whether the answer will come at once: the thread is awake and has nothing else to do.
    fn submit(&self, job: Box<dyn Job>) -> bool {
        let mut queue = self.queue();
        if queue.ended {
            drop(queue);
            job.finish(Err(closed()));
            return true;
        }
        queue.jobs.push_back(job);
        let asleep = std::mem::take(&mut queue.asleep);
        let next = !asleep && !queue.working && queue.jobs.len() == 1;
        drop(queue);
        if asleep {
            self.ring();
        }
        next
    }

    /// A session was dropped: the thread clears it away. Nothing is sent, this is a note in memory.
    pub(crate) fn abandoned(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        self.ring();
    }

    pub(crate) fn take_abandoned(&self) -> bool {
        self.abandoned.swap(false, Ordering::SeqCst)
    }

    /// Wakes the thread.
    pub(crate) fn ring(&self) {
        // It fails only when the counter is full: then the bell rings already.
        let _ = self.bell.write(1);
    }

    /// Runs `work` in a transaction on the database thread.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        level: Level,
        limit: Duration,
        work: impl FnMut(&mut Tx<'_>) -> Work<T> + Send + 'static,
    ) -> Result<T> {
        self.check_process()?;
        let caller = Caller::new(&self.callers);
        let (sender, mut receiver) = oneshot::channel();
        let next = self.submit(Box::new(Call {
            level,
            deadline: self.clock.now() + limit,
            work,
            answer: None,
            // Nobody waits any more: the job was done all the same.
            reply: move |answer| drop(sender.send(answer)),
        }));
        if next && caller.is_alone() {
            // A transaction takes less time than a sleep and a wake-up, which would double the cost of an
            // uncontended acquire.
            let look = || match receiver.try_recv() {
                Ok(answer) => Some(answer),
                Err(oneshot::error::TryRecvError::Empty) => None,
                Err(oneshot::error::TryRecvError::Closed) => Some(Err(closed())),
            };
            if let Some(answer) = self.spin.wait(&self.clock, PATIENCE, look) {
                return answer;
            }
        }
        receiver.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Asks for the present state of a group for a watch that fell behind.
    pub(crate) fn view_again(&self, watch: Arc<GroupWatch>, failed: impl FnOnce(Error) + Send + 'static) {
        /// The reader asks again when this fails, so it is no promise to anybody.
        const LIMIT: Duration = Duration::from_secs(10);
        self.submit(Box::new(Call {
            level: Level::Read,
            deadline: self.clock.now() + LIMIT,
            work: move |tx: &mut Tx<'_>| {
                let (seq, change) = groups::view_again(tx, &watch)?;
                tx.effect(Effect::WatchGroup(watch.clone(), seq, change));
                Ok(())
            },
            answer: None,
            reply: move |answer: Result<()>| {
                if let Err(error) = answer {
                    failed(error);
                }
            },
        }));
    }

    // What follows is the thread's side.

    pub(crate) fn bell(&self) -> &EventFd {
        &self.bell
    }

    pub(crate) fn adopts(&self) -> bool {
        self.adopt.load(Ordering::SeqCst)
    }

    /// It was, or whoever wanted it has left.
    pub(crate) fn adopted(&self) {
        self.adopt.store(false, Ordering::SeqCst);
    }

    pub(crate) fn callers(&self) -> usize {
        self.callers.load(Ordering::Relaxed)
    }

    /// Takes at most `most` jobs.
    pub(crate) fn take(&self, most: usize) -> Vec<Box<dyn Job>> {
        let mut queue = self.queue();
        let count = queue.jobs.len().min(most);
        queue.working = count > 0;
        queue.jobs.drain(..count).collect()
    }

    /// Puts jobs back in front, in their order.
    pub(crate) fn put_back(&self, jobs: Vec<Box<dyn Job>>) {
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

    /// Whether the thread may sleep; from now on the bell is rung for new jobs.
    pub(crate) fn fall_asleep(&self) -> bool {
        let mut queue = self.queue();
        queue.asleep = queue.jobs.is_empty() && !queue.closing;
        queue.asleep
    }

    pub(crate) fn awake(&self) {
        self.queue().asleep = false;
    }

    /// Whether the thread is to end: nobody is left and nothing is to do.
    pub(crate) fn is_over(&self) -> bool {
        let queue = self.queue();
        queue.closing && queue.jobs.is_empty()
    }

    /// The thread ends, on whatever way.
    pub(crate) fn end(&self) {
        let jobs = {
            let mut queue = self.queue();
            queue.ended = true;
            std::mem::take(&mut queue.jobs)
        };
        for job in jobs {
            job.finish(Err(closed()));
        }
        self.ended.send_replace(true);
    }
}

struct Entry {
    client: Arc<Client>,
    users: usize,
    thread: JoinHandle<()>,
}

/// The clients of this process, and the threads that are ending.
#[derive(Default)]
struct Clients {
    open: Vec<Entry>,
    ending: Vec<(PathBuf, JoinHandle<()>)>,
}

static CLIENTS: Mutex<Clients> = Mutex::new(Clients { open: Vec::new(), ending: Vec::new() });

fn clients() -> MutexGuard<'static, Clients> {
    CLIENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One driver's, or one session's, share in a client. The thread ends with the last one.
#[derive(Debug)]
pub(crate) struct User {
    client: Arc<Client>,
    pub(crate) config: Config,
    done: AtomicBool,
}

impl User {
    /// Finds the client of a database, or starts one.
    pub(crate) fn new(config: Config, context: &Context) -> Result<Self> {
        let place = Place { mode: config.mode, ..Place::find(&config.path, config.force_filesystem)? };
        let mut clients = clients();
        // Over only if it panicked; its users get errors and a new one starts.
        clients.open.retain(|entry| !entry.thread.is_finished());
        let found = clients.open.iter_mut().find(|entry| entry.client.place.database == place.database);
        if let Some(entry) = found {
            entry.client.check_process()?;
            if entry.client.boot_id != config.boot_id || entry.client.layout != config.layout {
                return Err(Error::new(
                    ErrorKind::InvalidOption,
                    "option \"boot_id\" or \"layout\": this process has the database open under another one",
                ));
            }
            if entry.client.place.mode != config.mode {
                return Err(Error::new(
                    ErrorKind::InvalidOption,
                    "option \"mode\": this process has the database open with another one",
                ));
            }
            entry.users += 1;
            entry.client.adopt.fetch_or(config.adopt, Ordering::SeqCst);
            return Ok(Self { client: entry.client.clone(), config, done: AtomicBool::new(false) });
        }
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| error::io("creating an event descriptor", errno.into()))?;
        let client = Arc::new(Client {
            place,
            clock: context.clock.clone(),
            entropy: context.entropy.clone(),
            boot_id: config.boot_id.clone(),
            layout: config.layout,
            adopt: AtomicBool::new(config.adopt),
            pid: std::process::id(),
            queue: Mutex::default(),
            bell,
            callers: AtomicUsize::new(0),
            spin: Spin::default(),
            abandoned: AtomicBool::new(false),
            ended: watch::Sender::new(false),
        });
        let ending = clients.ending.iter().position(|(database, _)| *database == client.place.database);
        let predecessor = ending.map(|index| clients.ending.swap_remove(index).1);
        clients.ending.retain(|(_, thread)| !thread.is_finished());
        let thread = {
            let client = client.clone();
            std::thread::Builder::new().name("tooz-sqlite".into()).spawn(move || {
                if let Some(thread) = predecessor {
                    let _ = thread.join(); // it has no result; a panic there has been reported
                }
                engine::run(&client);
            })
        };
        let thread = thread.map_err(|error| error::io("starting the database thread", error))?;
        clients.open.push(Entry { client: client.clone(), users: 1, thread });
        Ok(Self { client, config, done: AtomicBool::new(false) })
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Runs `work` within the operation's time limit.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        level: Level,
        work: impl FnMut(&mut Tx<'_>) -> Work<T> + Send + 'static,
    ) -> Result<T> {
        self.call_within(level, self.config.operation_timeout, work).await
    }

    pub(crate) async fn call_within<T: Send + 'static>(
        &self,
        level: Level,
        limit: Duration,
        work: impl FnMut(&mut Tx<'_>) -> Work<T> + Send + 'static,
    ) -> Result<T> {
        if self.done.load(Ordering::SeqCst) {
            return Err(closed());
        }
        let level = if self.config.durable && level == Level::Write { Level::Durable } else { level };
        self.client.call(level, limit, work).await
    }

    /// Gives the share back. In a forked child nothing is touched: all of it is the parent's.
    fn leave(&self) {
        if self.client.check_process().is_err() || self.done.swap(true, Ordering::SeqCst) {
            return;
        }
        if self.config.adopt {
            self.client.adopted();
        }
        let mut clients = clients();
        let Some(index) = clients.open.iter().position(|entry| Arc::ptr_eq(&entry.client, &self.client))
        else {
            return;
        };
        clients.open[index].users -= 1;
        if clients.open[index].users == 0 {
            let Entry { client, thread, .. } = clients.open.swap_remove(index);
            client.queue().closing = true;
            client.ring();
            clients.ending.push((client.place.database.clone(), thread));
        }
    }

    /// Gives the share back and, if it was the last one, waits until the thread has closed the database.
    pub(crate) async fn close(&self) -> Result<()> {
        self.client.check_process()?;
        self.leave();
        let last = self.client.queue().closing;
        if last {
            let mut ended = self.client.ended.subscribe();
            // The sender lives in the client, which is held here: it cannot be gone.
            let _ = ended.wait_for(|ended| *ended).await;
        }
        Ok(())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_is_told_why_it_is_refused() {
        check_process(7, 7).unwrap();
        let error = check_process(7, 8).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("forked from process 7"), "{error}");
    }
}
