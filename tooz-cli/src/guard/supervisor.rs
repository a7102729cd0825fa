//! What guard and launcher have in common: they block every signal, listen to the parent, and end what the command
//! started when the deadline nears or the parent is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::{Pid, getppid};

use super::descendants::{self, Descendants};
use super::killing::Killing;
use super::link::{Heard, Link};
use super::orders::Orders;
use super::protocol::{Lines, Order, Report, boot_time};

/// SIGKILL is sent this long before the deadline: the kernel needs a moment to end a large process, and everything
/// must be gone when the lock can move. Never more than a quarter of the grace, which would make SIGTERM useless.
const LEAD: Duration = Duration::from_millis(100);
/// And at least this long, however short the grace.
const LEAST_LEAD: Duration = Duration::from_millis(20);

/// Why the loop woke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// The parent told us to leave what runs alone.
    Left,
    /// The parent is gone, and SIGKILL is on its way to all; [`Supervisor::kill_all`] finishes that.
    Orphaned,
    /// Something may have happened to the child.
    Child,
    /// An order came, or the deadline was acted upon; both have been dealt with.
    Other,
}

pub(super) struct Supervisor {
    parent: Link,
    parent_pid: Pid,
    lines: Lines,
    signals: SignalFd,
    timer: TimerFd,
    deadline: Option<Duration>,
    grace: Duration,
    /// Set once all have been told to end; from then on no deadline is put off.
    ending: Option<Duration>,
    killing: Option<Killing>,
    /// Whether this process sends SIGTERM before SIGKILL: only the guard does, so that each sees one SIGTERM.
    asks: bool,
    /// The child that is reaped elsewhere.
    pub(super) child: Option<Pid>,
    pub(super) descendants: Descendants,
    pub(super) orders_seen: Vec<Order>,
}

impl Supervisor {
    /// Takes over the pipes and blocks every signal.
    pub(super) fn new(orders: &Orders, asks: bool) -> io::Result<Self> {
        SigSet::all().thread_block()?;
        let parent = Link::adopt(orders.input, orders.output)?;
        // Only wakes the loop, which then finds that getppid changed.
        set_pdeathsig(Signal::SIGUSR1)?;
        set_child_subreaper(true)?;
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set.add(Signal::SIGUSR1);
        Ok(Self {
            parent,
            parent_pid: orders.parent,
            lines: Lines::default(),
            signals: SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
            timer: TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?,
            deadline: None,
            grace: orders.grace,
            ending: None,
            killing: None,
            asks,
            child: None,
            descendants: Descendants::of_this_process(),
            orders_seen: Vec::new(),
        })
    }

    /// Tells the parent.
    pub(super) fn report(&mut self, report: Report) {
        self.parent.send(report);
    }

    /// Whether the end has begun: no later deadline counts.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some() || self.is_over()
    }

    /// Whether the killing has begun.
    pub(super) fn is_over(&self) -> bool {
        self.killing.is_some()
    }

    /// Kills everything that runs now; `wait` goes on with it.
    pub(super) fn kill(&mut self) {
        let asked = self.ending.is_some();
        self.killing.get_or_insert_with(|| Killing::new(asked)).strike(&self.descendants);
    }

    /// Kills until nothing is left but what this user may not signal. Reaps all children but `own`.
    pub(super) fn kill_all(&mut self, own: Option<Pid>) {
        self.kill();
        if let Some(killing) = &mut self.killing {
            killing.finish(&self.descendants, own);
        }
    }

    /// Waits until something happens and deals with what concerns both roles. `beside` is watched, too.
    pub(super) fn wait(&mut self, beside: Option<BorrowedFd<'_>>) -> io::Result<Wake> {
        let mut fds = vec![
            PollFd::new(self.parent.input(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.timer.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(beside.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let woken: Vec<_> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        drop(fds);
        let mut child = woken.get(3).copied().unwrap_or(false);
        if woken[1] {
            while let Ok(Some(signal)) = self.signals.read_signal() {
                child |= signal.ssi_signo == Signal::SIGCHLD as u32;
            }
            descendants::reap_adopted(self.child);
        }
        let (heard, mut gone) = match if woken[0] { self.parent.read() } else { Heard::Bytes(Vec::new()) } {
            Heard::Bytes(bytes) => (bytes, false),
            Heard::Gone(bytes) => (bytes, true),
        };
        gone |= getppid() != self.parent_pid;
        for order in self.lines.push(&heard).iter().filter_map(|line| Order::parse(line)) {
            self.obey(order);
        }
        if self.orders_seen.contains(&Order::Leave) {
            return Ok(Wake::Left);
        }
        if gone {
            self.kill();
            return Ok(Wake::Orphaned);
        }
        if woken[2] {
            // Nothing to read if it was set again meanwhile; the clock decides anyway.
            let _ = self.timer.wait();
        }
        self.act();
        self.arm()?;
        Ok(if child { Wake::Child } else { Wake::Other })
    }

    fn obey(&mut self, order: Order) {
        self.orders_seen.push(order);
        match order {
            Order::Deadline(deadline) if self.ending.is_none() => self.deadline = deadline,
            Order::Deadline(_) | Order::Begin | Order::Leave => {}
            Order::Finish => {
                let end = boot_time() + self.grace + self.lead();
                self.end(self.deadline.map_or(end, |deadline| deadline.min(end)));
            }
            Order::End => self.kill(),
        }
    }

    fn lead(&self) -> Duration {
        (self.grace / 4).clamp(LEAST_LEAD, LEAD)
    }

    /// The next moment at which to act.
    fn next(&self) -> Option<Duration> {
        if let Some(killing) = &self.killing {
            return killing.next;
        }
        let kill = self.ending.or(self.deadline)?.saturating_sub(self.lead());
        match self.ending {
            None if self.asks => Some(self.deadline?.saturating_sub(self.grace).min(kill)),
            _ => Some(kill),
        }
    }

    /// Asks all to end, and lets them be killed shortly before `at`.
    fn end(&mut self, at: Duration) {
        if self.ending.is_none() {
            self.ending = Some(at);
            if self.asks && !self.is_over() {
                self.descendants.ask();
            }
        }
    }

    /// Sends the signals that are due by the clock.
    fn act(&mut self) {
        let now = boot_time();
        if self.next().is_none_or(|next| now < next) {
            return;
        }
        if let (None, None, Some(deadline)) = (&self.killing, self.ending, self.deadline) {
            self.report(Report::Expired);
            self.end(deadline);
        }
        if self.next().is_some_and(|next| now >= next) {
            self.kill();
        }
    }

    fn arm(&mut self) -> io::Result<()> {
        match self.next() {
            // Zero would disarm it.
            Some(next) => self.timer.set(
                Expiration::OneShot(TimeSpec::from_duration(next.max(Duration::from_nanos(1)))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            )?,
            None => self.timer.unset()?,
        }
        Ok(())
    }
}
