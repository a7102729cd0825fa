//! From the URL to a typed configuration.

use std::path::PathBuf;
use std::time::Duration;

use tooz_core::driver::{LAYOUT_OPTION, Limits, OptionKind, OptionSpec, layout_of};
use tooz_core::{BackendUrl, Characteristics, Error, ErrorKind, Result};
use tooz_local::options::{BOOT_ID_OPTION, FORCE_FILESYSTEM_OPTION, MODE_OPTION, mode_of};
use tooz_local::os_lock::Flavor;

/// The options that only this driver knows.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "backend",
        OptionKind::Word(&["ofd", "portable"]),
        "portable: the standard library's file locks and polling; does not exclude Python (default: ofd)",
    ),
    OptionSpec::new(
        "timeout",
        OptionKind::Duration { min: Duration::from_secs(1), max: Duration::from_hours(24) },
        "how long a Python member lives after its last heartbeat; set the value that the Python processes \
         use (default: 10s)",
    ),
    MODE_OPTION,
    FORCE_FILESYSTEM_OPTION,
    BOOT_ID_OPTION,
    LAYOUT_OPTION,
];

/// The layout that this version writes (see [`keys`](crate::keys)).
const LAYOUT: u32 = 1;

/// Python tooz's own default.
const PYTHON_TIMEOUT: Duration = Duration::from_secs(10);
/// The namespace that is the directory itself, since Python's driver knows none.
const DEFAULT_NAMESPACE: &str = "tooz";

/// What a URL says.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) path: PathBuf,
    /// `None`: the one that is shared with Python.
    pub(crate) namespace: Option<String>,
    pub(crate) flavor: Flavor,
    pub(crate) force_filesystem: bool,
    pub(crate) python_timeout: Duration,
    pub(crate) mode: u32,
    pub(crate) boot_id: Option<String>,
    pub(crate) layout: u32,
    pub(crate) limits: Limits,
    /// For looking alone: nothing is made and nothing is written.
    pub(crate) view: bool,
}

impl Config {
    pub(crate) fn read(url: &BackendUrl, limits: Limits) -> Result<Self> {
        if url.user().is_some() || url.password().is_some() {
            return Err(Error::new(
                ErrorKind::InvalidUrl,
                "file:// takes no user and no password: the directory's permissions decide",
            ));
        }
        let flavor = match url.option("backend") {
            None | Some("ofd") => Flavor::OpenFile,
            Some("portable") => Flavor::Portable,
            Some(_) => {
                let what = "option \"backend\": it must be ofd or portable";
                return Err(Error::new(ErrorKind::InvalidOption, what));
            }
        };
        Ok(Self {
            path: url.file_path()?,
            namespace: url.option("namespace").filter(|name| *name != DEFAULT_NAMESPACE).map(str::to_owned),
            flavor,
            force_filesystem: url.flag("force_filesystem")?.unwrap_or(false),
            python_timeout: url.duration("timeout")?.unwrap_or(PYTHON_TIMEOUT),
            mode: mode_of(url)?,
            boot_id: url.option("boot_id").map(str::to_owned),
            layout: layout_of(url, LAYOUT)?,
            limits,
            view: false,
        })
    }
}

/// What such a URL guarantees on a local file system; the README gives the reason for each.
pub(crate) fn characteristics(url: &BackendUrl) -> Characteristics {
    let all =
        Characteristics::all() - Characteristics::DISTRIBUTED_ACROSS_HOSTS - Characteristics::FAIR_LOCKS;
    if url.option("backend") == Some("portable") { all - Characteristics::PUSH_WATCHES } else { all }
}

#[cfg(test)]
mod tests {
    use tooz_local::options::directory_mode;

    use super::*;

    fn config(url: &str) -> Result<Config> {
        let url = BackendUrl::parse(url).unwrap();
        Config::read(&url, Limits::of(&url)?)
    }

    #[test]
    fn defaults_and_options() {
        let plain = config("file:///var/lib/app").unwrap();
        assert_eq!(plain.path, PathBuf::from("/var/lib/app"));
        assert_eq!((plain.namespace, plain.flavor, plain.mode), (None, Flavor::OpenFile, 0o600));
        assert_eq!(plain.python_timeout, Duration::from_secs(10));
        assert_eq!(config("file:///x?namespace=tooz").unwrap().namespace, None);
        let other = config("file://./x?namespace=n&backend=portable&mode=660&timeout=30").unwrap();
        assert_eq!((other.namespace.as_deref(), other.flavor), (Some("n"), Flavor::Portable));
        assert_eq!((other.mode, directory_mode(other.mode)), (0o660, 0o770));
        assert_eq!(other.python_timeout, Duration::from_secs(30));
    }

    #[test]
    fn what_is_refused_says_why() {
        for (url, kind) in [
            ("file://", ErrorKind::InvalidUrl),
            ("file://host/x", ErrorKind::InvalidUrl),
            ("file://me:secret@./x", ErrorKind::InvalidUrl),
            ("file:///x?backend=flock", ErrorKind::InvalidOption),
            ("file:///x?mode=777", ErrorKind::InvalidOption),
            ("file:///x?mode=440", ErrorKind::InvalidOption),
            ("file:///x?mode=rw", ErrorKind::InvalidOption),
        ] {
            let error = config(url).unwrap_err();
            assert_eq!(error.kind(), kind, "{url}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn polling_pushes_nothing() {
        let claims = |url| characteristics(&BackendUrl::parse(url).unwrap());
        let full = claims("file:///x");
        assert!(full.contains(Characteristics::STRICT_EXCLUSION | Characteristics::DURABLE_FENCING));
        assert!(!full.contains(Characteristics::FAIR_LOCKS));
        assert_eq!(full - claims("file:///x?backend=portable"), Characteristics::PUSH_WATCHES);
    }
}
