//! Backend URLs: `scheme://[user[:password]@]host[:port][,host…][/path][?option=value&…]`.
//!
//! A parser of our own, since a coordination backend has several hosts, which the `url` crate refuses, and since
//! `file://./relative` must not turn into a host named `.`.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::{Error, ErrorKind, Result};

/// Where a backend is and how to talk to it. `Debug` and `Display` show no password and no secret option.
#[derive(Clone, PartialEq, Eq)]
pub struct BackendUrl {
    scheme: String,
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<Host>,
    path: Vec<u8>,
    options: Vec<(String, String)>,
}

/// One host of a backend URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// A name or an address; IPv6 without its brackets.
    pub name: String,
    /// The port, if given.
    pub port: Option<u16>,
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidUrl, what)
}

/// Invisible characters, which no part of a backend URL begins, ends or holds as they are: controls, spaces, and
/// what has no width. Most often they are the end of a line of the file from which a URL was read.
fn is_invisible(c: char) -> bool {
    c <= ' ' || matches!(c, '\u{7f}' | '\u{a0}' | '\u{200b}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Why a host, an option or a namespace with this text would not be what it looks like: a control character anywhere, or white space
/// at either end. It names the code and never the text, which may be a secret.
pub(crate) fn invisible(text: &str) -> Option<String> {
    let ends = text.chars().next().into_iter().chain(text.chars().next_back());
    let at_an_end = ends.filter(|c| c.is_whitespace() || is_invisible(*c));
    let found = text.chars().find(|c| c.is_control()).or_else(|| at_an_end.into_iter().next())?;
    Some(format!("it holds the invisible character U+{:04X}; remove it", u32::from(found)))
}

fn decode(what: &str, text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| invalid(format!("the {what} is not UTF-8 after percent-decoding")))?.into_owned())
}

/// One option of the query, as forms encode it. Not through the `form_urlencoded` crate: it replaces what is not
/// UTF-8, and two different namespaces would become the same one.
fn option(part: &str) -> Result<(String, String)> {
    let (name, value) = part.split_once('=').unwrap_or((part, ""));
    let read = |text: &str| decode("name or value of an option", &text.replace('+', " "));
    Ok((read(name)?, read(value)?))
}

impl BackendUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidUrl`], naming the part that is wrong and showing none that may hold a secret. White space and
    /// control characters are refused as they stand: they would make another database or namespace that looks the same.
    pub fn parse(url: &str) -> Result<Self> {
        if let Some((at, found)) = url.chars().enumerate().find(|(_, c)| is_invisible(*c)) {
            return Err(invalid(format!(
                "character {} of the URL is the invisible U+{:04X}; remove it (a file often ends with a line \
                 break), or write it percent-encoded, such as %20, if the URL needs it",
                at + 1,
                u32::from(found)
            )));
        }
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| invalid("there is no \"://\"; write for example sqlite:///var/lib/app/tooz.db"))?;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(legal) {
            return Err(invalid(
                "the scheme must be letters, digits, '+', '-' and '.', beginning with a letter",
            ));
        }
        if let Some(at) = rest.find('#') {
            return Err(invalid(format!(
                "there is a '#' {at} characters after \"://\"; a backend URL has no fragment, write %23"
            )));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        // `user:12/rest@host`: what looks like a host and a port is the beginning of a password, and its end would be
        // shown as a path or an option.
        if authority.contains([':', '@']) && (path.contains('@') || query.contains('@')) {
            return Err(invalid(
                "there is an '@' after the first '/' or '?'; in a password write %2F for '/', %3F for '?' \
                 and %40 for '@', and in a path or an option %40 for '@'",
            ));
        }
        let (userinfo, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match userinfo.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (userinfo, None),
        };
        let user = decode("user name", user)?;
        let password = password.map(|password| decode("password", password)).transpose()?;
        let hosts = match hosts {
            "" => Vec::new(),
            hosts => hosts.split(',').map(Host::parse).collect::<Result<_>>()?,
        };
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            user: (!user.is_empty()).then_some(user),
            password,
            hosts,
            path: percent_decode_str(path).collect(),
            options: query.split('&').filter(|part| !part.is_empty()).map(option).collect::<Result<_>>()?,
        })
    }

    /// The scheme in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The user name, percent-decoded.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password, percent-decoded.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The hosts in the order given.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The path, percent-decoded, with its leading slash; empty if there is none.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The options in the order given.
    pub fn options(&self) -> &[(String, String)] {
        &self.options
    }

    /// The last value of an option, as text.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Sets an option; it replaces equal ones of the URL.
    pub fn set_option(&mut self, name: &str, value: impl Into<String>) {
        self.options.retain(|(key, _)| key != name);
        self.options.push((name.to_owned(), value.into()));
    }

    /// The file or directory that a backend on the local file system names: `scheme:///absolute/path` or
    /// `scheme://./relative/path`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidUrl`] if there is no path, or a host.
    pub fn file_path(&self) -> Result<PathBuf> {
        let prefix = match self.hosts.as_slice() {
            [] => "",
            [Host { name, port: None }] if matches!(name.as_str(), "." | ".." | "~") => name.as_str(),
            [host, ..] => {
                return Err(invalid(format!(
                    "{}:// takes a path, not the host \"{}\"; write {0}:///absolute/path or {0}://./relative/path",
                    self.scheme,
                    host.name.escape_debug()
                )));
            }
        };
        if prefix == "~" {
            return Err(invalid("\"~\" is only known to a shell; write the home directory's absolute path"));
        }
        if self.path.len() < 2 {
            return Err(invalid(format!(
                "{}:// needs a path; write {0}:///absolute/path or {0}://./relative/path",
                self.scheme
            )));
        }
        if self.path.contains(&0) {
            return Err(invalid("a path must not contain a NUL"));
        }
        let mut path = prefix.as_bytes().to_vec();
        path.extend_from_slice(&self.path);
        path_from_bytes(path)
    }
}

