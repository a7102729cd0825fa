//! One table: what an error of the server or the network means to a caller.

use redis::{ErrorKind as Native, RedisError, ServerErrorKind};
use tooz_core::{Error, ErrorKind};

/// The error of a command that was sent.
pub(crate) fn of(error: RedisError) -> Error {
    let (kind, what, unknown) = meaning(&error);
    let error = Error::new(kind, what).caused_by(error);
    if unknown { error.indeterminate() } else { error }
}

/// The error of connecting: nothing was done yet.
pub(crate) fn connecting(address: &str, error: RedisError) -> Error {
    let (kind, what, _) = meaning(&error);
    Error::new(kind, format!("{address}: {what}")).caused_by(error)
}

/// The connection ended while an answer was due.
pub(crate) fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection ended before the answer came").indeterminate()
}

/// Whether the server does not know the script.
pub(crate) fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == Native::Server(ServerErrorKind::NoScript)
}

/// Whether the server is too old for the command.
pub(crate) fn is_unknown_command(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("nknown command"))
}

/// Whether another server has to be found: this one takes no writes any more.
pub(crate) fn is_elsewhere(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, MasterDown, Moved, ReadOnly};
    matches!(error.kind(), Native::Server(Ask | ClusterDown | MasterDown | Moved | ReadOnly))
}

const REFUSED_USER: &str = "the server refuses the user or the password";
const NO_PERMISSION: &str = "the user may not do this; see the README for the permissions";
const OTHER_NODE: &str = "another node of the cluster is in charge";

/// The kind, what to say, and whether the command may have been done.
fn meaning(error: &RedisError) -> (ErrorKind, &'static str, bool) {
    use ErrorKind::{Backend, Corrupt, Denied, Incompatible, InvalidUrl, Unavailable};
    use ServerErrorKind as S;
    match error.kind() {
        Native::RESP3NotSupported => {
            (Incompatible, "the server is too old; Redis 6 or newer is needed", false)
        }
        Native::AuthenticationFailed => (Denied, REFUSED_USER, false),
        Native::Server(S::NoPerm) => (Denied, NO_PERMISSION, false),
        Native::Server(S::BusyLoading) => (Unavailable, "the server is loading its data", false),
        Native::Server(S::ReadOnly) => (Unavailable, "the server is a replica", false),
        Native::Server(S::Moved | S::Ask | S::CrossSlot) => (Unavailable, OTHER_NODE, false),
        Native::Server(S::MasterDown | S::ClusterDown | S::TryAgain) => {
            (Unavailable, "the server cannot reach the other servers that it needs", false)
        }
        Native::Server(_) | Native::Extension => by_code(error),
        Native::Io if error.is_connection_refusal() => (Unavailable, "connection refused", false),
        Native::Io if is_tls(error) => (
            Denied,
            "TLS failed: the server's certificate or ours was rejected, or the server does not use TLS",
            false,
        ),
        Native::Io | Native::Client => (Unavailable, "the connection failed", true),
        Native::Parse | Native::UnexpectedReturnType => {
            (Corrupt, "the server's reply cannot be understood", true)
        }
        Native::InvalidClientConfig => {
            (InvalidUrl, "the URL's options do not describe a possible connection", false)
        }
        _ => (Backend, "the server failed", true),
    }
}

/// rustls says it only in words.
fn is_tls(error: &RedisError) -> bool {
    let words = error.to_string();
    ["certificate", "handshake", "corrupt message"].iter().any(|word| words.contains(word))
}

fn by_code(error: &RedisError) -> (ErrorKind, &'static str, bool) {
    use ErrorKind::{Backend, Corrupt, Denied, Unavailable};
    // What a command inside a script failed with stands in the text.
    let detail = error.detail().unwrap_or_default();
    let says = |words: &[&str]| words.iter().any(|words| detail.contains(words));
    match error.code().unwrap_or_default() {
        "MISCONF" => (Unavailable, "the server cannot write to its disk", false),
        "NOREPLICAS" => (Unavailable, "the server has too few replicas to write", false),
        "BUSY" => (Unavailable, "the server is busy with a script", false),
        "NOAUTH" | "WRONGPASS" | "NOPERM" => (Denied, REFUSED_USER, false),
        code if code == "OOM" || says(&["OOM "]) => {
            (Unavailable, "the server is out of memory (maxmemory)", false)
        }
        code if code == "WRONGTYPE" || says(&["WRONGTYPE", "CORRUPT"]) => {
            (Corrupt, "a key of this namespace has a foreign value", false)
        }
        // Some of its keys have moved already; the script has ended in the middle.
        _ if says(&["non local key"]) => (Unavailable, OTHER_NODE, true),
        // Redis 6 has no code for a command or a key that a script's user may not use.
        _ if says(&["NOPERM", "ACL", "permissions", "The user executing the script can't"]) => {
            (Denied, NO_PERMISSION, false)
        }
        _ => (Backend, "the server refused a command", false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        for (code, detail, kind) in [
            ("OOM", "command not allowed", ErrorKind::Unavailable),
            ("WRONGTYPE", "Operation against a key", ErrorKind::Corrupt),
            ("ERR", "user_script:1: CORRUPT _tooz_rs:fence", ErrorKind::Corrupt),
            ("WRONGPASS", "invalid username-password pair", ErrorKind::Denied),
            ("ERR", "anything else", ErrorKind::Backend),
            // Inside a script of Redis 7, and of Redis 6.
            ("ERR", "User eye has no permissions to run the 'set' command script: x", ErrorKind::Denied),
            (
                "ERR",
                "Error running script (call to f_1): @user_script:1: The user executing the script can't run this command \
                 or subcommand",
                ErrorKind::Denied,
            ),
        ] {
            let native = redis::make_extension_error(code.into(), Some(detail.into()));
            let error = of(native);
            assert_eq!(error.kind(), kind, "{code} {detail}");
            assert!(!error.is_indeterminate(), "{code}");
        }
        let broken = of(RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        assert!(broken.is_indeterminate() && broken.kind() == ErrorKind::Unavailable);
        let refused = of(RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)));
        assert!(!refused.is_indeterminate() && refused.kind() == ErrorKind::Unavailable);
    }
}
