//! The processes below one process, whichever process group or session each of them is in.
//!
//! A process belongs to the command if the chain of its parents leads to `tooz`, the guard or the launcher. These three
//! are child subreapers: a process whose parent ended becomes a child of the nearest of them. So neither a double fork
//! nor `setsid` breaks the chain.
//!
//! *Signals.* The kernel may give a process id to another process at any time. So a signal goes through a pidfd: it is
//! opened first, then the start time and the chain of parents are read again, and only then the signal is sent. Linux
//! before 5.3, and some sandboxes, have no pidfd; there the signal goes to the process id right after that reading. The
//! group that was made for the command is also killed as a whole, while a descendant that was checked like this is in it.
//!
//! *Looking.* The kernel lists the children of a thread in `/proc/PID/task/TID/children`. Its list is empty only if there are
//! none. A process that forks and ends, again and again, is found by no reading of all processes, but it always is on the
//! list of a subreaper: none is left if nothing but our own processes is on the lists of all of them. Where the kernel has no
//! lists, and where a list could lack a process because another one ended, all processes are read.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, Uid, User, getpid};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, kill_process, pidfd_open, pidfd_send_signal};

use super::orders::EXEC;

/// A process of this process id and start time, and what `/proc/PID/stat` says of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) parent: Pid,
    pub(crate) group: Pid,
    pub(crate) session: Pid,
    /// Whether it runs code: it is no zombie, or one whose other threads go on.
    pub(crate) is_running: bool,
    /// Whether SIGSTOP, or the terminal, has stopped it.
    pub(crate) is_stopped: bool,
    /// Whether `/proc` hides it from this user (`hidepid`): only its process id and parent are known.
    is_hidden: bool,
    /// In clock ticks since the system's start.
    started: u64,
}

impl Process {
    /// `None` if there is no such process, or `/proc` does not show it to this user.
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        Self::read(pid).ok().flatten()
    }

    /// As [`Process::of`].
    ///
    /// # Errors
    /// It is not known: `/proc` cannot be read now.
    fn read(pid: Pid) -> io::Result<Option<Self>> {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(text) => Ok(Self::parse(pid, &String::from_utf8_lossy(&text))),
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn parse(pid: Pid, text: &str) -> Option<Self> {
        // The name stands in parentheses and may hold anything, parentheses too.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // proc_pid_stat(5) counts from 1, and `state` is the third.
        let number = |index: usize| fields.get(index - 3)?.parse::<i32>().ok();
        let state = *fields.first()?;
        Some(Self {
            pid,
            parent: number(4).map(Pid::from_raw)?,
            group: number(5).map(Pid::from_raw)?,
            session: number(6).map(Pid::from_raw)?,
            is_running: !matches!(state, "Z" | "X") || number(20)? > 1,
            is_stopped: state == "T",
            is_hidden: false,
            started: fields.get(22 - 3)?.parse().ok()?,
        })
    }

    /// A child of `parent` of which `/proc` shows nothing to this user.
    fn hidden(pid: Pid, parent: Pid) -> Self {
        let none = Pid::from_raw(0);
        Self {
            pid,
            parent,
            group: none,
            session: none,
            is_running: true,
            is_stopped: false,
            is_hidden: true,
            started: 0,
        }
    }

    fn is(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }

    /// Whether it runs this very program, in a role that ends by itself when it is told to or has nothing to guard.
    fn is_nested_tooz(&self) -> bool {
        let file =
            |of: &str| fs::metadata(format!("/proc/{of}/exe")).map(|data| (data.dev(), data.ino())).ok();
        let own = file("self");
        let is_ours = own.is_some() && file(&self.pid.to_string()) == own;
        // The stub becomes a command.
        is_ours
            && fs::read(format!("/proc/{}/cmdline", self.pid))
                .is_ok_and(|line| line.split(|&byte| byte == 0).nth(1) != Some(EXEC.as_bytes()))
    }

    /// For a message: its process id, its user and its program, without arguments, which may hold secrets.
    pub(crate) fn describe(&self) -> String {
        let directory = format!("/proc/{}", self.pid);
        let user = fs::metadata(&directory).map_or_else(
            |_| "?".into(),
            |data| match User::from_uid(Uid::from_raw(data.uid())) {
                Ok(Some(user)) => user.name,
                _ => data.uid().to_string(),
            },
        );
        let program = fs::read_to_string(format!("{directory}/comm")).unwrap_or_default();
        format!("{} (user {user}, {})", self.pid, program.trim_end().escape_debug())
    }
}

/// What the killing found running.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) process: Process,
    /// Whether this user may not signal it.
    pub(crate) is_refused: bool,
}

