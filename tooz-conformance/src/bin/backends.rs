//! Starts one server of every kind that the suite knows and keeps them until it is told to end; `scripts/backends` runs it.
//!
//! ```text
//! backends DIRECTORY [NAME…]
//! ```
//!
//! Each runs on free loopback ports with its data in a temporary directory. When all answer, the file `urls` in
//! `DIRECTORY` says where, as lines for a shell: `export TOOZ_TEST_REDIS_URL='redis://…'`. SIGTERM, SIGINT or the end of
//! this process ends them all. `NAME`: only these, such as `redis` or `etcd-cluster`.
#![allow(clippy::print_stderr)] // it is a program

use std::any::Any;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use tooz_servers::etcd::{Cluster, Etcd};
use tooz_servers::memcached::Memcached;
use tooz_servers::redis::Redis;
use tooz_servers::redis_replicated;

/// What ends a server when it is dropped.
type Running = Box<dyn Any>;

/// A kind of server: its name, the variable that the suite reads, and how to start one and where it is.
struct Kind {
    name: &'static str,
    variable: &'static str,
    start: fn(&Path) -> Result<(Running, String), String>,
}

const KINDS: &[Kind] = &[
    Kind { name: "redis", variable: "TOOZ_TEST_REDIS_URL", start: redis },
    Kind { name: "redis-auth", variable: "TOOZ_TEST_REDIS_AUTH_URL", start: redis_auth },
    Kind { name: "redis-sentinel", variable: "TOOZ_TEST_REDIS_SENTINEL_URL", start: redis_sentinel },
    Kind { name: "redis-cluster", variable: "TOOZ_TEST_REDIS_CLUSTER_URL", start: redis_cluster },
    #[cfg(feature = "redis-tls")]
    Kind { name: "redis-tls", variable: "TOOZ_TEST_REDIS_TLS_URL", start: redis_tls },
    Kind { name: "etcd", variable: "TOOZ_TEST_ETCD_URL", start: etcd_single },
    Kind { name: "etcd-cluster", variable: "TOOZ_TEST_ETCD_CLUSTER_URL", start: etcd_cluster },
    Kind { name: "etcd-auth", variable: "TOOZ_TEST_ETCD_AUTH_URL", start: etcd_auth },
    #[cfg(feature = "etcd-tls")]
    Kind { name: "etcd-tls", variable: "TOOZ_TEST_ETCD_TLS_URL", start: etcd_tls },
    Kind { name: "memcached", variable: "TOOZ_TEST_MEMCACHED_URL", start: memcached },
];

fn redis(_: &Path) -> Result<(Running, String), String> {
    let redis = Redis::start()?;
    let url = format!("redis://{}", redis.address());
    Ok((Box::new(redis), url))
}

/// A user with no more permissions than the driver needs.
fn redis_auth(_: &Path) -> Result<(Running, String), String> {
    let user = format!("--requirepass {PASSWORD} --user tooz on >{PASSWORD} ~* &* {PERMISSIONS}");
    let redis = Redis::start_with(&user.split(' ').collect::<Vec<_>>())?;
    let url = format!("redis://tooz:{PASSWORD}@{}", redis.address());
    Ok((Box::new(redis), url))
}

/// What the driver's README asks for, and what lets it say what the server keeps.
const PERMISSIONS: &str =
    "-@all +@read +@write +@pubsub +@scripting +@connection +time -@dangerous +info +config|get";

/// No secret: these servers listen on loopback only and hold tests.
const PASSWORD: &str = "tooz-test";

/// Nobody is called down who is only slow.
const PATIENCE: Duration = Duration::from_secs(10);

fn redis_sentinel(_: &Path) -> Result<(Running, String), String> {
    let servers = redis_replicated::Sentinels::start(1, PATIENCE)?;
    let url = servers.url();
    Ok((Box::new(servers), url))
}

fn redis_cluster(_: &Path) -> Result<(Running, String), String> {
    let servers = redis_replicated::Cluster::start(PATIENCE)?;
    let url = servers.url();
    Ok((Box::new(servers), url))
}

