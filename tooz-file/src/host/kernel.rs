//! What the kernel says about locks on files and about processes.
//!
//! Open-file-description locks belong to the open file, conflict inside one process too, conflict with the record
//! locks that Python takes, go when the last copy of the descriptor is closed, and can be tested without being taken.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::kill;
use nix::sys::stat::FileStat;
use nix::unistd::Pid;

use crate::host::portable;

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    pub(crate) inode: u64,
}

impl FileId {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|data| Self { device: data.dev(), inode: data.ino() })
    }
}

impl From<&FileStat> for FileId {
    fn from(data: &FileStat) -> Self {
        Self { device: data.st_dev, inode: data.st_ino }
    }
}

/// How a file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Alone,
    Together,
}

/// Who stands in the way of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InTheWay {
    /// A process that uses record locks, as Python does; 0 where it is not visible from our pid namespace.
    Process(u32),
    /// An open file, which names nobody.
    OpenFile,
}

/// Which locks of the operating system are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flavor {
    /// Open-file-description locks: they exclude Python.
    OpenFile,
    /// The standard library's, which exist on every system.
    Portable,
}

#[allow(clippy::cast_possible_truncation)] // the constants of the C header are wider than its fields
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

fn kind(hold: Hold) -> libc::c_int {
    match hold {
        Hold::Alone => libc::F_WRLCK,
        Hold::Together => libc::F_RDLCK,
    }
}

impl Flavor {
    /// Takes a lock on an open file; `false` if somebody is in the way.
    pub(crate) fn try_lock(self, file: &File, hold: Hold) -> io::Result<bool> {
        if self == Self::Portable {
            return portable::try_lock(file, hold);
        }
        match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(kind(hold)))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives it back without closing the file, which nobody hears.
    pub(crate) fn unlock(self, file: &File) -> io::Result<()> {
        if self == Self::Portable {
            return file.unlock();
        }
        fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)))?;
        Ok(())
    }

    /// Who would be in the way; takes nothing, and a file opened for reading will do.
    pub(crate) fn in_the_way(self, file: &File, hold: Hold) -> io::Result<Option<InTheWay>> {
        if self == Self::Portable {
            return Ok(portable::is_locked(file)?.then_some(InTheWay::OpenFile));
        }
        let mut lock = whole_file(kind(hold));
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        if i32::from(lock.l_type) == libc::F_UNLCK {
            return Ok(None);
        }
        // The kernel writes -1 for a lock of an open file.
        Ok(Some(u32::try_from(lock.l_pid).map_or(InTheWay::OpenFile, InTheWay::Process)))
    }
}

/// A process as a session records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Its start in clock ticks since boot: a pid is used again, this pair is not. 0: not known.
    pub(crate) started: u64,
    /// In another namespace the same pid is another process. 0: not known.
    pub(crate) namespace: u64,
}

impl Process {
    /// This process; without `/proc` the pid alone.
    pub(crate) fn this() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            started: stat(pid).filter(|_| proc_is_ours(pid)).map_or(0, |stat| stat.started),
            namespace: fs::metadata("/proc/self/ns/pid").map_or(0, |data| data.ino()),
        }
    }

    /// Whether it certainly no longer runs, judged from `here`.
    pub(crate) fn is_gone(&self, here: &Self) -> bool {
        if self.namespace == 0 || self.started == 0 || here.started == 0 || here.namespace != self.namespace {
            return false; // not enough is known to judge
        }
        match stat(self.pid) {
            Some(stat) => stat.started != self.started || (stat.ended && is_alone(self.pid)),
            // Mounted with `hidepid`, /proc has no directories of other users' processes.
            None => !exists(self.pid),
        }
    }

    /// Whether it stands still (SIGSTOP, or a debugger), judged from this process.
    pub(crate) fn is_stopped(&self) -> bool {
        let known = self.namespace != 0 && Self::this().namespace == self.namespace;
        known && stat(self.pid).is_some_and(|stat| stat.stopped && self.started == stat.started)
    }
}

/// Whether the process of this number stands still.
pub(crate) fn is_stopped(pid: u32) -> bool {
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

/// The id of this boot of the machine.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_others_of_its_pid_do_not() {
        let here = Process::this();
        assert!(here.started > 0 && here.namespace > 0);
        assert!(!here.is_gone(&here));
        assert!(Process { started: here.started - 1, ..here.clone() }.is_gone(&here));
        let elsewhere = Process { started: 1, namespace: 1, ..here.clone() };
        assert!(!elsewhere.is_gone(&here), "another namespace cannot be judged");
    }

    #[test]
    fn both_flavors_exclude_and_can_be_looked_at_by_readers() {
        for flavor in [Flavor::OpenFile, Flavor::Portable] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            let owner = File::create(&path).unwrap();
            let prober = File::open(&path).unwrap();
            assert_eq!(flavor.in_the_way(&prober, Hold::Alone).unwrap(), None, "{flavor:?}");
            assert!(flavor.try_lock(&owner, Hold::Alone).unwrap());
            assert_eq!(flavor.in_the_way(&prober, Hold::Alone).unwrap(), Some(InTheWay::OpenFile));
            let other = File::options().read(true).write(true).open(&path).unwrap();
            assert!(!flavor.try_lock(&other, Hold::Alone).unwrap());
            assert!(!flavor.try_lock(&other, Hold::Together).unwrap());
            flavor.unlock(&owner).unwrap();
            assert!(flavor.try_lock(&other, Hold::Together).unwrap());
        }
    }
}
