//! What a server says of itself when a connection begins.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpStream;
use tooz_core::driver::{Context, Instant};
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::error;

/// The oldest version that is known to work.
const OLDEST: (u32, u32) = (1, 6);
/// What a server that was just started says of its age.
const FIRST_UPTIME: u64 = 2;
/// A greeting is much shorter than this.
const MOST: usize = 262_144;

/// A server that greeted.
#[derive(Clone, Debug)]
pub(crate) struct Greeting {
    pub(crate) version: String,
    /// What `stats` and `stats settings` say.
    pub(crate) stats: BTreeMap<String, String>,
    pub(crate) settings: BTreeMap<String, String>,
    /// When it said so.
    at: Instant,
}

impl Greeting {
    /// Connects, and asks the server what it is.
    pub(crate) async fn exchange(config: &Config, context: &Context) -> Result<(TcpStream, Self)> {
        let greeting = async {
            let stream = TcpStream::connect((config.host.as_str(), config.port)).await?;
            stream.set_nodelay(true)?;
            let text = converse(&stream, b"version\r\nstats\r\nstats settings\r\n", 2).await?;
            Ok::<_, io::Error>((stream, text))
        };
        let asked = context.spawner.timeout(config.greeting_limit(), greeting).await;
        let (stream, text) =
            asked.ok_or_else(|| error::silent(config))?.map_err(|cause| error::connecting(config, &cause))?;
        let greeting = Self::read(config, &text, context.clock.now())?;
        Ok((stream, greeting))
    }

    fn read(config: &Config, text: &[u8], at: Instant) -> Result<Self> {
        let text = String::from_utf8_lossy(text);
        let shown = config.shown();
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let Some(version) = first.strip_prefix("VERSION ") else {
            if text.contains("unauthenticated") {
                let why = "the server asks for a login, which this driver does not have; let only trusted hosts reach it, or \
                           name a local proxy that logs in";
                return Err(Error::new(ErrorKind::Denied, format!("{shown}: {why}")));
            }
            let why = if text.contains("Too many open connections") {
                "the server has no connection left; allow more (option -c), each coordinator takes one"
            } else {
                "what answers there does not speak memcached's text protocol; check the host and the port"
            };
            return Err(Error::new(ErrorKind::Unavailable, format!("{shown}: {why}")));
        };
        let mut parts = [BTreeMap::new(), BTreeMap::new()];
        let mut part = 0;
        for line in lines {
            if line == "END" {
                part = 1;
            } else if let Some((name, value)) =
                line.strip_prefix("STAT ").and_then(|rest| rest.split_once(' '))
            {
                parts[part].insert(name.to_owned(), value.to_owned());
            }
        }
        let [stats, settings] = parts;
        let greeting = Self { version: version.to_owned(), stats, settings, at };
        greeting.check(&shown)?;
        Ok(greeting)
    }

    /// Refuses a server that cannot do what the driver needs.
    fn check(&self, shown: &str) -> Result<()> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Incompatible, format!("{shown}: {why}")));
        let mut numbers = self.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version < OLDEST {
            return refuse(format!("memcached {} is too old; take 1.6 or a later one", self.version));
        }
        if self.settings.get("cas_enabled").is_some_and(|enabled| enabled == "no") {
            return refuse("the server runs without cas numbers; start it without the option -C".to_owned());
        }
        Ok(())
    }

    fn number(numbers: &BTreeMap<String, String>, name: &str) -> u64 {
        numbers.get(name).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// A number that `stats` says.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        Self::number(&self.stats, name)
    }

    /// The largest item.
    pub(crate) fn item_size(&self) -> usize {
        let size = usize::try_from(Self::number(&self.settings, "item_size_max")).unwrap_or(usize::MAX);
        if size == 0 { 1 << 20 } else { size }
    }

    /// How old the server is now, or less.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        let uptime = self.stat("uptime").saturating_sub(FIRST_UPTIME);
        Duration::from_secs(uptime).saturating_add(now.saturating_since(self.at))
    }

    /// The server's clock, in seconds.
    pub(crate) fn seconds(&self, now: Instant) -> u64 {
        self.stat("time").saturating_add(now.saturating_since(self.at).as_secs())
    }
}

/// A time in seconds.
pub(crate) fn time(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Sends `request` and reads until the server has said `END` so often, or something that ends the conversation.
pub(crate) async fn converse(stream: &TcpStream, request: &[u8], ends: usize) -> io::Result<Vec<u8>> {
    let (mut sent, mut answer) = (0, Vec::new());
    while sent < request.len() {
        stream.writable().await?;
        match stream.try_write(&request[sent..]) {
            Ok(written) => sent += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    loop {
        let line = |word: &[u8]| answer.windows(word.len()).filter(|window| *window == word).count();
        let is_done = line(b"END\r\n") >= ends || line(b"ERROR") > 0 || answer.len() > MOST;
        let is_strange =
            answer.len() > 8 && !answer.starts_with(b"VERSION ") && !answer.starts_with(b"STAT ");
        if is_done || is_strange {
            return Ok(answer);
        }
        stream.readable().await?;
        match stream.try_read_buf(&mut answer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tooz_core::BackendUrl;
    use tooz_core::driver::{Clock, Limits};

    use super::*;

    fn read(text: &str) -> Result<Greeting> {
        let url = BackendUrl::parse("memcached://cache").unwrap();
        Greeting::read(&Config::read(&url, Limits::of(&url)?)?, text.as_bytes(), Clock::boot().now())
    }

    #[test]
    fn a_greeting_is_read() {
        let text =
            "VERSION 1.6.18\r\nSTAT uptime 7\r\nSTAT time 100\r\nEND\r\nSTAT item_size_max 2048\r\nEND\r\n";
        let greeting = read(text).unwrap();
        assert_eq!((greeting.item_size(), greeting.stat("uptime")), (2_048, 7));
        assert_eq!(greeting.seconds(greeting.at), 100);
        assert_eq!(greeting.age(greeting.at), Duration::from_secs(5));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        for (text, kind, word) in [
            ("VERSION 1.5.22\r\nEND\r\nEND\r\n", ErrorKind::Incompatible, "1.5.22"),
            ("VERSION 1.6.9\r\nEND\r\nSTAT cas_enabled no\r\nEND\r\n", ErrorKind::Incompatible, "-C"),
            ("CLIENT_ERROR unauthenticated\r\n", ErrorKind::Denied, "login"),
            ("ERROR Too many open connections\r\n", ErrorKind::Unavailable, "-c"),
            ("HTTP/1.1 400 Bad Request\r\n", ErrorKind::Unavailable, "memcached's text protocol"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.kind(), kind, "{text}");
            assert!(error.to_string().contains(word) && error.to_string().contains("cache:11211"), "{error}");
        }
    }
}
