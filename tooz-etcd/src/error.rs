//! The one table from etcd's errors to ours.

use std::error::Error as StdError;
use std::io;

use etcd_client::Error as Native;
use tooz_core::driver::support::descriptors;
use tooz_core::driver::support::tls::Files;
use tooz_core::{Error, ErrorKind};

/// The server that an error is about.
#[derive(Debug)]
pub(crate) struct Peer<'a> {
    /// Host and port.
    pub(crate) name: &'a str,
    /// The certificates; `None`: the connection is not encrypted.
    pub(crate) files: Option<&'a Files>,
    /// Whether etcd has answered there before.
    pub(crate) is_known: bool,
}

/// What a caller of the connection does after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The server answered: nothing.
    Nothing,
    /// The request was not executed: it may be sent elsewhere.
    Elsewhere,
    /// The request was refused for its old token: it may be sent over a new connection, which authenticates anew.
    Anew,
    /// The request may have been executed: the next one goes elsewhere.
    Unknown,
}

/// Codes of gRPC, by their numbers: they are part of its protocol.
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// The error, and what caused it.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (**error).source())
}

/// What an error says in all its causes, for people: a status shows its cause as only programmers read it.
fn said(native: &Native) -> String {
    let (first, cause) = match native {
        Native::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Native::TransportError(error) => (String::new(), error.source()),
        Native::IoError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), None),
    };
    let rest = cause.into_iter().flat_map(causes).map(ToString::to_string);
    let mut parts = Vec::new();
    for part in std::iter::once(first).chain(rest) {
        // A layer without words of its own says nothing, and others repeat their cause.
        let is_new = !matches!(part.as_str(), "" | "transport error") && !parts.contains(&part);
        if is_new {
            parts.push(part);
        }
    }
    parts.join(": ")
}

/// The error of the operating system among the causes.
fn system<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .find(|cause| cause.raw_os_error().is_some())
}

