//! One table: what an error of the server or the network means to a caller.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use redis::{ErrorKind as Native, RedisError, ServerErrorKind};
use tooz_core::driver::support::descriptors;
use tooz_core::{Error, ErrorKind};

use crate::config::{Config, Login};
use crate::connection::address::{self, Address};

/// The error of a command that was sent.
pub(crate) fn of(error: &RedisError) -> Error {
    let (kind, what, unknown) = meaning(error);
    let error = Error::new(kind, what).caused_by(said(error));
    if unknown { error.indeterminate() } else { error }
}

/// The error of connecting to a server with this login: nothing was done yet.
pub(crate) fn connecting(config: &Config, login: &Login, address: &Address, error: &RedisError) -> Error {
    let peer = address.to_string();
    let told = said(error);
    if let Some(fault) = config.files.as_ref().and_then(|files| files.fault(&peer, &told)) {
        return fault;
    }
    if let (Some(files), true) = (&config.files, system(error).is_some_and(is_end)) {
        return files.ended(&peer);
    }
    if let Some((kind, what)) = login_fault(login, error).or_else(|| connection_fault(config, error)) {
        return Error::new(kind, format!("{peer}: {what}"));
    }
    let (kind, what, _) = meaning(error);
    Error::new(kind, format!("{peer}: {what}")).caused_by(told)
}

/// The connection ended while an answer was due.
pub(crate) fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection ended before the answer came").indeterminate()
}

/// What the error says itself, without the names of the client library and without the place in a script.
fn said(error: &RedisError) -> String {
    let text = match (error.code(), error.detail(), error.source()) {
        (Some(code), Some(detail), _) => format!("{code} {detail}"),
        (None, Some(detail), _) => detail.to_owned(),
        (_, None, Some(source)) => source.to_string(),
        (..) => error.category().to_owned(),
    };
    let text = text.split_once(" script: ").map_or(text.as_str(), |(before, _)| before);
    match text.split_once("user_script:").and_then(|(_, after)| after.split_once(": ")) {
        Some((_, inside)) => inside.to_owned(),
        None => text.to_owned(),
    }
}

/// The error of the operating system in it.
fn system(error: &RedisError) -> Option<&io::Error> {
    let source = error.source()?;
    match source.downcast_ref::<Arc<dyn StdError + Send + Sync>>() {
        Some(shared) => shared.downcast_ref(),
        None => source.downcast_ref(),
    }
}

/// Whether the other side ended the connection.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
}

/// What is wrong with the user or the password. No part of the login is shown: a password may stand where the user belongs.
fn login_fault(login: &Login, error: &RedisError) -> Option<(ErrorKind, String)> {
    let code = error.code().unwrap_or_default();
    let Login { user, password, form, .. } = login;
    let what = match (user, password) {
        (None, None) if code == "NOAUTH" => {
            format!("the server asks for a password, and the URL names no password; write {form}")
        }
        (Some(_), None) if code == "NOAUTH" => format!(
            "the server asks for a password, and the URL names a user without a password (a name alone is a user); \
             write {form}"
        ),
        _ if !matches!(code, "NOAUTH" | "WRONGPASS") && error.kind() != Native::AuthenticationFailed => {
            return None;
        }
        (None, _) => format!("the server refuses the password; correct it: {form}"),
        (Some(_), _) => format!("the server refuses the user or the password; correct them: {form}"),
    };
    Some((ErrorKind::Denied, what))
}

