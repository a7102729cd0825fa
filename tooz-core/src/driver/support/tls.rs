//! The files with certificates that a URL names, and what a failed TLS handshake means.
//!
//! The transports tell their errors in words only, and not always in a type that can be named, so [`Files::fault`] reads words:
//! those of rustls 0.23, and of the crates that read PEM files for it.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, Result};

/// A file, and the option that names it.
#[derive(Clone, Debug)]
pub struct PemFile {
    /// The option.
    pub option: &'static str,
    /// `None`: the URL does not have the option.
    pub path: Option<PathBuf>,
}

/// The files of one connection.
#[derive(Clone, Debug)]
pub struct Files {
    /// The authorities that may sign the server's certificate.
    pub authorities: PemFile,
    /// Our own certificate.
    pub certificate: PemFile,
    /// The key of our own certificate.
    pub key: PemFile,
    /// The scheme for a server without TLS.
    pub plain_scheme: &'static str,
}

/// What stands in the files.
pub struct Contents {
    /// The authorities; `None`: those of the system.
    pub authorities: Option<Vec<u8>>,
    /// Our own certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Without the key.
impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").finish_non_exhaustive()
    }
}

fn refuse(option: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("option \"{option}\": {why}"))
}

impl PemFile {
    /// What the file holds, which must be `what` (`"CERTIFICATE"`, `"PRIVATE KEY"`).
    fn read(&self, what: &str) -> Result<Option<Vec<u8>>> {
        let Some(path) = &self.path else { return Ok(None) };
        let shown = path.display();
        let refuse = |why: &str| refuse(self.option, &format!("{shown} {why}"));
        let contents = std::fs::read(path)
            .map_err(|error| refuse("cannot be read; name a file in PEM form").caused_by(error))?;
        let text = String::from_utf8_lossy(&contents);
        if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
            return Err(refuse("is encrypted with a passphrase; decrypt it (openssl pkey)"));
        }
        if !text
            .lines()
            .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{what}-----")))
        {
            let what = what.to_lowercase();
            return Err(refuse(&format!("holds no {what} in PEM form; name the file that does")));
        }
        Ok(Some(contents))
    }

    fn shown(&self) -> std::path::Display<'_> {
        self.path.as_deref().unwrap_or(Path::new("?")).display()
    }
}

impl Files {
    /// Whether the URL names any of them.
    pub fn is_any_given(&self) -> bool {
        [&self.authorities, &self.certificate, &self.key].iter().any(|file| file.path.is_some())
    }

    /// Reads the files.
    ///
    /// # Errors
    /// `InvalidOption`, naming the option and the file: one cannot be read, or holds something else; a certificate without its key.
    pub fn read(&self) -> Result<Contents> {
        for (given, missing) in [(&self.certificate, &self.key), (&self.key, &self.certificate)] {
            if given.path.is_some() && missing.path.is_none() {
                let why = format!("it goes together with \"{}\"; give both or neither", missing.option);
                return Err(refuse(given.option, &why));
            }
        }
        Ok(Contents {
            authorities: self.authorities.read("CERTIFICATE")?,
            identity: self.certificate.read("CERTIFICATE")?.zip(self.key.read("PRIVATE KEY")?),
        })
    }

    /// What the words of an error say about TLS; `None`: they are about something else. `peer`: the server, for people.
    pub fn fault(&self, peer: &str, said: &str) -> Option<Error> {
        let (kind, what) = if let Some((_, why)) = said.split_once("invalid peer certificate: ") {
            (ErrorKind::Denied, self.refused_theirs(peer, why))
        } else if let Some((_, alert)) = said.split_once("received fatal alert: ") {
            self.refused_ours(peer, alert)
        } else if said.contains("keys may not be consistent") {
            let why = format!("the key {} does not belong to {}", self.key.shown(), self.certificate.shown());
            return Some(refuse(
                self.key.option,
                &format!("{why}, the certificate of \"{}\"", self.certificate.option),
            ));
        } else if said.contains("corrupt message") || said.contains("handshake eof") {
            let plain = self.plain_scheme;
            let does = if said.contains("eof") { "ended the handshake and may not" } else { "does not" };
            let what = format!(
                "{peer} {does} speak TLS; check the host and the port, or write {plain}:// if it has no TLS"
            );
            (ErrorKind::Unavailable, what)
        } else if let Some(damaged) = self.damaged(said) {
            return Some(damaged);
        } else if said.contains("ertificate") || said.contains("handshake") {
            (ErrorKind::Unavailable, format!("TLS with {peer} failed"))
        } else {
            return None;
        };
        Some(Error::new(kind, what))
    }

