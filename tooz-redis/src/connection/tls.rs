//! TLS: the server is always verified, against the system's certificates or the URL's.

#[cfg(feature = "tls")]
use std::path::Path;

use redis::{ConnectionInfo, RedisResult};
#[cfg(feature = "tls")]
use tooz_core::{BackendUrl, Error, ErrorKind, Result};

/// What a URL says about certificates, in PEM.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    #[cfg(feature = "tls")]
    root: Option<Vec<u8>>,
    #[cfg(feature = "tls")]
    client: Option<(Vec<u8>, Vec<u8>)>,
}

#[cfg(feature = "tls")]
impl Tls {
    pub(crate) fn read(url: &BackendUrl) -> Result<Self> {
        let file =
            |option: &'static str| url.option(option).map(|path| read(option, Path::new(path))).transpose();
        let client = match (file("tls_cert")?, file("tls_key")?) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(refuse("tls_cert", "it goes together with tls_key")),
        };
        ensure_crypto_provider();
        Ok(Self { root: file("tls_ca")?, client })
    }
}

#[cfg(feature = "tls")]
fn refuse(option: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("option \"{option}\": {why}"))
}

#[cfg(feature = "tls")]
fn read(option: &str, path: &Path) -> Result<Vec<u8>> {
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
        let client = tls.client.clone();
        let certificates = redis::TlsCertificates {
            client_tls: client
                .map(|(cert, key)| redis::ClientTlsConfig { client_cert: cert, client_key: key }),
            root_cert: tls.root.clone(),
        };
        return redis::Client::build_with_tls(info, certificates);
    }
    #[cfg(not(feature = "tls"))]
    let _ = tls;
    redis::Client::open(info)
}
