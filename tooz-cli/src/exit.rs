//! Exit codes, and errors that carry one. The numbers follow `sysexits.h` and the shell.

use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, raise};
use tooz::ErrorKind;
use tooz::driver::support::descriptors;

use crate::messages;

/// An exit code. There is no other way to end with a number than those of [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    number: u8,
    /// The signal that the number tells of.
    signal: Option<Signal>,
}

/// A constant for each code of its own, and the table of all.
macro_rules! codes {
    ($($name:ident = $code:literal: $says:literal;)*) => {
        $(#[doc = $says] pub(crate) const $name: Code = Code::of_command($code);)*

        /// Every exit code, and what it says. The README has the same table.
        const TABLE: &[(&str, &str)] = &[
            ("the command's own", "the command ran to its end under the lock, leadership or membership"),
            ("128 + N", "signal N ended the command, or tooz while it waited or watched"),
            $((stringify!($code), $says),)*
        ];
    };
}

codes! {
    DONE = 0: "done; there is no command, or it exited with 0";
    NO = 1: "no such group, member or leader; it exists already; or a holder does not let go";
    USAGE = 64: "wrong usage: correct the command line, a variable or a file";
    UNAVAILABLE = 69: "the backend is unavailable: try again later";
    LOST = 74: "the lock or leadership was lost while the command ran (--exit-lost)";
    NOT_ACQUIRED = 75: "the lock or leadership was not acquired (--exit-not-acquired)";
    DENIED = 77: "the backend refused user, password, certificate or permission";
    ENDANGERED = 78: "tooz doctor: something endangers locks, members or tokens";
    CANNOT_RUN = 126: "the command cannot be run";
    NOT_FOUND = 127: "the command was not found";
}

/// The table for help.
pub(crate) fn table() -> String {
    let line = |(code, says): &(&str, &str)| format!("  {code:<19} {says}\n");
    format!("Exit codes:\n{}", TABLE.iter().map(line).collect::<String>())
}

impl Code {
    /// That of the command.
    pub(crate) const fn of_command(code: u8) -> Self {
        Self { number: code, signal: None }
    }

    /// For an end by `signal`: its number is added to 128.
    pub(crate) fn by_signal(signal: i32) -> Self {
        let number = u8::try_from(signal.saturating_add(128)).unwrap_or(u8::MAX);
        Self { number, signal: Signal::try_from(signal).ok() }
    }

    /// The reader of our output is gone, as for any program of a pipeline.
    pub(crate) const BROKEN_PIPE: Self = Self::of_command(128 + 13);

    /// Ends the process so. After ^C bash ends its script only if the program died of the signal: one that exits with 130 has
    /// handled it, and the script goes on with the next line.
    pub(crate) fn end(self) -> ExitCode {
        if let Some(signal @ (Signal::SIGINT | Signal::SIGQUIT)) = self.signal {
            // SIGQUIT would dump the memory, which may hold passwords.
            let _ = nix::sys::prctl::set_dumpable(false);
            // Its action is the default one: an ignored signal is not caught, and the others are read from a descriptor.
            let _ = SigSet::from(signal).thread_unblock();
            let _ = raise(signal);
        }
        // The first process of a container does not die of it.
        self.number.into()
    }

    /// For a question with the answer yes or no, as grep does.
    pub(crate) const fn of_answer(yes: bool) -> Self {
        if yes { DONE } else { NO }
    }
}

/// A code that the command line chooses.
impl FromStr for Code {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::of_command).map_err(|_| "write a number from 0 to 255")
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        code.number.into()
    }
}

/// Why `tooz` ends without success: one line for standard error, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
    closing: Closing,
}

/// How the session is closed after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// As patiently as the library does it.
    Patient,
    /// Within [`QUICK`], after the message: what was sent must not take effect after the exit.
    Quick,
    /// The same, if the backend has answered the last beat: what is lost is not waited for.
    IfAlive,
}

/// Enough for a withdrawal at a backend that answers. At one that does not, nobody waits for `tooz`.
pub(crate) const QUICK: Duration = Duration::from_secs(1);

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), closing: Closing::Patient }
    }

    /// The same; its message is printed before the session is closed, which may take [`QUICK`].
    pub(crate) fn closing(self, closing: Closing) -> Self {
        Self { closing, ..self }
    }

    pub(crate) fn how_to_close(&self) -> Closing {
        self.closing
    }

    /// The same, with more in its message.
    pub(crate) fn adding(mut self, more: &str) -> Self {
        self.message.push_str(more);
        self
    }

    /// Ends with this code and prints nothing: the reason was printed before.
    pub(crate) fn silent(code: Code) -> Self {
        Self::new(code, "")
    }

    /// Prints the message now.
    pub(crate) fn told(self) -> Self {
        let _ = self.report();
        Self::silent(self.code)
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Prints the message and returns the code.
    pub(crate) fn report(&self) -> Code {
        if !self.message.is_empty() {
            messages::error(&self.message);
        }
        self.code
    }
}

impl From<tooz::Error> for Failure {
    fn from(error: tooz::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::UnknownScheme
            | ErrorKind::InvalidUrl
            | ErrorKind::InvalidOption
            | ErrorKind::MissingCharacteristic
            | ErrorKind::Unsupported
            | ErrorKind::Invalid => USAGE,
            ErrorKind::Denied => DENIED,
            ErrorKind::SessionLost => LOST,
            ErrorKind::GroupExists
            | ErrorKind::GroupNotFound
            | ErrorKind::GroupNotEmpty
            | ErrorKind::MemberExists
            | ErrorKind::MemberNotFound
            | ErrorKind::HolderUnresponsive => NO,
            _ => UNAVAILABLE,
        };
        let parts = [vec![error.to_string()], error.causes()].concat();
        Self::new(code, parts.join(": "))
    }
}

/// What an error of the operating system says, with the remedy where the limit on open files is its cause.
pub(crate) fn told(error: &std::io::Error) -> String {
    descriptors::remedy(error).map_or_else(|| error.to_string(), str::to_owned)
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(UNAVAILABLE, told(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_the_same_table() {
        let readme = include_str!("../README.md");
        let (_, table) = readme.split_once("| code | meaning |\n|---|---|\n").unwrap();
        let rows: Vec<_> =
            table.lines().map_while(|line| line.strip_prefix("| ")?.strip_suffix(" |")).collect();
        let ours: Vec<_> = TABLE.iter().map(|(code, says)| format!("{code} | {says}")).collect();
        assert_eq!(rows, ours);
    }
}
