//! From the URL to a typed configuration.

use std::time::Duration;

use tooz_core::driver::{LAYOUT_OPTION, Limits, OptionSpec, layout_of};
use tooz_core::{BackendUrl, Characteristics, Error, ErrorKind, Result};

use crate::keys;

/// The schemes; the first is the driver's name.
pub(crate) const SCHEMES: &[&str] = &["memcached"];

/// The options that only this driver knows.
pub(crate) const OPTIONS: &[OptionSpec] = &[LAYOUT_OPTION];

/// Options of Python tooz, and what to write instead.
pub(crate) const FOREIGN_OPTIONS: &[(&str, &str)] = &[
    ("max_pool_size", "leave it out: one connection carries all requests of a coordinator"),
    ("use_ssl", TLS),
    ("ca_cert", TLS),
    ("ssl_cert", TLS),
    ("ssl_key", TLS),
    ("ssl_key_password", TLS),
    ("ssl_ciphers", TLS),
    ("ssl_check_hostname", TLS),
];
const TLS: &str = "this driver has no TLS: name a local TLS proxy, such as stunnel, in the URL";

/// The layout that this version writes (see [`keys`]).
const LAYOUT: u32 = 1;
/// A longer time is a date to memcached.
const LONGEST_TTL: Duration = Duration::from_hours(30 * 24 - 1);
const PORT: u16 = 11_211;

/// What a memcached can guarantee.
pub(crate) fn characteristics(_: &BackendUrl) -> Characteristics {
    Characteristics::DISTRIBUTED_ACROSS_THREADS
        | Characteristics::DISTRIBUTED_ACROSS_PROCESSES
        | Characteristics::DISTRIBUTED_ACROSS_HOSTS
        | Characteristics::SHARED_LOCKS
}

/// What a URL says.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) namespace: String,
    pub(crate) limits: Limits,
    pub(crate) layout: u32,
    /// Whether the driver only reads.
    pub(crate) view: bool,
}

impl Config {
    pub(crate) fn read(url: &BackendUrl, mut limits: Limits) -> Result<Self> {
        let refuse = |why: &str| Err(Error::new(ErrorKind::InvalidUrl, why));
        let (host, port) = match url.hosts() {
            [] => ("localhost".to_owned(), PORT),
            [one] => (one.name.clone(), one.port.unwrap_or(PORT)),
            _ => return refuse("memcached:// takes one server: several do not know of each other's locks"),
        };
        if !matches!(url.path(), b"" | b"/") {
            return refuse(
                "memcached:// has no path; the namespace is an option, memcached://HOST?namespace=NAME",
            );
        }
        if url.user().is_some() || url.password().is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this driver has no login: take the user and the password out of the URL, and let only trusted hosts reach \
                 the server, or name a local proxy that logs in",
            ));
        }
        if limits.ttl > LONGEST_TTL {
            let why = format!(
                "option \"ttl\": memcached keeps items for at most 30 days; write at most {LONGEST_TTL:?}"
            );
            return Err(Error::new(ErrorKind::InvalidOption, why));
        }
        // The server's clock has whole seconds.
        limits.ttl = Duration::from_secs(limits.ttl.as_secs() + u64::from(limits.ttl.subsec_nanos() > 0));
        Ok(Self {
            host,
            port,
            namespace: url.option("namespace").unwrap_or(keys::DEFAULT).to_owned(),
            limits,
            layout: layout_of(url, LAYOUT)?,
            view: false,
        })
    }

    /// The server, for messages.
    pub(crate) fn shown(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// How long a server may take to greet: one that takes longer than a session lives is no help.
    pub(crate) fn greeting_limit(&self) -> Duration {
        self.limits.ttl.clamp(Duration::from_secs(1), Duration::from_secs(5))
    }

    /// How long a beat waits for an answer; the core's own limit.
    pub(crate) fn beat_limit(&self) -> Duration {
        self.limits.ttl / 6
    }
}

/// For how many seconds an item is stored that is to outlive `ttl`: it may end up to a second early.
pub(crate) fn outliving(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<Config> {
        let url = BackendUrl::parse(url)?;
        Config::read(&url, Limits::of(&url)?)
    }

    #[test]
    fn defaults_and_options() {
        let plain = config("memcached://").unwrap();
        assert_eq!((plain.shown().as_str(), plain.namespace.as_str()), ("localhost:11211", "_TOOZ"));
        let full = config("memcached://[::1]:7000/?namespace=n&ttl=1.5").unwrap();
        assert_eq!((full.shown().as_str(), full.namespace.as_str()), ("[::1]:7000", "n"));
        assert_eq!(full.limits.ttl, Duration::from_secs(2), "whole seconds");
        assert_eq!(outliving(full.limits.ttl), 3);
    }

    #[test]
    fn what_is_refused_says_what_to_write() {
        for (url, kind, word) in [
            ("memcached://a,b", ErrorKind::InvalidUrl, "one server"),
            ("memcached://a/x", ErrorKind::InvalidUrl, "namespace"),
            ("memcached://u:hunter2@a", ErrorKind::Unsupported, "proxy"),
            ("memcached://a?ttl=31d", ErrorKind::InvalidOption, "ttl"),
            ("memcached://a?ttl=750h", ErrorKind::InvalidOption, "30 days"),
        ] {
            let error = config(url).unwrap_err();
            assert_eq!(error.kind(), kind, "{url}");
            assert!(error.to_string().contains(word) && !error.to_string().contains("hunter2"), "{error}");
        }
    }
}
