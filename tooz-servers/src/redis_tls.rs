//! Redis with TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use super::redis::Redis;
use super::{Certificates, free_port};

/// A server with TLS on one port and without on another, which is for the tests' own commands.
#[derive(Debug)]
pub struct RedisTls {
    /// The server; its address is the one without TLS.
    pub redis: Redis,
    address: SocketAddr,
}

impl RedisTls {
    /// Starts one; `clients`: whether it asks for a client's certificate.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(certificates: &Certificates, clients: bool) -> Result<Self, String> {
        Self::start_as(certificates, "server", clients)
    }

    /// Starts one with the certificate of this name.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_as(certificates: &Certificates, name: &str, clients: bool) -> Result<Self, String> {
        let port = free_port()?;
        let text = |path: &Path| path.display().to_string();
        let (cert, key) =
            (certificates.file(&format!("{name}.pem")), certificates.file(&format!("{name}.key")));
        let redis = Redis::start_with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &text(&cert),
            "--tls-key-file",
            &text(&key),
            "--tls-ca-cert-file",
            &text(&certificates.file("ca.pem")),
            "--tls-auth-clients",
            if clients { "yes" } else { "no" },
        ])?;
        Ok(Self { redis, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) })
    }

    /// Where it listens with TLS.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
