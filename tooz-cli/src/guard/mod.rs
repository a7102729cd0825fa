//! The processes that stand between `tooz` and the command, so that the command never outlives its lock.
//!
//! ```text
//! tooz            holds the lock; sends every new deadline down
//!  └─ guard       ends all below it when a deadline nears, when `tooz` is gone or when the launcher is gone
//!      └─ launcher    starts and reaps the command; ends all below it when the guard is gone
//!          └─ command     and what it starts, in whichever process group or session
//! ```
//!
//! *Why two processes besides `tooz`.* The promise is that `kill -9` of `tooz`, of its guard, or of both leaves
//! neither the command nor its descendants behind. A parent-death signal reaches only the direct child, so
//! a third process must survive both to kill the descendants: the launcher. All three are child subreapers, so that
//! every descendant stays below one that lives (see [`descendants`]). Two pipes join each pair of neighbours, and a
//! closed pipe means that the neighbour is gone:
//!
//! | killed -9 | who ends the descendants |
//! |---|---|
//! | `tooz` | the guard, at the end of its pipe |
//! | guard | the launcher, at the end of its pipe, and `tooz`, which then has adopted the launcher |
//! | launcher | the guard, at the end of its pipe; the command itself by its parent-death signal |
//! | `tooz` and guard | the launcher |
//! | `tooz` and launcher | the guard |
//! | guard and launcher | `tooz`; the command itself by its parent-death signal |
//! | all three | the command itself by its parent-death signal; what it started is *not* ended |
//!
//! *The command begins* only when all three know it. A stub, which becomes the command, reports its process id up and
//! waits at a pipe until `tooz` has answered. Until then a closed pipe ends it.
//!
//! Parent-death signals are set besides (they follow the thread that forked: `tooz` forks on its main thread,
//! the others have only one), and wake a neighbour whose pipe a stranger might hold open. The launcher also watches `tooz`
//! itself, in case the guard is stopped when `tooz` dies; `tooz` continues a guard or a launcher that is stopped.
//!
//! *Deadlines* travel as absolute nanoseconds of `CLOCK_BOOTTIME`, which counts suspend and means the same to
//! every process of the machine, however late the line is read. The guard alone, whatever `tooz` does, sends
//! SIGTERM at deadline − grace and SIGKILL shortly before the deadline. The guard passes the lines on, and the
//! launcher sends the SIGKILL too, in case the guard is stopped. Once the end has begun no later deadline
//! puts it off: the command has been told to stop.
//!
//! *The end of the command.* A signal that ended it may have left what it started in the middle of the protected work:
//! `tooz` orders guard and launcher to ask the rest to end, and to kill it after the grace. If the command exited by
//! itself, `--children` decides. Guard and launcher stay until `tooz` orders them to leave; if `tooz` dies before, they
//! kill what runs.
//!
//! *Groups.* Guard and launcher have process groups of their own, so that neither a `kill -9` of a shell's job
//! nor a terminal's ^C reaches them, and they block every signal. The command's group is a third one, not
//! orphaned as long as the launcher lives, so ^Z works; or that of `tooz`, where others use the terminal in it (see
//! [`terminal`]). Signals of the job go to that group. A process that runs as
//! another user (`sudo`) cannot be signalled by us; `tooz` names it.
//!
//! *Absent:* no unsafe code (hence no `pre_exec`: a stub of ourselves sets up the terminal and the parent-death
//! signal, then execs the command), no shared memory, no cgroup (needs privileges).

pub(crate) mod descendants;
mod exec;
pub(crate) mod killing;
mod launch;
mod link;
mod orders;
pub(crate) mod protocol;
mod refusal;
mod supervisor;
pub(crate) mod terminal;
mod watch;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

pub(crate) use link::Prepared;
use orders::{EXEC, LAUNCH};
pub(crate) use orders::{GUARD, Orders};
pub(crate) use protocol::boot_time;

/// Runs one of the hidden roles if `arguments` ask for it.
pub(crate) fn dispatch(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let role = arguments.nth(1)?;
    let role = [GUARD, LAUNCH, EXEC].into_iter().find(|name| role == OsStr::new(name))?;
    let Some(orders) = Orders::parse(arguments) else {
        crate::messages::error(&format!(
            "{role} is started by `tooz lock` itself; run `tooz lock NAME -- CMD` instead"
        ));
        return Some(ExitCode::from(crate::exit::USAGE));
    };
    Some(match role {
        GUARD => watch::run(&orders),
        LAUNCH => launch::run(&orders),
        _ => exec::run(&orders),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_calls_a_hidden_role_is_told_what_to_do() {
        let call = |arguments: &[&str]| dispatch(arguments.iter().map(OsString::from));
        assert!(call(&["tooz", "lock"]).is_none());
        assert!(call(&["tooz"]).is_none());
        for bad in [&["tooz", "__guard"][..], &["tooz", "__exec", "1", "x"], &["tooz", "__launch", "-1"]] {
            assert!(call(bad).is_some());
        }
    }
}
