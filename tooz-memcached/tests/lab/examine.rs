//! What a look at a server finds that is not as it should be, and which servers are refused.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use tooz_core::{Coordinator, ErrorKind, Finding, Result, Severity};
use tooz_servers::lab::Case;
use tooz_servers::memcached::{self, Memcached};
use tooz_servers::{Certificates, Launch, Server, cases, free_port};

use crate::flood::Flood;
use crate::stage::{PATIENT, SOON, connect, url, within};

pub(crate) const CASES: &[(&str, Case)] = cases![
    a_healthy_server_is_good,
    a_namespace_that_nobody_used_is_told,
    evictions_are_told,
    a_nearly_full_server_is_told,
    refused_writes_are_told_with_what_to_do,
    a_server_without_cas_numbers_is_refused,
    a_server_that_asks_for_a_login_is_refused,
    what_is_no_memcached_is_refused,
];
pub(crate) const TLS: &[(&str, Case)] = cases![a_server_that_wants_tls_is_refused];

async fn look(server: &Memcached) -> Vec<Finding> {
    Coordinator::builder(url(server.address(), PATIENT), "operator").examine().await.unwrap()
}

fn of<'a>(found: &'a [Finding], topic: &str) -> Vec<&'a Finding> {
    found.iter().filter(|finding| finding.topic() == topic).collect()
}

/// The only finding on this topic.
fn only<'a>(found: &'a [Finding], topic: &str) -> &'a Finding {
    let [one] = of(found, topic)[..] else { panic!("not one {topic}: {found:?}") };
    one
}

/// That a finding warns, says this, and what to do.
fn warns(found: &[Finding], topic: &str, what: &str, advice: &str) {
    let finding = only(found, topic);
    assert_eq!(finding.severity(), Severity::Warning, "{finding:?}");
    assert!(finding.what().contains(what), "{finding:?}");
    assert!(finding.advice().unwrap().contains(advice), "{finding:?}");
}

async fn a_healthy_server_is_good() {
    let server = Memcached::start().unwrap();
    let a = connect(server.address(), PATIENT, "a").await;
    let _guard = a.lock("x").unwrap().acquire().await.unwrap();
    let before = server.everything().unwrap();
    let found = look(&server).await;
    for topic in ["version", "memory", "evictions", "connections", "clock"] {
        assert_eq!(only(&found, topic).severity(), Severity::Good, "{found:?}");
    }
    assert!(only(&found, "version").what().contains(&server.address().to_string()));
    // Everything was lost a moment ago.
    warns(&found, "age", "started", "log");
    assert!(of(&found, "writing").is_empty() && of(&found, Finding::UNUSED).is_empty(), "{found:?}");
    assert_eq!(server.everything().unwrap(), before, "looking changes something");
}

async fn a_namespace_that_nobody_used_is_told() {
    let server = Memcached::start().unwrap();
    let found = look(&server).await;
    assert_eq!(only(&found, Finding::UNUSED).severity(), Severity::Good);
    assert_eq!(server.keys().unwrap(), Vec::<Vec<u8>>::new());
    // One that is used does not count for another.
    let _a = connect(server.address(), PATIENT, "a").await;
    assert!(of(&look(&server).await, Finding::UNUSED).is_empty());
    let other = Coordinator::builder(url(server.address(), PATIENT), "operator").namespace("other");
    let found = other.examine().await.unwrap();
    assert!(only(&found, Finding::UNUSED).what().contains("other"), "{found:?}");
}

async fn evictions_are_told() {
    let server = Memcached::start_with(&["-m", "2"]).unwrap();
    let mut flood = Flood::new(server.address());
    while server.statistic("evictions").unwrap() == 0 {
        flood.store(100, 1_000);
    }
    warns(&look(&server).await, "evictions", "evicted", "-M");
}

async fn a_nearly_full_server_is_told() {
    let server = Memcached::start_with(&["-m", "2"]).unwrap();
    let mut flood = Flood::new(server.address());
    let most = server.statistic("limit_maxbytes").unwrap();
    assert_eq!(only(&look(&server).await, "memory").severity(), Severity::Good);
    // Each class of sizes takes memory of its own, so that nothing need be evicted.
    let sizes = [1_000, 3_000, 8_000, 20_000].into_iter().cycle().take(400);
    for size in sizes {
        if server.statistic("bytes").unwrap() < most / 100 * 91 {
            flood.store(5, size);
        }
    }
    warns(&look(&server).await, "memory", "bytes are used", "-m");
}

