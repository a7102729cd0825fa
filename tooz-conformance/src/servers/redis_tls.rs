//! Redis with TLS, and certificates for it, made by the `openssl` command.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::redis::Redis;
use super::{free_port, openssl};

/// An authority, a certificate of it for 127.0.0.1, and one for a client.
#[derive(Debug)]
pub struct Certificates(TempDir);

impl Certificates {
    /// Makes them.
    ///
    /// # Errors
    /// `openssl` is not on this machine, or fails.
    pub fn make() -> Result<Self, String> {
        let place = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let openssl = openssl()?;
        let run = |line: &str| {
            let output = Command::new(&openssl).args(line.split(' ')).current_dir(place.path()).output();
            let output = output.map_err(|error| format!("openssl: {error}"))?;
            if output.status.success() {
                return Ok(());
            }
            Err(format!("openssl {line}: {}", String::from_utf8_lossy(&output.stderr)))
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        run(&format!("req -x509 {key} -days 2 -keyout ca.key -out ca.pem -subj /CN=authority"))?;
        std::fs::write(place.path().join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")
            .map_err(|error| format!("{error}"))?;
        for who in ["server", "client"] {
            run(&format!("req {key} -keyout {who}.key -out {who}.csr -subj /CN={who}"))?;
            run(&format!(
                "x509 -req -in {who}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {who}.pem"
            ))?;
        }
        Ok(Self(place))
    }

    /// One of the files: `ca.pem`, `client.pem`, `client.key`, `server.pem`, `server.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

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
        let port = free_port()?;
        let text = |path: &Path| path.display().to_string();
        let (cert, key) = (certificates.file("server.pem"), certificates.file("server.key"));
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
