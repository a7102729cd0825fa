//! The guard as seen from `tooz`: a child process that takes orders and sends reports.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::prctl::set_child_subreaper;
use nix::unistd::{Pid, getpgrp};
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::time::timeout;

use crate::args::Children;
use crate::guard::descendants::{Descendants, Process, own_children};
use crate::guard::protocol::{Lines, Order, Report};
use crate::guard::{GUARD, Orders, Prepared};
use crate::settings::Backend;

/// What to run.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The command and its arguments.
    pub(crate) command: &'a [OsString],
    /// The backend, for a `tooz` below.
    pub(crate) backend: &'a Backend,
    /// Variables for its environment, besides those of `tooz`.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// Time between SIGTERM and SIGKILL.
    pub(crate) grace: Duration,
    /// What happens to what the command started and left running when it exited.
    pub(crate) children: Children,
    /// What the command runs under, for messages.
    pub(crate) held: &'static str,
}

#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    reports: pipe::Receiver,
    orders: File,
    lines: Lines,
    queue: VecDeque<Report>,
    /// The guard itself.
    pub(super) pid: Option<Pid>,
    /// The command. If it has a process group of its own, that has the same number.
    pub(super) command: Option<Pid>,
    /// The same, while the command runs.
    pub(super) running: Option<Pid>,
    /// Whether a signal was passed on that asks a process to end.
    pub(super) was_told_to_end: bool,
    /// Whether it is in our own process group.
    pub(super) shares_group: bool,
    /// What the command started.
    pub(super) descendants: Descendants,
}

impl Guard {
    /// Starts the guard. Must be called on the main thread: the guard's parent-death signal follows the thread
    /// that forked.
    pub(super) fn start(job: &Job<'_>, grace: Duration, shares_group: bool) -> io::Result<Self> {
        let orders = Orders {
            input: 0,
            output: 0,
            parent: nix::unistd::getpid(),
            top: nix::unistd::getpid(),
            home: getpgrp(),
            shares_group,
            grace,
            command: job.command.to_vec(),
        };
        if std::fs::read_link("/proc/self")? != std::path::Path::new(&std::process::id().to_string()) {
            return Err(io::Error::other("/proc is that of another pid namespace"));
        }
        let mut descendants = Descendants::of_this_process();
        descendants.strangers = own_children();
        set_child_subreaper(true)?;
        let (mut prepared, link) = Prepared::new(GUARD, &orders)?;
        job.backend.hand_on(&mut prepared.command);
        prepared.command.envs(job.environment.iter().map(|(name, value)| (name, value)));
        let (input, output): (OwnedFd, OwnedFd) = link.into_ends();
        let command = std::mem::replace(&mut prepared.command, std::process::Command::new(""));
        let child = tokio::process::Command::from(command).spawn()?;
        drop(prepared);
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        descendants.own.extend(pid.and_then(Process::of));
        Ok(Self {
            child,
            reports: pipe::Receiver::from_owned_fd(input)?,
            orders: output.into(),
            lines: Lines::default(),
            queue: VecDeque::new(),
            pid,
            command: None,
            running: None,
            was_told_to_end: false,
            shares_group,
            descendants,
        })
    }

    /// Sends an order. An order that cannot be sent is dropped. The guard is dead then, which `report` tells, or
    /// stopped, and the launcher acts on the last deadline that reached it.
    pub(super) fn order(&mut self, order: Order) {
        let _ = self.orders.write(format!("{order}\n").as_bytes());
    }

    /// The next report; `None` when the guard has closed its pipe. Cancel-safe.
    pub(super) async fn report(&mut self) -> Option<Report> {
        loop {
            if let Some(report) = self.queue.pop_front() {
                match report {
                    Report::Started { command, launcher } => {
                        (self.command, self.running) = (Some(command), Some(command));
                        self.descendants.own.extend(Process::of(launcher));
                        self.descendants.group = (!self.shares_group).then_some(command);
                    }
                    // Its number may go to another group now.
                    Report::Exited(_) | Report::Signaled(_) => self.running = None,
                    Report::Stopped(_) | Report::Expired => {}
                }
                return Some(report);
            }
            self.reports.readable().await.ok()?;
            let mut buffer = [0; 256];
            match self.reports.try_read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => {
                    let lines = self.lines.push(&buffer[..count]);
                    self.queue.extend(lines.iter().filter_map(|line| Report::parse(line)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    /// Takes note of processes that became children of `tooz` and do not belong to the command. As long as the guard runs,
    /// it adopts what the command started.
    pub(super) fn note_strangers(&mut self) {
        let mut children = own_children();
        if self.pid.and_then(Process::of).is_some_and(|guard| guard.is_running) {
            children.retain(|child| Some(child.pid) != self.pid);
            self.descendants.strangers = children;
        }
    }

    /// Lets what runs alone, and waits for the guard itself, so that it leaves no zombie. One that does not end within
    /// `limit` is killed.
    pub(super) async fn leave(mut self, limit: Duration) {
        self.descendants.continue_own();
        self.order(Order::Leave);
        drop(self.orders);
        if timeout(limit, self.child.wait()).await.is_err() {
            self.descendants.kill_own();
            let _ = self.child.wait().await;
        }
    }
}
