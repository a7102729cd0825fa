//! From the URL to a typed configuration.

use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};
use tooz_core::driver::support::tls::{Files, PemFile};
use tooz_core::driver::{LAYOUT_OPTION, Limits, OptionKind, OptionSpec, layout_of};
use tooz_core::{BackendUrl, Characteristics, Error, ErrorKind, Result};

use crate::connection::address::{self, Address, Topology};
use crate::connection::tls::{self, Tls};

/// The schemes; the first is the driver's name.
pub(crate) const SCHEMES: &[&str] = &[
    "redis",
    "valkey",
    "redis+unix",
    "valkey+unix",
    "redis+sentinel",
    "valkey+sentinel",
    "redis+cluster",
    "valkey+cluster",
    #[cfg(feature = "tls")]
    "rediss",
    #[cfg(feature = "tls")]
    "valkeys",
    #[cfg(feature = "tls")]
    "rediss+sentinel",
    #[cfg(feature = "tls")]
    "valkeys+sentinel",
    #[cfg(feature = "tls")]
    "rediss+cluster",
    #[cfg(feature = "tls")]
    "valkeys+cluster",
];

/// The options that only this driver knows.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "db",
        OptionKind::Integer { min: 0, max: 65_535 },
        "the number of the database (default: 0); also written as the path, redis://host/3",
    ),
    OptionSpec::new(
        WAIT_REPLICAS,
        OptionKind::Integer { min: 0, max: 1000 },
        "with Sentinel or Cluster: how many replicas must have a session, a grant or a renewal for it to count; 0: none \
         (default: as many as are called healthy, at least 1)",
    ),
    OptionSpec::new(SENTINEL_USER, OptionKind::Text, "the user at the sentinels (default: none)"),
    OptionSpec::new(SENTINEL_PASSWORD, OptionKind::Text, "the password at the sentinels (default: none)"),
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
    LAYOUT_OPTION,
];

/// The layout that this version writes (see [`keys`](crate::keys)).
const LAYOUT: u32 = 1;

/// Options of Python tooz, and what to write instead.
pub(crate) const FOREIGN_OPTIONS: &[(&str, &str)] = &[
    ("sentinel", "write redis+sentinel://SENTINEL:26379/MASTER, with the name of the master as the path"),
    ("sentinel_fallback", "write all sentinels in the URL: redis+sentinel://ONE:26379,OTHER:26379/MASTER"),
    ("sentinel_username", "write sentinel_user"),
    ("sentinel_ssl", "write rediss+sentinel://"),
    ("username", LOGIN),
    ("password", LOGIN),
    ("ssl", "write rediss://"),
    ("ssl_ca_certs", "write tls_ca"),
    ("ssl_certfile", "write tls_cert"),
    ("ssl_keyfile", "write tls_key"),
    ("socket_timeout", "write operation_timeout"),
    ("socket_connect_timeout", "write connect_timeout"),
    ("socket_keepalive", WATCHED),
    ("health_check_interval", WATCHED),
    ("retry_on_timeout", "leave it out: a request that surely had no effect is sent again"),
];
const LOGIN: &str = "write it before the host, as in redis://:PASSWORD@host or redis://USER:PASSWORD@host";
const WATCHED: &str = "leave it out: a silent connection is always detected";

const WAIT_REPLICAS: &str = "wait_replicas";
const SENTINEL_USER: &str = "sentinel_user";
const SENTINEL_PASSWORD: &str = "sentinel_password";
/// What Python tooz writes before its keys if nothing else is said.
const NAMESPACE: &str = "_tooz";

/// The most that servers of this URL can guarantee.
pub(crate) fn characteristics(url: &BackendUrl) -> Characteristics {
    let replicated = Characteristics::DISTRIBUTED_ACROSS_THREADS
        | Characteristics::DISTRIBUTED_ACROSS_PROCESSES
        | Characteristics::DISTRIBUTED_ACROSS_HOSTS
        | Characteristics::SHARED_LOCKS
        | Characteristics::FAIR_LOCKS
        | Characteristics::PUSH_WATCHES;
    if address::is_replicated(url.scheme()) {
        return replicated;
    }
    replicated | Characteristics::CAUSAL | Characteristics::DURABLE_FENCING
}

/// How long the rest of a lock is kept at least, so that the next holder learns how the last one ended.
const RETENTION: Duration = Duration::from_hours(1);

/// A user and a password.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// How a URL names them.
    pub(crate) form: String,
}

