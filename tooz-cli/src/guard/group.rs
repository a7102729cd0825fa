//! The command's process group.

use std::fs;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Sends `signal` to every process of the group. Errors are ignored: the group may be gone or run as another user.
pub(crate) fn signal(group: Pid, signal: Signal) {
    let _ = killpg(group, signal);
}

/// Kills every process of the group. No process escapes by forking: a fork fails while SIGKILL is pending.
pub(crate) fn kill(group: Pid) {
    signal(group, Signal::SIGKILL);
}

/// Whether no process of the group runs any more.
pub(crate) fn is_gone(group: Pid) -> bool {
    if killpg(group, None) == Err(Errno::ESRCH) {
        return true;
    }
    // kill(2) also counts zombies, which run no more. Where process 1 reaps nothing (many containers), they stay
    // for ever.
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    !processes.flatten().any(|entry| {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        pid.and_then(stat).is_some_and(|stat| stat.group == group && !matches!(stat.state, 'Z' | 'X'))
    })
}

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) parent: Pid,
    pub(crate) group: Pid,
    pub(crate) session: Pid,
}

/// `None` if there is no such process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name stands in parentheses and may hold anything, parentheses too.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let mut pid = || fields.next()?.parse().ok().map(Pid::from_raw);
    Some(Stat { state, parent: pid()?, group: pid()?, session: pid()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn our_own_entry_is_read() {
        let stat = stat(nix::unistd::getpid().as_raw()).unwrap();
        assert_eq!(stat.parent, nix::unistd::getppid());
        assert_eq!(stat.group, nix::unistd::getpgrp());
    }

    #[test]
    fn a_zombie_is_gone_and_a_sleeper_is_not() {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert!(!is_gone(group));
        kill(group);
        let end = std::time::Duration::from_secs(10);
        assert!(crate::eventually(end, || is_gone(group)), "it is a zombie now");
        child.wait().unwrap();
        assert!(is_gone(group));
    }
}