    /// The server ended a new connection: the alert with its reason may be lost.
    pub fn ended(&self, peer: &str) -> Error {
        let (certificate, key) = (self.certificate.option, self.key.option);
        let whether = match &self.certificate.path {
            Some(path) => format!("whether it accepts our certificate {}", path.display()),
            None => "whether it asks for a certificate of its clients".to_owned(),
        };
        let what = format!(
            "{peer} ended the encrypted connection at once; check the host and the port, and {whether} (options \
             \"{certificate}\" and \"{key}\")"
        );
        Error::new(ErrorKind::Unavailable, what)
    }

    /// We do not accept the certificate of the server.
    fn refused_theirs(&self, peer: &str, why: &str) -> String {
        let authorities = self.authorities.option;
        // An authority that was made anew has the name of the former one, and another key.
        if why.starts_with("UnknownIssuer") || why.starts_with("BadSignature") {
            return match &self.authorities.path {
                Some(path) => format!(
                    "the certificate of {peer} is not signed by an authority in {}; correct the option \"{authorities}\"",
                    path.display()
                ),
                None => format!(
                    "the certificate of {peer} is signed by no authority that this machine trusts; name the file of its \
                     authority with the option \"{authorities}\""
                ),
            };
        }
        if why.starts_with("Expired") || why.starts_with("certificate expired") {
            return format!(
                "the certificate of {peer} has expired; renew it on the server, or correct this machine's clock"
            );
        }
        if why.starts_with("NotValidYet") || why.starts_with("certificate not valid yet") {
            return format!("the certificate of {peer} is not valid yet; correct this machine's clock");
        }
        if why.starts_with("NotValidForName") || why.starts_with("certificate not valid for name") {
            let names = why.split_once("only valid for ").map_or("no name", |(_, names)| names);
            let names =
                ["DnsName", "IpAddress"].iter().fold(names.to_owned(), |names, word| names.replace(word, ""));
            let names = names.replace(['(', ')', '"', '\\'], "");
            return format!(
                "the certificate of {peer} is for {names}; write a host that it is for in the URL"
            );
        }
        format!(
            "the certificate of {peer} is not accepted ({}); replace it on the server, or correct the option \
             \"{authorities}\"",
            in_words(why)
        )
    }

    /// The server ended the handshake.
    fn refused_ours(&self, peer: &str, alert: &str) -> (ErrorKind, String) {
        let (certificate, key) = (self.certificate.option, self.key.option);
        let why = in_words(alert);
        if !["Certificate", "UnknownCA", "AccessDenied", "DecryptError"]
            .iter()
            .any(|word| alert.contains(word))
        {
            return (
                ErrorKind::Unavailable,
                format!("{peer} refused the TLS handshake ({why}); look at its log"),
            );
        }
        let what = match &self.certificate.path {
            Some(path) => format!(
                "{peer} refuses our certificate {} ({why}); correct the options \"{certificate}\" and \"{key}\"",
                path.display()
            ),
            None => format!(
                "{peer} asks for a certificate of its clients ({why}); name one with the options \"{certificate}\" and \
                 \"{key}\""
            ),
        };
        (ErrorKind::Denied, what)
    }

