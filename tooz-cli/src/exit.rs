//! Exit codes, and errors that carry one. The numbers follow `sysexits.h` and the shell.

use std::process::ExitCode;
use std::time::Duration;

use tooz::ErrorKind;
use tooz::driver::support::descriptors;

/// The command line is wrong, or names something that does not exist: correct it.
pub(crate) const USAGE: u8 = 64;
/// The backend does not answer or refuses to work: try again later.
pub(crate) const UNAVAILABLE: u8 = 69;
/// The lock was lost while the command ran.
pub(crate) const LOST: u8 = 74;
/// The lock or leadership was not acquired.
pub(crate) const NOT_ACQUIRED: u8 = 75;
/// The backend refused the credentials or the permission.
pub(crate) const DENIED: u8 = 77;
/// `tooz doctor`: the backend works, but something about it endangers locks, members or tokens.
pub(crate) const ENDANGERED: u8 = 78;
/// The command exists and cannot be run.
pub(crate) const CANNOT_RUN: u8 = 126;
/// There is no such command.
pub(crate) const NOT_FOUND: u8 = 127;

/// A signal's number is added to it.
const SIGNALED: i32 = 128;

/// The code for an end by `signal`.
pub(crate) fn by_signal(signal: i32) -> u8 {
    u8::try_from(SIGNALED.saturating_add(signal)).unwrap_or(u8::MAX)
}

/// Why `tooz` ends without success: one line for standard error, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
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
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), closing: Closing::Patient }
    }

    /// The same; its message is printed before the session is closed, which may take [`QUICK`].
    pub(crate) fn closing(self, closing: Closing) -> Self {
        Self { closing, ..self }
    }

    pub(crate) fn how_to_close(&self) -> Closing {
        self.closing
    }

    /// Ends with this code and prints nothing: the reason was printed before.
    pub(crate) fn silent(code: u8) -> Self {
        Self::new(code, "")
    }

    /// Prints the message now.
    pub(crate) fn told(self) -> Self {
        let _ = self.report();
        Self::silent(self.code)
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Prints the message and returns the code.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            // A backend's message may hold line breaks: print one line.
            let message: String =
                self.message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            eprintln!("tooz: {message}");
        }
        ExitCode::from(self.code)
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
            | ErrorKind::HolderUnresponsive => 1,
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