#[cfg(unix)]
#[allow(clippy::unnecessary_wraps)] // elsewhere it can fail
fn path_from_bytes(path: Vec<u8>) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

#[cfg(not(unix))]
fn path_from_bytes(path: Vec<u8>) -> Result<PathBuf> {
    let path =
        String::from_utf8(path).map_err(|_| invalid("the path is not UTF-8 after percent-decoding"))?;
    Ok(PathBuf::from(path))
}

impl Host {
    fn parse(text: &str) -> Result<Self> {
        let (name, port) = match text.strip_prefix('[').map(|inner| inner.split_once(']')) {
            Some(Some(parts)) => parts,
            Some(None) => return Err(invalid("an IPv6 address lacks its closing ']'")),
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        if name.is_empty() {
            return Err(invalid(
                "a host is empty; a user and a password end with an '@': scheme://user:password@host",
            ));
        }
        let port = match port {
            "" => None,
            port => Some(port.strip_prefix(':').and_then(|digits| digits.parse::<u16>().ok()).ok_or_else(
                // Not shown: a password with an unescaped '/' or '@' may have ended up here.
                || invalid("a port is not a number from 0 to 65535 (before the host, write a user and a password as \
                    user:password@, with %2F for '/' and %40 for '@')"),
            )?),
        };
        let name = decode("host", name)?;
        if let Some(why) = invisible(&name) {
            return Err(invalid(format!("a host: {why}")));
        }
        if name.contains(|c: char| "/?#@<>\"\\^`{|} ".contains(c)) {
            // Not shown: a part of a password may have ended up here.
            return Err(invalid("a host has a character that no host name can have"));
        }
        Ok(Self { name, port })
    }
}

/// Whether an option's value must not be shown. Hiding one that is none costs nothing.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "pwd", "secret", "token", "credential", "auth", "key"].iter().any(|word| name.contains(word))
}

/// Without password and secret options; not meant to be parsed again.
impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        match (&self.user, &self.password) {
            (None, None) => {}
            // A password alone may have been written without the colon before it.
            (_, None) => write!(f, "***@")?,
            (user, Some(_)) => write!(f, "{}:***@", user.as_deref().unwrap_or_default().escape_debug())?,
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let (open, close) = if host.name.contains(':') { ("[", "]") } else { ("", "") };
            write!(f, "{comma}{open}{}{close}", host.name.escape_debug())?;
            if let Some(port) = host.port {
                write!(f, ":{port}")?;
            }
        }
        write!(f, "{}", String::from_utf8_lossy(&self.path).escape_debug())?;
        for (index, (name, value)) in self.options.iter().enumerate() {
            let separator = if index == 0 { '?' } else { '&' };
            let value = if is_secret(name) { "***" } else { value };
            write!(f, "{separator}{}={}", name.escape_debug(), value.escape_debug())?;
        }
        Ok(())
    }
}

