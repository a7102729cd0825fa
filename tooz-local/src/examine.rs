//! What operators should know about any directory or database on this host.

use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use tooz_core::{Characteristics, Finding};

use crate::filesystem::{self, FileSystem};
use crate::process;

/// A full disk grants nothing. Each record is small, but SQLite's log grows during a read.
const LITTLE_SPACE: u64 = 16 << 20;

/// Judges the file system that `thing` is on: "directory" or "database". `best` is what the driver guarantees elsewhere.
pub fn judge_file_system(system: FileSystem, thing: &str, forced: bool, best: Characteristics) -> Finding {
    let (name, topic) = (system.name(), "file-system");
    if system.is_in_memory() {
        return Finding::warning(
            topic,
            format!("{name}: it is in memory, so after a restart of the machine tokens may begin anew"),
            format!("put the {thing} on a disk, unless a restart also deletes what the locks protect"),
        );
    }
    if system.is_local() {
        return Finding::good(topic, format!("{name}, where locks between processes work"));
    }
    let what = format!("{name}: not known to be local, so locks between processes may not work");
    let advice = format!("move the {thing} to a local disk (ext, xfs, btrfs, zfs, f2fs)");
    let finding =
        if forced { Finding::warning(topic, what, advice) } else { Finding::bad(topic, what, advice) };
    finding.lowers(best - filesystem::guarantees(best, false))
}

/// The first of these paths that this user may not write to. `all` says what every user has to be able to write to.
pub fn find_unwritable(paths: &[impl AsRef<Path>], all: &str) -> Option<Finding> {
    let mut paths = paths.iter().map(|path| -> &Path { path.as_ref() });
    let needed = |path: &Path| {
        if path.is_dir() { AccessFlags::W_OK | AccessFlags::X_OK } else { AccessFlags::W_OK }
    };
    let closed = paths.find(|path| path.exists() && access(*path, needed(path)).is_err())?;
    Some(Finding::bad(
        "writable",
        format!("{} cannot be written to by this user, or is mounted read-only", closed.display()),
        format!("give write permission for {all}, to every user of it"),
    ))
}

/// Whether the disk is full, or about to be.
pub fn check_space(directory: &Path) -> Option<Finding> {
    let answer = statvfs(directory).ok()?;
    let (shown, topic) = (directory.display(), "space");
    let free = answer.blocks_available().saturating_mul(answer.fragment_size());
    // Some file systems make inodes as they need them, and say that there are none.
    if answer.files() > 0 && answer.files_available() == 0 {
        let what = format!("no inode is free for {shown}: no session begins and no lock is granted");
        return Some(Finding::bad(topic, what, format!("remove files on that disk (df -i {shown})")));
    }
    let (what, advice) =
        (format!("{} KiB are free for {shown}", free / 1024), format!("make room (df {shown})"));
    match free {
        0 => Some(Finding::bad(topic, format!("{what}: no session begins and no lock is granted"), advice)),
        1..LITTLE_SPACE => {
            Some(Finding::warning(topic, format!("{what}; on a full disk no lock is granted"), advice))
        }
        _ => None,
    }
}

/// The first of these processes that is stopped while it keeps all others waiting; `doing` says how.
pub fn find_stopped_writer(pids: impl IntoIterator<Item = u32>, doing: &str) -> Option<Finding> {
    let pid = pids.into_iter().find(|pid| process::is_stopped(*pid))?;
    Some(Finding::bad(
        "stopped",
        format!("process {pid} is stopped {doing}, and all other processes wait for it"),
        format!("continue it (kill -CONT {pid}) or end it"),
    ))
}

/// A process that is stopped while it holds this many locks: it does not release them.
pub fn stopped_holder(pid: u32, locks: u64) -> Finding {
    Finding::warning(
        "stopped",
        format!("process {pid} is stopped and keeps its locks ({locks})"),
        format!("continue it (kill -CONT {pid}) or end it, which frees them at once"),
    )
}

#[cfg(test)]
mod tests {
    use tooz_core::Severity;

    use super::*;

    #[test]
    fn an_unknown_file_system_is_bad_and_forcing_it_lowers() {
        let (proc, best) = (FileSystem::of(Path::new("/proc")).unwrap(), Characteristics::all());
        let refused = judge_file_system(proc, "directory", false, best);
        assert_eq!(refused.severity(), Severity::Bad);
        let forced = judge_file_system(proc, "directory", true, best);
        assert_eq!(forced.severity(), Severity::Warning);
        assert!(forced.lowered().contains(Characteristics::DURABLE_FENCING));
    }
}