/// What is wrong with the address or the database.
fn connection_fault(config: &Config, error: &RedisError) -> Option<(ErrorKind, String)> {
    use ErrorKind::{Denied, InvalidUrl, Unavailable};
    use io::ErrorKind as Io;
    let detail = error.detail().unwrap_or_default();
    if detail.contains("DB index is out of range") {
        let what = format!(
            "the server has no database {}; name a lower one (as a rule there are 0 to 15), or raise the server's setting \
             databases",
            config.db
        );
        return Some((InvalidUrl, what));
    }
    if detail.contains("SELECT is not allowed in cluster mode") {
        return Some((InvalidUrl, "a cluster has one database, 0; name no other".to_owned()));
    }
    if error.kind() == Native::Parse {
        let what = "what answers there does not speak Redis; check the host and the port";
        return Some((Unavailable, what.to_owned()));
    }
    let cause = system(error)?;
    if let Some(remedy) = descriptors::remedy(cause) {
        return Some((Unavailable, remedy.to_owned()));
    }
    if cause.to_string().contains("lookup address") {
        // The resolver does not say what kept it from reading its files.
        let what = descriptors::shortage()
            .unwrap_or("the host has no address; check the host, or the network's name service");
        return Some((Unavailable, what.to_owned()));
    }
    Some(match cause.kind() {
        Io::ConnectionRefused => (Unavailable, "connection refused; check that Redis runs there".to_owned()),
        Io::NotFound => (Unavailable, "there is no socket; check the path, and that Redis runs".to_owned()),
        Io::PermissionDenied => {
            (Denied, "this user may not write to the socket; give write permission".to_owned())
        }
        _ if is_end(cause) => {
            let tls = address::encrypted(&config.scheme)
                .map_or_else(String::new, |scheme| format!("; if the server speaks TLS, write {scheme}://"));
            let what = "the server ended the connection at once and may not speak Redis; check the host and the port";
            (Unavailable, format!("{what}{tls}"))
        }
        _ => return None,
    })
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
        Native::Io | Native::Client => (Unavailable, "the connection failed", true),
        Native::Parse => (Unavailable, "the server's reply is not Redis's", true),
        Native::UnexpectedReturnType => (Corrupt, "the server's reply cannot be understood", true),
        Native::InvalidClientConfig => {
            (InvalidUrl, "the URL's options do not describe a possible connection", false)
        }
        _ => (Backend, "the server failed", true),
    }
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

    fn server(code: &str, detail: &str) -> RedisError {
        redis::make_extension_error(code.into(), Some(detail.into()))
    }

    #[test]
    fn the_place_in_a_script_is_not_told() {
        for (detail, told) in [
            ("no memory. script: 1c2d3e, on @user_script:12.", "OOM no memory."),
            ("Error running script (call to f_1c2d): @user_script:7: it failed", "it failed"),
            ("user_script:7: it failed script: 1c2d, on @user_script:7.", "it failed"),
            ("plain", "OOM plain"),
        ] {
            assert_eq!(said(&server("OOM", detail)), told);
        }
    }

    #[test]
    fn a_login_is_told_how_to_write_it() {
        use tooz_core::BackendUrl;
        use tooz_core::driver::Limits;
        let address = Address::Tcp("h".into(), 1);
        for (url, code, detail, words) in [
            ("redis://h", "NOAUTH", "x", &["names no password", "redis://:PASSWORD@HOST"][..]),
            ("redis://hunter2@h", "NOAUTH", "x", &["a user without a password"]),
            ("redis://:hunter2@h", "WRONGPASS", "x", &["refuses the password"]),
            ("redis+sentinel://u:hunter2@h/m", "NOAUTH", "x", &["?sentinel_password=PASSWORD"]),
            ("redis+unix:///run/redis", "NOAUTH", "x", &["redis+unix://:PASSWORD@/PATH"]),
            ("redis://h/3", "ERR", "SELECT is not allowed in cluster mode", &["one database, 0"]),
        ] {
            let url = BackendUrl::parse(url).unwrap();
            let config = Config::read(&url, Limits::of(&url).unwrap()).unwrap();
            let error = connecting(&config, config.login_for_discovery(), &address, &server(code, detail));
            let text = format!("{error:?}");
            assert!(words.iter().all(|word| text.contains(word)) && !text.contains("hunter2"), "{text}");
            let kind = if code == "ERR" { ErrorKind::InvalidUrl } else { ErrorKind::Denied };
            assert_eq!(error.kind(), kind, "{text}");
        }
    }

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
            let error = of(&server(code, detail));
            assert_eq!(error.kind(), kind, "{code} {detail}");
            assert!(!error.is_indeterminate(), "{code}");
        }
        let broken = of(&RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        assert!(broken.is_indeterminate() && broken.kind() == ErrorKind::Unavailable);
        let refused = of(&RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)));
        assert!(!refused.is_indeterminate() && refused.kind() == ErrorKind::Unavailable);
    }
}
