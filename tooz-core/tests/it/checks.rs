//! What has to hold of whatever is read, however it came about: one function for each parser, called by the property
//! tests with what proptest makes up and by the targets in `fuzz/` with what the fuzzer finds.
#![allow(dead_code, clippy::format_push_string, clippy::unwrap_used)] // each program that includes this file uses a part

use std::time::Duration;

use tooz_core::driver::{AttemptId, SessionId, parse_duration};
use tooz_core::{BackendUrl, Capabilities, ErrorKind, GroupId, LockName, MAX_NAME_BYTES, MemberId};

/// What a secret holds; it is looked for in everything that is shown.
pub(crate) const MARK: &str = "hunter2";

fn is_one_line(shown: &str) -> bool {
    !shown.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
}

/// Any text is a URL or an error that says why not, on one line.
pub(crate) fn url(text: &str) {
    match BackendUrl::parse(text) {
        Ok(url) => {
            assert!(is_one_line(&format!("{url}{url:?}")), "{url}");
            assert!(!url.scheme().is_empty() && url.hosts().iter().all(|host| !host.name.is_empty()));
            for (name, value) in url.options() {
                let last = url.option(name).expect("an option that is listed can be asked for");
                assert!(url.options().iter().any(|(other, known)| other == name && known == last));
                // Whatever it says, reading it as anything fails with words and without its value.
                for error in [url.duration(name).err(), url.integer(name).err(), url.flag(name).err()] {
                    if let Some(error) = error.filter(|_| value.len() > 30 && !name.contains(value.as_str()))
                    {
                        assert_eq!(error.kind(), ErrorKind::InvalidOption);
                        assert!(!error.to_string().contains(value.as_str()), "{error}");
                    }
                }
            }
            match url.file_path() {
                Ok(path) => assert!(!path.as_os_str().is_empty()),
                Err(error) => assert!(is_one_line(&error.to_string()), "{error}"),
            }
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{error}");
            assert!(is_one_line(&error.to_string()), "{error}");
        }
    }
    duration(text);
}

/// A URL that has [`MARK`] in its password, or in an option whose name says that it is secret, never shows it: neither
/// when it is read nor when it is refused.
pub(crate) fn hidden(text: &str) {
    let mut shown = String::new();
    match BackendUrl::parse(text) {
        Ok(url) => {
            shown += &format!("{url} {url:?} {url:#?}");
            shown += &url.file_path().err().map(|error| format!("{error} {error:?}")).unwrap_or_default();
        }
        Err(error) => shown += &format!("{error} {error:?}"),
    }
    assert!(!shown.contains(MARK), "{shown}");
}

/// Any text is a duration of sensible length, or none.
pub(crate) fn duration(text: &str) {
    if let Some(read) = parse_duration(text) {
        assert!(read <= Duration::from_secs(1_000_000_000));
    }
}

/// Any bytes are capabilities, kept as they are, or corrupt; reading them as anything ends.
pub(crate) fn capabilities(bytes: &[u8]) {
    match Capabilities::from_msgpack(bytes) {
        Ok(read) => {
            assert_eq!(read.as_msgpack(), bytes);
            assert_eq!(read.is_none(), bytes == [0xc0]);
            if let Some(raw) = read.raw() {
                let written = Capabilities::from_raw(raw).expect("they are no larger than they were");
                assert_eq!(written.raw(), Some(raw));
            }
            let _ = read.get::<serde::de::IgnoredAny>().expect("it was read as such before");
            let wrong = [
                read.get::<Vec<u64>>().err(),
                read.get::<std::collections::BTreeMap<String, String>>().err(),
                read.get::<(u8, Option<String>)>().err(),
                read.get::<String>().err(),
            ];
            for error in wrong.into_iter().flatten() {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
    }
    if let Ok(written) = Capabilities::from_raw(bytes) {
        assert_eq!(written.raw(), Some(bytes));
        assert_eq!(Capabilities::from_msgpack(written.as_msgpack()).ok(), Some(written));
    }
}

/// Any bytes of a fitting length are a name, kept as they are and shown on one line.
pub(crate) fn name(bytes: &[u8]) {
    match LockName::new(bytes) {
        Ok(name) => {
            assert_eq!(name.as_bytes(), bytes);
            assert!(is_one_line(&format!("{name}{name:?}")), "{name}");
            let (group, member) = (GroupId::new(bytes).ok(), MemberId::new(bytes).ok());
            assert_eq!(group.map(|id| id.to_string()), member.map(|id| id.to_string()));
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(bytes.is_empty() || bytes.len() > MAX_NAME_BYTES);
        }
    }
}

/// Two names are shown differently: who reads a log can tell them apart.
pub(crate) fn names(one: &[u8], other: &[u8]) {
    if let (Ok(one), Ok(other)) = (LockName::new(one), LockName::new(other)) {
        assert_eq!(one == other, one.to_string() == other.to_string(), "{one} {other}");
    }
}

/// An id is read from exactly the text that is written for it.
pub(crate) fn id(text: &str) {
    for read in
        [SessionId::parse(text).map(|id| id.to_string()), AttemptId::parse(text).map(|id| id.to_string())]
    {
        assert!(read.is_none_or(|written| written == text), "{text}");
    }
}
