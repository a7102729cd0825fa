//! The command line.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use tooz::BackendUrl;

/// Locks, groups and elections on the store you already run.
#[derive(Debug, Parser)]
#[command(name = "tooz", version, propagate_version = true, subcommand_required = true)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) backend: Backend,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes: the command's own; 128+N if signal N ended it; 126 if it cannot be run, 127 if it is not found; \
64 wrong usage, 69 backend unavailable, 74 lock lost, 75 not acquired, 77 permission denied by the backend, 78 \
`tooz doctor` found something that endangers locks.

Without --url and TOOZ_URL the backend is an SQLite database of yours, which joins the processes of this \
machine: $XDG_STATE_HOME/tooz/tooz.db, or ~/.local/state/tooz/tooz.db.";

/// Where and as whom.
#[derive(Clone, Debug, Args)]
pub(crate) struct Backend {
    /// The backend
    #[arg(
        long,
        global = true,
        value_name = "URL",
        help = "Backend, such as sqlite:///var/lib/app/tooz.db [env: TOOZ_URL]"
    )]
    pub(crate) url: Option<String>,
    /// Name of this member; the default is made of the host's name, the process id and a random number
    #[arg(long, global = true, value_name = "ID")]
    pub(crate) member: Option<OsString>,
    /// How long the session lives without a sign of life, where the backend works with time (15s)
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration)]
    pub(crate) ttl: Option<Duration>,
    /// Keep apart from users of other namespaces
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a command while holding a lock
    #[command(after_help = LOCK_HELP)]
    Lock(Lock),
    /// Show who holds a lock
    Holders(Holders),
    /// Free a lock by force
    #[command(after_help = BREAK_HELP)]
    Break(Break),
    /// List the groups
    Groups(List),
    /// List a group's members, or follow them
    Members(Members),
    /// Join a group: until a signal comes, or while a command runs
    #[command(after_help = JOIN_HELP)]
    Join(Join),
    /// Run a command while leading a group
    #[command(after_help = ELECT_HELP)]
    Elect(Elect),
    /// Show who leads a group, or follow it
    Leader(Leader),
    /// See to it that fencing tokens are large enough, on a new or restored backend
    Tokens {
        #[command(subcommand)]
        verb: Tokens,
    },
    /// Examine a backend: whether it answers, how fast, what endangers locks on it, and what to do about that
    #[command(after_help = DOCTOR_HELP)]
    Doctor(Doctor),
    /// List the compiled-in drivers and what they promise
    Drivers(List),
    /// Print a shell completion script
    Completions(Completions),
}

const LOCK_HELP: &str = "\
The command finds TOOZ_LOCK_NAME, TOOZ_FENCING_TOKEN and TOOZ_MEMBER in its environment. Let it send the token \
along with what it writes, and let the receiver refuse a token smaller than the largest it has seen: that protects \
even when all else fails.

Signals INT, TERM, HUP, QUIT, USR1, USR2, WINCH and TSTP are passed on to the command's process group, which gets \
the terminal if standard input is one.

On a backend whose sessions live by time, the group gets SIGTERM --kill-grace before the deadline and SIGKILL before \
the deadline, even while tooz itself is stopped or dead: it is gone before the lock can move. If the lock is \
broken (`tooz break`), the group is killed at once, but the next holder may run already; only the token tells the \
two apart. If tooz is killed (kill -9), its guard kills the group within 100 ms, and a backend that notices the death \
sooner may let the next holder in before. A process that leaves the group (setsid, a daemon) escapes all this, and one that becomes another user \
(sudo) cannot be killed. If the command exits by itself, what it left in the background goes on without the lock; if \
a signal ends it, the rest of its group is killed.";

const BREAK_HELP: &str = "\
The lock is free when tooz returns. The holder learns it by push or at its next beat; until then both it and the next \
holder may be at work, so stop the holder first if you can.";

const RAISE_HELP: &str = "\
Run it after a backend was restored from a backup, and before locks are used on another backend than before. Tokens may \
be smaller there than those that the receivers of writes have seen, and they would refuse every write. N is one more than \
the largest token that they have seen (SELECT max(fence) FROM ...), from 1 to 4503599627370496 (2^52).

When tooz returns, every later holder and leader gets a token of at least N. Who holds a lock already keeps it, with its \
smaller token. A number that the tokens have passed changes nothing, so it can be repeated.";

const JOIN_HELP: &str = "\
The command finds TOOZ_GROUP and TOOZ_MEMBER in its environment. It is ended when tooz is: whoever is listed runs.";

