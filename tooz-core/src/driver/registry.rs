//! Which drivers are linked into this program, found by the URL's scheme.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::driver::examine::Examining;
use crate::driver::{Connect, Driver};
use crate::near::nearest;
use crate::options::OptionSpec;
use crate::{BackendUrl, Characteristics, Error, ErrorKind, Result};

/// The answer of a driver's connect function.
pub type Connecting = Pin<Box<dyn Future<Output = Result<Arc<dyn Driver>>> + Send>>;

/// What a driver crate submits: `inventory::submit! { REGISTRATION }`.
///
/// A crate that is only listed in Cargo.toml and never named is dropped by the linker, and its registration with
/// it: the program writes `use tooz_sqlite as _;`, or depends on the `tooz` facade, whose features do that.
/// Where constructors do not run (a static library in a C program), pass the driver crate's public
/// `REGISTRATION` to [`Builder::driver`](crate::Builder::driver).
#[derive(Clone, Copy)]
pub struct Registration {
    crate_name: &'static str,
    schemes: &'static [&'static str],
    options: &'static [OptionSpec],
    pub(crate) foreign_options: &'static [(&'static str, &'static str)],
    characteristics: fn(&BackendUrl) -> Characteristics,
    connect: fn(Connect) -> Connecting,
    pub(crate) examine: Option<fn(Connect) -> Examining>,
}

inventory::collect!(Registration);

impl Registration {
    /// A driver of `crate_name` for `schemes`, the first of which is its own name and the others aliases.
    ///
    /// `characteristics` says what the scheme and its options can keep at best, without connecting.
    pub const fn new(
        crate_name: &'static str,
        schemes: &'static [&'static str],
        characteristics: fn(&BackendUrl) -> Characteristics,
        connect: fn(Connect) -> Connecting,
    ) -> Self {
        Self {
            crate_name,
            schemes,
            options: &[],
            foreign_options: &[],
            characteristics,
            connect,
            examine: None,
        }
    }

    /// Adds the driver's own options.
    #[must_use]
    pub const fn options(mut self, options: &'static [OptionSpec]) -> Self {
        self.options = options;
        self
    }

    /// Adds options that Python tooz or another library has for this backend under another name, each with what to write
    /// here instead. A URL with one of them is refused with that advice.
    #[must_use]
    pub const fn foreign_options(mut self, options: &'static [(&'static str, &'static str)]) -> Self {
        self.foreign_options = options;
        self
    }

    /// Adds a look at the backend's state and settings, for operators (`tooz doctor`).
    ///
    /// It makes connections of its own, so that it may also say why connecting fails, and changes nothing on the
    /// backend. What it finds is data and no error; an error means that nothing at all could be found out.
    #[must_use]
    pub const fn examine(mut self, examine: fn(Connect) -> Examining) -> Self {
        self.examine = Some(examine);
        self
    }

    /// The crate that registered it.
    pub const fn crate_name(&self) -> &'static str {
        self.crate_name
    }

    /// Its schemes; the first is its name.
    pub const fn schemes(&self) -> &'static [&'static str] {
        self.schemes
    }

    /// Its own options, beside those that every driver has.
    pub const fn own_options(&self) -> &'static [OptionSpec] {
        self.options
    }

    /// What `url` can keep at best; `connect` asks the server and may lower it.
    pub fn characteristics(&self, url: &BackendUrl) -> Characteristics {
        (self.characteristics)(url)
    }

    pub(crate) fn connect(&self, request: Connect) -> Connecting {
        (self.connect)(request)
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("crate_name", &self.crate_name)
            .field("schemes", &self.schemes)
            .finish_non_exhaustive()
    }
}

/// Every driver linked into this program, sorted by scheme.
pub fn drivers() -> Vec<Registration> {
    let mut all: Vec<_> = inventory::iter::<Registration>.into_iter().copied().collect();
    all.sort_by_key(|registration| registration.schemes);
    all
}