async fn refused_writes_are_told_with_what_to_do() {
    let server = Memcached::start_with(&["-M", "-m", "2"]).unwrap();
    Flood::new(server.address()).fill();
    let before = server.statistic("curr_items").unwrap();
    let found = look(&server).await;
    let writing = only(&found, "writing");
    assert_eq!(writing.severity(), Severity::Bad, "{writing:?}");
    assert!(writing.what().contains("out of memory"), "{writing:?}");
    assert!(writing.advice().unwrap().contains("-m"), "{writing:?}");
    // Nothing can be stored there.
    assert!(of(&found, Finding::UNUSED).is_empty(), "{found:?}");
    assert_eq!(server.statistic("curr_items").unwrap(), before);
}

/// Why neither a session nor a look is to be had there.
async fn refusal(address: SocketAddr) -> (ErrorKind, String) {
    let builder = || Coordinator::builder(url(address, "2s"), "a");
    let outcomes: [Result<()>; 3] = [
        within("connecting", SOON, builder().connect()).await.map(drop),
        within("a view", SOON, builder().view()).await.map(drop),
        within("a look", SOON, builder().examine()).await.map(drop),
    ];
    let errors = outcomes.map(Result::unwrap_err);
    for error in &errors {
        assert!(error.kind() == errors[0].kind() && !error.is_indeterminate(), "{errors:?}");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
    (errors[0].kind(), errors[0].to_string())
}

async fn a_server_without_cas_numbers_is_refused() {
    let server = Memcached::start_with(&["-C"]).unwrap();
    let (kind, why) = refusal(server.address()).await;
    assert!(kind == ErrorKind::Incompatible && why.contains("-C"), "{why}");
}

/// A server that answers nobody as a memcached does, with more arguments.
fn special(more: impl IntoIterator<Item = String>, answers: fn(SocketAddr) -> bool) -> (Server, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let launch = Launch::new(memcached::program().unwrap())
        .args(["-l", "127.0.0.1", "-U", "0", "-u", "root", "-p"])
        .arg(address.port().to_string())
        .args(more);
    let ready = move || answers(address);
    (Server::start(tempfile::tempdir().unwrap(), launch, ready).unwrap(), address)
}

async fn a_server_that_asks_for_a_login_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let users = place.path().join("users");
    std::fs::write(&users, "somebody:hunter2\n").unwrap();
    let asks = |address| {
        let answer = memcached::command(address, b"version\r\n");
        answer.is_ok_and(|answer| answer.starts_with(b"CLIENT_ERROR unauthenticated"))
    };
    let (_server, address) = special(["-Y".to_owned(), users.display().to_string()], asks);
    let (kind, why) = refusal(address).await;
    assert!(kind == ErrorKind::Denied && why.contains("login"), "{why}");
}

async fn what_is_no_memcached_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(std::io::Result::ok) {
            // It may have hung up.
            let _ = std::io::Write::write_all(&mut stream, b"SSH-2.0-OpenSSH_9.2p1\r\n");
            std::mem::forget(stream);
        }
    });
    let (kind, why) = refusal(address).await;
    assert!(kind == ErrorKind::Unavailable && why.contains("memcached's text protocol"), "{why}");
    // It takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (kind, why) = refusal(silent.local_addr().unwrap()).await;
    assert!(kind == ErrorKind::Unavailable && why.contains("does not answer"), "{why}");
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let (kind, why) = refusal(nobody).await;
    assert!(kind == ErrorKind::Unavailable && why.contains("refused"), "{why}");
}

async fn a_server_that_wants_tls_is_refused() {
    let certificates = Certificates::make().unwrap();
    let file = |name: &str| certificates.file(name).display().to_string();
    let options = format!("ssl_chain_cert={},ssl_key={}", file("server.pem"), file("server.key"));
    let listens = |address| std::net::TcpStream::connect(address).is_ok();
    let (_server, address) = special(["-Z".to_owned(), "-o".to_owned(), options], listens);
    let (kind, why) = refusal(address).await;
    assert!(kind == ErrorKind::Unavailable && why.contains("TLS"), "{why}");
}
