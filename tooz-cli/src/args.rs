//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use tooz::BackendUrl;

use crate::exit::{self, Code, LOST, NOT_ACQUIRED};

/// Locks, groups and elections on the store you already run.
#[derive(Debug, Parser)]
#[command(name = "tooz", version, propagate_version = true, subcommand_required = true)]
#[command(after_help = exit::table() + "\n" + SETTINGS)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) backend: BackendOptions,
    /// Print errors only; a taken lock or leadership is not an error
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = OF_EVERY_VERB)]
    pub(crate) quiet: bool,
    /// Tell also what goes well: acquired, elected, the backend is away and back
    #[arg(short, long, global = true, help_heading = OF_EVERY_VERB)]
    pub(crate) verbose: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Heading of the options that every verb has, so that those of a verb stand together.
const OF_EVERY_VERB: &str = "Options of every verb";

const SETTINGS: &str = "\
The backend is the first of: --url; TOOZ_URL, or the file that TOOZ_URL_FILE names; the url in \
$XDG_CONFIG_HOME/tooz/config.toml (~/.config/tooz/config.toml), then in /etc/tooz/config.toml; else an SQLite database of \
the current user, $XDG_STATE_HOME/tooz/tooz.db (~/.local/state/tooz/tooz.db). That default excludes only processes with \
the same user and home on this machine: a job of root and one of yours do not exclude each other. Namespace and \
ttl come with the url, unless --namespace and --ttl, or TOOZ_NAMESPACE and TOOZ_TTL, give them. A command that tooz runs \
gets the same settings by these variables; what a file says is handed on as the file. `tooz doctor` tells which backend is \
used and what names it.

A configuration file (TOOZ_URL_FILE may name one, too, that ends in .toml):
  url = \"redis://:password@db1\"     # with a password: mode 640, and a group of those who may
  namespace = \"billing\"
  ttl = \"20s\"";

/// The backend, and the member that connects to it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = OF_EVERY_VERB)]
pub(crate) struct BackendOptions {
    /// The backend
    #[arg(
        long,
        global = true,
        value_name = "URL",
        help = "Backend, such as sqlite:///var/lib/app/tooz.db [env: TOOZ_URL, TOOZ_URL_FILE] (default: see tooz --help)"
    )]
    pub(crate) url: Option<String>,
    /// Id of this member [default: host name, process id and a random number]
    #[arg(long, global = true, value_name = "ID")]
    pub(crate) member: Option<OsString>,
    /// How long the session lives without a renewal
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        value_parser = duration,
        help = "How long the session lives without a renewal, on backends with a session ttl [env: TOOZ_TTL] [default: 15s]"
    )]
    pub(crate) ttl: Option<Duration>,
    /// Equal names in two namespaces are two different locks or groups
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        value_parser = NonEmptyStringValueParser::new(),
        help = "Namespace: equal names in two namespaces are two different locks or groups [env: TOOZ_NAMESPACE]"
    )]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a command while holding a lock
    #[command(after_help = LOCK_HELP)]
    Lock(Lock),
    /// Show who holds a lock
    Holders(Holders),
    /// Free a lock, or depose a leader, by force
    #[command(after_help = BREAK_HELP)]
    Break(Break),
    /// List the groups
    Groups(List),
    /// List the members of a group, or follow changes
    Members(Members),
    /// Join a group until a signal arrives, or while a command runs
    #[command(after_help = JOIN_HELP)]
    Join(Join),
    /// Run a command while leading a group
    #[command(after_help = ELECT_HELP)]
    Elect(Elect),
    /// Show the leader of a group, or follow changes
    Leader(Leader),
    /// Raise fencing tokens, on a new or restored backend
    Tokens {
        #[command(subcommand)]
        verb: Tokens,
    },
    /// Examine a backend: does it answer, how fast, what endangers locks on it, and what to do about that
    #[command(after_help = DOCTOR_HELP)]
    Doctor(Doctor),
    /// List the compiled-in drivers and the characteristics that they promise
    Drivers(List),
    /// Print a shell completion script
    Completions(Completions),
    /// Print a manual page, or write all of them
    Man(Man),
}

const LOCK_HELP: &str = "\
Examples:
  tooz lock backup -- pg_dump -f backup.sql mydb
  tooz lock --wait 30s deploy -- ./deploy.sh
  * * * * *  tooz -q lock --try --exit-not-acquired 0 report -- ./report     (a line of cron)

tooz sets TOOZ_LOCK_NAME, TOOZ_FENCING_TOKEN and TOOZ_MEMBER in the command's environment. Send the token along \
with every write, and let the receiver refuse a token smaller than the largest it has seen. That protects the \
data even when everything else fails. A tooz inside uses the same backend (TOOZ_URL and others). TOOZ_HELD lists what outer tooz processes hold for the command: a tooz lock of \
the same name inside it is refused (64), since each would wait for the other; shared inside shared is let through.

