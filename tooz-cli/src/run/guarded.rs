//! The guard as seen from `tooz`: a child process that takes orders and sends reports.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::unistd::{Pid, getpgrp};
use tokio::net::unix::pipe;
use tokio::process::Child;

use crate::guard::protocol::{Lines, Order, Report};
use crate::guard::{GUARD, Orders, Prepared, group};

/// How often to check whether the group is gone. The kernel takes a few milliseconds, and no event announces the end.
const LOOK: Duration = Duration::from_millis(2);

/// What to run.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The command and its arguments.
    pub(crate) command: &'a [OsString],
    /// Variables for its environment, besides those of `tooz`.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// Time between SIGTERM and SIGKILL when the deadline nears.
    pub(crate) grace: Duration,
}

#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    reports: pipe::Receiver,
    orders: File,
    lines: Lines,
    queue: VecDeque<Report>,
    /// The command's group, once it is known.
    pub(super) group: Option<Pid>,
}

impl Guard {
    /// Starts the guard. Must be called on the main thread: the guard's parent-death signal follows the thread
    /// that forked.
    pub(super) fn start(job: &Job<'_>, grace: Duration) -> io::Result<Self> {
        let orders = Orders {
            input: 0,
            output: 0,
            parent: nix::unistd::getpid(),
            home: getpgrp(),
            grace,
            command: job.command.to_vec(),
        };
        let (mut prepared, link) = Prepared::new(GUARD, &orders)?;
        prepared.command.envs(job.environment.iter().map(|(name, value)| (name, value)));
        let (input, output): (OwnedFd, OwnedFd) = link.into_ends();
        let command = std::mem::replace(&mut prepared.command, std::process::Command::new(""));
        let child = tokio::process::Command::from(command).spawn()?;
        drop(prepared);
        Ok(Self {
            child,
            reports: pipe::Receiver::from_owned_fd(input)?,
            orders: output.into(),
            lines: Lines::default(),
            queue: VecDeque::new(),
            group: None,
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
                if let Report::Started(group) = report {
                    self.group = Some(group);
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

    /// Kills the command's group, by the guard and directly.
    pub(super) fn kill(&mut self) {
        self.order(Order::End);
        if let Some(group) = self.group {
            group::kill(group);
        }
    }

    /// Waits until no process of the group runs, without a time limit. A process in the middle of a write that the
    /// kernel cannot interrupt still belongs to the work that the lock protects.
    pub(super) async fn gone(&self) {
        while self.group.is_some_and(|group| !group::is_gone(group)) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits for the guard itself, so that it leaves no zombie.
    pub(super) async fn reap(mut self) {
        drop(self.orders);
        let _ = self.child.wait().await;
    }
}
