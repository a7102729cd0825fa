//! Which backend, namespace and ttl a verb uses. The first source that names a URL wins: `--url`, a variable, a
//! configuration file, the user's own database.

use std::env::{current_dir, var_os};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fmt, io};

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use tooz::BackendUrl;

use crate::args::{self, BackendOptions};
use crate::exit::{Failure, USAGE};
use crate::settings_file::{self, Config};
use crate::text::bytes;

const URL: &str = "TOOZ_URL";
const URL_FILE: &str = "TOOZ_URL_FILE";
const NAMESPACE: &str = "TOOZ_NAMESPACE";
const TTL: &str = "TOOZ_TTL";

/// Characters that the path of a backend URL holds percent-encoded.
const IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'#').add(b'?').add(b'%');

/// The backend, and the member that connects to it.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) url: String,
    pub(crate) source: Source,
    /// From an option or a variable.
    namespace: Option<String>,
    /// From an option or a variable.
    ttl: Option<Duration>,
    /// What the file says that names the URL.
    config: Config,
    pub(crate) member: Option<OsString>,
}

/// What named the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    CommandLine,
    Variable,
    /// The file that `TOOZ_URL_FILE` names.
    UrlFile(PathBuf),
    /// A configuration file.
    Config(PathBuf),
    /// Nothing did: the user's own database.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("from the command line"),
            Self::Variable => f.write_str("from TOOZ_URL"),
            Self::UrlFile(path) => write!(f, "from {}, which TOOZ_URL_FILE names", path.display()),
            Self::Config(path) => write!(f, "from {}", path.display()),
            Self::Default => f.write_str("the default, for processes of this user on this machine"),
        }
    }
}

impl Backend {
    /// From the options, the environment, the files and the default. `argument` is a URL besides `--url`.
    pub(crate) fn of(options: &BackendOptions, argument: Option<&str>) -> Result<Self, Failure> {
        let (url, source, config) = match argument.or(options.url.as_deref()) {
            Some(url) => (url.to_owned(), Source::CommandLine, Config::default()),
            None => named(variable(URL)?, variable_path(URL_FILE))?,
        };
        let namespace = match &options.namespace {
            Some(namespace) => Some(namespace.clone()),
            None => variable(NAMESPACE)?,
        };
        let ttl = match options.ttl {
            Some(ttl) => Some(ttl),
            None => ttl_of_variable()?,
        };
        let member = options.member.clone();
        Ok(Self { url: absolute(url, &source)?, source, namespace, ttl, config, member })
    }

    /// The same for a member whose id is new.
    pub(crate) fn of_another_member(&self) -> Self {
        Self { member: None, ..self.clone() }
    }

    /// The directory of the user's own database, if that is the backend. It may not exist.
    pub(crate) fn own_directory(&self) -> Result<Option<PathBuf>, Failure> {
        if self.source != Source::Default {
            return Ok(None);
        }
        Ok(BackendUrl::parse(&self.url)?.file_path()?.parent().map(Path::to_owned))
    }

    /// The same, with the database at this path.
    pub(crate) fn with_database(&self, path: &Path) -> Self {
        Self { url: format!("sqlite://{}", in_url(path)), ..self.clone() }
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref().or(self.config.namespace.as_deref())
    }

    pub(crate) fn ttl(&self) -> Option<Duration> {
        self.ttl.or(self.config.ttl)
    }

