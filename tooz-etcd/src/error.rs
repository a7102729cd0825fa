//! The one table from etcd's errors to ours.

use std::error::Error as StdError;

use etcd_client::Error as Native;
use tooz_core::{Error, ErrorKind};

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
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// The error, and what caused it.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (**error).source())
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

fn lost() -> Error {
    Error::new(ErrorKind::SessionLost, "its lease is gone from the server")
}

fn denied(why: &str) -> Error {
    Error::new(ErrorKind::Denied, format!("{why}; correct the user, the password or the user's role"))
}

/// Whether the server knows the user, whose role does not allow the request.
pub(crate) fn is_for_the_role(error: &Error) -> bool {
    error.kind() == ErrorKind::Denied && error.context().contains("permission denied")
}

/// Our error, and what to do next.
pub(crate) fn explain(native: Native) -> (Error, Then) {
    let (error, then) = match &native {
        Native::GRpcStatus(status) => explain_status(status.code() as i32, status.message(), status),
        Native::LeaseKeepAliveError(why) if why.contains("not found") => (lost(), Then::Nothing),
        Native::TransportError(error) if never_connected(error) => (unreachable(), Then::Elsewhere),
        Native::TransportError(_)
        | Native::IoError(_)
        | Native::WatchError(_)
        | Native::LeaseKeepAliveError(_) => (unknown("the connection was lost"), Then::Unknown),
        Native::InvalidUri(_) => {
            (Error::new(ErrorKind::InvalidUrl, "a host is not a valid host name"), Then::Nothing)
        }
        _ => (Error::new(ErrorKind::Backend, "the etcd client failed"), Then::Nothing),
    };
    (error.caused_by(native), then)
}

fn unreachable() -> Error {
    Error::new(ErrorKind::Unavailable, "cannot connect to etcd; check the address, and that etcd runs there")
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
        code::UNAVAILABLE if never_connected(status) => (unreachable(), Then::Elsewhere),
        _ if message.contains(INVALID_TOKEN) => (denied(message), Then::Anew),
        _ if is_of_old_token(message) => {
            let why = "the server's users or roles change faster than this client can authenticate";
            (Error::new(ErrorKind::Unavailable, why), Then::Anew)
        }
        code::NOT_FOUND if message.contains("lease not found") => (lost(), Then::Nothing),
        code::UNAUTHENTICATED | code::PERMISSION_DENIED => (denied(message), Then::Nothing),
        code::INVALID_ARGUMENT
            if message.contains("authentication failed") || message.contains("user name is empty") =>
        {
            (denied(message), Then::Nothing)
        }
        code::FAILED_PRECONDITION if message.contains("authentication is not enabled") => {
            (denied("the URL names a user, and the server knows no users"), Then::Nothing)
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
        _ => (unknown(message), Then::Unknown),
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
        let (error, then) = explain_status(14, "transport", &ConnectError);
        assert!(then == Then::Elsewhere && !error.is_indeterminate());
        let (error, _) = explain_status(8, "etcdserver: mvcc: database space exceeded", &Plain);
        assert!(error.to_string().contains("defragment"));
    }
}