    /// The file that a reader of PEM files complains about.
    fn damaged(&self, said: &str) -> Option<Error> {
        let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
        let file = if says(&["trust anchors", "root certificate"]) {
            &self.authorities
        } else if says(&["private key"]) {
            &self.key
        } else if says(&["client certificate", "sent no certificates"]) {
            &self.certificate
        } else if says(&["parsing TLS certificate"]) {
            // Of these two tonic does not say which.
            match (&self.authorities.path, &self.certificate.path) {
                (Some(_), Some(_)) => {
                    let (one, other) = (&self.authorities, &self.certificate);
                    let why = format!(
                        "{} or {}, the file of \"{}\", is damaged; replace it",
                        one.shown(),
                        other.shown(),
                        other.option
                    );
                    return Some(refuse(one.option, &why));
                }
                (Some(_), None) => &self.authorities,
                (None, _) => &self.certificate,
            }
        } else {
            return None;
        };
        Some(refuse(file.option, &format!("{} is damaged; replace it", file.shown())))
    }
}

/// `BadCertificate…` as `bad certificate`.
fn in_words(name: &str) -> String {
    let mut words = String::new();
    for c in name.chars().take_while(char::is_ascii_alphanumeric) {
        if c.is_ascii_uppercase() && words.ends_with(|last: char| last.is_ascii_lowercase() && last != ' ') {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(path: Option<&str>) -> Files {
        let file = |option, path: Option<&str>| PemFile { option, path: path.map(PathBuf::from) };
        Files {
            authorities: file("ca", path),
            certificate: file("cert", path),
            key: file("key", path),
            plain_scheme: "plain",
        }
    }

    #[test]
    fn a_fault_names_what_to_correct() {
        use ErrorKind::{Denied, InvalidOption, Unavailable};
        for (said, path, kind, words) in [
            ("invalid peer certificate: UnknownIssuer", None, Denied, &["of h", "\"ca\"", "trusts"][..]),
            ("invalid peer certificate: UnknownIssuer", Some("/f"), Denied, &["of h", "\"ca\"", "/f"]),
            ("invalid peer certificate: Expired", None, Denied, &["of h", "expired", "clock"]),
            ("invalid peer certificate: NotValidYet", None, Denied, &["of h", "clock"]),
            (
                "invalid peer certificate: certificate not valid for name \"h\"; certificate is only valid for \
                 DnsName(\"a.example\") or IpAddress(10.0.0.1)",
                None,
                Denied,
                &["of h", "is for a.example or 10.0.0.1;"],
            ),
            ("invalid peer certificate: CaUsedAsEndEntity", None, Denied, &["of h", "ca used as end entity"]),
            ("received fatal alert: CertificateRequired", None, Denied, &["h asks", "\"cert\" and \"key\""]),
            (
                "received fatal alert: BadCertificate",
                Some("/f"),
                Denied,
                &["h refuses", "/f", "bad certificate"],
            ),
            (
                "received fatal alert: UnknownCA",
                Some("/f"),
                Denied,
                &["h refuses", "/f", "\"cert\" and \"key\""],
            ),
            ("received fatal alert: ProtocolVersion", None, Unavailable, &["h refused", "protocol version"]),
            (
                "keys may not be consistent: KeyMismatch",
                Some("/f"),
                InvalidOption,
                &["\"key\"", "\"cert\"", "/f"],
            ),
            (
                "received corrupt message of type InvalidContentType",
                None,
                Unavailable,
                &["plain://", "host and the port"],
            ),
            ("tls handshake eof", None, Unavailable, &["plain://", "host and the port"]),
            ("Unable to parse TLS trust anchors", Some("/f"), InvalidOption, &["\"ca\"", "/f"]),
            ("Unable to extract private key from PEM file: x", Some("/f"), InvalidOption, &["\"key\"", "/f"]),
            ("Error parsing TLS certificate.", Some("/f"), InvalidOption, &["\"ca\"", "\"cert\"", "/f"]),
        ] {
            let error = files(path).fault("h", said).unwrap();
            assert_eq!(error.kind(), kind, "{said}");
            for word in words {
                assert!(error.to_string().contains(word), "{said}: no {word} in {error}");
            }
        }
        assert!(files(None).fault("h", "Connection refused (os error 111)").is_none());
    }
}
