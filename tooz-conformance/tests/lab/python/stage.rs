//! A server, and processes of both languages that use it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tooz_core::Coordinator;

/// What comes of itself, or with the end of a session of three or four seconds, comes within this on any machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A store that is shared.
pub(crate) trait Server {
    /// For a session that lives so many seconds.
    fn rust(&self, ttl: u64) -> String;
    /// For one of three or four.
    fn python(&self) -> String;
    /// Marks, past every lock, that somebody is inside; `false`: somebody else is.
    fn enter(&self) -> bool;
    /// Takes the mark away.
    fn leave(&self);
}

/// A server, and the interpreter.
pub(crate) struct Stage {
    pub(crate) server: Box<dyn Server>,
    pub(crate) python: PathBuf,
}

impl Stage {
    /// One that is not to end: a machine may stand still for seconds.
    pub(crate) async fn rust(&self, member: &str) -> Coordinator {
        self.rust_for(15, member).await
    }

    pub(crate) async fn rust_for(&self, ttl: u64, member: &str) -> Coordinator {
        Coordinator::builder(self.server.rust(ttl), member).connect().await.unwrap()
    }

    /// One that never beats.
    pub(crate) async fn dead(&self) -> Coordinator {
        let dead = Coordinator::builder(self.server.rust(3), "dead").manual_heart().rejoin(false);
        dead.connect().await.unwrap()
    }

    pub(crate) fn python(&self, member: &str) -> Peer {
        Peer::start(&self.python, &self.server.python(), member)
    }
}

/// A Python process with a coordinator.
pub(crate) struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    pub(crate) fn start(python: &Path, url: &str, name: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/python/peer.py");
        let mut child = Command::new(python)
            .arg(script)
            .args([url, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut peer = Self { child, input, output };
        assert_eq!(peer.hear(), json!("started"));
        peer
    }

    pub(crate) fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the Python process said {line:?}"))
    }

    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    pub(crate) fn does(&mut self, command: &str) -> Value {
        self.tell(command);
        self.hear()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `check` says yes.
pub(crate) async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not in time: {what}");
}

pub(crate) fn ids(members: &[tooz_core::driver::MemberRecord]) -> Vec<String> {
    members.iter().map(|record| record.member.to_string()).collect()
}