/// What a URL says.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) topology: Topology,
    pub(crate) scheme: String,
    /// As written in keys: in a cluster it has a tag, so that all keys are in one slot.
    pub(crate) namespace: String,
    login: Login,
    sentinel_login: Login,
    /// How many replicas must acknowledge; `None`: those that are called healthy.
    pub(crate) wait_replicas: Option<u32>,
    /// `None`: the connection is not encrypted.
    pub(crate) tls: Option<Tls>,
    /// The files that `tls` was read from, for errors.
    pub(crate) files: Option<Files>,
    pub(crate) db: i64,
    pub(crate) limits: Limits,
    pub(crate) layout: u32,
    /// Whether the driver only reads.
    pub(crate) view: bool,
}

/// Without the password.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("topology", &self.topology)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Config {
    pub(crate) fn read(url: &BackendUrl, limits: Limits) -> Result<Self> {
        let scheme = url.scheme();
        let namespace = url.option("namespace").unwrap_or(NAMESPACE).to_owned();
        if namespace.is_empty() {
            return Err(Error::new(ErrorKind::InvalidOption, "option \"namespace\": it must not be empty"));
        }
        let namespace = if address::is_cluster(scheme) { address::tagged(&namespace)? } else { namespace };
        let (topology, path_db) = Topology::read(url, &namespace)?;
        let db = match (url.integer("db")?, path_db) {
            (Some(_), Some(_)) => {
                let why = "the database is named twice, in the path and as db";
                return Err(Error::new(ErrorKind::InvalidUrl, why));
            }
            (Some(1..), None) if address::is_cluster(scheme) => {
                let why = "option \"db\": a cluster has one database, 0";
                return Err(Error::new(ErrorKind::InvalidOption, why));
            }
            (db, path) => db.or(path).unwrap_or(0),
        };
        misplaced(url, &topology)?;
        let option = |name| url.option(name).map(str::to_owned);
        let host = if scheme.ends_with("+unix") { "/PATH" } else { "HOST" };
        let login = Login {
            user: url.user().map(str::to_owned),
            password: url.password().map(str::to_owned),
            form: format!("{scheme}://:PASSWORD@{host} or {scheme}://USER:PASSWORD@{host}"),
        };
        let sentinel_login = Login {
            user: option(SENTINEL_USER),
            password: option(SENTINEL_PASSWORD),
            form: format!(
                "{scheme}://HOST/MASTER?{SENTINEL_PASSWORD}=PASSWORD, and {SENTINEL_USER} if it has users"
            ),
        };
        let files = address::is_encrypted(scheme).then(|| files(url));
        Ok(Self {
            topology,
            scheme: scheme.to_owned(),
            namespace,
            login,
            sentinel_login,
            wait_replicas: url.integer(WAIT_REPLICAS)?.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            tls: files.as_ref().map(tls::read).transpose()?,
            files,
            db: i64::try_from(db).unwrap_or_default(),
            limits,
            layout: layout_of(url, LAYOUT)?,
            view: false,
        })
    }

    /// How to connect to a server.
    pub(crate) fn connection(&self, address: &Address) -> redis::RedisResult<ConnectionInfo> {
        let settings = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("tooz", env!("CARGO_PKG_VERSION"))
            .set_db(self.db);
        self.reach(address, settings, &self.login)
    }

    /// How to connect to a sentinel or node that knows where the server is. Old sentinels do not know RESP3.
    pub(crate) fn connection_for_discovery(&self, address: &Address) -> redis::RedisResult<ConnectionInfo> {
        let settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2);
        self.reach(address, settings, self.login_for_discovery())
    }

    /// Who we are at the server.
    pub(crate) fn login(&self) -> &Login {
        &self.login
    }

    /// Who we are at a sentinel or node that knows where the server is.
    pub(crate) fn login_for_discovery(&self) -> &Login {
        if matches!(self.topology, Topology::Sentinel { .. }) { &self.sentinel_login } else { &self.login }
    }

    fn reach(
        &self,
        address: &Address,
        mut settings: RedisConnectionInfo,
        Login { user, password, .. }: &Login,
    ) -> redis::RedisResult<ConnectionInfo> {
        if let Some(user) = user {
            settings = settings.set_username(user);
        }
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        let addr = match address {
            Address::Tcp(host, port) if self.tls.is_some() => {
                ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
            }
            Address::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
            Address::Unix(path) => ConnectionAddr::Unix(path.clone()),
        };
        let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
        // A request that is not acknowledged within a ttl comes too late for everything.
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(self.limits.ttl);
        Ok(addr.into_connection_info()?.set_redis_settings(settings).set_tcp_settings(tcp))
    }

    /// Whether sessions, grants and renewals count only once replicas have them.
    pub(crate) fn confirms(&self) -> bool {
        self.topology.is_discovered() && self.wait_replicas != Some(0)
    }

    /// How many of the healthy replicas must have a session, grant or renewal.
    pub(crate) fn needed(&self, healthy: u32) -> u32 {
        self.wait_replicas.unwrap_or(healthy.max(1))
    }

    /// How long the rest of a lock is kept among sessions with this ttl.
    pub(crate) fn retention(&self) -> Duration {
        RETENTION.max(self.limits.ttl * 10)
    }

    /// How long the server waits for replicas. Shorter than `beat_limit`, so that "not confirmed" still reaches the beat.
    pub(crate) fn confirmation_limit(&self) -> Duration {
        self.limits.ttl / 8
    }

    /// How long a server may take to greet: one that takes longer than a session lives is no help.
    pub(crate) fn greeting_limit(&self) -> Duration {
        let least = if self.topology.is_discovered() { 4 } else { 1 };
        self.limits.ttl.max(Duration::from_secs(least)).min(Duration::from_secs(5))
    }

    /// How long a beat waits for its answer; the core's own limit.
    pub(crate) fn beat_limit(&self) -> Duration {
        self.limits.ttl / 6
    }
}

