//! TLS: the server is always verified, against the system's certificates or the URL's.

#[cfg(feature = "tls")]
use std::path::Path;

use redis::{ConnectionInfo, RedisResult};
#[cfg(feature = "tls")]
use tooz_core::{BackendUrl, Error, ErrorKind, Result};

/// The certificates that a URL names, in PEM.
#[cfg(feature = "tls")]
pub(crate) type Tls = redis::TlsCertificates;
#[cfg(not(feature = "tls"))]
pub(crate) type Tls = std::convert::Infallible;

#[cfg(feature = "tls")]
pub(crate) fn read(url: &BackendUrl) -> Result<Tls> {
    let file =
        |option: &'static str| url.option(option).map(|path| read_file(option, Path::new(path))).transpose();
    let client_tls = match (file("tls_cert")?, file("tls_key")?) {
        (Some(client_cert), Some(client_key)) => Some(redis::ClientTlsConfig { client_cert, client_key }),
        (None, None) => None,
        _ => return Err(refuse("tls_cert", "it goes together with tls_key")),
    };
    ensure_crypto_provider();
    Ok(Tls { client_tls, root_cert: file("tls_ca")? })
}

#[cfg(feature = "tls")]
fn refuse(option: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("option \"{option}\": {why}"))
}

#[cfg(feature = "tls")]
fn read_file(option: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| refuse(option, &format!("{} cannot be read", path.display())).caused_by(error))
}

/// rustls panics if two providers are linked and none is chosen. A program that chose one keeps it.
#[cfg(feature = "tls")]
fn ensure_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have chosen one just now; then that one counts.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

/// Opens a client; the connection is made later.
pub(crate) fn open(info: ConnectionInfo, tls: Option<&Tls>) -> RedisResult<redis::Client> {
    #[cfg(feature = "tls")]
    if let Some(tls) = tls {
        return redis::Client::build_with_tls(info, tls.clone());
    }
    #[cfg(not(feature = "tls"))]
    let _ = tls;
    redis::Client::open(info)
}
