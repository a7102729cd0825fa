//! A server as a process.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long a server may take until it answers; the slowest is done in a second on an idle machine.
const READY: Duration = Duration::from_mins(1);

/// Between two questions whether it is ready.
const ASK: Duration = Duration::from_millis(10);

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Launch {
    /// Starts `program`, found by [`find`].
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new() }
    }

    /// An argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Several arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }
}

/// Returns whether a server answers.
type Ready = dyn Fn() -> bool + Send + Sync;

/// A running server with its data. Dropping it ends the process and removes the data.
pub struct Server {
    launch: Launch,
    ready: Box<Ready>,
    child: Mutex<Child>,
    data: TempDir,
}

impl Server {
    /// Starts a server and waits until `ready` returns true. The server keeps its files in `data`, and what it prints in the
    /// file `log` there.
    ///
    /// # Errors
    /// The server cannot be started, ends by itself, or does not answer. The error holds the end of what it printed.
    pub fn start(
        data: TempDir,
        launch: Launch,
        ready: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let child = spawn(&launch, data.path())?;
        let server = Self { launch, ready: Box::new(ready), child: Mutex::new(child), data };
        server.wait_ready()?;
        Ok(server)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_ready(&self) -> Result<(), String> {
        let until = Instant::now() + READY;
        while !(self.ready)() {
            if let Ok(Some(status)) = self.child().try_wait() {
                return Err(format!("{} ended at once ({status}): {}", self.name(), self.last_words()));
            }
            if Instant::now() > until {
                return Err(format!(
                    "{} does not answer after {READY:?}: {}",
                    self.name(),
                    self.last_words()
                ));
            }
            std::thread::sleep(ASK);
        }
        Ok(())
    }

    fn name(&self) -> std::path::Display<'_> {
        self.launch.program.display()
    }

    fn last_words(&self) -> String {
        let text = std::fs::read(self.data.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned()
    }

    /// The directory of its files.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).unwrap_or_default();
        // The server is our own child and not yet reaped, so the number is still its own; a dead one needs no signal.
        let _ = kill(Pid::from_raw(id), signal);
    }

    /// Stops the process and waits until all of it has stopped: connections stay, nothing is answered.
    ///
    /// # Panics
    /// The process is gone, or does not stop.
    pub fn stop(&self) {
        if let Err(error) = crate::stop(self.id()) {
            panic!("{}: {error}", self.name());
        }
    }

