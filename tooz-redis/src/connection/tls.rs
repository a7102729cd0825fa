//! TLS: the server is always verified, against the system's certificates or the URL's.

use redis::{ConnectionInfo, RedisResult};
use tooz_core::Result;
#[cfg(feature = "tls")]
use tooz_core::driver::support::tls::Contents;
use tooz_core::driver::support::tls::Files;

/// The certificates that a URL names, in PEM.
#[cfg(feature = "tls")]
pub(crate) type Tls = redis::TlsCertificates;
#[cfg(not(feature = "tls"))]
pub(crate) type Tls = std::convert::Infallible;

/// Reads the files that the URL names.
#[cfg(feature = "tls")]
pub(crate) fn read(files: &Files) -> Result<Tls> {
    let Contents { authorities, identity } = files.read()?;
    ensure_crypto_provider();
    let client_tls =
        identity.map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key });
    Ok(Tls { client_tls, root_cert: authorities })
}

/// Without the feature, no scheme of this driver has TLS.
#[cfg(not(feature = "tls"))]
pub(crate) fn read(_: &Files) -> Result<Tls> {
    Err(tooz_core::Error::new(
        tooz_core::ErrorKind::UnknownScheme,
        "tooz-redis was built without its feature tls",
    ))
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