/// Refuses an option without effect for this kind of URL, since the user would rely on it.
fn misplaced(url: &BackendUrl, topology: &Topology) -> Result<()> {
    const ENCRYPTED: &str =
        "rediss:// and valkeys://, also with +sentinel and +cluster; this URL is not encrypted";
    let (sentinel, discovered) = (matches!(topology, Topology::Sentinel { .. }), topology.is_discovered());
    let encrypted = address::is_encrypted(url.scheme());
    for (option, fits, schemes) in [
        (WAIT_REPLICAS, discovered, "redis+sentinel:// and redis+cluster://"),
        (SENTINEL_USER, sentinel, "redis+sentinel://"),
        (SENTINEL_PASSWORD, sentinel, "redis+sentinel://"),
        ("tls_ca", encrypted, ENCRYPTED),
        ("tls_cert", encrypted, ENCRYPTED),
        ("tls_key", encrypted, ENCRYPTED),
    ] {
        if !fits && url.option(option).is_some() {
            let why = format!("option \"{option}\": it belongs to {schemes}");
            return Err(Error::new(ErrorKind::InvalidOption, why));
        }
    }
    Ok(())
}

/// The files that the URL names.
fn files(url: &BackendUrl) -> Files {
    let file = |option| PemFile { option, path: url.option(option).map(Into::into) };
    Files {
        authorities: file("tls_ca"),
        certificate: file("tls_cert"),
        key: file("tls_key"),
        plain_scheme: if url.scheme().starts_with("valkey") { "valkey" } else { "redis" },
    }
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
        let plain = config("redis://cache").unwrap();
        assert_eq!(plain.topology, Topology::Server(Address::Tcp("cache".into(), 6379)));
        assert!(!plain.confirms());
        assert_eq!((plain.namespace.as_str(), plain.db), ("_tooz", 0));
        let full = config("valkey://u:p%40@[::1]:7000/3?namespace=n").unwrap();
        assert_eq!(full.topology.to_string(), "[::1]:7000");
        assert_eq!((full.namespace.as_str(), full.db), ("n", 3));
        assert!(!format!("{full:?}").contains("p@"));
        assert_eq!(config("redis+unix:///run/redis.sock?db=2").unwrap().db, 2);
    }

    #[test]
    fn replicas_are_waited_for_where_there_are_any() {
        let sentinel = config("redis+sentinel://u:p@a/m?sentinel_password=hunter2").unwrap();
        assert!(sentinel.confirms() && !format!("{sentinel:?}").contains("hunter2"));
        assert_eq!([0, 1, 3].map(|healthy| sentinel.needed(healthy)), [1, 1, 3]);
        let fixed = config("redis+cluster://a?wait_replicas=2").unwrap();
        assert_eq!((fixed.needed(0), fixed.namespace.as_str()), (2, "{_tooz}"));
        assert!(!config("redis+cluster://a?wait_replicas=0").unwrap().confirms());
    }

    #[test]
    fn what_is_refused_says_what_to_write() {
        for (url, word) in [
            ("redis://a,b", "one server"),
            ("redis://a/x", "number"),
            ("redis://a/1?db=2", "twice"),
            ("redis+unix://a/x.sock", "host"),
            ("redis://a?namespace=", "namespace"),
            ("redis://a?wait_replicas=1", "redis+sentinel://"),
            ("redis+cluster://a?sentinel_user=x", "redis+sentinel://"),
            ("redis+cluster://a?db=1", "one database"),
            ("redis://a?tls_ca=x", "rediss://"),
        ] {
            let error = config(url).unwrap_err();
            assert!(error.to_string().contains(word), "{url}: {error}");
        }
    }
}
