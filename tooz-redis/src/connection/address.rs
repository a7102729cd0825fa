//! Addresses, and how a URL leads to the server of a namespace: the URL names it, or names servers that know its address.

use std::fmt;
use std::path::PathBuf;

use tooz_core::{BackendUrl, Error, ErrorKind, Result};

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;
/// The number of slots over which a cluster spreads its keys.
const SLOTS: u16 = 16_384;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How the server is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    /// One server, which no other replaces.
    Server(Address),
    /// The master of this name, by the word of the sentinels.
    Sentinel { sentinels: Vec<Address>, master: String },
    /// The node of a cluster that owns this slot.
    Cluster { seeds: Vec<Address>, slot: u16 },
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(address) => write!(f, "{address}"),
            Self::Sentinel { sentinels, master } => {
                write!(f, "the master \"{}\" of {}", master.escape_debug(), list(sentinels))
            }
            Self::Cluster { seeds, .. } => write!(f, "the cluster of {}", list(seeds)),
        }
    }
}

fn list(addresses: &[Address]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}

/// Whether the server of this scheme has replicas, one of which may be promoted.
pub(crate) fn is_replicated(scheme: &str) -> bool {
    scheme.ends_with("+sentinel") || is_cluster(scheme)
}

pub(crate) fn is_cluster(scheme: &str) -> bool {
    scheme.ends_with("+cluster")
}

pub(crate) fn is_encrypted(scheme: &str) -> bool {
    scheme.starts_with("rediss") || scheme.starts_with("valkeys")
}

/// The scheme with TLS that goes with one without it.
pub(crate) fn encrypted(scheme: &str) -> Option<String> {
    let plain = ["redis", "valkey"].into_iter().find(|plain| scheme.starts_with(plain))?;
    let rest = &scheme[plain.len()..];
    (!is_encrypted(scheme) && rest != "+unix").then(|| format!("{plain}s{rest}"))
}

impl Topology {
    /// Reads the topology, and the number of the database if the path names one; `namespace` as written in keys.
    pub(crate) fn read(url: &BackendUrl, namespace: &str) -> Result<(Self, Option<u64>)> {
        let scheme = url.scheme();
        if scheme.ends_with("+unix") {
            return Ok((Self::Server(Address::Unix(url.file_path()?)), None));
        }
        let hosts = |port| -> Vec<_> {
            url.hosts()
                .iter()
                .map(|host| Address::Tcp(host.name.clone(), host.port.unwrap_or(port)))
                .collect()
        };
        if scheme.ends_with("+sentinel") {
            let form =
                || format!("{scheme}://sentinel-1:{SENTINEL_PORT},sentinel-2:{SENTINEL_PORT}/mymaster");
            let sentinels = hosts(SENTINEL_PORT);
            if sentinels.is_empty() {
                return Err(invalid(format!("{scheme}:// takes the sentinels; write {}", form())));
            }
            let path = url.path().strip_prefix(b"/").unwrap_or_default();
            let (name, rest) =
                path.iter().position(|byte| *byte == b'/').map_or((path, &b""[..]), |at| path.split_at(at));
            let master = std::str::from_utf8(name).ok().filter(|name| !name.is_empty()).ok_or_else(|| {
                invalid(format!("the path of {scheme}:// is the name of the master; write {}", form()))
            })?;
            return Ok((Self::Sentinel { sentinels, master: master.to_owned() }, database(scheme, rest)?));
        }
        let db = database(scheme, url.path())?;
        if is_cluster(scheme) {
            let seeds = hosts(PORT);
            if seeds.is_empty() {
                return Err(invalid(format!(
                    "{scheme}:// takes some of the nodes; write {scheme}://node-1:{PORT},node-2:{PORT}"
                )));
            }
            if db.is_some_and(|db| db > 0) {
                return Err(invalid("a cluster has one database, 0"));
            }
            return Ok((Self::Cluster { seeds, slot: slot_of(namespace.as_bytes()) }, db));
        }
        match hosts(PORT).as_slice() {
            [] => Ok((Self::Server(Address::Tcp("localhost".to_owned(), PORT)), db)),
            [address] => Ok((Self::Server(address.clone()), db)),
            others => {
                let secret = if is_encrypted(scheme) { "s" } else { "" };
                Err(invalid(format!(
                    "{scheme}:// takes one server, not {}; write {scheme}://host:{PORT}, or where there are several \
                     redis{secret}+sentinel://sentinel-1,sentinel-2/mymaster or redis{secret}+cluster://node-1,node-2",
                    others.len()
                )))
            }
        }
    }

    /// Whether the address of the server has to be discovered.
    pub(crate) fn is_discovered(&self) -> bool {
        !matches!(self, Self::Server(_))
    }
}

