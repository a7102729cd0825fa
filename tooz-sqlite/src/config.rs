//! From the URL to a typed configuration.

use std::path::PathBuf;
use std::sync::Arc;

use tooz_core::driver::{LAYOUT_OPTION, Limits, OptionKind, OptionSpec, layout_of};
use tooz_core::{BackendUrl, Characteristics, Error, ErrorKind, Result};
use tooz_local::options::{BOOT_ID_OPTION, FORCE_FILESYSTEM_OPTION, MODE_OPTION, mode_of};

/// The options that only this driver knows.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "synchronous",
        OptionKind::Word(&["normal", "full"]),
        "full: every commit survives a power cut, at the price of one sync each (default: normal; groups and the \
         fencing counter are always written at full)",
    ),
    MODE_OPTION,
    FORCE_FILESYSTEM_OPTION,
    BOOT_ID_OPTION,
    LAYOUT_OPTION,
];

/// The layout that this version writes: the `user_version` of its schema.
pub(crate) const LAYOUT: u32 = 1;

/// What a URL says.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) path: PathBuf,
    pub(crate) namespace: Arc<str>,
    /// Whether every commit is synced.
    pub(crate) durable: bool,
    pub(crate) force_filesystem: bool,
    /// The permissions of new files.
    pub(crate) mode: u32,
    pub(crate) boot_id: Option<String>,
    pub(crate) layout: u32,
    /// Not of the URL: see [`tooz_core::Builder::adopt`].
    pub(crate) adopt: bool,
    pub(crate) limits: Limits,
}

impl Config {
    pub(crate) fn read(url: &BackendUrl, limits: Limits) -> Result<Self> {
        let invalid = |what: &'static str| Err(Error::new(ErrorKind::InvalidUrl, what));
        let in_memory = url.hosts().iter().any(|host| host.name.starts_with(":memory"))
            || url.path().starts_with(b"/:memory:")
            || url.option("mode") == Some("memory");
        if in_memory {
            return invalid(
                "other processes cannot see an SQLite database in memory; write memory://name instead",
            );
        }
        if url.user().is_some() || url.password().is_some() {
            return invalid("sqlite:// takes no user and no password: the file's permissions decide");
        }
        let path = url.file_path()?;
        if path.file_name().is_none() || url.path().ends_with(b"/") {
            return invalid(
                "sqlite:// names a file, not a directory; write for example sqlite:///var/lib/app/tooz.db",
            );
        }
        let durable = match url.option("synchronous") {
            None | Some("normal") => false,
            Some("full") => true,
            Some(_) => {
                let what = "option \"synchronous\": it must be normal or full";
                return Err(Error::new(ErrorKind::InvalidOption, what));
            }
        };
        Ok(Self {
            path,
            namespace: url.option("namespace").unwrap_or("tooz").into(),
            durable,
            force_filesystem: url.flag("force_filesystem")?.unwrap_or(false),
            mode: mode_of(url)?,
            boot_id: url.option("boot_id").map(str::to_owned),
            layout: layout_of(url, LAYOUT)?,
            adopt: false,
            limits,
        })
    }
}

/// What the scheme guarantees on a local file system: everything but several hosts.
pub(crate) fn characteristics(_url: &BackendUrl) -> Characteristics {
    Characteristics::all() - Characteristics::DISTRIBUTED_ACROSS_HOSTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<Config> {
        let url = BackendUrl::parse(url).unwrap();
        Config::read(&url, Limits::of(&url)?)
    }

    #[test]
    fn defaults_and_options() {
        let plain = config("sqlite:///var/lib/app/tooz.db").unwrap();
        assert_eq!(plain.path, PathBuf::from("/var/lib/app/tooz.db"));
        assert_eq!((&*plain.namespace, plain.durable, plain.mode), ("tooz", false, 0o600));
        assert_eq!(config("sqlite:///x.db?mode=0660").unwrap().mode, 0o660);
        let full = config("sqlite://./x.db?synchronous=full&namespace=n").unwrap();
        assert_eq!((&*full.namespace, full.durable), ("n", true));
    }

    #[test]
    fn what_is_refused_says_what_to_write() {
        for (url, kind, word) in [
            ("sqlite://:memory:", None, ""),
            ("sqlite:///:memory:", Some(ErrorKind::InvalidUrl), "memory://"),
            ("sqlite:///x.db?mode=memory", Some(ErrorKind::InvalidUrl), "memory://"),
            ("sqlite:///x.db?mode=777", Some(ErrorKind::InvalidOption), "660"),
            ("sqlite:///x.db?mode=440", Some(ErrorKind::InvalidOption), "660"),
            ("sqlite:///x.db?mode=rw", Some(ErrorKind::InvalidOption), "660"),
            ("sqlite:///x/", Some(ErrorKind::InvalidUrl), "directory"),
            ("sqlite://host/x.db", Some(ErrorKind::InvalidUrl), "host"),
            ("sqlite:///x.db?synchronous=off", Some(ErrorKind::InvalidOption), "normal or full"),
            ("sqlite://me:secret@./x.db", Some(ErrorKind::InvalidUrl), "permissions"),
        ] {
            match (BackendUrl::parse(url), kind) {
                (Err(_), None) => {} // the parser itself refuses it
                (_, kind) => {
                    let error = config(url).unwrap_err();
                    assert_eq!(Some(error.kind()), kind, "{url}");
                    assert!(error.to_string().contains(word), "{error}");
                    assert!(!error.to_string().contains("secret"), "{error}");
                }
            }
        }
    }
}
