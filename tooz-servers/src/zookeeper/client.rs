//! A client that asks one thing at a time, to look at what stands on a server and to change it behind a driver's back.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::wire::{Reader, Writer, code, kind, password};

/// How long a server may take to answer, and how long it keeps a session that says nothing.
const LIMIT: Duration = Duration::from_secs(10);
const LIMIT_MS: i32 = 10_000;

/// How often something is tried again that others change meanwhile.
const TRIES: usize = 100;

/// Why a server did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZkError {
    /// It refuses this, for the reason with this [`code`].
    Refused {
        /// What it was asked for.
        what: String,
        /// Why not.
        code: i32,
    },
    /// It does not answer, or says something else.
    Silent(String),
}

impl ZkError {
    /// Why it refuses.
    pub fn code(&self) -> Option<i32> {
        match self {
            ZkError::Refused { code, .. } => Some(*code),
            ZkError::Silent(_) => None,
        }
    }
}

impl fmt::Display for ZkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ZkError::Refused { what, code } => write!(f, "ZooKeeper refuses to {what}: {code}"),
            ZkError::Silent(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ZkError {}

impl From<ZkError> for String {
    fn from(error: ZkError) -> Self {
        error.to_string()
    }
}

/// How long a node stays, and whether its name ends with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Until it is deleted.
    Persistent = 0,
    /// As long as its session.
    Ephemeral = 1,
    /// Until it is deleted, with a number.
    PersistentSequential = 2,
    /// As long as its session, with a number.
    EphemeralSequential = 3,
}

/// A node as it stands on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it holds.
    pub data: Vec<u8>,
    /// How often it was written.
    pub version: i32,
    /// The session with which it goes; 0: none.
    pub owner: i64,
}

/// A session on one connection. It says nothing by itself, and ends with [`close`](ZkClient::close), or 10 s after it was
/// dropped.
#[derive(Debug)]
pub struct ZkClient {
    stream: TcpStream,
    address: SocketAddr,
    session: i64,
    password: Vec<u8>,
    asked: i32,
}

impl ZkClient {
    /// Opens a session.
    ///
    /// # Errors
    /// No server answers that serves.
    pub fn connect(address: SocketAddr) -> Result<Self, ZkError> {
        let mut client = Self::of(address)?;
        client.send(&greeting(0, &[0; 16]))?;
        if client.is_greeted()? {
            Ok(client)
        } else {
            Err(ZkError::Silent(format!("{address} opens no session")))
        }
    }