/// Whether no connection could be made: then nothing was sent.
fn never_connected(error: &(dyn StdError + 'static)) -> bool {
    // The type is private to the transport, so only its name can be compared.
    causes(error).any(|error| {
        format!("{error:?}").starts_with("ConnectError") || error.to_string() == "tcp connect error"
    })
}

/// Whether the server refused the stream of the request, and so did not execute it.
fn turned_away(error: &(dyn StdError + 'static)) -> bool {
    // The types of the HTTP/2 transport cannot be named here; the word is the protocol's (RFC 9113, 7).
    causes(error).any(|error| format!("{error:?}").contains("REFUSED_STREAM"))
}

/// The token expired; or this server cannot read it, and then a new one is no better.
const INVALID_TOKEN: &str = "invalid auth token";

/// Whether a request was refused for its token alone. Servers use several codes for that. A JWT token names the revision of
/// the users and roles, and each change of one of them makes all tokens old (etcd-io/etcd#13300, 2021-08).
fn is_of_old_token(message: &str) -> bool {
    // The last text is of servers before 3.4.24, which had no code for it.
    [INVALID_TOKEN, "revision of auth store is old", "revision in header is old"]
        .iter()
        .any(|said| message.contains(said))
}

/// Whether the transport could not read what the other side sent.
fn is_gibberish(error: &(dyn StdError + 'static)) -> bool {
    // As above: what this side complains about, as the reason for which it ends the connection.
    causes(error).any(|error| {
        let text = format!("{error:?}");
        text.contains("Library")
            && ["FRAME_SIZE_ERROR", "PROTOCOL_ERROR"].iter().any(|why| text.contains(why))
    })
}

fn lost() -> Error {
    Error::new(ErrorKind::SessionLost, "its lease is gone from the server")
}

fn denied(why: &str) -> Error {
    Error::new(ErrorKind::Denied, format!("{why}; correct the user, the password or the user's role"))
}

/// What a user may not do: the server knows the user.
pub(crate) const NOT_ALLOWED: &str =
    "the roles of the user do not allow this; give the user a role that does";

/// Whether the server knows the user, whose role does not allow the request.
pub(crate) fn is_for_the_role(error: &Error) -> bool {
    error.kind() == ErrorKind::Denied && error.context().contains(NOT_ALLOWED)
}

/// Our error, and what to do next.
pub(crate) fn explain(native: &Native, peer: &Peer<'_>) -> (Error, Then) {
    let told = said(native);
    let cause: Option<&(dyn StdError + 'static)> = match native {
        Native::GRpcStatus(status) => Some(status),
        Native::TransportError(error) => Some(error),
        Native::IoError(error) => Some(error),
        _ => None,
    };
    if let Some(explained) = cause.and_then(|cause| connection_fault(cause, &told, peer)) {
        return explained;
    }
    let (error, then) = match native {
        Native::GRpcStatus(status) => explain_status(status.code() as i32, status.message(), status),
        Native::LeaseKeepAliveError(why) if why.contains("not found") => (lost(), Then::Nothing),
        Native::TransportError(_)
        | Native::IoError(_)
        | Native::WatchError(_)
        | Native::LeaseKeepAliveError(_) => (unknown("the connection was lost"), Then::Unknown),
        Native::InvalidUri(_) => {
            (Error::new(ErrorKind::InvalidUrl, "a host is not a valid host name"), Then::Nothing)
        }
        _ => (Error::new(ErrorKind::Backend, "the etcd client failed"), Then::Nothing),
    };
    (if told.is_empty() { error } else { error.caused_by(told) }, then)
}

/// What is wrong with the way to the server; `None`: nothing, or the connection worked before it ended.
fn connection_fault(cause: &(dyn StdError + 'static), told: &str, peer: &Peer<'_>) -> Option<(Error, Then)> {
    let name = peer.name;
    let system = system(cause);
    let unavailable = |what: String| Error::new(ErrorKind::Unavailable, format!("{name}: {what}"));
    if let Some(remedy) = system.and_then(descriptors::remedy) {
        return Some((unavailable(remedy.to_owned()), Then::Elsewhere));
    }
    let then = if never_connected(cause) { Then::Elsewhere } else { Then::Unknown };
    if let Some(fault) = peer.files.and_then(|files| files.fault(name, told)) {
        return Some(match fault.kind() {
            ErrorKind::InvalidOption => (fault, Then::Nothing),
            // The server did not let us in.
            ErrorKind::Denied => (fault, Then::Elsewhere),
            _ if then == Then::Unknown => (fault.indeterminate(), then),
            _ => (fault, then),
        });
    }
    if then == Then::Elsewhere {
        let error = if system.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            unavailable("connection refused; check that etcd runs there".to_owned())
        } else if told.contains("lookup address") {
            // The resolver does not say what kept it from reading its files.
            let none = "the host has no address; check the host, or the network's name service";
            unavailable(descriptors::shortage().unwrap_or(none).to_owned())
        } else {
            unavailable("cannot connect; check the address, and that etcd runs there".to_owned())
                .caused_by(told.to_owned())
        };
        return Some((error, then));
    }
    if peer.is_known {
        return None;
    }
    if is_gibberish(cause) {
        let what = "what answers there does not speak etcd's gRPC; check the host and the port";
        return Some((unavailable(what.to_owned()).indeterminate(), Then::Unknown));
    }
    // Everything below the protocol of requests ends a first connection alike.
    let ended = ["connection reset", "broken pipe", "connection closed", "connection aborted"];
    let lower = told.to_lowercase();
    ended.iter().any(|word| lower.contains(word)).then(|| {
        let plain = "the server ended the connection at once and may not speak etcd's gRPC; check the host and the port; if the \
                     server speaks TLS, write etcds://";
        let error = peer.files.map_or_else(|| unavailable(plain.to_owned()), |files| files.ended(name));
        (error.indeterminate(), Then::Unknown)
    })
}

fn unknown(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, what).indeterminate()
}

fn explain_status(number: i32, message: &str, status: &(dyn StdError + 'static)) -> (Error, Then) {
    let refused = |kind, what: String| (Error::new(kind, what), Then::Nothing);
    match number {
        _ if turned_away(status) => (
            Error::new(ErrorKind::Unavailable, "the server rejected the request without processing it"),
            Then::Elsewhere,
        ),
        _ if message.contains(INVALID_TOKEN) => (denied(message), Then::Anew),
        _ if is_of_old_token(message) => {
            let why = "the server's users or roles change faster than this client can authenticate";
            (Error::new(ErrorKind::Unavailable, why), Then::Anew)
        }
        code::NOT_FOUND if message.contains("lease not found") => (lost(), Then::Nothing),
        code::PERMISSION_DENIED => refused(ErrorKind::Denied, NOT_ALLOWED.to_owned()),
        code::UNAUTHENTICATED => (denied(message), Then::Nothing),
        code::INVALID_ARGUMENT
            if message.contains("authentication failed") || message.contains("user name is empty") =>
        {
            (denied(message), Then::Nothing)
        }
        code::FAILED_PRECONDITION if message.contains("authentication is not enabled") => {
            let why = "the URL names a user, and the server knows no users; remove the user from the URL, or give the server \
                       users";
            refused(ErrorKind::Denied, why.to_owned())
        }
        code::RESOURCE_EXHAUSTED if message.contains("space exceeded") => refused(
            ErrorKind::Unavailable,
            "etcd is out of space and refuses every write; compact and defragment it, then disarm its alarm"
                .into(),
        ),
        code::RESOURCE_EXHAUSTED => refused(ErrorKind::Unavailable, message.to_owned()),
        code::UNIMPLEMENTED => {
            refused(ErrorKind::Incompatible, format!("the server does not know this: {message}"))
        }
        code::INVALID_ARGUMENT | code::FAILED_PRECONDITION | code::NOT_FOUND | code::OUT_OF_RANGE => {
            refused(ErrorKind::Backend, message.to_owned())
        }
        // Cancelled, DeadlineExceeded and Unavailable; Unknown and Internal, too, are codes of a broken stream.
        _ => (unknown("the connection to etcd was lost, or etcd did not answer in time"), Then::Unknown),
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this driver was closed; connect a new one")
}

pub(crate) fn corrupt(key: &[u8], why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the key \"{}\" {why}", key.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Plain;
    impl std::fmt::Display for Plain {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("plain")
        }
    }
    impl StdError for Plain {}

    #[derive(Debug)]
    struct ConnectError;
    impl std::fmt::Display for ConnectError {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("refused")
        }
    }
    impl StdError for ConnectError {}

    #[test]
    fn what_the_caller_can_do() {
        for (number, message, kind, then) in [
            (5, "etcdserver: requested lease not found", ErrorKind::SessionLost, Then::Nothing),
            (16, "etcdserver: invalid auth token", ErrorKind::Denied, Then::Anew),
            (3, "etcdserver: revision of auth store is old", ErrorKind::Unavailable, Then::Anew),
            (2, "auth: revision in header is old", ErrorKind::Unavailable, Then::Anew),
            (16, "etcdserver: something else", ErrorKind::Denied, Then::Nothing),
            (7, "etcdserver: permission denied", ErrorKind::Denied, Then::Nothing),
            (
                3,
                "etcdserver: authentication failed, invalid user ID or password",
                ErrorKind::Denied,
                Then::Nothing,
            ),
            (3, "etcdserver: duplicate key given in txn request", ErrorKind::Backend, Then::Nothing),
            (8, "etcdserver: mvcc: database space exceeded", ErrorKind::Unavailable, Then::Nothing),
            (14, "etcdserver: request timed out", ErrorKind::Unavailable, Then::Unknown),
            (2, "h2 protocol error", ErrorKind::Unavailable, Then::Unknown),
            (1, "Timeout expired", ErrorKind::Unavailable, Then::Unknown),
        ] {
            let (error, found) = explain_status(number, message, &Plain);
            assert_eq!((error.kind(), found), (kind, then), "{message}");
            assert_eq!(error.is_indeterminate(), then == Then::Unknown, "{message}");
        }
        let peer = Peer { name: "h:1", files: None, is_known: true };
        let (error, then) = connection_fault(&ConnectError, "refused", &peer).unwrap();
        assert!(then == Then::Elsewhere && !error.is_indeterminate());
        assert!(connection_fault(&Plain, "plain", &peer).is_none());
        let (error, _) = explain_status(8, "etcdserver: mvcc: database space exceeded", &Plain);
        assert!(error.to_string().contains("defragment"));
    }
}