/// Whom the killing spares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spare {
    /// A `tooz` gets SIGTERM: it releases its own lock when its command is gone, which is killed here.
    AskingNested,
    /// The same, but the SIGTERM was sent before.
    Nested,
    /// Nothing is spared.
    Nothing,
}

/// All that the command started: the processes below `root`.
#[derive(Clone, Debug)]
pub(crate) struct Descendants {
    pub(crate) root: Pid,
    /// Parts of `tooz` itself: not counted, but their children are.
    pub(crate) own: Vec<Process>,
    /// Not counted, and neither are their children: they were children of this process before the command began, or came
    /// to it as the first process of a container.
    pub(crate) strangers: Vec<Process>,
    /// The process group that was made for the command.
    pub(crate) group: Option<Pid>,
}

impl Descendants {
    /// Those below this process.
    pub(crate) fn of_this_process() -> Self {
        Self { root: getpid(), own: Vec::new(), strangers: Vec::new(), group: None }
    }

    /// Those that run now, parents before children, as far as they can be found.
    pub(crate) fn running(&self) -> Vec<Process> {
        let found = self.all(|_| true).unwrap_or_default();
        found.into_iter().filter(|process| process.is_running).collect()
    }

    /// Whether none is left, and none can come any more. `false` also if that is not known now.
    pub(crate) fn are_gone(&self) -> bool {
        self.find().is_ok_and(|found| found.is_empty())
    }

    /// Asks all to end. A nested `tooz` is asked alone: it asks its own command.
    pub(crate) fn ask(&self) {
        for process in self.all(|process| !process.is_nested_tooz()).unwrap_or_default() {
            // A stopped process could not act on the first.
            let _ = self.signal(&process, &[Signal::SIGTERM, Signal::SIGCONT]);
        }
    }

    /// Sends `signal` to those that run in `group`.
    pub(crate) fn signal_group(&self, group: Pid, signal: Signal) {
        for process in self.running().iter().filter(|process| process.group == group) {
            let _ = self.signal(process, &[signal]);
        }
    }

    /// Continues our own processes if they are stopped. They block every signal but SIGSTOP.
    pub(crate) fn continue_own(&self) {
        let now = |own: &Process| Process::of(own.pid).filter(|now| now.is(own));
        for process in self.own.iter().filter_map(now) {
            if process.is_stopped {
                let _ = self.signal(&process, &[Signal::SIGCONT]);
            }
        }
    }

    /// Kills our own processes.
    pub(crate) fn kill_own(&self) {
        for process in &self.own {
            let _ = self.signal(process, &[Signal::SIGKILL]);
        }
    }

    /// Kills all but `spare`, and returns what it found: when that is empty, none is left. A process that forks meanwhile
    /// leaves children to a later call.
    ///
    /// # Errors
    /// What is left is not known: `/proc` cannot be read now.
    pub(crate) fn kill(&self, spare: Spare) -> io::Result<Vec<Left>> {
        let found = self.find()?;
        if spare == Spare::Nothing
            && let Some(group) = self.group
            && found.iter().any(|process| process.group == group && self.still_has(process))
        {
            // At once: none of the group can fork while SIGKILL is on its way.
            let _ = killpg(group, Signal::SIGKILL);
        }
        let killed = found.into_iter().map(|process| {
            let spared = spare != Spare::Nothing && process.is_nested_tooz();
            let signal = if spared { Signal::SIGTERM } else { Signal::SIGKILL };
            let is_refused = process.is_hidden
                || (!spared || spare == Spare::AskingNested)
                    && self.signal(&process, &[signal]) == Err(Errno::PERM);
            Left { process, is_refused }
        });
        Ok(killed.collect())
    }

    /// Some of those that are left; none only if none is left.
    ///
    /// # Errors
    /// It is not known: `/proc` cannot be read now.
    fn find(&self) -> io::Result<Vec<Process>> {
        let (found, is_sure) = self.glance();
        if is_sure || !found.is_empty() {
            return Ok(found);
        }
        let found = self.all(|_| true)?;
        // A second reading: the first misses a process whose parent forked it and ended meanwhile, if the kernel gave it a
        // process id that was read before.
        if found.is_empty() { self.all(|_| true) } else { Ok(found) }
    }

    /// Those that the kernel's lists name, and whether none can be missing.
    fn glance(&self) -> (Vec<Process>, bool) {
        let mut is_sure = true;
        let found = self.descend(
            |_| true,
            |parent| {
                let children = listed_children(parent);
                // The children of a process that has ended have another parent now, whose list may have been read before.
                is_sure &= children.is_ok() && Process::of(parent).is_some_and(|parent| parent.is_running);
                children.unwrap_or_default()
            },
        );
        (found, is_sure)
    }

