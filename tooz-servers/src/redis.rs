//! Redis and Valkey.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use super::{Launch, Server, find, free_port};

/// The server's program.
///
/// # Errors
/// It is not on this machine.
pub fn program() -> Result<PathBuf, String> {
    find("redis-server")
        .or_else(|| find("valkey-server"))
        .ok_or_else(|| "neither redis-server nor valkey-server is installed; set TOOZ_TEST_REDIS_URL".into())
}

/// A server of its own, with every write on disk before it is answered.
pub struct Redis {
    server: Server,
    address: SocketAddr,
}

impl Redis {
    /// Starts one.
    ///
    /// # Errors
    /// It is not on this machine, or does not start.
    pub fn start() -> Result<Self, String> {
        Self::start_with(&[])
    }

    /// Starts one with more arguments.
    ///
    /// # Errors
    /// As [`start`](Redis::start).
    pub fn start_with(more: &[&str]) -> Result<Self, String> {
        Self::start_as(Launch::new(program()?), more)
    }

    /// Starts one by another program, or with something before it.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_as(launch: Launch, more: &[&str]) -> Result<Self, String> {
        let data = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let port = free_port()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let launch = launch
            .args(["--bind", "127.0.0.1", "--port"])
            .arg(port.to_string())
            .args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
            .args(["--maxmemory-policy", "noeviction", "--dir"])
            .arg(data.path().as_os_str())
            .args(more.iter().copied());
        let ready = move || command(address, &[b"PING"]).is_ok_and(|answer| !answer.starts_with(b"-LOADING"));
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

    /// Sends one command past every driver; the answer as it comes.
    ///
    /// # Errors
    /// It does not answer.
    pub fn command(&self, words: &[&[u8]]) -> Result<Vec<u8>, String> {
        command(self.address, words)
    }

    /// Every key of the first database, with its value as `DUMP` writes it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn everything(&self) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let keys = list(&self.command(&[b"KEYS", b"*"])?);
        let value = |key: String| Ok((key.clone(), self.command(&[b"DUMP", key.as_bytes()])?));
        keys.into_iter().map(value).collect()
    }

    /// Empties it; says whether that worked.
    pub fn clean(&self) -> bool {
        self.server.resume();
        let ok = |words: &[&[u8]]| self.command(words).is_ok_and(|answer| answer.starts_with(b"+OK"));
        ok(&[b"FLUSHALL"]) && ok(&[b"CONFIG", b"SET", b"maxmemory", b"0"])
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("server", &self.server).field("address", &self.address).finish()
    }
}

/// Sends one command on a connection of its own and reads one answer, as it stands on the wire.
///
/// # Errors
/// No server answers.
pub fn command(address: SocketAddr, words: &[&[u8]]) -> Result<Vec<u8>, String> {
    let explain = |error: std::io::Error| format!("{address}: {error}");
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, limit).map_err(explain)?;
    stream.set_read_timeout(Some(limit)).map_err(explain)?;
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(format!("${}\r\n", word.len()).into_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    stream.write_all(&request).map_err(explain)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !is_whole(&answer) {
        match stream.read(&mut buffer).map_err(explain)? {
            0 => return Err(format!("{address} hung up")),
            read => answer.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(answer)
}

/// Whether one answer is there as a whole.
fn is_whole(answer: &[u8]) -> bool {
    rest_after(answer).is_some()
}

/// What follows the first answer; `None`: it is not complete.
fn rest_after(answer: &[u8]) -> Option<&[u8]> {
    let end = answer.windows(2).position(|two| two == b"\r\n")?;
    let (line, rest) = (&answer[..end], &answer[end + 2..]);
    let number = || std::str::from_utf8(line.get(1..)?).ok()?.parse::<i64>().ok();
    match line.first()? {
        b'$' => match usize::try_from(number()?) {
            Ok(length) => rest.get(length + 2..),
            Err(_) => Some(rest),
        },
        b'*' => {
            let mut rest = rest;
            for _ in 0..number()?.max(0) {
                rest = rest_after(rest)?;
            }
            Some(rest)
        }
        _ => Some(rest),
    }
}

/// The text of a bulk string, or nothing.
pub fn text(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    text.split("\r\n").nth(1).unwrap_or_default().to_owned()
}

/// The lines of an array of bulk strings.
pub fn list(answer: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(answer);
    text.split("\r\n").skip(2).step_by(2).map(str::to_owned).filter(|line| !line.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_a_whole() {
        for whole in [
            &b"+OK\r\n"[..],
            b":1\r\n",
            b"$-1\r\n",
            b"$3\r\na\r\n\r\n",
            b"*2\r\n$1\r\na\r\n:1\r\n",
            b"*0\r\n",
        ] {
            assert!(is_whole(whole), "{}", whole.escape_ascii());
            assert!(!is_whole(&whole[..whole.len() - 1]), "{}", whole.escape_ascii());
        }
        assert_eq!(list(b"*2\r\n$1\r\na\r\n$2\r\nbc\r\n"), ["a", "bc"]);
        assert_eq!(text(b"$2\r\nbc\r\n"), "bc");
    }
}
