//! The database thread: it runs the jobs of this process, follows the files of the others, and tells this process what they did.
//!
//! One thread does all of it, so no two threads ever use the connection. Between two events the thread sleeps in one
//! `ppoll` on the queue's event descriptor and on the kernel's file events. There is no timer while no caller waits.

pub(crate) mod batch;
pub(crate) mod database;
mod dispatch;
pub(crate) mod fence;
mod inotify;
pub(crate) mod jobs;
pub(crate) mod lock_rows;
pub(crate) mod log;
mod monitor;
mod open;
pub(crate) mod paths;
mod predecessor;
pub(crate) mod presence;
pub(crate) mod queue;
pub(crate) mod schema;
pub(crate) mod session_file;
pub(crate) mod spin;
mod state;
mod suspects;
pub(crate) mod tx;
mod wakeup;
pub(crate) mod watches;

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tooz_core::LossReason;
use tooz_core::driver::Instant;

use self::batch::MOST_JOBS;
use self::inotify::{FileEvent, FileEvents};
use self::jobs::Jobs;
use self::state::{Engine, POLL_LOW};
use self::wakeup::Wakeup;

/// How long the thread looks for the next job before it sleeps. About what waking the thread costs, so that a caller
/// who releases what it has just acquired does not pay for two wake-ups.
const LINGER: Duration = Duration::from_micros(40);
/// How many batches run before the thread handles the kernel's events although more jobs wait.
const BATCHES: u32 = 16;

/// Ends the queue when the thread ends, also when the thread panics.
struct EndOnDrop<'a>(&'a Jobs);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Runs the thread until no client is left.
pub(crate) fn run(jobs: &Arc<Jobs>) {
    let end = EndOnDrop(jobs);
    let mut engine = Engine::new(jobs.clone());
    engine.serve();
    for session in engine.sessions.values() {
        session.end(LossReason::SessionClosed);
    }
    engine.group_watches.iter().filter_map(Weak::upgrade).for_each(|watch| watch.feed.fail(jobs::closed()));
    engine.lock_watches.iter().filter_map(Weak::upgrade).for_each(|watch| watch.feed.fail(jobs::closed()));
    drop(engine); // closes the database before the clients learn that it is closed
    drop(end);
}

impl Engine {
    fn serve(&mut self) {
        let mut batches = 0;
        loop {
            if self.on_jobs(&mut batches) {
                continue;
            }
            self.on_kernel_events();
            self.on_deadlines();
            if self.jobs.is_over() {
                return;
            }
            if self.jobs.waiting() == 0 {
                self.sleep();
            }
        }
    }

    /// Runs a batch of jobs; whether the next batch is due before everything else.
    fn on_jobs(&mut self, batches: &mut u32) -> bool {
        let batch = self.jobs.take(MOST_JOBS);
        if batch.is_empty() {
            return false;
        }
        let one_caller = self.jobs.callers() <= 1;
        self.check_database_file();
        let done = self.run(batch);
        self.dispatch_own();
        *batches = batches.wrapping_add(1);
        done && !batches.is_multiple_of(BATCHES) && self.linger(one_caller)
    }

    fn on_kernel_events(&mut self) {
        for seq in self.predecessors.take_ended() {
            self.suspect(seq);
        }
        if self.wakeup.as_ref().is_some_and(Wakeup::was_woken) {
            self.check_commits(false);
            self.predecessors_changed = true;
        }
        let mut written = false;
        for event in self.events.as_ref().map(FileEvents::read).unwrap_or_default() {
            match event {
                FileEvent::Written => written = true,
                FileEvent::Moved => self.check_database_file(),
                FileEvent::Closed(id) => self.suspect_by_id(id),
                FileEvent::Touched(id) => self.check_file_of(id),
                FileEvent::Overflow => {
                    written = true;
                    self.check_all_sessions();
                }
            }
        }
        if written && self.has_watches() {
            self.check_commits(true);
        } else if written {
            self.follow_commits();
        }
    }

    fn on_deadlines(&mut self) {
        if self.jobs.take_abandoned() {
            self.suspect_ended_sessions();
        }
        let now = self.now();
        if self.committing.is_some_and(|(at, _)| at <= now) {
            self.check_commits(true);
        }
        if self.suspects.values().any(|(at, _)| *at <= now) {
            self.clear_suspects();
        }
        self.dispatch_own();
        if self.next_check <= now {
            self.check_everything(now);
        }
    }

    /// Whether there are jobs. For the next job of a single caller the thread waits a little before it sleeps. It does not
    /// wait for several callers: while the thread wakes up, the jobs of the others join the first.
    fn linger(&self, one_caller: bool) -> bool {
        let look = || (self.jobs.waiting() > 0).then_some(());
        let found = if one_caller { self.spin.wait(&self.jobs.context.clock, LINGER, look) } else { look() };
        found.is_some()
    }

    fn sleep(&mut self) {
        let until = self.next_deadline();
        if !self.jobs.fall_asleep() {
            return;
        }
        let timeout = until.map(|until| TimeSpec::from_duration(until.saturating_since(self.now())));
        let mut files = vec![PollFd::new(self.jobs.wakeup.as_fd(), PollFlags::POLLIN)];
        if let Some(events) = &self.events {
            files.push(PollFd::new(events.as_fd(), PollFlags::POLLIN));
        }
        if let Some(wakeup) = &self.wakeup {
            files.push(PollFd::new(wakeup.file.as_fd(), PollFlags::POLLIN));
        }
        // Only their ends, which the kernel reports without being asked.
        let before = self.predecessors.0.values();
        files.extend(before.map(|before| PollFd::new(before.wakeup.as_fd(), PollFlags::empty())));
        // An interrupted sleep is a short one: the thread looks at everything again anyway.
        let _ = ppoll(&mut files, timeout, None);
        let woken = files.first().and_then(PollFd::any).unwrap_or(true);
        drop(files);
        self.jobs.awake();
        if woken {
            let _ = self.jobs.wakeup.read(); // it fails only when the descriptor was not written
        }
    }

    /// The next deadline; `None` while there is no session and no caller waits for anything.
    fn next_deadline(&self) -> Option<Instant> {
        let mut next = self.suspects.values().map(|(at, _)| *at).min();
        let mut sooner = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        if let Some((at, _)) = self.committing {
            sooner(at);
        }
        // The kernel tells of an unlinked name before the name is gone. A look at that moment may still find the file,
        // and there is no second event.
        if self.has_waiters() || !self.sessions.is_empty() {
            sooner(self.next_check);
        }
        if self.logged {
            sooner(self.now() + POLL_LOW); // the log could not be read
        }
        next
    }
}