    /// All that are left; below a process of which `enter` is false none is looked for.
    fn all(&self, enter: impl Fn(&Process) -> bool) -> io::Result<Vec<Process>> {
        let mut children = HashMap::<Pid, Vec<Process>>::new();
        let processes: HashMap<Pid, Process> =
            everything()?.into_iter().map(|process| (process.pid, process)).collect();
        for mut process in processes.values().copied() {
            // Where the parent ended meanwhile, the process has another one by now. Three ends in a row are enough: a
            // parent can also be hidden.
            for _ in 0..3 {
                if processes.contains_key(&process.parent) {
                    break;
                }
                let Some(now) = Process::of(process.pid).filter(|now| now.is(&process)) else { break };
                process = now;
            }
            children.entry(process.parent).or_default().push(process);
        }
        // Each list is taken once, so that this ends even where a process id was given to another process meanwhile.
        Ok(self.descend(enter, |parent| children.remove(&parent).unwrap_or_default()))
    }

    fn descend(
        &self,
        enter: impl Fn(&Process) -> bool,
        mut children: impl FnMut(Pid) -> Vec<Process>,
    ) -> Vec<Process> {
        let (mut found, mut next) = (Vec::new(), vec![self.root]);
        let is_ours = |pid| self.own.iter().any(|own| own.pid == pid);
        while let Some(parent) = next.pop() {
            for child in children(parent) {
                let is_among = |list: &[Process]| list.iter().any(|one| one.is(&child));
                if is_among(&self.strangers) {
                    continue;
                }
                let is_own = is_among(&self.own);
                // One that has ended counts until its parent, one of us, has reaped it: its children are ours now.
                if !is_own && (child.is_running || parent == self.root || is_ours(parent)) {
                    found.push(child);
                }
                // One of us that has ended still is the parent of what was read before.
                if is_own || child.is_running && enter(&child) {
                    next.push(child.pid);
                }
            }
        }
        found
    }

    /// Sends signals to a process that was found, if it still is below the root.
    fn signal(&self, process: &Process, signals: &[Signal]) -> Result<(), Errno> {
        let pid = rustix::process::Pid::from_raw(process.pid.as_raw()).ok_or(Errno::SRCH)?;
        let handle = pidfd_open(pid, PidfdFlags::empty());
        if !self.still_has(process) {
            return Err(Errno::SRCH);
        }
        signals.iter().try_for_each(|&signal| {
            let signal = rustix::process::Signal::from_named_raw(signal as i32).ok_or(Errno::INVAL)?;
            match &handle {
                Ok(handle) => pidfd_send_signal(handle, signal),
                Err(Errno::SRCH) => Err(Errno::SRCH),
                // No such call in this kernel; or a sandbox refuses it, or there are too many open files.
                Err(_) => kill_process(pid, signal),
            }
        })
    }

    /// Whether this is the same process as before, and its parents lead to the root.
    fn still_has(&self, process: &Process) -> bool {
        let mut at = Process::of(process.pid).filter(|now| now.is(process));
        while let Some(now) = at {
            if now.parent == self.root {
                return true;
            }
            at = Process::of(now.parent);
        }
        false
    }
}

/// Every process that `/proc` shows.
pub(super) fn everything() -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.extend(Process::read(Pid::from_raw(pid))?);
        }
    }
    Ok(found)
}

/// The children that the kernel lists.
///
/// # Errors
/// It lists none, or one of them ended meanwhile, and then the list may lack another one.
fn listed_children(parent: Pid) -> io::Result<Vec<Process>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{parent}/task"))? {
        for pid in fs::read_to_string(thread?.path().join("children"))?.split_whitespace() {
            let pid = Pid::from_raw(pid.parse().map_err(io::Error::other)?);
            children.push(match Process::read(pid)? {
                Some(process) => process,
                None if kill(pid, None) == Err(nix::errno::Errno::EPERM) => Process::hidden(pid, parent),
                None => return Err(ErrorKind::NotFound.into()),
            });
        }
    }
    Ok(children)
}

/// The children of this process, zombies too.
pub(crate) fn own_children() -> Vec<Process> {
    let parent = getpid();
    listed_children(parent).unwrap_or_else(|_| {
        let all = everything().unwrap_or_default();
        all.into_iter().filter(|process| process.parent == parent).collect()
    })
}

