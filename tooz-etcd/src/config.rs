//! From the URL to what this driver needs to know.

use std::fmt;

use etcd_client::ConnectOptions;
#[cfg(feature = "tls")]
use etcd_client::{Certificate, Identity, TlsOptions};
#[cfg(feature = "tls")]
use tooz_core::driver::OptionKind;
#[cfg(feature = "tls")]
use tooz_core::driver::support::tls::Contents;
use tooz_core::driver::support::tls::{Files, PemFile};
use tooz_core::driver::{Context, LAYOUT_OPTION, Limits, OptionSpec, layout_of};
use tooz_core::{BackendUrl, Characteristics, Error, ErrorKind, Result};

/// Ours, and the names that Python tooz gave them.
pub(crate) const SCHEMES: &[&str] = &[
    "etcd",
    "etcd3",
    "etcd3+http",
    #[cfg(feature = "tls")]
    "etcds",
    #[cfg(feature = "tls")]
    "etcd3+https",
];

/// Python tooz's namespace, which Python's users cannot choose.
pub(crate) const DEFAULT_NAMESPACE: &str = "tooz";

const DEFAULT_PORT: u16 = 2379;

/// What only this driver understands, under Python tooz's names.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    #[cfg(feature = "tls")]
    OptionSpec::new(
        "ca_cert",
        OptionKind::Text,
        "file with the authorities that may sign the server's certificate, PEM (default: those of the system)",
    ),
    #[cfg(feature = "tls")]
    OptionSpec::new("cert_cert", OptionKind::Text, "file with our certificate, PEM (default: none)"),
    #[cfg(feature = "tls")]
    OptionSpec::new(
        "cert_key",
        OptionKind::Text,
        "file with the key of our certificate, PEM (default: none)",
    ),
    LAYOUT_OPTION,
];

/// The layout that this version writes (see [`keys`](crate::keys)). Layout 1 had no raises: tokens were create revisions.
const LAYOUT: u32 = 2;

/// Options of Python tooz, and what to write instead.
pub(crate) const FOREIGN_OPTIONS: &[(&str, &str)] =
    &[("api_version", "leave it out: this driver speaks etcd's version 3 API itself, without the gateway")];

/// A parsed URL.
#[derive(Clone)]
pub(crate) struct Config {
    /// `http://host:port`, at least one.
    pub(crate) endpoints: Vec<String>,
    pub(crate) user: Option<(String, String)>,
    /// The certificates; `None`: the connection is not encrypted.
    pub(crate) files: Option<Files>,
    pub(crate) namespace: String,
    pub(crate) layout: u32,
    pub(crate) limits: Limits,
}

/// Without the password.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("endpoints", &self.endpoints)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("files", &self.files)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidUrl, what)
}

