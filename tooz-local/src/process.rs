//! What the kernel says about processes: which one a number names, and whether it still runs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// A process as a session records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number in its pid namespace.
    pub pid: u32,
    /// Its start in clock ticks since boot: a pid is used again, the pair of both is not. `None`: not known.
    pub started: Option<u64>,
    /// In another namespace the same pid is another process. `None`: not known.
    pub pid_namespace: Option<u64>,
}

impl Process {
    /// This process; without `/proc` the pid alone.
    pub fn this() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            started: stat(pid).filter(|_| proc_is_ours(pid)).map(|stat| stat.started),
            pid_namespace: fs::metadata("/proc/self/ns/pid").ok().map(|data| data.ino()),
        }
    }

    /// Whether the process certainly no longer runs, judged from the process `here`.
    pub fn is_gone(&self, here: &Self) -> bool {
        let (Some(namespace), Some(started), Some(_)) = (self.pid_namespace, self.started, here.started)
        else {
            return false; // not enough is known to judge
        };
        if here.pid_namespace != Some(namespace) {
            return false;
        }
        match stat(self.pid) {
            Some(stat) => stat.started != started || (stat.ended && is_alone(self.pid)),
            // Mounted with `hidepid`, /proc has no directories of other users' processes.
            None => !exists(self.pid),
        }
    }

    /// Whether the process is stopped (SIGSTOP, or a debugger), judged from this process.
    pub fn is_stopped(&self) -> bool {
        let known = self.pid_namespace.is_some() && Self::this().pid_namespace == self.pid_namespace;
        known && stat(self.pid).is_some_and(|stat| stat.stopped && self.started == Some(stat.started))
    }
}

/// Whether the process of this number is stopped.
pub fn is_stopped(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.stopped)
}

/// Whether there is such a process in our pid namespace, also one that may be neither seen nor signalled.
fn exists(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return true }; // no pid: nothing is known
    kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// Whether `/proc` is that of our pid namespace: elsewhere the same pid is another process.
fn proc_is_ours(pid: u32) -> bool {
    fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == pid.to_string().as_str())
}

/// A thread-group leader that ended is shown as a zombie while its other threads still run.
fn is_alone(pid: u32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(true, |tasks| tasks.count() <= 1)
}

struct Stat {
    started: u64,
    ended: bool,
    stopped: bool,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may hold spaces and parentheses itself.
    let after = text.iter().rposition(|byte| *byte == b')')?;
    let fields = String::from_utf8_lossy(text.get(after + 1..)?).into_owned();
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?; // the third field of proc_pid_stat(5); the start time is the 22nd
    Some(Stat {
        ended: matches!(state, "Z" | "X" | "x"),
        stopped: matches!(state, "T" | "t"),
        started: fields.nth(18)?.parse().ok()?,
    })
}

/// The id of this boot of the machine; the one that is `given`, if a test pretends that it is another.
pub fn boot_id(given: Option<&str>) -> io::Result<String> {
    match given {
        Some(id) => Ok(id.to_owned()),
        None => Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_others_of_its_pid_do_not() {
        let here = Process::this();
        assert!(here.started.is_some() && here.pid_namespace.is_some());
        assert!(!here.is_gone(&here));
        assert!(Process { started: here.started.map(|ticks| ticks - 1), ..here.clone() }.is_gone(&here));
        let elsewhere = Process { started: Some(1), pid_namespace: Some(1), ..here.clone() };
        assert!(!elsewhere.is_gone(&here), "another namespace cannot be judged");
    }

    #[test]
    fn a_boot_id_is_the_kernels_unless_one_is_given() {
        let kernels = boot_id(None).unwrap();
        assert!(kernels.len() == 36 && kernels == boot_id(None).unwrap(), "{kernels}");
        assert_eq!(boot_id(Some("pretended")).unwrap(), "pretended");
    }
}
