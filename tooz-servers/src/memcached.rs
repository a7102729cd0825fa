//! memcached.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Launch, Server, find, free_port};

/// The server's program.
///
/// # Errors
/// It is not on this machine.
pub fn program() -> Result<PathBuf, String> {
    find("memcached").ok_or_else(|| "memcached is not installed; set TOOZ_TEST_MEMCACHED_URL".into())
}

/// A server of its own, on TCP alone.
pub struct Memcached {
    server: Server,
    address: SocketAddr,
}

/// An item as it stands on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What its writer calls its form.
    pub flags: u32,
    /// What it holds.
    pub value: Vec<u8>,
    /// The number that it got when it was stored.
    pub cas: u64,
}

impl Memcached {
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
    /// As [`start`](Memcached::start).
    pub fn start_with(more: &[&str]) -> Result<Self, String> {
        let data = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let port = free_port()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // Root has to say as whom it runs.
        let user: &[&str] = if nix::unistd::geteuid().is_root() { &["-u", "root"] } else { &[] };
        let launch = Launch::new(program()?)
            .args(["-l", "127.0.0.1", "-U", "0", "-t", "4", "-p"])
            .arg(port.to_string())
            .args(user.iter().copied())
            .args(more.iter().copied());
        let ready =
            move || command(address, b"version\r\n").is_ok_and(|answer| answer.starts_with(b"VERSION"));
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

    /// Sends one command, with its line's end, past every driver; the answer as it comes.
    ///
    /// # Errors
    /// It does not answer.
    pub fn command(&self, command: &[u8]) -> Result<Vec<u8>, String> {
        self::command(self.address, command)
    }

    /// Every key whose item has not expired.
    ///
    /// # Errors
    /// It does not answer.
    pub fn keys(&self) -> Result<Vec<Vec<u8>>, String> {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            // By the hash table: an item that moves between two lists of the server is in neither for a moment.
            let dump = self.command(b"lru_crawler metadump hash\r\n")?;
            if dump.ends_with(b"END\r\n") {
                return Ok(keys(&dump));
            }
            // One crawl at a time.
            if !dump.starts_with(b"BUSY") || Instant::now() > until {
                return Err(format!("{} says {}", self.address, dump.escape_ascii()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The item of a key.
    ///
    /// # Errors
    /// It does not answer.
    pub fn item(&self, key: &[u8]) -> Result<Option<Item>, String> {
        let answer = self.command(&[b"mg ", key, b" v f c\r\n"].concat())?;
        if answer.starts_with(b"EN") {
            return Ok(None);
        }
        let strange = || format!("{} says {}", self.address, answer.escape_ascii());
        item(&answer).map(Some).ok_or_else(strange)
    }

    /// Stores an item that does not expire, whatever stands there.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn set(&self, key: &[u8], flags: u32, value: &[u8]) -> Result<(), String> {
        let answer = self.store(b"set ", key, flags, value, "")?;
        let refused = || Err(format!("{} says {}", self.address, answer.escape_ascii()));
        if answer == b"STORED\r\n" { Ok(()) } else { refused() }
    }

    /// Stores another value in an item that does not expire; says whether it still was the one that was read.
    ///
    /// # Errors
    /// It does not answer.
    pub fn swap(&self, key: &[u8], read: &Item, value: &[u8]) -> Result<bool, String> {
        let answer = self.store(b"cas ", key, read.flags, value, &format!(" {}", read.cas))?;
        Ok(answer == b"STORED\r\n")
    }

    fn store(&self, verb: &[u8], key: &[u8], flags: u32, value: &[u8], cas: &str) -> Result<Vec<u8>, String> {
        let numbers = format!(" {flags} 0 {}{cas}\r\n", value.len());
        self.command(&[verb, key, numbers.as_bytes(), value, b"\r\n"].concat())
    }

    /// Deletes an item; says whether there was one.
    ///
    /// # Errors
    /// It does not answer.
    pub fn delete(&self, key: &[u8]) -> Result<bool, String> {
        Ok(self.command(&[b"md ", key, b"\r\n"].concat())?.starts_with(b"HD"))
    }

    /// Every key with its value.
    ///
    /// # Errors
    /// It does not answer.
    pub fn everything(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
        let mut found = BTreeMap::new();
        for key in self.keys()? {
            if let Some(item) = self.item(&key)? {
                found.insert(key, item.value);
            }
        }
        Ok(found)
    }

    /// One of its statistics.
    ///
    /// # Errors
    /// It does not answer, or has no such statistic.
    pub fn statistic(&self, name: &str) -> Result<u64, String> {
        let answer = self.command(b"stats\r\n")?;
        let statistics = String::from_utf8_lossy(&answer);
        let found = statistics
            .lines()
            .find_map(|line| line.strip_prefix("STAT ")?.strip_prefix(name)?.strip_prefix(' '));
        found.and_then(|number| number.parse().ok()).ok_or_else(|| format!("no statistic {name}"))
    }

    /// Forgets everything at one moment; says whether that worked. The server goes by the numbers of its items, and not by its
    /// clock of whole seconds alone: what is stored afterwards stays, also in the same second.
    pub fn flush(&self) -> bool {
        self.command(b"flush_all\r\n").is_ok_and(|answer| answer == b"OK\r\n")
    }

    /// Empties it; says whether that worked.
    pub fn clean(&self) -> bool {
        self.server.resume();
        self.flush() && self.keys().is_ok_and(|keys| keys.is_empty())
    }
}

impl fmt::Debug for Memcached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memcached").field("server", &self.server).field("address", &self.address).finish()
    }
}

/// Sends one command on a connection of its own and reads one answer, as it stands on the wire.
///
/// # Errors
/// No server answers.
pub fn command(address: SocketAddr, command: &[u8]) -> Result<Vec<u8>, String> {
    let explain = |error: std::io::Error| format!("{address}: {error}");
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, limit).map_err(explain)?;
    stream.set_read_timeout(Some(limit)).map_err(explain)?;
    stream.write_all(command).map_err(explain)?;
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

/// The line at the beginning, without its end, and what follows.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = &bytes[..end];
    // The lines of a dump end without a carriage return.
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

/// The word of this place in a line.
fn word(line: &[u8], at: usize) -> &[u8] {
    line.split(|byte| *byte == b' ').nth(at).unwrap_or_default()
}

fn number<N: std::str::FromStr>(digits: &[u8]) -> Option<N> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether one answer is there as a whole.
fn is_whole(answer: &[u8]) -> bool {
    rest_after(answer).is_some()
}

/// What follows the first answer; `None`: it is not complete.
fn rest_after(answer: &[u8]) -> Option<&[u8]> {
    let mut answer = answer;
    loop {
        let (line, rest) = line(answer)?;
        let data = |length: &[u8]| rest.get(number::<usize>(length)? + 2..);
        answer = match word(line, 0) {
            b"VA" => return data(word(line, 1)),
            // More lines follow, and END.
            b"VALUE" => data(word(line, 3))?,
            b"STAT" => rest,
            first if first.starts_with(b"key=") => rest,
            _ => return Some(rest),
        };
    }
}

/// The item of an answer to `mg KEY v f c`.
fn item(answer: &[u8]) -> Option<Item> {
    let (line, rest) = line(answer)?;
    let length = number::<usize>(word(line, 1)).filter(|_| line.starts_with(b"VA "))?;
    let flag =
        |name: &[u8]| line.split(|byte| *byte == b' ').skip(2).find_map(|word| word.strip_prefix(name));
    let (flags, cas) = (number(flag(b"f")?)?, number(flag(b"c")?)?);
    Some(Item { flags, cas, value: rest.get(..length)?.to_vec() })
}

/// The keys that a dump names.
fn keys(dump: &[u8]) -> Vec<Vec<u8>> {
    let lines = dump.split(|byte| *byte == b'\n');
    lines.filter_map(|line| word(line, 0).strip_prefix(b"key=").map(decoded)).collect()
}

/// A key without the encoding of a dump.
fn decoded(key: &[u8]) -> Vec<u8> {
    let mut rest = key;
    let mut decoded = Vec::with_capacity(key.len());
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.filter(|_| *first == b'%').and_then(|two| u8::from_str_radix(two, 16).ok());
        decoded.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    decoded
}

/// As many commands as were sent together, of which the server does none: it answers each with an error.
pub fn unknown(commands: &[u8]) -> Vec<u8> {
    b"by-the-test\r\n".repeat(count(commands))
}

/// How many commands were sent together.
fn count(commands: &[u8]) -> usize {
    let (mut rest, mut count) = (commands, 0);
    while let Some((line, after)) = self::line(rest) {
        count += 1;
        let data = match word(line, 0) {
            b"set" | b"add" | b"replace" | b"append" | b"prepend" | b"cas" => Some(word(line, 4)),
            b"ms" => Some(word(line, 2)),
            _ => None,
        };
        let length = data.map_or(Some(0), |length| Some(number::<usize>(length)? + 2));
        rest = length.and_then(|length| after.get(length..)).unwrap_or_default();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_a_whole() {
        for whole in [
            &b"STORED\r\n"[..],
            b"END\r\n",
            b"HD c1\r\n",
            b"EN\r\n",
            b"NF\r\n",
            b"OK\r\n",
            b"6\r\n",
            b"MN\r\n",
            b"ERROR\r\n",
            b"SERVER_ERROR out of memory\r\n",
            b"VERSION 1.6.18\r\n",
            b"VA 0 f1\r\n\r\n",
            b"VA 6 f1 Oacquire\r\na\r\nEND\r\n",
            b"VALUE a 0 3\r\nEND\r\nVALUE b 1 0 7\r\n\r\nEND\r\n",
            b"STAT pid 1\r\nSTAT version 1.6.18\r\nEND\r\n",
            b"key=a%20b exp=-1 la=1 cas=2 fetch=no cls=1 size=65\nkey=c exp=-1 la=1\nEND\r\n",
        ] {
            assert_eq!(
                rest_after(&[whole, b"NF\r\n"].concat()),
                Some(&b"NF\r\n"[..]),
                "{}",
                whole.escape_ascii()
            );
            for length in 0..whole.len() {
                assert!(!is_whole(&whole[..length]), "{}", whole[..length].escape_ascii());
            }
        }
    }

    #[test]
    fn items_and_keys_are_read() {
        let found = item(b"VA 3 f2 c9\r\na\r\n\r\n").unwrap();
        assert_eq!(found, Item { flags: 2, cas: 9, value: b"a\r\n".to_vec() });
        assert_eq!(item(b"EN\r\n"), None);
        let dump = b"key=k%2525%01 exp=-1 la=1\nkey=%FF%fe exp=7 la=1\nEND\r\n";
        assert_eq!(keys(dump), [&b"k%25\x01"[..], b"\xff\xfe"]);
        assert_eq!(decoded(b"100%"), b"100%");
    }

    #[test]
    fn the_commands_of_a_batch_are_counted() {
        let batch = b"add k 1 3 5\r\nmg \r\n\r\ncas k 2 0 0 7\r\n\r\nmg k v Oacquire\r\nms k 2 c\r\n\r\n\r\nmd k C9\r\n";
        assert_eq!(count(batch), 5);
        assert_eq!(count(b"version\r\nstats\r\nstats settings\r\n"), 3);
        assert_eq!(count(b"set k 0 0 100\r\nthe rest follows"), 1);
    }
}