The signals INT, TERM, HUP, QUIT, USR1, USR2, WINCH and TSTP are passed on to the command's process group. It is a \
group of its own, and gets the terminal if the group of tooz has it. In a pipeline, and in a script that runs on a \
terminal, the command stays in the group of tooz: the others need the terminal, too. What the terminal sends to the \
whole group (^C, ^Z) is not passed on then.

On a backend with a session ttl, a guard process sends the command and all its descendants, in whichever process \
group or session, SIGTERM --kill-grace before the deadline and SIGKILL shortly before the deadline, even while \
tooz itself is stopped or dead. So they are gone before the lock can be granted again. If the lock is broken \
(`tooz break`), they are killed at once, but the next holder may run already; only the token tells the two apart. \
If tooz is killed (kill -9), the guard kills them within 100 ms. A backend that notices the death sooner may grant \
the lock to the next holder before that. A tooz among them first gets SIGTERM, and releases its own lock.

A signal that you send to tooz is passed on: a command that ignores SIGTERM runs on, and keeps the lock. \
If a signal ends the command, its descendants get SIGTERM, and SIGKILL after --kill-grace, and then the lock is \
released. If the command exits by itself, --children decides about them.

Not covered: what is no descendant, because another process starts it (docker, systemctl, systemd-run, at, cron, \
ssh), and a process that runs as another user (sudo, su), unless tooz runs as root. tooz names what it cannot end.

`tooz --help` lists the exit codes.";

const BREAK_HELP: &str = "\
The lock is free when tooz returns. A message or the next renewal tells the old holder that it lost the lock; \
until then the old and the next holder may both be at work. Stop the old holder first if you can.

Only those that hold it when tooz looks are broken. If one of them lets go meanwhile, the next holder keeps the lock, \
and tooz exits with 1; it does so, too, if no holder has the --token or the id of --held-by.";

const RAISE_HELP: &str = "\
Run this after a backend was restored from a backup, and before you use locks on another backend than before. \
Tokens may be smaller there than the tokens that the receivers of writes have seen, and then the receivers refuse \
every write. N is one more than the largest token that the receivers have seen (SELECT max(fence) FROM ...), from \
1 to 4503599627370496 (2^52).

When tooz returns, every later holder and leader gets a token of at least N. Present holders keep their locks and \
their smaller tokens. If the tokens have passed N already, the command changes nothing, so it can be repeated.";

const JOIN_HELP: &str = "tooz sets TOOZ_GROUP and TOOZ_MEMBER in the command's environment. The command \
     never outlives tooz. It runs on while the membership is lost; tooz joins again when it can.";

const ELECT_HELP: &str = "\
Example: tooz elect scheduler -- ./scheduler      After a loss tooz exits with 74; let a service manager start it again.

GROUP names the election. Its candidates need not be members of the group.

tooz sets TOOZ_GROUP, TOOZ_TERM, TOOZ_FENCING_TOKEN (the same number as TOOZ_TERM) and TOOZ_MEMBER in the \
command's environment. Signals, the terminal and the loss of the leadership are handled as by `tooz lock`. `tooz --help` lists the exit codes.";

const DOCTOR_HELP: &str = "\
doctor reads the backend's version, state and settings, connects as a member, measures each operation under names \
with a random suffix, and removes what it made. It prints no password.

Where no lock was ever granted, or where that cannot be known, doctor writes nothing: no database, directory or key. \
The records of a first session and a first lock would stay, for a token counter that others may use by now must not be \
deleted. So doctor opens no session there, and measures only connecting and listing. Elsewhere nothing stays but that \
tokens were used up. Connecting to Redis loads scripts into the server's cache of scripts, where they stay until it \
restarts.

Each line is good, warning (the backend works, but a foreseeable event would lose locks, members or tokens) or \
bad, and then its topic. --ignore TOPIC accepts a risk: its findings are marked and do not count for the exit code. \
An unreachable backend and a failed operation always count.

Exit codes: 0 all good; 78 the backend works, and there are warnings or worse; 69 the backend is unreachable, or an \
operation failed; 77 user, password, certificate or permission refused; 64 wrong usage.";

/// How what the command started is ended.
#[derive(Debug, Args)]
pub(crate) struct Ending {
    /// Time between SIGTERM and SIGKILL when the lock is lost, and for what the command leaves behind; no more than a third of
    /// the ttl is used
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2s")]
    pub(crate) kill_grace: Duration,
    /// When the command has exited, what to do with processes that it started and that still run
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Children::Leave)]
    pub(crate) children: Children,
}

/// What happens to what the command started and left running when it exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Children {
    /// Keep the lock until they have ended, as flock does
    Wait,
    /// End them before the lock is released
    End,
    /// Name them, and leave them running without the lock
    Leave,
}

