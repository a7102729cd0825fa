//! From the URL to what this driver needs to know.

use tooz_core::driver::{OptionKind, OptionSpec};
use tooz_core::{BackendUrl, Characteristics, Error, ErrorKind, Host, Result};

use crate::faults::planted::Fault;

/// The scheme, and the name that Python tooz gave its in-process backend.
pub(crate) const SCHEMES: &[&str] = &["memory", "zake"];

/// The namespace when the URL names none; the same as everywhere in tooz.
const DEFAULT_NAMESPACE: &str = "tooz";

/// What only this driver understands.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "fault",
        OptionKind::Word(Fault::WORDS),
        "makes the whole backend wrong in one way, to test tests (default: none)",
    )
    .for_tests(),
    OptionSpec::new(
        "yield_seed",
        OptionKind::Integer { min: 0, max: u64::MAX },
        "makes every call yield and wait at random, replayed by this seed (default: not)",
    )
    .for_tests(),
];

/// A parsed URL.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Which backend of this process: hosts and path as written.
    pub(crate) name: Vec<u8>,
    pub(crate) namespace: String,
    pub(crate) fault: Option<Fault>,
    pub(crate) yield_seed: Option<u64>,
}

impl Config {
    pub(crate) fn read(url: &BackendUrl) -> Result<Self> {
        let refused = |why| Error::new(ErrorKind::InvalidUrl, format!("{}:// {why}", url.scheme()));
        if !SCHEMES.contains(&url.scheme()) {
            return Err(refused("is not served by tooz-memory; write memory://name"));
        }
        if url.user().is_some() || url.password().is_some() {
            return Err(refused("has no users; remove what stands before the '@'"));
        }
        let host = |host: &Host| match host.port {
            Some(port) => format!("{}:{port}", host.name),
            None => host.name.clone(),
        };
        let mut name = url.hosts().iter().map(host).collect::<Vec<_>>().join(",").into_bytes();
        name.extend_from_slice(url.path());
        let unknown = || {
            let why = format!("option \"fault\": it must be one of {}", Fault::WORDS.join(", "));
            Error::new(ErrorKind::InvalidOption, why)
        };
        let fault = url.option("fault").map(|word| Fault::parse(word).ok_or_else(unknown)).transpose()?;
        Ok(Self {
            name,
            namespace: url.option("namespace").unwrap_or(DEFAULT_NAMESPACE).to_owned(),
            fault,
            yield_seed: url.integer("yield_seed")?,
        })
    }
}

/// What a driver with such a URL guarantees; the README gives the reason for each.
pub(crate) fn characteristics(url: &BackendUrl) -> Characteristics {
    let all = Characteristics::all()
        - Characteristics::DISTRIBUTED_ACROSS_PROCESSES
        - Characteristics::DISTRIBUTED_ACROSS_HOSTS
        - Characteristics::DURABLE_FENCING;
    // With a ttl a session ends by the clock although its process lives.
    if url.option("ttl").is_some() { all - Characteristics::NON_TIMEOUT_BASED } else { all }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Config> {
        Config::read(&BackendUrl::parse(url)?)
    }

    #[test]
    fn hosts_and_path_name_the_backend() {
        for (url, name) in [
            ("memory://", &b""[..]),
            ("memory://a", b"a"),
            ("zake://a", b"a"),
            ("memory://a:1,b/c%00?ttl=5s", b"a:1,b/c\0"),
            ("memory:///p", b"/p"),
        ] {
            assert_eq!(read(url).unwrap().name, name, "{url}");
        }
        let config = read("memory://a?namespace=n&yield_seed=7&fault=barging").unwrap();
        assert_eq!((config.namespace.as_str(), config.yield_seed), ("n", Some(7)));
        assert_eq!(config.fault, Some(Fault::Barging));
        assert_eq!(read("memory://").unwrap().namespace, "tooz");
    }

    #[test]
    fn what_it_cannot_mean_is_refused() {
        for (url, kind) in [
            ("memory://u:p@a", ErrorKind::InvalidUrl),
            ("sqlite:///a", ErrorKind::InvalidUrl),
            ("memory://a?fault=none", ErrorKind::InvalidOption),
            ("memory://a?yield_seed=-1", ErrorKind::InvalidOption),
        ] {
            assert_eq!(read(url).unwrap_err().kind(), kind, "{url}");
        }
    }

    #[test]
    fn only_a_ttl_makes_it_depend_on_time() {
        let claims = |url| characteristics(&BackendUrl::parse(url).unwrap());
        let without = claims("memory://a");
        assert!(without.contains(Characteristics::NON_TIMEOUT_BASED | Characteristics::STRICT_EXCLUSION));
        assert_eq!(without - claims("memory://a?ttl=5s"), Characteristics::NON_TIMEOUT_BASED);
        assert!(!without.intersects(
            Characteristics::DISTRIBUTED_ACROSS_PROCESSES
                | Characteristics::DISTRIBUTED_ACROSS_HOSTS
                | Characteristics::DURABLE_FENCING
        ));
    }
}