impl fmt::Debug for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_hosts_user_and_options() {
        let url = BackendUrl::parse("Redis://me:p%40ss@h1:1,[::1]:2,h3/x%20y?ttl=5s&a=b+c").unwrap();
        assert_eq!(url.scheme(), "redis");
        assert_eq!((url.user(), url.password()), (Some("me"), Some("p@ss")));
        let hosts: Vec<_> = url.hosts().iter().map(|host| (host.name.as_str(), host.port)).collect();
        assert_eq!(hosts, [("h1", Some(1)), ("::1", Some(2)), ("h3", None)]);
        assert_eq!(url.path(), b"/x y");
        assert_eq!((url.option("ttl"), url.option("a"), url.option("c")), (Some("5s"), Some("b c"), None));
        assert_eq!(url.to_string(), "redis://me:***@h1:1,[::1]:2,h3/x y?ttl=5s&a=b c");
    }

    #[test]
    fn no_secret_is_shown() {
        for text in [
            "r://u:hunter2@h",
            "r://hunter2@h",
            "r://u:hunter2%ff@h",
            "r://hunter2%ff@h",
            "r://:hunter2:6379",
            "r:hunter2@h",
            "r://u:hun/ter2@h:x",
            "r://:hunter2@h",
            "r://h:hunter2",
            "r://h?password=hunter2",
            "r://h?api_key=hunter2&PASSWD=hunter2",
            "r://u:12/hunter2@h",
            "r://u:12?hunter2@h",
            "r://u:12?x=hunter2@h",
            "r://u:1@2/hunter2@h",
        ] {
            let shown = match BackendUrl::parse(text) {
                Ok(url) => format!("{url} {url:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!shown.contains("ter2"), "{shown}");
        }
    }

    #[test]
    fn malformed_urls_are_refused() {
        for text in [
            "",
            "x",
            "://",
            "1x://h",
            "a b://h",
            "r://h:99999",
            "r://h:-1",
            "r://[::1",
            "r://a,,b",
            "r://h#x",
            "r://h?x=%ff",
            "r://h?%fe=x",
            "r://a%20,b",
            "r://a,b%0a",
            "r://a,b%2Fc",
            "r://a,%3Cb%3E",
        ] {
            assert_eq!(BackendUrl::parse(text).unwrap_err().kind(), ErrorKind::InvalidUrl, "{text}");
        }
    }

    /// letsencrypt/boulder#2025 is such a line break, which came out of a file.
    #[test]
    fn what_cannot_be_seen_is_refused_by_its_place_and_code() {
        for (text, at, code) in [
            ("r://u:hunter2@h\n", 16, "U+000A"),
            (" r://h", 1, "U+0020"),
            ("r://h/a b", 8, "U+0020"),
            ("r://h?namespace=x\u{a0}", 18, "U+00A0"),
            ("r://h,\u{200b}i", 7, "U+200B"),
            ("r://\u{fc}\u{feff}", 6, "U+FEFF"),
            ("r://h\u{2028}", 6, "U+2028"),
            ("r://h\u{2029}", 6, "U+2029"),
            ("r://h\0", 6, "U+0000"),
            ("r://h\u{7f}", 6, "U+007F"),
        ] {
            let error = BackendUrl::parse(text).unwrap_err();
            let said = error.to_string();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(said.contains(&format!("character {at} ")) && said.contains(code), "{said}");
            assert!(!said.contains("hunter2") && !said.contains('\n'), "{said}");
        }
        assert_eq!(BackendUrl::parse("r://h/a%20b%0a").unwrap().path(), b"/a b\n", "a path may be any");
    }

    #[test]
    fn paths() {
        let path = |text: &str| BackendUrl::parse(text).unwrap().file_path();
        assert_eq!(path("sqlite:///a/b.db").unwrap(), PathBuf::from("/a/b.db"));
        assert_eq!(path("sqlite://./b.db").unwrap(), PathBuf::from("./b.db"));
        assert_eq!(path("file://../d?x=1").unwrap(), PathBuf::from("../d"));
        for text in ["sqlite://", "sqlite:///", "sqlite://host/b.db", "sqlite://~/b.db", "sqlite:///a%00b"] {
            assert_eq!(path(text).unwrap_err().kind(), ErrorKind::InvalidUrl, "{text}");
        }
    }
}
