//! TLS: certificates on both sides, and what is wrong is named.

use tooz_core::{Coordinator, ErrorKind};
use tooz_servers::etcd::Etcd;
use tooz_servers::lines::fault;
use tooz_servers::{Certificates, Outcome, make_certificates};

use super::LIMIT;

/// X3: encryption with certificates on both sides; a client that has none, or trusts another authority, is not let in.
pub(super) async fn certificates_on_both_sides() -> Outcome {
    let (files, others) = (tempfile::tempdir()?, tempfile::tempdir()?);
    make_certificates(files.path())?;
    make_certificates(others.path())?;
    let etcd = Etcd::start_encrypted(files.path())?;
    let url = |ca: &tempfile::TempDir, own: Option<&tempfile::TempDir>| {
        let own = own.map(|own| {
            let own = own.path().display();
            format!("&cert_cert={own}/client.pem&cert_key={own}/client.key")
        });
        let ca = ca.path().display();
        format!("etcds://{}?ca_cert={ca}/ca.pem{}", etcd.address(), own.unwrap_or_default())
    };
    for wrong in [url(&others, Some(&files)), url(&files, None), url(&files, Some(&others))] {
        let error = Coordinator::builder(wrong, "a").connect_timeout(LIMIT).connect().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Denied), "{error:?}");
    }
    let missing = format!("etcds://{}?ca_cert=/nowhere/ca.pem", etcd.address());
    let error = Coordinator::builder(missing, "a").connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    let a = Coordinator::builder(url(&files, Some(&files)), "a").connect().await?;
    let guard = a.lock("x")?.acquire().await?;
    guard.release().await?;
    Ok(a.close().await?)
}

/// What is wrong with a certificate or with TLS is named, with the option or the server to correct.
pub(super) async fn a_fault_names_what_to_correct() -> Outcome {
    use ErrorKind::{Denied, InvalidOption, Unavailable};
    let (ours, others) = (Certificates::make()?, Certificates::make()?);
    std::fs::write(ours.file("junk"), "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n")?;
    std::fs::write(ours.file("empty"), "")?;
    let files = ours.file("");
    let start = |name| Etcd::start_encrypted_as(&files, name);
    let (server, expired, other, plain) =
        (start("server")?, start("expired")?, start("other")?, Etcd::start()?);
    let (open, closed, plain) = (server.address(), server.address(), plain.address());
    let (expired, other) = (expired.address(), other.address());
    let file = |certificates: &Certificates, name: &str| certificates.file(name).display().to_string();
    let ca = |name: &str| format!("ca_cert={}", file(&ours, name));
    let pair = |cert: &str, key: &str| {
        format!("{}&cert_cert={}&cert_key={}", ca("ca.pem"), file(&ours, cert), file(&ours, key))
    };
    let theirs = format!("ca_cert={}", file(&others, "ca.pem"));
    let (good, path) = (ca("ca.pem"), |name: &str| file(&ours, name));
    for (address, options, kind, says) in [
        (open, String::new(), Denied, &["certificate of", "this machine trusts", "\"ca_cert\""][..]),
        (open, theirs.clone(), Denied, &["certificate of", &file(&others, "ca.pem"), "\"ca_cert\""]),
        (open, ca("none"), InvalidOption, &["\"ca_cert\"", &path("none"), "cannot be read"]),
        (open, ca("empty"), InvalidOption, &["\"ca_cert\"", &path("empty"), "no certificate"]),
        (open, ca("junk"), InvalidOption, &["\"ca_cert\"", &path("junk"), "damaged"]),
        (open, ca("ca.key"), InvalidOption, &["\"ca_cert\"", &path("ca.key"), "no certificate"]),
        (expired, good.clone(), Denied, &["certificate of", "expired", "clock"]),
        (other, good.clone(), Denied, &["certificate of", "other.example"]),
        (
            closed,
            pair("client.pem", "server.key"),
            InvalidOption,
            &["does not belong", &path("client.pem"), &path("server.key")],
        ),
        (
            closed,
            pair("client.pem", "client.pem"),
            InvalidOption,
            &["\"cert_key\"", &path("client.pem"), "no private key"],
        ),
        (
            closed,
            pair("client.key", "client.key"),
            InvalidOption,
            &["\"cert_cert\"", &path("client.key"), "no certificate"],
        ),
        (closed, pair("junk", "client.key"), InvalidOption, &["\"cert_cert\"", &path("junk"), "damaged"]),
        (
            closed,
            pair("client.pem", "none"),
            InvalidOption,
            &["\"cert_key\"", &path("none"), "cannot be read"],
        ),
        (plain, good, Unavailable, &["not speak TLS", "etcd://"]),
    ] {
        let url = format!("etcds://{address}?connect_timeout=5s&{options}");
        check(&url, &[kind], says).await;
    }
    // The alert that says more may be lost with the end of the connection.
    let options = "\"cert_cert\" and \"cert_key\"";
    for (own, says) in [
        (ca("ca.pem"), "asks for a certificate of its clients"),
        (pair("expired.pem", "expired.key"), &path("expired.pem")),
    ] {
        let url = format!("etcds://{closed}?{own}");
        check(&url, &[Denied, Unavailable], &[options, says]).await;
    }
    check(&format!("etcd://{open}"), &[Unavailable], &["etcds://"]).await;
    Ok(())
}

async fn check(url: &str, kinds: &[ErrorKind], says: &[&str]) {
    let error = Coordinator::builder(url, "a").connect().await.unwrap_err();
    let line = format!("{error:?}");
    assert!(kinds.contains(&error.kind()), "{url}: {line}");
    assert_eq!(fault(&line), None, "{url}: {line}");
    assert!(!error.is_indeterminate(), "{url}: {line}");
    for says in says {
        assert!(line.contains(says), "{url}: no {says} in: {line}");
    }
}
