//! Certificates, made by the `openssl` command.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::openssl;

/// An authority and certificates of it: for a server at 127.0.0.1, for a client, and two that are not accepted.
#[derive(Debug)]
pub struct Certificates(TempDir);

impl Certificates {
    /// Makes them in a temporary directory.
    ///
    /// # Errors
    /// `openssl` is not on this machine, or fails.
    pub fn make() -> Result<Self, String> {
        let place = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        make_certificates(place.path())?;
        Ok(Self(place))
    }

    /// One of the files that [`make_certificates`] makes.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Writes an authority, a certificate of a `server` at 127.0.0.1, one of a `client`, one that has `expired`, and one for the host
/// other.example (`other`): `ca.pem`, and `.pem` and `.key` of each.
///
/// # Errors
/// The program `openssl` is missing or refuses.
pub fn make_certificates(place: &Path) -> Result<(), String> {
    let openssl = openssl()?;
    let run = |arguments: &str| {
        let output = Command::new(&openssl)
            .args(arguments.split(' '))
            .current_dir(place)
            .output()
            .map_err(|error| format!("openssl: {error}"))?;
        let said = || String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
        if output.status.success() { Ok(()) } else { Err(format!("openssl {arguments}: {}", said())) }
    };
    let extensions = "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n";
    let other = extensions.replace("IP:127.0.0.1,DNS:localhost", "DNS:other.example");
    for (file, extensions) in [("extensions", extensions), ("other-extensions", &other)] {
        std::fs::write(place.join(file), extensions).map_err(|error| error.to_string())?;
    }
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"))?;
    for (who, days, extensions) in [
        ("server", 2, "extensions"),
        ("client", 2, "extensions"),
        ("expired", -1, "extensions"),
        ("other", 2, "other-extensions"),
    ] {
        run(&format!("req {key} -keyout {who}.key -out {who}.csr -subj /CN={who}"))?;
        run(&format!(
            "x509 -req -in {who}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {who}.pem -days {days} -extfile \
             {extensions}"
        ))?;
    }
    Ok(())
}
