//! Files that name a backend: `config.toml`, and the one that `TOOZ_URL_FILE` names.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use toml::{Table, Value};
use tooz::BackendUrl;

use crate::args;
use crate::exit::{Failure, USAGE};
use crate::messages;

/// Longer than any such file.
const LONGEST: u64 = 65_536;

/// What a configuration file may say besides the URL.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) namespace: Option<String>,
    pub(crate) ttl: Option<Duration>,
}

/// Without one line end and the blanks before it, which most editors and secret stores leave there.
pub(crate) fn without_line_end(text: &str) -> &str {
    let line = text.strip_suffix('\n').unwrap_or(text);
    line.strip_suffix('\r').unwrap_or(line).trim_end_matches([' ', '\t'])
}

/// The URL in a file that holds nothing else.
pub(crate) fn url(path: &Path) -> Result<String, Failure> {
    let Some(text) = read(path)? else {
        return Err(wrong(path, "there is no such file; correct TOOZ_URL_FILE"));
    };
    let url = without_line_end(&text.text);
    if url.is_empty() {
        return Err(wrong(path, "it is empty; write a URL such as redis://host into it"));
    }
    text.warn_of_readers(path, url);
    Ok(url.to_owned())
}

/// What a configuration file says; `None` if it does not exist, or is empty.
pub(crate) fn config(path: &Path) -> Result<Option<(String, Config)>, Failure> {
    let Some(text) = read(path)? else { return Ok(None) };
    let mut table: Table = toml::from_str(&text.text).map_err(|error: toml::de::Error| {
        let before = error.span().map_or("", |span| text.text.get(..span.start).unwrap_or(""));
        // Not with the line itself: it may hold a password.
        wrong(
            path,
            format!("line {} is not valid TOML: {}", before.matches('\n').count() + 1, error.message()),
        )
    })?;
    let mut take = |key: &str| match table.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong(path, format!("{key} must be a string; write {key} = \"…\""))),
    };
    let (url, namespace, ttl) = (take("url")?, take("namespace")?, take("ttl")?);
    if !table.is_empty() {
        // Not with its name: it may be a URL in the wrong place.
        return Err(wrong(path, "it has an unknown key; there are url, namespace and ttl"));
    }
    let ttl =
        ttl.map(|ttl| args::duration(&ttl)).transpose().map_err(|why| wrong(path, format!("ttl: {why}")))?;
    match url {
        Some(url) => {
            text.warn_of_readers(path, &url);
            Ok(Some((url, Config { namespace, ttl })))
        }
        None if namespace.is_some() || ttl.is_some() => {
            Err(wrong(path, "it names no url, for which its namespace and ttl are meant; add url = \"…\""))
        }
        None => Ok(None),
    }
}

fn holds_password(url: &BackendUrl) -> bool {
    url.password().is_some() || url.options().iter().any(|(name, _)| name.contains("password"))
}

fn wrong(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(USAGE, format!("{}: {why}", path.display()))
}

/// A file's text, and whether every user can read it.
struct Text {
    text: String,
    is_public: bool,
}

impl Text {
    fn warn_of_readers(&self, path: &Path, url: &str) {
        if self.is_public && BackendUrl::parse(url).is_ok_and(|url| holds_password(&url)) {
            let path = path.display();
            messages::notice(&format!(
                "warning: {path} holds a password, and every user can read it; give it the mode 640 and a group of those who may"
            ));
        }
    }
}

/// Reads a file, if only its owner can change it, who is root or this user. `None` if there is none.
fn read(path: &Path) -> Result<Option<Text>, Failure> {
    // A named pipe without a writer must not block.
    let file = match File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(wrong(path, format!("cannot read it ({error}); correct its permissions"))),
    };
    // Of the open file: what is checked is what is read.
    let about = file.metadata().map_err(|error| wrong(path, error))?;
    if !about.is_file() {
        return Err(wrong(path, "it is not a regular file"));
    }
    if ![0, nix::unistd::geteuid().as_raw()].contains(&about.uid()) {
        return Err(wrong(path, "another user owns it and could name another backend; run chown on it"));
    }
    if about.mode() & 0o022 != 0 {
        return Err(wrong(path, "other users can write it and name another backend; run chmod go-w on it"));
    }
    let mut text = String::new();
    let length = file.take(LONGEST + 1).read_to_string(&mut text).map_err(|error| wrong(path, error))?;
    if length as u64 > LONGEST {
        return Err(wrong(path, format!("it is longer than {LONGEST} bytes; name another file")));
    }
    Ok(Some(Text { text, is_public: about.mode() & 0o004 != 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_and_the_blanks_before_it_go() {
        for (text, without) in [
            ("a", "a"),
            ("a\n", "a"),
            ("a \t\r\n", "a"),
            ("a  ", "a"),
            ("a\n\n", "a\n"),
            (" a\n", " a"),
            ("\n", ""),
        ] {
            assert_eq!(without_line_end(text), without, "{text:?}");
        }
    }
}