impl Config {
    pub(crate) fn read(url: &BackendUrl, limits: Limits) -> Result<Self> {
        let scheme = url.scheme();
        if !SCHEMES.contains(&scheme) {
            return Err(invalid(format!(
                "{scheme}:// is not served by tooz-etcd; write etcd://host:2379 or etcds://host:2379"
            )));
        }
        if !matches!(url.path(), b"" | b"/") {
            return Err(invalid(format!(
                "{scheme}:// takes hosts and no path; a namespace is the option namespace"
            )));
        }
        // All hosts are checked now: a wrong one would be found only when the others are gone.
        if url.hosts().iter().any(|host| !host.name.is_ascii()) {
            return Err(invalid(
                "a host has letters beyond ASCII; write its name as the resolver knows it (xn--…)",
            ));
        }
        let secure = matches!(scheme, "etcds" | "etcd3+https");
        let protocol = if secure { "https" } else { "http" };
        let mut endpoints: Vec<String> = url
            .hosts()
            .iter()
            .map(|host| {
                let port = host.port.unwrap_or(DEFAULT_PORT);
                let (open, close) = if host.name.contains(':') { ("[", "]") } else { ("", "") };
                format!("{protocol}://{open}{}{close}:{port}", host.name)
            })
            .collect();
        if endpoints.is_empty() {
            endpoints.push(format!("{protocol}://localhost:{DEFAULT_PORT}"));
        }
        let user = match (url.user(), url.password()) {
            (None, None) => None,
            (Some(user), Some(password)) => Some((user.to_owned(), password.to_owned())),
            _ => {
                return Err(invalid(format!(
                    "a user and a password belong together; write {scheme}://user:password@host"
                )));
            }
        };
        let file = |option| PemFile {
            option,
            path: url.option(option).filter(|path| !path.is_empty()).map(Into::into),
        };
        let files = Files {
            authorities: file("ca_cert"),
            certificate: file("cert_cert"),
            key: file("cert_key"),
            plain_scheme: "etcd",
        };
        if !secure && files.is_any_given() {
            // A user who names a certificate does not want an unencrypted connection.
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!(
                    "certificates have no meaning without encryption; write etcds:// instead of {scheme}://"
                ),
            ));
        }
        Ok(Self {
            endpoints,
            user,
            files: secure.then_some(files),
            namespace: url.option("namespace").unwrap_or(DEFAULT_NAMESPACE).to_owned(),
            layout: layout_of(url, LAYOUT)?,
            limits,
        })
    }

    /// With the user and the certificates, whose files are read here.
    pub(crate) async fn connect_options(&self, context: &Context) -> Result<ConnectOptions> {
        let mut options = ConnectOptions::new();
        if let Some((user, password)) = &self.user {
            options = options.with_user(user, password);
        }
        #[cfg(feature = "tls")]
        if let Some(files) = self.files.clone() {
            options = options.with_tls(context.spawner.blocking(move || encryption(&files)).await??);
        }
        #[cfg(not(feature = "tls"))]
        let _ = context;
        Ok(options)
    }
}

/// With the certificates that the URL names, or with the authorities of the system.
#[cfg(feature = "tls")]
fn encryption(files: &Files) -> Result<TlsOptions> {
    let Contents { authorities, identity } = files.read()?;
    let tls = match authorities {
        Some(pem) => TlsOptions::new().ca_certificate(Certificate::from_pem(pem)),
        None => TlsOptions::new().with_native_roots(),
    };
    Ok(match identity {
        Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
        None => tls,
    })
}

/// What etcd guarantees at best. The README has the reason for each, `version` what older servers lack.
pub(crate) fn characteristics(_: &BackendUrl) -> Characteristics {
    Characteristics::all() - Characteristics::NON_TIMEOUT_BASED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Config> {
        let url = BackendUrl::parse(url)?;
        Config::read(&url, Limits::of(&url)?)
    }

    #[test]
    fn hosts_become_endpoints() {
        for (url, endpoints) in [
            ("etcd://", &["http://localhost:2379"][..]),
            ("etcd3://a", &["http://a:2379"]),
            #[cfg(feature = "tls")]
            ("etcds://a:1,[::1]:2/", &["https://a:1", "https://[::1]:2"]),
            #[cfg(feature = "tls")]
            ("etcd3+https://a", &["https://a:2379"]),
            ("etcd3+http://a", &["http://a:2379"]),
        ] {
            assert_eq!(read(url).unwrap().endpoints, endpoints, "{url}");
        }
        let config = read("etcd://u:p%40@a?namespace=n").unwrap();
        assert_eq!(config.user, Some(("u".into(), "p@".into())));
        assert_eq!(config.namespace, "n");
        assert!(!format!("{config:?}").contains("p@"));
    }

    #[test]
    fn what_it_cannot_mean_is_refused() {
        for (url, kind) in [
            ("sqlite:///a", ErrorKind::InvalidUrl),
            ("etcd://a/path", ErrorKind::InvalidUrl),
            ("etcd://u@a", ErrorKind::InvalidUrl),
            ("etcd://good,b\u{fc}cher", ErrorKind::InvalidUrl),
            ("etcd://dead, good", ErrorKind::InvalidUrl),
            ("etcd://dead,%20good", ErrorKind::InvalidUrl),
            ("etcd://dead,<good>", ErrorKind::InvalidUrl),
            ("etcd://a?ca_cert=x", ErrorKind::InvalidOption),
        ] {
            assert_eq!(read(url).unwrap_err().kind(), kind, "{url}");
        }
    }
}
