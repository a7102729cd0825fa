//! ZooKeeper: one server, or an ensemble of three.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::{Launch, Server, find, free_port, poll};

pub use client::{Mode, Node, ZkClient, ZkError};

mod client;
pub mod wire;

/// Where Debian puts the server; the file names the others that it needs.
const JAR: &str = "/usr/share/java/zookeeper.jar";
/// What prints the server's log.
const LOG_JAR: &str = "/usr/share/java/slf4j-simple.jar";

/// How long a server may take to let go of connections that have ended.
const SETTLED: Duration = Duration::from_secs(10);

/// The program that runs the server.
///
/// # Errors
/// It is not on this machine, or the server is not.
pub fn program() -> Result<PathBuf, String> {
    let missing = |what: &str| format!("{what} (Debian: zookeeper); set TOOZ_TEST_ZOOKEEPER_URL");
    let java = find("java").ok_or_else(|| missing("Java is not installed"))?;
    if Path::new(JAR).is_file() { Ok(java) } else { Err(missing("ZooKeeper is not installed")) }
}

/// What every server is told: sessions may be short and long, every question is answered, and no port is taken but its own.
const SETTINGS: &[(&str, &str)] = &[
    ("tickTime", "500"),
    ("minSessionTimeout", "1000"),
    ("maxSessionTimeout", "3600000"),
    ("clientPortAddress", "127.0.0.1"),
    ("4lw.commands.whitelist", "*"),
    ("admin.enableServer", "false"),
    ("maxClientCnxns", "0"),
];

/// A server of its own, with every write on disk before it is answered.
pub struct Zookeeper {
    server: Server,
    address: SocketAddr,
}

impl Zookeeper {
    /// Starts one.
    ///
    /// # Errors
    /// It is not on this machine, or does not start.
    pub fn start() -> Result<Self, String> {
        Self::start_with(&[])
    }

    /// Starts one with more settings; one that is set already gets the new value.
    ///
    /// # Errors
    /// As [`start`](Zookeeper::start).
    pub fn start_with(more: &[(&str, &str)]) -> Result<Self, String> {
        Self::start_at(free_port()?, directory()?, more)
    }

    fn start_at(port: u16, data: TempDir, more: &[(&str, &str)]) -> Result<Self, String> {
        let launch = launch(data.path(), port, more)?;
        let address = local(port);
        let ready = move || four_letters(address, "srvr").is_ok_and(|answer| answer.contains("\nMode: "));
        Ok(Self { server: Server::start(data, launch, ready)?, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Answers one of the questions of four letters, such as `ruok`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn four_letters(&self, word: &str) -> Result<String, String> {
        four_letters(self.address, word)
    }

    /// Asks it something past every driver, in a session of its own.
    ///
    /// # Errors
    /// What it said, or that it did not answer.
    pub fn ask<T>(&self, question: impl FnOnce(&mut ZkClient) -> Result<T, ZkError>) -> Result<T, String> {
        let mut client = ZkClient::connect(self.address)?;
        let answer = question(&mut client);
        client.close()?;
        Ok(answer?)
    }

    /// Every node but the server's own, with what it holds.
    ///
    /// # Errors
    /// It does not answer.
    pub fn tree(&self) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let found = self.ask(|client| client.below("/"))?;
        Ok(found.into_iter().map(|(path, node)| (path, node.data)).collect())
    }

    /// The sessions that it keeps.
    ///
    /// # Errors
    /// It does not answer.
    pub fn sessions(&self) -> Result<Vec<i64>, String> {
        Ok(sessions(&self.four_letters("dump")?))
    }

    /// Ends a session; says whether there was one (see [`ZkClient::end_session`]).
    ///
    /// # Errors
    /// It does not answer.
    pub fn end_session(&self, session: i64) -> Result<bool, String> {
        Ok(ZkClient::end_session(self.address, session)?)
    }

    /// How many watches it serves.
    ///
    /// # Errors
    /// It does not answer.
    pub fn watches(&self) -> Result<usize, String> {
        let answer = self.four_letters("wchs")?;
        let total = answer.lines().find_map(|line| line.strip_prefix("Total watches:"));
        total.and_then(|number| number.trim().parse().ok()).ok_or_else(|| format!("it says {answer}"))
    }

    /// Whether it leads its ensemble.
    ///
    /// # Errors
    /// It does not answer.
    pub fn leads(&self) -> Result<bool, String> {
        Ok(self.four_letters("srvr")?.contains("\nMode: leader"))
    }

    /// Ends every session and empties it; says whether that worked.
    pub fn clean(&self) -> bool {
        self.server.resume();
        let Ok(before) = self.sessions() else { return false };
        let ended = before.into_iter().all(|session| self.end_session(session).is_ok());
        let emptied = ended && self.ask(|client| client.delete_below("/")).is_ok();
        let unwatched = || self.watches().is_ok_and(|watches| watches == 0);
        emptied && poll("nobody watches", Duration::from_millis(5), SETTLED, unwatched).is_ok()
    }
}

impl fmt::Debug for Zookeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zookeeper").field("server", &self.server).field("address", &self.address).finish()
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn directory() -> Result<TempDir, String> {
    tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))
}

