//! etcd: one node or several, in the clear or encrypted.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Once;
use std::time::Duration;

#[cfg(feature = "etcd-tls")]
use etcd_client::{Certificate, Identity, TlsOptions};
use etcd_client::{Client, ConnectOptions, DeleteOptions, GetOptions};

use super::{Launch, Proxy, Server, Way, find, free_port};

/// The server's program.
///
/// # Errors
/// It is not on this machine.
pub fn program() -> Result<PathBuf, String> {
    find("etcd").ok_or_else(|| "etcd is not installed (Debian: etcd-server); set TOOZ_TEST_ETCD_URL".into())
}

/// What a server needs at least: a log of 64 MiB, the next one, and its data.
const NEEDS: u64 = 256 << 20;

/// Where data goes: into memory where there is room, for etcd waits for the disk at every write. Many containers have
/// 64 MiB there. What a killed test process left is removed by the next one.
///
/// # Errors
/// No directory can be made.
pub fn data() -> Result<tempfile::TempDir, String> {
    static SWEPT: Once = Once::new();
    let memory = Path::new("/dev/shm");
    // Servers that are kept until the end of a test process leave their data behind.
    SWEPT.call_once(|| [memory, &std::env::temp_dir()].into_iter().for_each(sweep));
    let room = nix::sys::statvfs::statvfs(memory).map_or(0, |is| is.fragment_size() * is.blocks_available());
    let place = if room >= NEEDS { memory.to_owned() } else { std::env::temp_dir() };
    let name = format!("{DATA_PREFIX}{}-", std::process::id());
    let made = tempfile::Builder::new().prefix(&name).tempdir_in(place);
    made.map_err(|error| format!("no temporary directory: {error}"))
}

/// What the names of data directories begin with, before the number of the process that made them.
const DATA_PREFIX: &str = "tooz-etcd-";

/// Removes the data of test processes that are no more.
fn sweep(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker =
            name.to_str().and_then(|name| name.strip_prefix(DATA_PREFIX)?.split('-').next()?.parse().ok());
        if maker.is_some_and(|maker: u32| !Path::new(&format!("/proc/{maker}")).exists()) {
            // Another process may be doing the same.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Answers an administrator's question on a thread of its own, so that it may be asked from anywhere. `files`: the
/// certificates of a server that wants them.
fn ask<T, F, Fut>(address: SocketAddr, files: Option<&Path>, question: F) -> Result<T, String>
where
    T: Send,
    F: FnOnce(Client) -> Fut + Send,
    Fut: Future<Output = Result<T, etcd_client::Error>> + Send,
{
    let (protocol, options) = match files {
        None => ("http", None),
        Some(files) => ("https", Some(encrypted(files)?)),
    };
    let asking = async move {
        let client = Client::connect([format!("{protocol}://{address}")], options).await?;
        question(client).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let limited = async move { tokio::time::timeout(Duration::from_secs(10), asking).await };
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || runtime.block_on(limited));
        let answered = asking.join().map_err(|_| "asking panicked".to_owned())?;
        answered.map_err(|_| format!("{address} does not answer"))?.map_err(|error| error.to_string())
    })
}

#[cfg(feature = "etcd-tls")]
fn encrypted(files: &Path) -> Result<ConnectOptions, String> {
    let read = |name| std::fs::read(files.join(name)).map_err(|error| format!("{name}: {error}"));
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read("ca.pem")?))
        .identity(Identity::from_pem(read("client.pem")?, read("client.key")?));
    Ok(ConnectOptions::new().with_tls(tls))
}

#[cfg(not(feature = "etcd-tls"))]
fn encrypted(_: &Path) -> Result<ConnectOptions, String> {
    Err("tooz-servers was built without its feature etcd-tls".to_owned())
}

/// Frames of HTTP/2 that carry a request's beginning, and its contents.
pub const HEADERS: u8 = 1;
const DATA: u8 = 0;