/// The driver for `scheme` among `by_hand` and the linked ones.
pub(crate) fn find(scheme: &str, by_hand: &[Registration]) -> Result<Registration> {
    let serves = |registration: &&Registration| registration.schemes.contains(&scheme);
    if let Some(registration) = by_hand.iter().find(serves) {
        return Ok(*registration);
    }
    let all = drivers();
    let mut serving = all.iter().filter(serves);
    match (serving.next(), serving.next()) {
        (Some(registration), None) => Ok(*registration),
        (Some(one), Some(other)) => Err(Error::new(
            ErrorKind::InvalidUrl,
            format!(
                "two drivers are registered for {scheme}://, by {} and by {}; link only one of them",
                one.crate_name, other.crate_name
            ),
        )),
        (None, _) => Err(unknown(scheme, &all)),
    }
}

/// The schemes of the drivers that exist, by the feature of the `tooz` crate that links them: an error has to name a driver
/// that is *not* linked. A test of that crate compares it with what the drivers register.
#[doc(hidden)]
pub const FEATURES: &[(&str, &[&str])] = &[
    ("memory", &["memory", "zake"]),
    ("sqlite", &["sqlite"]),
    ("file", &["file"]),
    (
        "redis",
        &[
            "redis",
            "valkey",
            "redis+unix",
            "valkey+unix",
            "redis+sentinel",
            "valkey+sentinel",
            "redis+cluster",
            "valkey+cluster",
        ],
    ),
    (
        "redis-tls",
        &["rediss", "valkeys", "rediss+sentinel", "valkeys+sentinel", "rediss+cluster", "valkeys+cluster"],
    ),
    ("etcd", &["etcd", "etcd3", "etcd3+http"]),
    ("etcd-tls", &["etcds", "etcd3+https"]),
    ("memcached", &["memcached"]),
];

fn unknown(scheme: &str, all: &[Registration]) -> Error {
    let known: Vec<_> =
        all.iter().flat_map(|registration| registration.schemes).map(|s| format!("{s}://")).collect();
    let known = if known.is_empty() { "none at all".to_owned() } else { known.join(", ") };
    let linked = all.iter().flat_map(|registration| registration.schemes.iter().copied());
    let others = FEATURES.iter().flat_map(|(_, schemes)| schemes.iter().copied());
    let feature = FEATURES.iter().find(|(_, schemes)| schemes.contains(&scheme));
    let remedy = match feature {
        Some((feature, _)) => {
            let (driver, own_feature) = feature.split_once('-').unwrap_or((feature, ""));
            let own_feature = if own_feature.is_empty() {
                String::new()
            } else {
                format!(" with its feature {own_feature}")
            };
            format!(
                "enable the feature \"{feature}\" of the crate tooz, or depend on the crate tooz-{driver}{own_feature} and \
                 write `use tooz_{driver} as _;`"
            )
        }
        None => match nearest(scheme, linked.chain(others)) {
            Some(meant) => format!("did you mean {meant}://?"),
            None => "there is no driver for it; choose another backend".to_owned(),
        },
    };
    Error::new(
        ErrorKind::UnknownScheme,
        format!("no driver for {scheme}:// is linked into this program (linked: {known}); {remedy}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scheme_says_what_to_write() {
        let said = |scheme| {
            let error = find(scheme, &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownScheme);
            error.to_string()
        };
        assert!(said("sqlite").contains("use tooz_sqlite as _;"));
        assert!(
            said("etcd3+http").contains("feature \"etcd\"")
                && said("etcd3+http").contains("use tooz_etcd as _;")
        );
        for (scheme, driver) in [("rediss+sentinel", "redis"), ("etcd3+https", "etcd")] {
            let tls = said(scheme);
            let (feature, own) =
                (format!("feature \"{driver}-tls\""), format!("tooz-{driver} with its feature tls"));
            assert!(tls.contains(&feature) && tls.contains(&own), "{tls}");
        }
        for (mistyped, meant) in [
            ("etdc", "etcd"),
            ("reddis", "redis"),
            ("valkeey", "valkey"),
            ("sqlit", "sqlite"),
            ("memcache", "memcached"),
        ] {
            let said = said(mistyped);
            assert!(said.contains(mistyped) && said.contains(&format!("did you mean {meant}://?")), "{said}");
        }
        for scheme in ["postgresql", "consul"] {
            let said = said(scheme);
            assert!(said.contains("there is no driver for it") && !said.contains("use tooz_"), "{said}");
        }
    }
}