/// Writes the settings, and says how to start a server with them.
fn launch(data: &Path, port: u16, more: &[(&str, &str)]) -> Result<Launch, String> {
    let file = data.join("zoo.cfg");
    let lines = settings(&data.join("data"), port, more);
    std::fs::write(&file, lines).map_err(|error| format!("no settings in {}: {error}", file.display()))?;
    Ok(Launch::new(program()?)
        // A test's server is small, lives for minutes, and shares the machine with others.
        .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"])
        .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dzookeeper.jmx.log4j.disable=true"])
        .arg("-cp")
        .arg(format!("{JAR}:{LOG_JAR}"))
        .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
        .arg(file))
}

/// The lines of the file with the settings. Of those with one name the last counts.
fn settings(place: &Path, port: u16, more: &[(&str, &str)]) -> String {
    let (place, port) = (place.display().to_string(), port.to_string());
    let own = [("dataDir", place.as_str()), ("clientPort", port.as_str())];
    let all = SETTINGS.iter().chain(&own).chain(more);
    all.fold(String::new(), |lines, (name, value)| lines + name + "=" + value + "\n")
}

/// Answers one of the questions of four letters.
fn four_letters(address: SocketAddr, word: &str) -> Result<String, String> {
    let explain = |error: std::io::Error| format!("{address}: {error}");
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, limit).map_err(explain)?;
    stream.set_read_timeout(Some(limit)).map_err(explain)?;
    stream.write_all(word.as_bytes()).map_err(explain)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(explain)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The sessions that a dump names.
fn sessions(dump: &str) -> Vec<i64> {
    let lines = dump.lines().skip_while(|line| !line.starts_with("Session Sets"));
    let lines = lines.take_while(|line| !line.starts_with("ephemeral nodes dump"));
    lines
        .filter_map(|line| u64::from_str_radix(line.trim().strip_prefix("0x")?, 16).ok())
        .map(u64::cast_signed)
        .collect()
}

/// Three servers that are one.
#[derive(Debug)]
pub struct Ensemble {
    nodes: Vec<Zookeeper>,
}

impl Ensemble {
    /// Starts one.
    ///
    /// # Errors
    /// As [`Zookeeper::start`].
    pub fn start() -> Result<Self, String> {
        let mut ports = Vec::new();
        let mut servers = Vec::new();
        for n in 1..=3 {
            ports.push(free_port()?);
            servers.push((format!("server.{n}"), format!("127.0.0.1:{}:{}", free_port()?, free_port()?)));
        }
        let mut settings = vec![("initLimit", "20"), ("syncLimit", "4")];
        settings.extend(servers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        // None is ready before two are there, so they start side by side.
        let nodes: Vec<_> = std::thread::scope(|scope| {
            let start = |(n, port): (usize, u16)| {
                let settings = &settings;
                scope.spawn(move || {
                    let data = directory()?;
                    let place = data.path().join("data");
                    let explain = |error: std::io::Error| format!("no {}: {error}", place.display());
                    std::fs::create_dir(&place).map_err(explain)?;
                    std::fs::write(place.join("myid"), n.to_string()).map_err(explain)?;
                    Zookeeper::start_at(port, data, settings)
                })
            };
            let starting: Vec<_> = (1..).zip(ports).map(start).collect();
            let join = |node: std::thread::ScopedJoinHandle<'_, _>| {
                node.join().unwrap_or_else(|_| Err("starting panicked".into()))
            };
            starting.into_iter().map(join).collect()
        });
        Ok(Self { nodes: nodes.into_iter().collect::<Result<_, _>>()? })
    }

    /// Its servers; each can be stopped and killed.
    pub fn nodes(&self) -> &[Zookeeper] {
        &self.nodes
    }

    /// Where they listen, as a URL lists them.
    pub fn addresses(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().map(|node| node.address.to_string()).collect();
        addresses.join(",")
    }

    /// The server that leads.
    ///
    /// # Errors
    /// None says so.
    pub fn leader(&self) -> Result<&Zookeeper, String> {
        let leads = |node: &&Zookeeper| node.leads().unwrap_or(false);
        self.nodes.iter().find(leads).ok_or_else(|| "no server leads".into())
    }

    /// Empties it; says whether that worked.
    pub fn clean(&self) -> bool {
        for node in &self.nodes {
            node.server.resume();
        }
        // The leader alone knows every session.
        self.leader().is_ok_and(Zookeeper::clean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_from_a_dump() {
        let dump = "SessionTracker dump:\nSession Sets (2)/(2):\n1 expire at Mon Nov 30 11:33:12 UTC 2026:\n\
                    \t0x100000a1b2c0000\n2 expire at Mon Nov 30 11:33:13 UTC 2026:\n\t0xff00000000000001\n\t0x1\n\
                    ephemeral nodes dump:\nSessions with Ephemerals (1):\n0x2:\n\t/a\nConnections dump:\n";
        assert_eq!(sessions(dump), [0x0100_000a_1b2c_0000, -0x00ff_ffff_ffff_ffff, 1]);
        assert_eq!(sessions(""), Vec::<i64>::new());
    }

    #[test]
    fn a_later_setting_comes_last() {
        let lines = settings(Path::new("/tmp/x/data"), 2181, &[("tickTime", "2000")]);
        assert!(lines.starts_with("tickTime=500\n") && lines.ends_with("\ntickTime=2000\n"), "{lines}");
        assert!(lines.contains("\ndataDir=/tmp/x/data\nclientPort=2181\n"), "{lines}");
    }
}