    /// Ends the session of another client, with its ephemeral nodes: takes it over, and closes it. The server hangs up on
    /// that client, as on every client whose session it ends; one that comes again hears that the session has expired.
    /// Returns whether there was such a session.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn end_session(address: SocketAddr, session: i64) -> Result<bool, ZkError> {
        let mut last = None;
        for _ in 0..TRIES {
            let mut client = Self::of(address)?;
            // In one piece: the other client is hung up on when the session is taken over, and may come again at once.
            let closing = Writer::request(1, kind::CLOSE).framed();
            client.send(&[greeting(session, &password(session)), closing].concat())?;
            match client.is_greeted() {
                Ok(false) => return Ok(last.is_some()),
                Ok(true) => {}
                Err(error) => return Err(error),
            }
            match client.receive() {
                Ok(_) => return Ok(true),
                // The other client was faster.
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| ZkError::Silent(format!("{address} does not end {session:#x}"))))
    }

    fn of(address: SocketAddr) -> Result<Self, ZkError> {
        let explain = |error: std::io::Error| ZkError::Silent(format!("{address}: {error}"));
        let stream = TcpStream::connect_timeout(&address, LIMIT).map_err(explain)?;
        stream.set_read_timeout(Some(LIMIT)).map_err(explain)?;
        stream.set_nodelay(true).map_err(explain)?;
        Ok(Self { stream, address, session: 0, password: Vec::new(), asked: 0 })
    }

    /// Reads the answer to the greeting; says whether there is a session.
    fn is_greeted(&mut self) -> Result<bool, ZkError> {
        let answer = self.receive()?;
        let mut reader = Reader(&answer);
        let (Some(_), Some(_), Some(session)) = (reader.int(), reader.int(), reader.long()) else {
            return Err(self.strange(&answer));
        };
        self.session = session;
        self.password = reader.buffer().unwrap_or_default().to_vec();
        Ok(session != 0)
    }

    /// The number of the session.
    pub fn session(&self) -> i64 {
        self.session
    }

    /// What a client must know that takes the session over.
    pub fn password(&self) -> &[u8] {
        &self.password
    }

    fn send(&mut self, message: &[u8]) -> Result<(), ZkError> {
        let address = self.address;
        let explain = |error: std::io::Error| ZkError::Silent(format!("{address}: {error}"));
        self.stream.write_all(message).map_err(explain)
    }

    fn receive(&mut self) -> Result<Vec<u8>, ZkError> {
        let address = self.address;
        let explain = |error: std::io::Error| ZkError::Silent(format!("{address}: {error}"));
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(explain)?;
        let mut message = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut message).map_err(explain)?;
        Ok(message)
    }

    /// Asks one thing; what the server says behind the head of its answer.
    fn ask(
        &mut self,
        what: impl fmt::Display,
        kind: i32,
        with: impl FnOnce(Writer) -> Writer,
    ) -> Result<Vec<u8>, ZkError> {
        self.asked += 1;
        self.send(&with(Writer::request(self.asked, kind)).framed())?;
        let answer = self.receive()?;
        let mut reader = Reader(&answer);
        let head = (reader.int(), reader.long(), reader.int());
        match head {
            (Some(xid), Some(_), Some(0)) if xid == self.asked => Ok(reader.0.to_vec()),
            (Some(xid), Some(_), Some(code)) if xid == self.asked => {
                Err(ZkError::Refused { what: what.to_string(), code })
            }
            _ => Err(self.strange(&answer)),
        }
    }

    fn strange(&self, answer: &[u8]) -> ZkError {
        ZkError::Silent(format!("{} says {}", self.address, answer.escape_ascii()))
    }

    /// Creates a node that everybody may change; its path, with the number of a sequential one.
    ///
    /// # Errors
    /// There is one, its parent is missing, or the server does not answer.
    pub fn create(&mut self, path: &str, data: &[u8], mode: Mode) -> Result<String, ZkError> {
        let with =
            |request: Writer| request.buffer(path.as_bytes()).buffer(data).open_to_all().int(mode as i32);
        let answer = self.ask(format_args!("create {path}"), kind::CREATE, with)?;
        Reader(&answer).text().ok_or_else(|| self.strange(&answer))
    }

    /// Deletes a node, whatever its version.
    ///
    /// # Errors
    /// There is none, it has children, or the server does not answer.
    pub fn delete(&mut self, path: &str) -> Result<(), ZkError> {
        let with = |request: Writer| request.buffer(path.as_bytes()).int(-1);
        self.ask(format_args!("delete {path}"), kind::DELETE, with).map(drop)
    }

    /// Writes a node, whatever its version.
    ///
    /// # Errors
    /// There is none, or the server does not answer.
    pub fn set(&mut self, path: &str, data: &[u8]) -> Result<(), ZkError> {
        let with = |request: Writer| request.buffer(path.as_bytes()).buffer(data).int(-1);
        self.ask(format_args!("write {path}"), kind::SET, with).map(drop)
    }

    /// Reads a node.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn get(&mut self, path: &str) -> Result<Option<Node>, ZkError> {
        let with = |request: Writer| request.buffer(path.as_bytes()).flag(false);
        match self.ask(format_args!("read {path}"), kind::GET, with) {
            Ok(answer) => node(&answer).map(Some).ok_or_else(|| self.strange(&answer)),
            Err(error) if error.code() == Some(code::NO_NODE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Watches a node, once; what the server tells is not read, so it ends what this client can ask.
    ///
    /// # Errors
    /// There is none, or the server does not answer.
    pub fn watch(&mut self, path: &str) -> Result<(), ZkError> {
        let with = |request: Writer| request.buffer(path.as_bytes()).flag(true);
        self.ask(format_args!("watch {path}"), kind::EXISTS, with).map(drop)
    }

    /// The names of the children of a node; none where there is no node.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn children(&mut self, path: &str) -> Result<Vec<String>, ZkError> {
        let with = |request: Writer| request.buffer(path.as_bytes()).flag(false);
        match self.ask(format_args!("list {path}"), kind::CHILDREN, with) {
            Ok(answer) => names(&answer).ok_or_else(|| self.strange(&answer)),
            Err(error) if error.code() == Some(code::NO_NODE) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Everything below a node, but not the server's own `/zookeeper`. Not at one moment: others may change it meanwhile.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn below(&mut self, path: &str) -> Result<BTreeMap<String, Node>, ZkError> {
        let mut found = BTreeMap::new();
        let mut parents = vec![path.to_owned()];
        while let Some(parent) = parents.pop() {
            for name in self.children(&parent)? {
                let child = format!("{}/{name}", parent.trim_end_matches('/'));
                if child == "/zookeeper" {
                    continue;
                }
                if let Some(node) = self.get(&child)? {
                    found.insert(child.clone(), node);
                    parents.push(child);
                }
            }
        }
        Ok(found)
    }

    /// Deletes everything below a node at one moment; says how much there was.
    ///
    /// # Errors
    /// The server does not answer, or others change it again and again.
    pub fn delete_below(&mut self, path: &str) -> Result<usize, ZkError> {
        let mut last = None;
        for _ in 0..TRIES {
            let found = self.below(path)?;
            if found.is_empty() {
                return Ok(0);
            }
            // A child's path comes after its parent's.
            match self.delete_all(found.keys().rev()) {
                Ok(()) => return Ok(found.len()),
                Err(error @ ZkError::Refused { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| ZkError::Silent(format!("{path} cannot be emptied"))))
    }

    /// Deletes all of these, in this order, or none.
    fn delete_all<'a>(&mut self, paths: impl Iterator<Item = &'a String>) -> Result<(), ZkError> {
        let with = |request: Writer| {
            let each =
                |all: Writer, path: &String| all.part(Some(kind::DELETE)).buffer(path.as_bytes()).int(-1);
            paths.fold(request, each).part(None)
        };
        let answer = self.ask("delete several nodes", kind::MULTI, with)?;
        match refusal(&answer) {
            None => Ok(()),
            Some(code) => Err(ZkError::Refused { what: "delete several nodes".to_owned(), code }),
        }
    }

    /// Ends the session; its ephemeral nodes are gone when this returns.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn close(mut self) -> Result<(), ZkError> {
        self.ask("close the session", kind::CLOSE, |request| request).map(drop)
    }
}

/// What a connection begins with. Session 0: a new one.
fn greeting(session: i64, password: &[u8]) -> Vec<u8> {
    let greeting = Writer::default().int(0).long(0).int(LIMIT_MS).long(session).buffer(password);
    greeting.flag(false).framed()
}

/// What an answer says of a node.
fn node(answer: &[u8]) -> Option<Node> {
    let mut reader = Reader(answer);
    let data = reader.buffer()?.to_vec();
    // The changes that made and last wrote it, and the times of both.
    for _ in 0..4 {
        reader.long()?;
    }
    let version = reader.int()?;
    // The versions of its children and of its permissions.
    let _ = (reader.int()?, reader.int()?);
    Some(Node { data, version, owner: reader.long()? })
}

fn names(answer: &[u8]) -> Option<Vec<String>> {
    let mut reader = Reader(answer);
    let count = reader.int()?.max(0);
    (0..count).map(|_| reader.text()).collect()
}

/// Why nothing of what was asked for together was done; `None`: all was.
fn refusal(answer: &[u8]) -> Option<i32> {
    let mut reader = Reader(answer);
    let mut refusal = None;
    // Each part says what it is, whether it is the end, and its error, which one that failed repeats.
    while let (Some(-1), Some(false), Some(_), Some(code)) =
        (reader.int(), reader.flag(), reader.int(), reader.int())
    {
        // Those before the one that failed say 0, and those behind it that they were not tried.
        refusal = match refusal {
            None | Some(0) => Some(code),
            found => found,
        };
    }
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read() {
        let stat = |data: Writer| data.long(1).long(2).long(3).long(4).int(5).int(6).int(7).long(8);
        let answer = stat(Writer::default().buffer(b"data")).int(4).int(0).long(9).0;
        assert_eq!(node(&answer), Some(Node { data: b"data".to_vec(), version: 5, owner: 8 }));
        assert_eq!(node(&answer[..50]), None);
        assert_eq!(node(b""), None);
    }

    #[test]
    fn names_are_read() {
        let answer = Writer::default().int(2).buffer(b"a").buffer(b"bc").0;
        assert_eq!(names(&answer), Some(vec!["a".to_owned(), "bc".to_owned()]));
        assert_eq!(names(&answer[..9]), None);
        assert_eq!(names(&Writer::default().int(0).0), Some(Vec::new()));
    }

    #[test]
    fn of_several_refusals_the_first_counts() {
        let failed = |answer: Writer, code: i32| Writer(answer.int(-1).flag(false).int(code).int(code).0);
        let answer = [0, code::NO_NODE, -2].into_iter().fold(Writer::default(), failed).part(None).0;
        assert_eq!(refusal(&answer), Some(code::NO_NODE));
        let done = Writer::default().int(kind::DELETE).flag(false).int(0).part(None).0;
        assert_eq!(refusal(&done), None);
    }
}
