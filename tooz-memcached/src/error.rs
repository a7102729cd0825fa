//! One table: what an error of the network means to a caller.

use std::io;

use tooz_core::driver::support::descriptors;
use tooz_core::{Error, ErrorKind};

use crate::config::Config;

/// The connection ended while an answer was due.
pub(crate) fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection ended before the answer came")
}

/// A record that this driver wrote cannot be read.
pub(crate) fn corrupt(key: &[u8], what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the item {} {what}", key.escape_ascii()))
}

/// The reply was lost, and this is what stands there now; whose doing it is cannot be known.
pub(crate) fn unknown_end(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the reply was lost, and {what}")).indeterminate()
}

/// The server does not greet in time.
pub(crate) fn silent(config: &Config) -> Error {
    let why = format!("{}: the server does not answer; check that memcached runs there", config.shown());
    Error::new(ErrorKind::Unavailable, why)
}

/// Connecting failed: nothing was done yet.
pub(crate) fn connecting(config: &Config, cause: &io::Error) -> Error {
    use io::ErrorKind as Io;
    let what = if let Some(remedy) = descriptors::remedy(cause) {
        remedy.to_owned()
    } else if cause.to_string().contains("lookup address") {
        // The resolver does not say what kept it from reading its files.
        let missing = "the host has no address; check the host, or the network's name service";
        descriptors::shortage().unwrap_or(missing).to_owned()
    } else {
        match cause.kind() {
            Io::ConnectionRefused => "connection refused; check that memcached runs there".to_owned(),
            Io::UnexpectedEof | Io::ConnectionReset | Io::BrokenPipe => {
                "the server closes the connection; it may have no connection left (option -c), or want TLS, for which name a \
                 local TLS proxy"
                    .to_owned()
            }
            _ => cause.to_string(),
        }
    };
    Error::new(ErrorKind::Unavailable, format!("{}: {what}", config.shown()))
}

#[cfg(test)]
mod tests {
    use tooz_core::BackendUrl;
    use tooz_core::driver::Limits;

    use super::*;

    #[test]
    fn each_failure_names_the_server_and_the_remedy() {
        let url = BackendUrl::parse("memcached://cache").unwrap();
        let config = Config::read(&url, Limits::of(&url).unwrap()).unwrap();
        for (cause, word) in [
            (io::Error::from(io::ErrorKind::ConnectionRefused), "runs there"),
            (io::Error::from(io::ErrorKind::UnexpectedEof), "TLS proxy"),
            (io::Error::other("failed to lookup address information"), "no address"),
        ] {
            let error = connecting(&config, &cause);
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains("cache:11211") && error.to_string().contains(word), "{error}");
        }
        assert!(unknown_end("it is gone").is_indeterminate() && !lost().is_indeterminate());
    }
}