/// The database that a path names.
fn database(scheme: &str, path: &[u8]) -> Result<Option<u64>> {
    match path {
        b"" | b"/" => Ok(None),
        [b'/', digits @ ..] => {
            let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<u16>().ok());
            // Not shown: part of a password may have ended up here.
            let number = number.ok_or_else(|| {
                let end = if scheme.ends_with("+sentinel") { "mymaster/3" } else { "3" };
                invalid(format!(
                    "the path of {scheme}:// ends in the number of a database, as in {scheme}://host/{end}"
                ))
            })?;
            Ok(Some(number.into()))
        }
        _ => Err(invalid("the path has to begin with '/'")),
    }
}

/// The namespace with a tag, so that all its keys are in one slot of a cluster; unchanged if it has one.
pub(crate) fn tagged(namespace: &str) -> Result<String> {
    if tag(namespace.as_bytes()).is_some() {
        return Ok(namespace.to_owned());
    }
    if namespace.contains(['{', '}']) {
        return Err(Error::new(
            ErrorKind::InvalidOption,
            "option \"namespace\": braces in it have to be a cluster's tag, as in app{7}",
        ));
    }
    Ok(format!("{{{namespace}}}"))
}

/// The text between the first opening brace and the next closing one, unless it is empty.
fn tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let rest = &key[open + 1..];
    let close = rest.iter().position(|byte| *byte == b'}')?;
    (close > 0).then(|| &rest[..close])
}

/// The slot of a key.
fn slot_of(key: &[u8]) -> u16 {
    let mut sum: u16 = 0;
    // CRC-16/XMODEM, as the cluster's specification says.
    for &byte in tag(key).unwrap_or(key) {
        sum ^= u16::from(byte) << 8;
        for _ in 0..8 {
            sum = if sum & 0x8000 == 0 { sum << 1 } else { (sum << 1) ^ 0x1021 };
        }
    }
    sum % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(url: &str) -> Result<(Topology, Option<u64>)> {
        Topology::read(&BackendUrl::parse(url)?, "{_tooz}")
    }

    #[test]
    fn sentinels_and_nodes() {
        let tcp = |host: &str, port| Address::Tcp(host.into(), port);
        let sentinels = vec![tcp("a", 26_379), tcp("::1", 5000)];
        let (found, db) = topology("redis+sentinel://u:p@a,[::1]:5000/mymaster/3").unwrap();
        assert_eq!(
            (found.clone(), db),
            (Topology::Sentinel { sentinels, master: "mymaster".into() }, Some(3))
        );
        assert_eq!(found.to_string(), "the master \"mymaster\" of a:26379, [::1]:5000");
        let (found, db) = topology("valkey+cluster://a,b:7000").unwrap();
        let Topology::Cluster { seeds, slot } = found else { panic!("{found:?}") };
        assert_eq!((seeds, slot, db), (vec![tcp("a", 6379), tcp("b", 7000)], slot_of(b"_tooz"), None));
    }

    #[test]
    fn what_is_refused_says_what_to_write() {
        for (url, word) in [
            ("redis://a,b", "redis+sentinel://"),
            ("redis+sentinel:///mymaster", "takes the sentinels"),
            ("redis+sentinel://a", "/mymaster"),
            ("redis+sentinel://a//3", "/mymaster"),
            ("redis+sentinel://a/m/x", "mymaster/3"),
            ("redis+cluster://", "node-1"),
            ("redis+cluster://a/1", "one database"),
        ] {
            let error = topology(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(word), "{url}: {error}");
        }
    }

    #[test]
    fn every_scheme_of_the_network_has_one_with_tls() {
        for (plain, tls) in [
            ("redis", Some("rediss")),
            ("valkey+cluster", Some("valkeys+cluster")),
            ("rediss", None),
            ("valkeys+sentinel", None),
            ("redis+unix", None),
        ] {
            assert_eq!(encrypted(plain).as_deref(), tls, "{plain}");
        }
    }

    #[test]
    fn slots_are_the_clusters() {
        // From the specification, and as CLUSTER KEYSLOT answers.
        assert_eq!(slot_of(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b"a{foo}b{c}"), 12_182);
        assert_ne!(slot_of(b"{}foo"), 12_182);
    }

    #[test]
    fn a_namespace_is_one_slot() {
        assert_eq!(tagged("_tooz").unwrap(), "{_tooz}");
        assert_eq!(tagged("app{7}").unwrap(), "app{7}");
        for bad in ["}", "{}", "{", "a}b{"] {
            assert_eq!(tagged(bad).unwrap_err().kind(), ErrorKind::InvalidOption, "{bad}");
        }
        for namespace in ["_tooz", "app{7}", "a b"] {
            let tagged = tagged(namespace).unwrap();
            for end in ["_groups", "_rs:s:{1}", "_}{_lock"] {
                assert_eq!(slot_of(format!("{tagged}{end}").as_bytes()), slot_of(tagged.as_bytes()));
            }
        }
    }
}
