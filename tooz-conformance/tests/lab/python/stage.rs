//! A server, and processes of both languages that use it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tooz_core::{Coordinator, MemberId};
use tooz_servers::python::Peer;

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
    /// Names of locks that Python can have.
    fn names(&self) -> &'static [&'static str] {
        &["x", "deep/er", "50%", "é", "a b"]
    }
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
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/python/peer.py");
        Peer::start(&self.python, &script, &self.server.python(), member)
    }
}

/// Waits until `check` returns true.
pub(crate) async fn eventually(what: &str, check: impl AsyncFnMut() -> bool) {
    tooz_servers::until(what, Duration::from_mins(1), check).await;
}

/// Who holds what Python holds: not every server says.
pub(crate) fn is_nobody_or_python(member: Option<&MemberId>) -> bool {
    member.is_none_or(|member| member.as_bytes() == b"python")
}

pub(crate) fn ids(members: &[tooz_core::driver::MemberRecord]) -> Vec<String> {
    members.iter().map(|record| record.member.to_string()).collect()
}
