//! What the kernel says about locks on files and about processes.
//!
//! Session files use open-file-description locks: they belong to the open file, conflict inside one process too,
//! go when the last copy of the descriptor is closed, and can be tested without being taken.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    pub(crate) inode: u64,
}

impl FileId {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|data| Self::from(&data))
    }

    /// The file at `path`, without following a symlink there.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        fs::symlink_metadata(path).map(|data| Self::from(&data))
    }
}

impl From<&fs::Metadata> for FileId {
    fn from(data: &fs::Metadata) -> Self {
        Self { device: data.dev(), inode: data.ino() }
    }
}

#[allow(clippy::cast_possible_truncation)] // the constants of the C header are wider than its fields
fn region(kind: libc::c_int, start: libc::off_t, length: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// Takes the exclusive lock on an open file; `false` if somebody has it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&region(libc::F_WRLCK, 0, 0))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// SQLite's `SHARED_FIRST` and `SHARED_SIZE`: the bytes of a database on which its readers have a lock.
const READERS: (libc::off_t, libc::off_t) = (0x4000_0000 + 2, 510);

/// Locks a database as a reader, until the file is closed; `false` while another process has it alone.
pub(crate) fn try_lock_as_reader(file: &File) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&region(libc::F_RDLCK, READERS.0, READERS.1))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether somebody has the lock; takes nothing, and a file opened for reading will do.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    let mut lock = region(libc::F_WRLCK, 0, 0);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Another process's POSIX lock on one byte: its pid, 0 if it is not visible from our pid namespace.
pub(crate) fn posix_lock_holder(file: &File, byte: libc::off_t) -> Option<i32> {
    let mut lock = region(libc::F_WRLCK, byte, 1);
    fcntl(file, FcntlArg::F_GETLK(&mut lock)).ok()?;
    (i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid.max(0))
}

/// A process as a session records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Its start in clock ticks since boot: a pid is used again, this pair is not.
    pub(crate) started: Option<u64>,
    /// In another namespace the same pid is another process.
    pub(crate) pid_namespace: Option<u64>,
}

impl Process {
    /// This process; without `/proc` the pid alone.
    pub(crate) fn this() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            started: stat(pid).filter(|_| proc_is_ours(pid)).map(|stat| stat.started),
            pid_namespace: fs::metadata("/proc/self/ns/pid").ok().map(|data| data.ino()),
        }
    }

    /// Whether it certainly no longer runs, judged from `here`.
    pub(crate) fn is_gone(&self, here: &Self) -> bool {
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

    /// Whether it stands still (SIGSTOP, or a debugger), judged from this process.
    pub(crate) fn is_stopped(&self) -> bool {
        let here = Self::this();
        let known = self.pid_namespace.is_some() && here.pid_namespace == self.pid_namespace;
        known && stat(self.pid).is_some_and(|stat| stat.stopped && self.started == Some(stat.started))
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

/// Whether something is mounted at exactly this path.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    if let (Some(at), Some(above)) = (mount_of(path)?, mount_of(parent)?) {
        return Ok(at != above);
    }
    Ok(is_listed(&fs::read("/proc/self/mountinfo")?, path))
}

/// The number of the mount through which a path is reached; `None` where the kernel does not say it, for example to a
/// process that may not be traced.
fn mount_of(path: &Path) -> io::Result<Option<u64>> {
    // O_PATH: closing any other descriptor of the database would drop SQLite's locks.
    let file = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    let Ok(text) = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())) else {
        return Ok(None);
    };
    Ok(text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()))
}

/// Whether `/proc/self/mountinfo` lists this mount point; there, spaces and the like are written as `\ooo`.
fn is_listed(mounts: &[u8], path: &Path) -> bool {
    let written: Vec<u8> = path
        .as_os_str()
        .as_bytes()
        .iter()
        .flat_map(|byte| match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
            _ => vec![*byte],
        })
        .collect();
    let point = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(<[u8]>::to_vec);
    mounts.split(|byte| *byte == b'\n').any(|line| point(line).is_some_and(|point| point == written))
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
        assert!(here.started.is_some() && here.pid_namespace.is_some());
        assert!(!here.is_gone(&here));
        assert!(Process { started: here.started.map(|ticks| ticks - 1), ..here.clone() }.is_gone(&here));
        let elsewhere = Process { started: Some(1), pid_namespace: Some(1), ..here.clone() };
        assert!(!elsewhere.is_gone(&here), "another namespace cannot be judged");
    }

    #[test]
    fn mount_points_are_told_from_what_lies_below() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/version")).unwrap());
        let mounts =
            b"36 35 98:0 / /a\\040b rw,noatime shared:1 - ext4 /dev/x rw\n37 35 98:0 / /c rw - ext4 x rw\n";
        assert!(is_listed(mounts, Path::new("/a b")) && is_listed(mounts, Path::new("/c")));
        assert!(!is_listed(mounts, Path::new("/a")) && !is_listed(mounts, Path::new("/")));
    }

    #[test]
    fn a_lock_is_seen_through_a_descriptor_opened_for_reading() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let owner = File::create(&path).unwrap();
        let prober = File::open(&path).unwrap();
        assert!(!is_locked(&prober).unwrap());
        assert!(try_lock(&owner).unwrap());
        assert!(is_locked(&prober).unwrap());
        let other = File::options().write(true).open(&path).unwrap();
        assert!(!try_lock(&other).unwrap());
        drop(owner);
        assert!(!is_locked(&prober).unwrap() && try_lock(&other).unwrap());
    }
}
