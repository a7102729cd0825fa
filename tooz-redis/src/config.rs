//! From the URL to a typed configuration.

use std::path::PathBuf;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};
use tooz_core::options::{OptionKind, OptionSpec};
use tooz_core::{BackendUrl, Characteristics, Error, ErrorKind, Result};

use crate::tls::Tls;

/// The schemes; the first is the driver's name.
pub(crate) const SCHEMES: &[&str] = &[
    "redis",
    "valkey",
    "redis+unix",
    "valkey+unix",
    #[cfg(feature = "tls")]
    "rediss",
    #[cfg(feature = "tls")]
    "valkeys",
];

/// The options that only this driver knows.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "db",
        OptionKind::Integer { min: 0, max: 65_535 },
        "the number of the database (default: 0); also written as the path, redis://host/3",
    ),
    #[cfg(feature = "tls")]
    OptionSpec::new(
        "tls_ca",
        OptionKind::Text,
        "a PEM file with the certificates that the server's must be signed by (default: the system's)",
    ),
    #[cfg(feature = "tls")]
    OptionSpec::new("tls_cert", OptionKind::Text, "a PEM file with our own certificate (default: none)"),
    #[cfg(feature = "tls")]
    OptionSpec::new("tls_key", OptionKind::Text, "a PEM file with the key of tls_cert (default: none)"),
];

/// The ttl of a session if neither the URL nor the program names one.
pub(crate) const TTL: Duration = Duration::from_secs(15);
/// The time limit of an operation if the URL names none; the core's own default.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);
const PORT: u16 = 6379;
/// What Python tooz writes before its keys if nothing else is said.
const NAMESPACE: &str = "_tooz";

/// The best that one server can keep.
pub(crate) fn characteristics(_: &BackendUrl) -> Characteristics {
    Characteristics::DISTRIBUTED_ACROSS_THREADS
        | Characteristics::DISTRIBUTED_ACROSS_PROCESSES
        | Characteristics::DISTRIBUTED_ACROSS_HOSTS
        | Characteristics::CAUSAL
        | Characteristics::SHARED_LOCKS
        | Characteristics::FAIR_LOCKS
        | Characteristics::PUSH_WATCHES
        | Characteristics::DURABLE_FENCING
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What a URL says.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) address: Address,
    pub(crate) namespace: String,
    user: Option<String>,
    password: Option<String>,
    /// `None`: the connection is not encrypted.
    pub(crate) tls: Option<Tls>,
    pub(crate) db: i64,
    pub(crate) ttl: Duration,
    pub(crate) operation_timeout: Duration,
}

/// Without the password.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("address", &self.address)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}

impl Config {
    pub(crate) fn read(url: &BackendUrl) -> Result<Self> {
        let scheme = url.scheme();
        let mut path_db = None;
        let address = if scheme.ends_with("+unix") {
            Address::Unix(url.file_path()?)
        } else {
            let [host] = url.hosts() else {
                return Err(invalid(format!(
                    "{scheme}:// takes one server, not {}; write {scheme}://host:{PORT}",
                    url.hosts().len()
                )));
            };
            path_db = database(scheme, url.path())?;
            Address::Tcp(host.name.clone(), host.port.unwrap_or(PORT))
        };
        let db = match (url.integer("db")?, path_db) {
            (Some(_), Some(_)) => return Err(invalid("the database is named twice, in the path and as db")),
            (db, path) => db.or(path).unwrap_or(0),
        };
        let namespace = url.option("namespace").unwrap_or(NAMESPACE).to_owned();
        if namespace.is_empty() {
            return Err(Error::new(ErrorKind::InvalidOption, "option \"namespace\": it must not be empty"));
        }
        Ok(Self {
            address,
            namespace,
            user: url.user().map(str::to_owned),
            password: url.password().map(str::to_owned),
            tls: tls(url)?,
            db: i64::try_from(db).unwrap_or_default(),
            ttl: url.duration("ttl")?.unwrap_or(TTL),
            operation_timeout: url.duration("operation_timeout")?.unwrap_or(OPERATION_TIMEOUT),
        })
    }

    /// How to connect to a server.
    pub(crate) fn connection(&self, address: &Address) -> redis::RedisResult<ConnectionInfo> {
        let addr = match address {
            Address::Tcp(host, port) if self.tls.is_some() => {
                ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
            }
            Address::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
            Address::Unix(path) => ConnectionAddr::Unix(path.clone()),
        };
        let mut settings = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("tooz", env!("CARGO_PKG_VERSION"))
            .set_db(self.db);
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
        // What was sent and is not acknowledged for a ttl came too late for everything.
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(self.ttl);
        Ok(addr.into_connection_info()?.set_redis_settings(settings).set_tcp_settings(tcp))
    }

    /// How long a beat is waited for, as the core does.
    pub(crate) fn beat_limit(&self) -> Duration {
        self.ttl / 6
    }
}

#[cfg(feature = "tls")]
fn tls(url: &BackendUrl) -> Result<Option<Tls>> {
    if matches!(url.scheme(), "rediss" | "valkeys") {
        return Tls::read(url).map(Some);
    }
    match ["tls_ca", "tls_cert", "tls_key"].into_iter().find(|option| url.option(option).is_some()) {
        Some(option) => Err(Error::new(
            ErrorKind::InvalidOption,
            format!("option \"{option}\": {}:// is not encrypted; write rediss://", url.scheme()),
        )),
        None => Ok(None),
    }
}

#[cfg(not(feature = "tls"))]
#[allow(clippy::unnecessary_wraps)] // with the feature it can fail
fn tls(_: &BackendUrl) -> Result<Option<Tls>> {
    Ok(None)
}

/// The database that a path names.
fn database(scheme: &str, path: &[u8]) -> Result<Option<u64>> {
    match path {
        b"" | b"/" => Ok(None),
        [b'/', digits @ ..] => {
            let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<u16>().ok());
            // Not shown: part of a password may have ended up here.
            let number = number.ok_or_else(|| {
                invalid(format!(
                    "the path of {scheme}:// is the number of a database, as in {scheme}://host/3"
                ))
            })?;
            Ok(Some(number.into()))
        }
        _ => Err(invalid("the path has to begin with '/'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<Config> {
        Config::read(&BackendUrl::parse(url)?)
    }

    #[test]
    fn defaults_and_options() {
        let plain = config("redis://cache").unwrap();
        assert_eq!(plain.address, Address::Tcp("cache".into(), 6379));
        assert_eq!((plain.namespace.as_str(), plain.db, plain.ttl), ("_tooz", 0, TTL));
        let full = config("valkey://u:p%40@[::1]:7000/3?namespace=n&ttl=3s").unwrap();
        assert_eq!(full.address.to_string(), "[::1]:7000");
        assert_eq!((full.db, full.ttl), (3, Duration::from_secs(3)));
        assert!(!format!("{full:?}").contains("p@"));
        assert_eq!(config("redis+unix:///run/redis.sock?db=2").unwrap().db, 2);
    }

    #[test]
    fn what_is_refused_says_what_to_write() {
        for (url, word) in [
            ("redis://", "one server"),
            ("redis://a,b", "one server"),
            ("redis://a/x", "number"),
            ("redis://a/1?db=2", "twice"),
            ("redis+unix://a/x.sock", "host"),
            ("redis://a?namespace=", "namespace"),
        ] {
            let error = config(url).unwrap_err();
            assert!(error.to_string().contains(word), "{url}: {error}");
        }
    }
}