    /// Lets `command` use the same backend. What a file says is handed on as the file, so that no password gets into an
    /// environment, and no namespace to another backend that a `tooz` below names.
    pub(crate) fn hand_on(&self, command: &mut Command) {
        let ttl = self.ttl.map(|ttl| format!("{}ms", ttl.as_millis()).into());
        let (url, file): (Option<OsString>, _) = match &self.source {
            Source::UrlFile(path) | Source::Config(path) => (None, Some(path.into())),
            _ => (Some(self.url.clone().into()), None),
        };
        let namespace = self.namespace.clone().map(Into::into);
        for (name, value) in [(URL, url), (URL_FILE, file), (NAMESPACE, namespace), (TTL, ttl)] {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }
}

fn ttl_of_variable() -> Result<Option<Duration>, Failure> {
    let Some(text) = variable(TTL)? else { return Ok(None) };
    args::duration(&text).map(Some).map_err(|why| usage(format!("{TTL}: {why}")))
}

fn usage(what: impl Into<String>) -> Failure {
    Failure::new(USAGE, what)
}

/// The URL that no option names, its source, and what goes with it.
fn named(url: Option<String>, file: Option<PathBuf>) -> Result<(String, Source, Config), Failure> {
    match (url, file) {
        (Some(_), Some(_)) => {
            return Err(usage("TOOZ_URL and TOOZ_URL_FILE are both set; unset one of them"));
        }
        (Some(url), None) => {
            let url = settings_file::without_line_end(&url).to_owned();
            return Ok((url, Source::Variable, Config::default()));
        }
        (None, Some(path)) => {
            let path = std::path::absolute(&path).map_err(|error| no_directory(&error))?;
            let (url, config) = if path.extension().is_some_and(|extension| extension == "toml") {
                settings_file::config(&path)?.ok_or_else(|| {
                    usage(format!(
                        "{}: there is no such file, or it names no url; correct TOOZ_URL_FILE",
                        path.display()
                    ))
                })?
            } else {
                (settings_file::url(&path)?, Config::default())
            };
            return Ok((url, Source::UrlFile(path), config));
        }
        (None, None) => {}
    }
    let of_the_user =
        user_directory("XDG_CONFIG_HOME", ".config").map(|directory| directory.join("config.toml"));
    for path in of_the_user.into_iter().chain([PathBuf::from("/etc/tooz/config.toml")]) {
        if let Some((url, config)) = settings_file::config(&path)? {
            return Ok((url, Source::Config(path), config));
        }
    }
    Ok((embedded()?, Source::Default, Config::default()))
}

/// A variable; an empty one counts as not set.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    let Some(value) = var_os(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let wrong = |_| usage(format!("{name} is not UTF-8; correct it, and write such bytes of a URL as %XX"));
    value.into_string().map(Some).map_err(wrong)
}

fn variable_path(name: &str) -> Option<PathBuf> {
    var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The URL of the user's own database.
fn embedded() -> Result<String, Failure> {
    let directory = user_directory("XDG_STATE_HOME", ".local/state").ok_or_else(|| {
        usage("neither XDG_STATE_HOME nor HOME names a directory; give --url or set TOOZ_URL")
    })?;
    Ok(format!("sqlite://{}", in_url(&directory.join("tooz.db"))))
}

/// The user's directory of tooz, by the XDG base directory specification.
fn user_directory(variable: &str, below_home: &str) -> Option<PathBuf> {
    user_directory_in(var_os(variable), var_os("HOME"), below_home)
}

/// A relative path counts as not set, as the specification says.
fn user_directory_in(base: Option<OsString>, home: Option<OsString>, below_home: &str) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let base = base.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(below_home)))?;
    Some(base.join("tooz"))
}

/// `sqlite://./a` names another file after a `cd`, for which commands are free. In a file it is meant from the file's directory.
fn absolute(url: String, source: &Source) -> Result<String, Failure> {
    let Some((scheme, rest)) = url.split_once("://") else { return Ok(url) };
    if !(rest.starts_with("./") || rest.starts_with("../")) {
        return Ok(url);
    }
    let base = match source {
        Source::UrlFile(path) | Source::Config(path) => path.parent().unwrap_or(path).to_owned(),
        _ => current_dir().map_err(|error| no_directory(&error))?,
    };
    Ok(format!("{scheme}://{}/{rest}", in_url(&base)))
}

fn no_directory(error: &io::Error) -> Failure {
    usage(format!("cannot find the current directory ({error}); name an absolute path"))
}

fn in_url(path: &Path) -> String {
    percent_encode(bytes(path.as_os_str()), IN_PATH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_the_user_follows_the_environment() {
        let path = |base: Option<&str>, home: Option<&str>| {
            user_directory_in(base.map(Into::into), home.map(Into::into), ".local/state")
        };
        assert_eq!(path(Some("/s"), Some("/h")), Some("/s/tooz".into()));
        assert_eq!(path(None, Some("/h")), Some("/h/.local/state/tooz".into()));
        assert_eq!(path(Some("s"), Some("/h")), Some("/h/.local/state/tooz".into()));
        assert_eq!(path(Some("s"), Some("h")), None);
        assert_eq!(path(None, None), None);
    }

    #[test]
    fn a_relative_path_becomes_absolute_and_nothing_else_changes() {
        let here = in_url(&current_dir().unwrap());
        for (url, becomes) in [
            ("sqlite://./a.db?ttl=1s", format!("sqlite://{here}/./a.db?ttl=1s")),
            ("file://../a", format!("file://{here}/../a")),
            ("sqlite:///a", "sqlite:///a".to_owned()),
            ("redis://h/./1", "redis://h/./1".to_owned()),
            ("nonsense", "nonsense".to_owned()),
        ] {
            assert_eq!(absolute(url.to_owned(), &Source::Variable).unwrap(), becomes);
        }
        let of_a_file = Source::Config("/etc/tooz/config.toml".into());
        assert_eq!(absolute("file://./a".into(), &of_a_file).unwrap(), "file:///etc/tooz/./a");
    }
}