    /// Continues the process after [`stop`](Server::stop).
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Stalls the disk of the process until what this returns is dropped: each `fsync` and `fdatasync` takes a minute. Every
    /// other system call works, if slower.
    ///
    /// # Errors
    /// `strace` is not installed, or may not trace.
    pub fn stall_disk(&self) -> Result<StalledDisk, String> {
        let program = strace()?;
        let explain = |error: std::io::Error| format!("{}: {error}", program.display());
        let mut tracer = Command::new(&program)
            .args(["-f", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=60000000"])
            .args(["-o", "/dev/null", "-p", &self.id().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(explain)?;
        let said = tracer.stderr.take();
        let stalled = StalledDisk(tracer);
        let mut first = String::new();
        let mut said = BufReader::new(said.ok_or("strace says nothing")?);
        said.read_line(&mut first).map_err(explain)?;
        if !first.contains(" attached") {
            return Err(format!("strace says: {first}"));
        }
        // strace names each thread that comes, and would stand still if its output were not read.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(stalled)
    }

    /// Kills the process, which gets no chance to write anything.
    pub fn kill(&self) {
        let mut child = self.child();
        // Errors only if it is dead already.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Asks the process to end, and waits until it has.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
        let _ = self.child().wait();
    }

    /// Starts the server again after [`kill`](Server::kill) or [`terminate`](Server::terminate), with the same data and port.
    ///
    /// # Errors
    /// As [`start`](Server::start).
    pub fn start_again(&self) -> Result<(), String> {
        self.kill();
        *self.child() = spawn(&self.launch, self.data.path())?;
        self.wait_ready()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("launch", &self.launch)
            .field("id", &self.id())
            .field("data", &self.data.path())
            .finish_non_exhaustive()
    }
}

/// A disk that stands still; see [`Server::stall_disk`].
#[derive(Debug)]
pub struct StalledDisk(Child);

impl Drop for StalledDisk {
    fn drop(&mut self) {
        let tracer = i32::try_from(self.0.id()).unwrap_or_default();
        // The tracer is our own child, not yet reaped. It detaches from the server before it ends.
        let _ = kill(Pid::from_raw(tracer), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// A command to start, and where the child goes.
type Order = (Command, Sender<std::io::Result<Child>>);

/// Starts a process that dies with this one, also if this one is killed: `setpriv` has the kernel send it SIGKILL when
/// the thread ends that started it, which is why one thread that never ends starts them all. Without `setpriv`
/// a killed test run leaves its servers behind.
fn spawn(launch: &Launch, data: &Path) -> Result<Child, String> {
    static STARTER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let log = OpenOptions::new().create(true).append(true).open(data.join("log"));
    let log = log.map_err(|error| format!("no log in {}: {error}", data.display()))?;
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                // The thread that asked waits for it.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (sender, answer) = channel();
    let order = (command(launch, data, log)?, sender);
    starter
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(order)
        .map_err(|_| "the thread that starts servers is gone")?;
    let child = answer.recv().map_err(|_| "the thread that starts servers is gone")?;
    child.map_err(|error| format!("cannot start {}: {error}", launch.program.display()))
}

fn command(launch: &Launch, data: &Path, log: File) -> Result<Command, String> {
    let mut command = match find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(&launch.program);
            command
        }
        None => Command::new(&launch.program),
    };
    let errors = log.try_clone().map_err(|error| format!("no second handle on the log: {error}"))?;
    command
        .args(&launch.arguments)
        .current_dir(data)
        .stdin(Stdio::null())
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(errors));
    Ok(command)
}

/// Finds a program in `PATH` and where Debian puts those of administrators.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// The program that makes certificates.
///
/// # Errors
/// It is not on this machine.
pub fn openssl() -> Result<PathBuf, String> {
    find("openssl").ok_or_else(|| "openssl is not installed".into())
}

/// The program that stops disks.
///
/// # Errors
/// It is not on this machine, or may not attach to servers.
pub fn strace() -> Result<PathBuf, String> {
    let program = find("strace").ok_or("strace is not installed")?;
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if matches!(scope.trim(), "" | "0") || nix::unistd::geteuid().is_root() {
        return Ok(program);
    }
    Err("strace may attach to no other process; be root, or set kernel.yama.ptrace_scope to 0".into())
}

/// Where ports begin, and how many there are. They and those 10,000 above them lie below the range from which the kernel
/// takes ports for clients: there a connection that just ended could hold one for a minute.
const PORTS: std::ops::Range<u16> = 10_000..20_000;

/// So many ports a process claims at a time.
const BLOCK: u16 = 100;

/// The ports that this process may give away, and how many it has given.
static CLAIMED: Mutex<(Vec<Block>, usize)> = Mutex::new((Vec::new(), 0));

/// Ports that no other process of the tests gives away while this one lives. Two processes that looked for a free port at the same
/// time would find the same one, and a test would reach the server of another.
struct Block {
    first: u16,
    _claim: Claim,
}

#[cfg(target_os = "linux")]
type Claim = std::os::unix::net::UnixListener;
#[cfg(not(target_os = "linux"))]
type Claim = ();

impl Block {
    /// Claims a block that is not claimed. Where a process begins to look depends on its id, so that ports are not used again at once.
    fn claim() -> Option<Self> {
        let blocks = u32::from((PORTS.end - PORTS.start) / BLOCK);
        let turn = |nth| u16::try_from(process::id().wrapping_mul(97).wrapping_add(nth) % blocks).ok();
        let claimed = |nth| {
            let first = PORTS.start + turn(nth)? * BLOCK;
            Some(Self { first, _claim: claim(first)? })
        };
        (0..blocks).find_map(claimed)
    }
}

/// The name of a socket is free again when its process ends, however that ends.
#[cfg(target_os = "linux")]
fn claim(first: u16) -> Option<Claim> {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("tooz-servers {first}");
    Claim::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name).ok()?).ok()
}

#[cfg(not(target_os = "linux"))]
#[allow(clippy::unnecessary_wraps)] // elsewhere it can fail
fn claim(_: u16) -> Option<Claim> {
    Some(())
}

/// Returns a port that was free a moment ago, as was the one 10,000 above it. No other caller gets the port while this process
/// lives, before all others of the process have been given away.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16, String> {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    let (blocks, given) = &mut *claimed;
    for _ in PORTS {
        if *given == blocks.len() * usize::from(BLOCK) {
            match Block::claim() {
                Some(block) => blocks.push(block),
                None => *given = 0,
            }
        }
        let Some(block) = blocks.get(*given / usize::from(BLOCK)) else { break };
        let port = block.first + u16::try_from(*given % usize::from(BLOCK)).unwrap_or(0);
        *given += 1;
        if is_free(port) && is_free(port + BUS) {
            return Ok(port);
        }
    }
    Err(format!("no free port in {PORTS:?} on 127.0.0.1"))
}

/// How far above its port a node of a Redis cluster listens for the others, unless it is told otherwise.
const BUS: u16 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn ports_are_claimed_until_the_end_and_given_once() {
        let held = claim(1).unwrap();
        assert!(claim(1).is_none());
        drop(held);
        assert!(claim(1).is_some());
        let ports: std::collections::BTreeSet<u16> = (0..250).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 250);
    }

    /// A server is ready when it has written a file.
    fn shell(data: &TempDir, script: &str) -> (Launch, impl Fn() -> bool + Send + Sync + 'static) {
        let ready = data.path().join("ready");
        (Launch::new("/bin/sh").args(["-c", script]), move || ready.exists())
    }

    #[test]
    fn a_server_is_killed_and_started_again_with_its_data() {
        let data = data();
        let (launch, ready) = shell(&data, "echo $$ >>pids; touch ready; exec sleep 1000");
        let server = Server::start(data, launch, ready).unwrap();
        let first = server.id();
        server.stop();
        server.kill();
        std::fs::remove_file(server.data().join("ready")).unwrap();
        server.start_again().unwrap();
        assert_ne!(server.id(), first);
        let pids = std::fs::read_to_string(server.data().join("pids")).unwrap();
        assert_eq!(pids, format!("{first}\n{}\n", server.id()));
        let (place, last) = (server.data().to_owned(), server.id());
        drop(server);
        assert!(!place.exists() && !Path::new(&format!("/proc/{last}")).exists());
    }

    #[test]
    fn one_that_ends_at_once_says_why() {
        let data = data();
        let (launch, ready) = shell(&data, "echo port is taken >&2; exit 3");
        let error = Server::start(data, launch, ready).unwrap_err();
        assert!(error.contains("exit status: 3") && error.contains("port is taken"), "{error}");
    }

    #[test]
    fn a_program_is_found_in_the_path() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