/// Reaps the adopted children of this process that have ended; `own` is reaped elsewhere.
pub(crate) fn reap_adopted(own: Option<Pid>) {
    for child in own_children() {
        if Some(child.pid) != own && !child.is_running {
            let _ = waitid(Id::Pid(child.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
        }
    }
}

/// Whether `/proc` hides the processes of other users (its mount option `hidepid`).
pub(crate) fn some_are_hidden() -> bool {
    fs::read("/proc/1/stat").is_err()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn start(script: &str) -> (Child, Pid) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::null()).process_group(0);
        let child = command.spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        (child, pid)
    }

    fn below(root: Pid) -> Descendants {
        Descendants { root, ..Descendants::of_this_process() }
    }

    #[test]
    fn our_own_entry_is_read() {
        let own = Process::of(getpid()).unwrap();
        assert_eq!(own.parent, nix::unistd::getppid());
        assert_eq!(own.group, nix::unistd::getpgrp());
        assert!(own.is_running && own.is_nested_tooz());
        assert!(own.describe().starts_with(&format!("{} (user ", own.pid)), "{}", own.describe());
    }

    #[test]
    fn processes_in_other_groups_and_sessions_are_found_and_killed() {
        let (mut child, root) = start("setsid sh -c 'sleep 71 & exec sleep 72' & timeout 73 sleep 74 & wait");
        let all = below(root);
        // Two of the shell's, and one below each.
        assert!(crate::eventually(LIMIT, || all.running().len() == 4), "{:?}", all.running());
        assert!(crate::eventually(LIMIT, || all.glance().0.len() == 4), "by the kernel's lists");
        assert!(crate::eventually(LIMIT, || all.kill(Spare::Nothing).unwrap().is_empty()));
        assert!(all.are_gone());
        child.wait().unwrap();
    }

    #[test]
    fn a_stranger_and_what_is_below_it_are_not_counted() {
        let (mut child, root) = start("sh -c 'sleep 77 & wait' & sleep 78 & wait");
        let mut all = below(root);
        assert!(crate::eventually(LIMIT, || all.running().len() == 3));
        let stranger = *all
            .running()
            .iter()
            .find(|process| listed_children(process.pid).is_ok_and(|list| !list.is_empty()))
            .unwrap();
        all.strangers = vec![stranger];
        assert_eq!((all.running().len(), all.glance().0.len()), (1, 1));
        all.strangers[0].started += 1;
        assert_eq!(all.running().len(), 3, "another process of the same number is no stranger");
        assert!(crate::eventually(LIMIT, || below(root).kill(Spare::Nothing).unwrap().is_empty()));
        child.wait().unwrap();
    }

    #[test]
    fn a_zombie_does_not_run() {
        let (mut child, pid) = start("exit 0");
        assert!(crate::eventually(LIMIT, || Process::of(pid).is_some_and(|process| !process.is_running)));
        assert!(below(getpid()).running().iter().all(|process| process.pid != pid));
        child.wait().unwrap();
        assert!(Process::of(pid).is_none());
    }

    /// What it left may have come to the root after the root's list was read.
    #[test]
    fn nobody_is_thought_gone_by_a_list_that_names_a_dead_one_of_us() {
        // A program that never reaps.
        let (mut child, root) = start("exit 0 & exec sleep 79");
        let zombie = || listed_children(root).ok()?.into_iter().find(|process| !process.is_running);
        assert!(crate::eventually(LIMIT, || zombie().is_some()));
        let all = Descendants { own: vec![zombie().unwrap()], ..below(root) };
        let (found, is_sure) = all.glance();
        assert!(found.is_empty() && !is_sure, "{found:?}");
        assert!(all.are_gone(), "a reading of all processes tells");
        let left = Process::of(getpid()).unwrap();
        let found = all.descend(
            |_| true,
            |parent| match parent {
                parent if parent == root => all.own.clone(),
                parent if parent == all.own[0].pid => vec![left],
                _ => Vec::new(),
            },
        );
        assert!(found.len() == 1 && found[0].is(&left), "{found:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_is_not_below_gets_no_signal() {
        let (mut one, first) = start("exec sleep 75");
        let (mut other, second) = start("exec sleep 76");
        let stranger = Process::of(second).unwrap();
        assert_eq!(below(first).signal(&stranger, &[Signal::SIGKILL]), Err(Errno::SRCH));
        let earlier = Process { started: stranger.started - 1, ..stranger };
        let given_away = below(getpid()).signal(&earlier, &[Signal::SIGKILL]);
        assert_eq!(given_away, Err(Errno::SRCH), "the number names another process meanwhile");
        assert!(other.try_wait().unwrap().is_none());
        below(getpid()).signal(&stranger, &[Signal::SIGKILL]).unwrap();
        other.wait().unwrap();
        one.kill().unwrap();
        one.wait().unwrap();
    }
}