/// What a connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether a frame of this kind begins in these bytes, which begin with a frame.
pub fn has_frame(bytes: &[u8], kind: u8) -> bool {
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    while let [high, middle, low, found, ..] = rest {
        if *found == kind {
            return true;
        }
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    false
}

/// Whether bytes ask or answer something: pings, windows and the ends of streams do not.
pub fn counts(way: Way, bytes: &[u8]) -> bool {
    has_frame(bytes, HEADERS) || (way == Way::Down && has_frame(bytes, DATA))
}

/// What etcd says over plain HTTP.
fn http(address: SocketAddr, path: &str) -> Result<String, String> {
    let explain = |error: std::io::Error| format!("{address}: {error}");
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, limit).map_err(explain)?;
    stream.set_read_timeout(Some(limit)).map_err(explain)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").map_err(explain)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(explain)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// One node.
pub struct Etcd {
    server: Server,
    address: SocketAddr,
    files: Option<PathBuf>,
}

impl Etcd {
    /// Starts a single one.
    ///
    /// # Errors
    /// It is not on this machine, or does not start.
    pub fn start() -> Result<Self, String> {
        Self::start_with(&[])
    }

    /// Starts a single one with more arguments.
    ///
    /// # Errors
    /// As [`start`](Etcd::start).
    pub fn start_with(more: &[&str]) -> Result<Self, String> {
        let (client, peer) = (free_port()?, free_port()?);
        let launch = launch(0, client, peer, &[local(peer)], "http")?;
        let address = local(client);
        let ready = move || http(address, "/health").is_ok_and(|answer| answer.contains("\"true\""));
        let server = Server::start(data()?, launch.args(more.iter().copied()), ready)?;
        Ok(Self { server, address, files: None })
    }

    /// Starts one that speaks TLS only and wants certificates of its clients, with the files of [`make_certificates`](super::make_certificates).
    ///
    /// # Errors
    /// As [`start`](Etcd::start).
    pub fn start_encrypted(files: &Path) -> Result<Self, String> {
        Self::start_encrypted_as(files, "server")
    }

    /// The same, with the certificate of this name.
    ///
    /// # Errors
    /// As [`start`](Etcd::start).
    pub fn start_encrypted_as(files: &Path, name: &str) -> Result<Self, String> {
        let (client, peer) = (free_port()?, free_port()?);
        let file = |name: &str| files.join(name).into_os_string();
        let launch = launch(0, client, peer, &[local(peer)], "https")?
            .arg("--client-cert-auth")
            .arg("--trusted-ca-file")
            .arg(file("ca.pem"))
            .arg("--cert-file")
            .arg(file(&format!("{name}.pem")))
            .arg("--key-file")
            .arg(file(&format!("{name}.key")));
        let address = local(client);
        // The listener opens last, when there is a leader.
        let ready = move || TcpStream::connect(address).is_ok();
        Ok(Self { server: Server::start(data()?, launch, ready)?, address, files: Some(files.to_owned()) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Asks it something past every driver.
    ///
    /// # Errors
    /// What etcd said, or that it did not answer.
    pub fn ask<T, F, Fut>(&self, question: F) -> Result<T, String>
    where
        T: Send,
        F: FnOnce(Client) -> Fut + Send,
        Fut: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        ask(self.address, self.files.as_deref(), question)
    }

    /// Empties it; says whether that worked.
    pub fn clean(&self) -> bool {
        self.server.resume();
        let cleaned = self.ask(|mut client| async move {
            let before = client.leases().await?;
            // All at one moment: a session that opens as soon as it hears of its loss keeps what it writes.
            client.delete("", Some(DeleteOptions::new().with_all_keys())).await?;
            for lease in before.leases() {
                // It may end by itself meanwhile.
                let _ = client.lease_revoke(lease.id()).await;
            }
            Ok(())
        });
        cleaned.is_ok()
    }

    /// Every key, with its value.
    ///
    /// # Errors
    /// It does not answer.
    pub fn everything(&self) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let found = self
            .ask(|mut client| async move { client.get("", Some(GetOptions::new().with_all_keys())).await })?;
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        Ok(found.kvs().iter().map(|kv| (text(kv.key()), kv.value().to_vec())).collect())
    }

    /// How many watches it serves.
    ///
    /// # Errors
    /// It does not answer.
    pub fn watches(&self) -> Result<usize, String> {
        self.metric("etcd_debugging_mvcc_watcher_total")
    }

    /// One of its metrics, by name and labels.
    ///
    /// # Errors
    /// It does not answer, or has no such metric.
    pub fn metric<T: FromStr>(&self, name: &str) -> Result<T, String> {
        let metrics = http(self.address, "/metrics")?;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.trim().parse().ok()).ok_or_else(|| format!("no metric {name}"))
    }

    /// Whether it leads its cluster.
    ///
    /// # Errors
    /// It does not answer.
    pub fn leads(&self) -> Result<bool, String> {
        self.ask(|mut client| async move {
            let status = client.status().await?;
            Ok(status.header().is_some_and(|header| header.member_id() == status.leader()))
        })
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("server", &self.server)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Node `n` of a cluster whose nodes are reached by the others at `cluster`.
fn launch(
    n: usize,
    client: u16,
    peer: u16,
    cluster: &[SocketAddr],
    protocol: &str,
) -> Result<Launch, String> {
    let clients = format!("{protocol}://{}", local(client));
    let name = |(n, address): (usize, &SocketAddr)| format!("n{n}=http://{address}");
    let names: Vec<String> = cluster.iter().enumerate().map(name).collect();
    Ok(Launch::new(program()?).args([
        "--name",
        &format!("n{n}"),
        "--data-dir",
        "etcd",
        "--listen-client-urls",
        &clients,
        "--advertise-client-urls",
        &clients,
        "--listen-peer-urls",
        &format!("http://{}", local(peer)),
        "--initial-advertise-peer-urls",
        &format!("http://{}", cluster[n]),
        "--initial-cluster",
        &names.join(","),
        "--log-level",
        "warn",
    ]))
}

/// Three nodes that are one.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Etcd>,
    links: Vec<Proxy>,
}

impl Cluster {
    /// Starts one.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start() -> Result<Self, String> {
        Self::start_each(|_| Ok(None))
    }

    /// Starts one whose nodes reach each other through [`links`](Cluster::links).
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start_linked() -> Result<Self, String> {
        Self::start_each(|peer| Proxy::start(peer).map(Some))
    }

    fn start_each(link: impl Fn(SocketAddr) -> Result<Option<Proxy>, String>) -> Result<Self, String> {
        let (mut ports, mut links, mut reached) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            let (client, peer) = (free_port()?, free_port()?);
            let link = link(local(peer))?;
            reached.push(link.as_ref().map_or(local(peer), Proxy::address));
            ports.push((client, peer));
            links.extend(link);
        }
        // None is ready before two are there, so they start side by side.
        let nodes: Vec<Result<Etcd, String>> = std::thread::scope(|scope| {
            let starting: Vec<_> = ports
                .iter()
                .enumerate()
                .map(|(n, (client, peer))| {
                    let reached = &reached;
                    scope.spawn(move || {
                        let launch = launch(n, *client, *peer, reached, "http")?;
                        let address = local(*client);
                        let ready =
                            move || http(address, "/health").is_ok_and(|answer| answer.contains("\"true\""));
                        Ok(Etcd { server: Server::start(data()?, launch, ready)?, address, files: None })
                    })
                })
                .collect();
            starting
                .into_iter()
                .map(|node| node.join().unwrap_or_else(|_| Err("starting panicked".into())))
                .collect()
        });
        Ok(Self { nodes: nodes.into_iter().collect::<Result<_, _>>()?, links })
    }

    /// What the other nodes go through to each node, in the same order. Etcd's nodes each connect to each other and hear
    /// over those connections, so what a node tells the others comes down its own.
    pub fn links(&self) -> &[Proxy] {
        &self.links
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Etcd] {
        &self.nodes
    }

    /// The node that leads.
    ///
    /// # Errors
    /// None says so.
    pub fn leader(&self) -> Result<&Etcd, String> {
        let leads = |node: &&Etcd| node.leads().unwrap_or(false);
        self.nodes.iter().find(leads).ok_or_else(|| "no node leads".into())
    }

    /// Empties it; says whether that worked.
    pub fn clean(&self) -> bool {
        for node in &self.nodes {
            node.server.resume();
        }
        self.nodes.iter().any(Etcd::clean)
    }
}