/// How to acquire a lock or leadership, and how to end the command that runs under it.
#[derive(Debug, Args)]
pub(crate) struct Guarded {
    /// Give up at once if the lock or leadership is taken, and after 2 s if the backend does not answer
    #[arg(short = 'n', long = "try", conflicts_with = "wait")]
    pub(crate) once: bool,
    /// Give up after this time, such as 250ms, 30s or 5m; until then a backend that is away is tried again [default: wait
    /// without limit, but not for a backend that is away]
    #[arg(short, long, value_name = "DURATION", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    #[command(flatten)]
    pub(crate) ending: Ending,
    /// Exit code if the lock or leadership was not acquired
    #[arg(short = 'E', long, value_name = "N", default_value_t = NOT_ACQUIRED)]
    pub(crate) exit_not_acquired: Code,
    /// Exit code if the lock or leadership is lost while the command runs
    #[arg(long, value_name = "N", default_value_t = LOST)]
    pub(crate) exit_lost: Code,
}

#[derive(Debug, Args)]
pub(crate) struct Lock {
    /// Acquire the lock shared: several shared holders at a time, none beside an exclusive one
    #[arg(short, long)]
    pub(crate) shared: bool,
    #[command(flatten)]
    pub(crate) guarded: Guarded,
    /// Name of the lock
    pub(crate) name: OsString,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Holders {
    /// Name of the lock
    pub(crate) name: OsString,
    /// Print one JSON object per holder
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Break {
    /// Name of the lock; with --leader, of the group
    pub(crate) name: OsString,
    /// Depose the leader of the group NAME
    #[arg(long)]
    pub(crate) leader: bool,
    /// Break only the holder with this fencing token
    #[arg(long, value_name = "N", conflicts_with = "held_by")]
    pub(crate) token: Option<u64>,
    /// Break only the holders with this member id
    #[arg(long, value_name = "ID")]
    pub(crate) held_by: Option<OsString>,
    /// Why the lock is broken; the holder is told
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// Print one JSON object per broken holder
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print one JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Members {
    /// Name of the group
    pub(crate) group: OsString,
    /// Follow changes until a signal arrives, also of a group that does not exist yet
    #[arg(long)]
    pub(crate) watch: bool,
    /// Print one JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// Name of the group; it is created if it does not exist
    pub(crate) group: OsString,
    /// Capabilities that the group publishes about this member
    #[arg(long, value_name = "JSON")]
    pub(crate) capabilities: Option<String>,
    #[command(flatten)]
    pub(crate) ending: Ending,
    /// The command and its arguments, after `--`
    #[arg(last = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Elect {
    #[command(flatten)]
    pub(crate) guarded: Guarded,
    /// Name of the group
    pub(crate) group: OsString,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Leader {
    /// Name of the group
    pub(crate) group: OsString,
    /// Follow changes until a signal arrives
    #[arg(long)]
    pub(crate) watch: bool,
    /// Print the leader as JSON, or null; with --watch one object per line, with the time and the leader
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tokens {
    /// Raise the fencing tokens: every later grant gets at least N
    #[command(after_help = RAISE_HELP)]
    Raise(Raise),
}

#[derive(Debug, Args)]
pub(crate) struct Raise {
    /// Smallest token from now on
    #[arg(long = "to", value_name = "N")]
    pub(crate) least: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The backend; the default is that of --url
    #[arg(value_name = "URL")]
    pub(crate) at: Option<String>,
    /// Adopt a moved backend first; this ends what users of the former place hold, so stop them before
    #[arg(long)]
    pub(crate) adopt: bool,
    /// Do not let findings on this topic (the second column) count for the exit code; may be repeated
    #[arg(long, value_name = "TOPIC")]
    pub(crate) ignore: Vec<String>,
    /// How often to measure each operation; the median is shown
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Print one JSON object per finding
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Shell to write the script for
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Verb to print the page of, such as lock, or tokens raise [default: the page of tooz]
    pub(crate) verb: Vec<String>,
    /// Write all pages to this directory instead
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    pub(crate) directory: Option<PathBuf>,
}

/// Parses a duration in the form of a backend URL's options: `250ms`, `15s`, `2m`, `1h`, or seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
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
        // The short options are those of flock(1).
        let words = ["tooz", "lock", "-s", "-w", "5", "-E", "0", "x", "--", "ls"];
        let Verb::Lock(lock) = Cli::try_parse_from(words).unwrap().verb else { panic!() };
        assert!(lock.shared && lock.guarded.wait == Some(Duration::from_secs(5)));
        assert_eq!(lock.guarded.exit_not_acquired.to_string(), "0");
        assert_eq!(lock.guarded.ending.kill_grace, Duration::from_secs(2));
        assert_eq!(lock.guarded.ending.children, Children::Leave);
    }

    #[test]
    fn durations_are_those_of_the_options() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("soon").is_err());
    }
}