#[cfg(feature = "redis-tls")]
fn redis_tls(_: &Path) -> Result<(Running, String), String> {
    use tooz_servers::Certificates;
    use tooz_servers::redis_tls::RedisTls;
    let certificates = Certificates::make()?;
    let redis = RedisTls::start(&certificates, true)?;
    let file = |name| certificates.file(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let url = format!("rediss://{}?tls_ca={ca}&tls_cert={cert}&tls_key={key}", redis.address());
    Ok((Box::new((redis, certificates)), url))
}

fn etcd_single(_: &Path) -> Result<(Running, String), String> {
    let etcd = Etcd::start()?;
    let url = format!("etcd://{}", etcd.address());
    Ok((Box::new(etcd), url))
}

fn etcd_cluster(_: &Path) -> Result<(Running, String), String> {
    let cluster = Cluster::start()?;
    let hosts: Vec<_> = cluster.nodes().iter().map(|node| node.address().to_string()).collect();
    Ok((Box::new(cluster), format!("etcd://{}", hosts.join(","))))
}

/// A user who may do everything with keys and nothing with the cluster.
fn etcd_auth(_: &Path) -> Result<(Running, String), String> {
    let etcd = Etcd::start()?;
    etcd.ask(|mut client| async move {
        use etcd_client::{Permission, PermissionType};
        client.role_add("root").await?;
        client.user_add("root", PASSWORD, None).await?;
        client.user_grant_role("root", "root").await?;
        client.role_add("keys").await?;
        let all = Permission::new(PermissionType::Readwrite, "").with_all_keys();
        client.role_grant_permission("keys", all).await?;
        client.user_add("tooz", PASSWORD, None).await?;
        client.user_grant_role("tooz", "keys").await?;
        client.auth_enable().await.map(|_| ())
    })?;
    let url = format!("etcd://tooz:{PASSWORD}@{}", etcd.address());
    Ok((Box::new(etcd), url))
}

#[cfg(feature = "etcd-tls")]
fn etcd_tls(place: &Path) -> Result<(Running, String), String> {
    let files = place.join("etcd-tls");
    std::fs::create_dir_all(&files).map_err(|error| format!("{}: {error}", files.display()))?;
    tooz_servers::make_certificates(&files)?;
    let etcd = Etcd::start_encrypted(&files)?;
    let shown = files.display();
    let files = format!("ca_cert={shown}/ca.pem&cert_cert={shown}/client.pem&cert_key={shown}/client.key");
    let url = format!("etcds://{}?{files}", etcd.address());
    Ok((Box::new(etcd), url))
}

fn memcached(_: &Path) -> Result<(Running, String), String> {
    let memcached = Memcached::start()?;
    let url = format!("memcached://{}", memcached.address());
    Ok((Box::new(memcached), url))
}

fn serve() -> Result<(), String> {
    // Before any thread begins, so that all of them leave these signals to the wait below.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block().map_err(|errno| format!("signals cannot be waited for: {errno}"))?;
    let mut arguments = std::env::args_os().skip(1);
    let place = PathBuf::from(arguments.next().ok_or("say in which directory to write where they are")?);
    let wanted: Vec<_> = arguments.map(|name| name.to_string_lossy().into_owned()).collect();
    let known: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("there is no backend {unknown}; there are {}", known.join(", ")));
    }
    let mut running = Vec::new();
    let mut lines = String::new();
    for kind in KINDS.iter().filter(|kind| wanted.is_empty() || wanted.iter().any(|name| name == kind.name)) {
        let (server, url) = (kind.start)(&place).map_err(|why| format!("{}: {why}", kind.name))?;
        running.push(server);
        // Writing to a string does not fail.
        let _ = writeln!(lines, "export {}='{url}'", kind.variable);
    }
    // Under its final name only when it is whole: whoever waits for it reads all of it.
    let (draft, whole) = (place.join("urls.new"), place.join("urls"));
    std::fs::write(&draft, lines).map_err(|error| format!("{}: {error}", draft.display()))?;
    std::fs::rename(&draft, &whole).map_err(|error| format!("{}: {error}", whole.display()))?;
    ends.wait().map_err(|errno| format!("signals cannot be waited for: {errno}"))?;
    drop(running);
    Ok(())
}

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("backends: {why}");
            ExitCode::FAILURE
        }
    }
}
