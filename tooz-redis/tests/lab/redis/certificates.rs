//! TLS: the server is verified, a client shows its certificate, and what is wrong is named.

use tooz_core::{Coordinator, ErrorKind};
use tooz_servers::Certificates;
use tooz_servers::lines::fault;
use tooz_servers::redis_tls::RedisTls;

/// The server is verified, and a client's certificate shown where it is asked for.
pub(super) async fn certificates_are_verified() {
    let (ours, others) = (Certificates::make().unwrap(), Certificates::make().unwrap());
    let (open, closed) = (RedisTls::start(&ours, false).unwrap(), RedisTls::start(&ours, true).unwrap());
    let connect = |server: &RedisTls, options: String| {
        Coordinator::builder(format!("rediss://{}?ttl=15s{options}", server.address()), "a").connect()
    };
    let ca = |certificates: &Certificates| format!("&tls_ca={}", certificates.file("ca.pem").display());
    let a = connect(&open, ca(&ours)).await.unwrap();
    assert!(a.lock("x").unwrap().try_acquire().await.unwrap().is_some());
    for options in [ca(&others), String::new()] {
        let error = connect(&open, options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
    let pair = format!(
        "&tls_cert={}&tls_key={}",
        ours.file("client.pem").display(),
        ours.file("client.key").display()
    );
    let b = connect(&closed, format!("{}{pair}", ca(&ours))).await.unwrap();
    assert!(b.lock("x").unwrap().try_acquire().await.unwrap().is_some());
    assert!(connect(&closed, ca(&ours)).await.is_err(), "a server that asks for a certificate got none");
    let half = format!("{}&tls_cert={}", ca(&ours), ours.file("client.pem").display());
    assert_eq!(connect(&closed, half).await.unwrap_err().kind(), ErrorKind::InvalidOption);
    let error = connect(&open, "&tls_ca=/nowhere/ca.pem".into()).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::InvalidOption && error.to_string().contains("/nowhere/ca.pem"),
        "{error}"
    );
    let plain = format!("redis://{}?tls_ca=/x", open.redis.address());
    let error = Coordinator::builder(plain, "a").connect().await.unwrap_err();
    assert!(error.to_string().contains("rediss://"), "{error}");
    // A server that speaks no TLS.
    let error = Coordinator::builder(format!("rediss://{}?connect_timeout=5s", open.redis.address()), "a")
        .connect()
        .await;
    assert!(error.is_err());
}

/// What is wrong with a certificate or with TLS is named, with the option or the server to correct.
pub(super) async fn a_fault_names_what_to_correct() {
    use ErrorKind::{Denied, InvalidOption, Unavailable};
    let (ours, others) = (Certificates::make().unwrap(), Certificates::make().unwrap());
    std::fs::write(ours.file("junk"), "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n")
        .unwrap();
    std::fs::write(ours.file("empty"), "").unwrap();
    let start = |name, clients| RedisTls::start_as(&ours, name, clients).unwrap();
    let (open, closed) = (start("server", false), start("server", true));
    let (expired, other) = (start("expired", false), start("other", false));
    let (plain, open) = (open.redis.address(), open.address());
    let (closed, expired, other) = (closed.address(), expired.address(), other.address());
    let file = |certificates: &Certificates, name: &str| certificates.file(name).display().to_string();
    let ca = |name: &str| format!("tls_ca={}", file(&ours, name));
    let pair = |cert: &str, key: &str| {
        format!("{}&tls_cert={}&tls_key={}", ca("ca.pem"), file(&ours, cert), file(&ours, key))
    };
    let theirs = format!("tls_ca={}", file(&others, "ca.pem"));
    let (good, path) = (ca("ca.pem"), |name: &str| file(&ours, name));
    for (address, options, kind, says) in [
        (open, String::new(), Denied, &["certificate of", "this machine trusts", "\"tls_ca\""][..]),
        (open, theirs.clone(), Denied, &["certificate of", &file(&others, "ca.pem"), "\"tls_ca\""]),
        (open, ca("none"), InvalidOption, &["\"tls_ca\"", &path("none"), "cannot be read"]),
        (open, ca("empty"), InvalidOption, &["\"tls_ca\"", &path("empty"), "no certificate"]),
        (open, ca("junk"), InvalidOption, &["\"tls_ca\"", &path("junk"), "damaged"]),
        (open, ca("ca.key"), InvalidOption, &["\"tls_ca\"", &path("ca.key"), "no certificate"]),
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
            &["\"tls_key\"", &path("client.pem"), "no private key"],
        ),
        (
            closed,
            pair("client.key", "client.key"),
            InvalidOption,
            &["\"tls_cert\"", &path("client.key"), "no certificate"],
        ),
        (closed, pair("junk", "client.key"), InvalidOption, &["\"tls_cert\"", &path("junk"), "damaged"]),
        (
            closed,
            pair("client.pem", "none"),
            InvalidOption,
            &["\"tls_key\"", &path("none"), "cannot be read"],
        ),
        (plain, good, ErrorKind::Timeout, &["TLS"]),
    ] {
        let url = format!("rediss://{address}?connect_timeout=5s&{options}");
        check(&url, &[kind], says).await;
    }
    // The alert that says more may be lost with the end of the connection.
    let options = "\"tls_cert\" and \"tls_key\"";
    for (own, says) in [
        (ca("ca.pem"), "asks for a certificate of its clients"),
        (pair("expired.pem", "expired.key"), &path("expired.pem")),
    ] {
        let url = format!("rediss://{closed}?{own}");
        check(&url, &[Denied, Unavailable], &[options, says]).await;
    }
    check(&format!("redis://{open}"), &[Unavailable], &["rediss://"]).await;
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