const ELECT_HELP: &str = "\
The command finds TOOZ_GROUP, TOOZ_TERM, TOOZ_FENCING_TOKEN (the same number) and TOOZ_MEMBER in its environment. \
Signals, the terminal and the loss of leadership are handled as by `tooz lock`.";

const DOCTOR_HELP: &str = "\
It connects as a member, measures each operation under names that nobody else has, removes them again, and asks the \
backend for its version, state and settings. It changes nothing else and prints no password.

Each line is good, warning (it works, and a foreseeable event costs locks, members or tokens) or bad. Exit codes: 0 all \
good; 78 it works, and there are warnings or worse; 69 not reachable, or an operation failed; 77 refused: user, password, \
certificate or permission; 64 wrong usage.";

/// What runs under a lock or a leadership.
#[derive(Debug, Args)]
pub(crate) struct Guarded {
    /// Give up at once if somebody else has it
    #[arg(long = "try", conflicts_with = "wait")]
    pub(crate) once: bool,
    /// Give up after this time (250ms, 30s, 5m); the default is to wait without limit
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// Time between SIGTERM and SIGKILL when the deadline nears; at most a third of the ttl
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2s")]
    pub(crate) kill_grace: Duration,
    /// Exit code if somebody else has it
    #[arg(long, value_name = "N", default_value_t = crate::exit::NOT_ACQUIRED)]
    pub(crate) exit_not_acquired: u8,
    /// Exit code if it is lost while the command runs
    #[arg(long, value_name = "N", default_value_t = crate::exit::LOST)]
    pub(crate) exit_lost: u8,
}

#[derive(Debug, Args)]
pub(crate) struct Lock {
    /// Hold it together with others that hold it shared
    #[arg(long)]
    pub(crate) shared: bool,
    #[command(flatten)]
    pub(crate) guarded: Guarded,
    /// Name of the lock
    pub(crate) name: OsString,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Holders {
    /// Name of the lock
    pub(crate) name: OsString,
    /// One JSON object per holder
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Break {
    /// Name of the lock
    pub(crate) name: OsString,
    /// Why: the holder is told
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// One JSON object per broken holder
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// One JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Members {
    /// The group
    pub(crate) group: OsString,
    /// Go on with every change until a signal comes
    #[arg(long)]
    pub(crate) watch: bool,
    /// One JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The group; it is created if it is missing
    pub(crate) group: OsString,
    /// What to publish about this member
    #[arg(long, value_name = "JSON")]
    pub(crate) capabilities: Option<String>,
    /// The command and its arguments, after `--`
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Elect {
    #[command(flatten)]
    pub(crate) guarded: Guarded,
    /// The group
    pub(crate) group: OsString,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Leader {
    /// The group
    pub(crate) group: OsString,
    /// Go on with every change until a signal comes
    #[arg(long)]
    pub(crate) watch: bool,
    /// One JSON object per line, or null
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tokens {
    /// Raise the fencing tokens: none below N is given out any more
    #[command(after_help = RAISE_HELP)]
    Raise(Raise),
}

#[derive(Debug, Args)]
pub(crate) struct Raise {
    /// The smallest token from now on
    #[arg(long = "to", value_name = "N")]
    pub(crate) least: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The backend; the default is that of --url
    #[arg(value_name = "URL")]
    pub(crate) at: Option<String>,
    /// First adopt a backend that was moved: what its users at the former place held ends; stop them before
    #[arg(long)]
    pub(crate) adopt: bool,
    /// How often each operation is measured; the median is shown
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// One JSON object per finding
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// For which shell
    pub(crate) shell: Shell,
}

/// In the same form as a backend URL's options: `250ms`, `15s`, `2m`, `1h`, or seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let mut url = BackendUrl::parse("none://x").map_err(|error| error.to_string())?;
    url.set_option("duration", text);
    let parsed = url.duration("duration").ok().flatten();
    parsed.ok_or_else(|| "write a duration such as 250ms, 15s, 2m, or a number of seconds".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let words = ["tooz", "lock", "--try", "x", "--", "ls", "--url", "-l", "--"];
        let Verb::Lock(lock) = Cli::try_parse_from(words).unwrap().verb else { panic!() };
        assert_eq!(lock.command, ["ls", "--url", "-l", "--"]);
        assert!(lock.guarded.once && !lock.shared);
        assert_eq!(lock.guarded.kill_grace, Duration::from_secs(2));
    }

    #[test]
    fn durations_are_those_of_the_options() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("soon").is_err());
    }
}
