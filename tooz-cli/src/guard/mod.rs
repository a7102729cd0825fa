//! The processes that stand between `tooz` and the command, so that the command never outlives its lock.
//!
//! ```text
//! tooz            holds the lock; sends every new deadline down
//!  └─ guard       ends the group when a deadline nears, when `tooz` is gone or when the launcher is gone
//!      └─ launcher    starts and reaps the command; ends the group when the guard is gone
//!          └─ command     leader of the process group that is ended
//! ```
//!
//! *Why two processes besides `tooz`.* The promise is that `kill -9` of `tooz`, of its guard, or of both leaves
//! neither the command nor its children behind. A parent-death signal reaches only the direct child, so
//! somebody must survive both to send SIGKILL to the group: the launcher. Each neighbour pair is joined by two
//! pipes, and a closed pipe means that the neighbour is gone:
//!
//! | killed -9 | who ends the group |
//! |---|---|
//! | `tooz` | the guard, at the end of its pipe |
//! | guard | the launcher, at the end of its pipe, and `tooz`, which waits for the guard |
//! | launcher | the guard, at the end of its pipe; the command itself by its parent-death signal |
//! | `tooz` and guard | the launcher |
//! | `tooz` and launcher | the guard |
//! | guard and launcher | `tooz`; the command itself by its parent-death signal |
//! | all three | the command itself by its parent-death signal; its children are *not* ended |
//!
//! *The command begins* only when all three know its group: a stub has its process id, reports it up, and waits at a
//! pipe until `tooz` has answered. Were `tooz` to learn it later, a kill of guard and launcher in that moment would
//! leave children of the command behind that nobody knows of.
//!
//! Parent-death signals are set besides (they follow the thread that forked: `tooz` forks on its main thread,
//! the others have only one), and wake a neighbour whose pipe a stranger might hold open.
//!
//! *Deadlines* travel as absolute nanoseconds of `CLOCK_BOOTTIME`, which counts suspend and means the same to
//! every process of the machine, however late the line is read. The guard alone, whatever `tooz` does, sends
//! SIGTERM at deadline − grace and SIGKILL shortly before the deadline. The guard passes the lines on, and the
//! launcher sends the SIGKILL too, should the guard be stopped. Once a group is being ended no later deadline
//! saves it: the command has been told to stop.
//!
//! *Groups.* Guard and launcher have process groups of their own, so that neither a `kill -9` of a shell's job
//! nor a terminal's ^C reaches them, and they block every signal. The command's group is a third one, not
//! orphaned as long as the launcher lives, so ^Z works. A process that leaves the group (`setsid`, a daemon)
//! escapes, and one that changed its user (`sudo`) cannot be signalled by us.
//!
//! *Absent:* no unsafe code (hence no `pre_exec`: a stub of ourselves sets up the terminal and the parent-death
//! signal, then execs the command), no shared memory, no cgroup (needs privileges).

mod exec;
pub(crate) mod group;
mod launch;
mod link;
pub(crate) mod protocol;
pub(crate) mod terminal;
mod warden;
mod watch;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::Pid;

pub(crate) use link::Prepared;
pub(crate) use warden::boot_time;

/// The first argument under which `tooz` runs as its own guard.
pub(crate) const GUARD: &str = "__guard";
const LAUNCH: &str = "__launch";
const EXEC: &str = "__exec";

/// Runs one of the hidden roles if `arguments` ask for it.
pub(crate) fn dispatch(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let role = arguments.nth(1)?;
    let role = [GUARD, LAUNCH, EXEC].into_iter().find(|name| role == OsStr::new(name))?;
    let Some(orders) = Orders::parse(arguments) else {
        eprintln!("tooz: {role} is started by `tooz lock` itself; run `tooz lock NAME -- CMD` instead");
        return Some(ExitCode::from(crate::exit::USAGE));
    };
    Some(match role {
        GUARD => watch::run(&orders),
        LAUNCH => launch::run(&orders),
        _ => exec::run(&orders),
    })
}

/// Points standard output and error elsewhere once the process below has them, so that whoever reads them sees
/// their end when the command closes them. Standard input goes, too, unless it is the terminal, which the guard
/// (`keeps_terminal`) has to give back.
fn let_go_of_output(keeps_terminal: bool) {
    let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") else { return };
    if !(keeps_terminal && std::io::IsTerminal::is_terminal(&std::io::stdin())) {
        let _ = nix::unistd::dup2_stdin(&null);
    }
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::unistd::dup2_stderr(&null);
}

/// What each process is told by the one that starts it.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// The end of the pipe from the parent, by number; 0 if there is none.
    pub(crate) input: i32,
    /// The end of the pipe to the parent, by number; 0 if there is none.
    pub(crate) output: i32,
    /// The parent's process id: another one at `getppid` means that it is gone.
    pub(crate) parent: Pid,
    /// The process group of `tooz`, from which the command takes the terminal and to which it goes back.
    pub(crate) home: Pid,
    /// How long before the deadline the group is asked to end.
    pub(crate) grace: Duration,
    /// The command and its arguments.
    pub(crate) command: Vec<OsString>,
}

impl Orders {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut number = || arguments.next()?.to_str()?.parse::<i32>().ok().filter(|number| *number >= 0);
        let (input, output, parent, home, grace) = (number()?, number()?, number()?, number()?, number()?);
        let command: Vec<_> = arguments.collect();
        (!command.is_empty()).then_some(Self {
            input,
            output,
            parent: Pid::from_raw(parent),
            home: Pid::from_raw(home),
            grace: Duration::from_millis(grace.unsigned_abs().into()),
            command,
        })
    }

    /// As arguments, in the order in which they are parsed.
    fn to_arguments(&self, role: &str) -> Vec<OsString> {
        let grace = i32::try_from(self.grace.as_millis()).unwrap_or(i32::MAX);
        let numbers = [self.input, self.output, self.parent.as_raw(), self.home.as_raw(), grace];
        let mut arguments = vec![OsString::from(role)];
        arguments.extend(numbers.map(|number| number.to_string().into()));
        arguments.extend(self.command.iter().cloned());
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        let orders = Orders {
            input: 3,
            output: 4,
            parent: Pid::from_raw(10),
            home: Pid::from_raw(9),
            grace: Duration::from_millis(1_500),
            command: vec!["-x".into(), "".into(), "--".into()],
        };
        let mut arguments = orders.to_arguments(GUARD).into_iter();
        assert_eq!(arguments.next().unwrap(), GUARD);
        let read = Orders::parse(arguments).unwrap();
        assert_eq!(format!("{read:?}"), format!("{orders:?}"));
    }

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
