//! What the suite runs against.

use std::any::Any;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tooz_core::{BackendUrl, Characteristics};

use crate::kit::Kit;

/// A fresh, empty backend for one case.
pub struct TestBackend {
    url: String,
    route: Option<Box<Route>>,
    files: Option<PathBuf>,
    keep: Option<Box<dyn Any + Send + Sync>>,
}

/// The URL under which a member reaches the backend.
type Route = dyn Fn(&[u8]) -> String + Send + Sync;

impl TestBackend {
    /// A backend that stands at `url`. Nothing else uses it.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), route: None, files: None, keep: None }
    }

    /// Gives each member a URL of its own, so that its network can be hurt alone.
    #[must_use]
    pub fn route(mut self, route: impl Fn(&[u8]) -> String + Send + Sync + 'static) -> Self {
        self.route = Some(Box::new(route));
        self
    }

    /// The directory in which all its files stand.
    #[must_use]
    pub fn files(mut self, directory: impl Into<PathBuf>) -> Self {
        self.files = Some(directory.into());
        self
    }

    /// Something to drop when the case is over: a temporary directory, a server.
    #[must_use]
    pub fn keep(mut self, kept: impl Any + Send + Sync) -> Self {
        self.keep = Some(Box::new(kept));
        self
    }

    /// The backend URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL under which `member` reaches it.
    pub fn url_of(&self, member: &[u8]) -> String {
        self.route.as_ref().map_or_else(|| self.url.clone(), |route| route(member))
    }

    /// The directory in which its files stand.
    pub fn directory(&self) -> Option<&Path> {
        self.files.as_deref()
    }
}

impl fmt::Debug for TestBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestBackend")
            .field("url", &self.url)
            .field("kept", &self.keep.is_some())
            .finish_non_exhaustive()
    }
}

/// On which clock a backend is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// A tokio clock that jumps to the next timer when nothing else is to be done.
    Virtual,
    /// Time as it passes.
    Real,
}

/// What a case needs of its backend.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// On which clock.
    pub time: Time,
    /// It lasts as long as sessions live, so they had better live shortly. Elsewhere a long life costs nothing, and bears
    /// with a machine that stands still for a moment.
    pub lasting: bool,
}

/// How many times longer anything may take on a machine that has other things to do.
const LOADED: u32 = 5;

type Fresh = dyn Fn(Wish) -> Result<TestBackend, String> + Send + Sync;
type MakeKit = dyn Fn(&TestBackend) -> Box<dyn Kit> + Send + Sync;

/// A driver with one way of running its backend.
#[derive(Clone)]
#[allow(clippy::struct_excessive_bools)] // each is one thing that a target says about itself
pub struct Target {
    name: String,
    fresh: Arc<Fresh>,
    kit: Option<Arc<MakeKit>>,
    characteristics: Characteristics,
    ttl: bool,
    pace: u32,
    files: bool,
    virtual_clock: bool,
    prefers_virtual: bool,
    pub(crate) clocks_stop: bool,
    variant: bool,
    missing: Option<String>,
}

impl Target {
    /// A target; `fresh` makes an empty backend for a case. What it claims is asked from the registration of
    /// the URL's scheme, whose crate must be linked (`use my_driver as _;`).
    pub fn new(
        name: impl Into<String>,
        fresh: impl Fn(Wish) -> Result<TestBackend, String> + Send + Sync + 'static,
    ) -> Self {
        let mut target = Self {
            name: name.into(),
            fresh: Arc::new(fresh),
            kit: None,
            characteristics: Characteristics::empty(),
            ttl: false,
            pace: LOADED,
            files: false,
            virtual_clock: false,
            prefers_virtual: false,
            clocks_stop: false,
            variant: false,
            missing: None,
        };
        let lasting = Wish { time: Time::Real, lasting: true };
        match (target.fresh)(lasting).and_then(|backend| claims(&backend).map(|claimed| (backend, claimed))) {
            Ok((backend, claimed)) => {
                target.characteristics = claimed;
                target.files = backend.directory().is_some();
                let ttl = BackendUrl::parse(backend.url()).and_then(|url| url.duration("ttl"));
                let seconds = ttl.ok().flatten().map_or(1, |ttl| ttl.as_secs());
                target.pace = u32::try_from(seconds).unwrap_or(1).max(LOADED);
            }
            Err(why) => target.missing = Some(why),
        }
        target
    }

    /// Its backend is not here: its cases are listed as *ignored*, and fail with `TOOZ_REQUIRE=all`. What it claims is
    /// known all the same.
    #[must_use]
    pub fn missing_because(mut self, why: Option<String>) -> Self {
        self.missing = why;
        self
    }

    /// Sessions end by time.
    #[must_use]
    pub fn ttl(mut self) -> Self {
        self.ttl = true;
        self
    }

    /// The same driver as another target that runs everything, on another connection or another number of servers: the cases
    /// that retell what went wrong elsewhere, and those that take long, run there alone.
    #[must_use]
    pub fn variant(mut self) -> Self {
        self.variant = true;
        self
    }

    /// Whether it is a [`variant`](Target::variant).
    pub fn is_variant(&self) -> bool {
        self.variant
    }

    /// What the backend at hand keeps, where that is less than the best that its URL can keep.
    #[must_use]
    pub fn keeps(mut self, characteristics: Characteristics) -> Self {
        self.characteristics = characteristics;
        self
    }

    /// What can be done to its backend.
    #[must_use]
    pub fn kit(mut self, kit: impl Fn(&TestBackend) -> Box<dyn Kit> + Send + Sync + 'static) -> Self {
        self.kit = Some(Arc::new(kit));
        self
    }

    /// It works on a paused tokio clock; `preferred`: cases that can run on either clock run on that one.
    #[must_use]
    pub fn virtual_clock(mut self, preferred: bool) -> Self {
        self.virtual_clock = true;
        self.prefers_virtual = preferred;
        self
    }

    /// A planted defect: while the machine is suspended the clocks of all coordinators but the first stand still.
    #[must_use]
    pub fn clocks_stop(mut self) -> Self {
        self.clocks_stop = true;
        self
    }

    /// Its name, the first part of each test's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it claims.
    pub fn characteristics(&self) -> Characteristics {
        self.characteristics
    }

    /// Whether sessions end by time.
    pub fn has_ttl(&self) -> bool {
        self.ttl
    }

    /// How many times longer cases may take: budgets are made for a ttl of a second, and a machine that does nothing else.
    pub(crate) fn pace(&self) -> u32 {
        self.pace
    }

    /// Whether its backend can be hurt.
    pub fn has_kit(&self) -> bool {
        self.kit.is_some()
    }

    /// Whether a session can die without a word.
    pub fn has_deaths(&self) -> bool {
        self.has_kit() || self.characteristics.contains(Characteristics::DISTRIBUTED_ACROSS_PROCESSES)
    }

    /// Whether its backend stands in files.
    pub fn has_files(&self) -> bool {
        self.files
    }

    /// Whether it works on a virtual clock.
    pub fn can_virtual_clock(&self) -> bool {
        self.virtual_clock
    }

    /// Whether cases that do not mind run on the virtual clock.
    pub fn prefers_virtual_clock(&self) -> bool {
        self.prefers_virtual
    }

    /// Why its backend is not here, if it is not.
    pub fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// An empty backend.
    ///
    /// # Errors
    /// Why there is none.
    pub fn fresh(&self, wish: Wish) -> Result<TestBackend, String> {
        (self.fresh)(wish)
    }

    pub(crate) fn make_kit(&self, backend: &TestBackend) -> Option<Box<dyn Kit>> {
        self.kit.as_ref().map(|make| make(backend))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("name", &self.name)
            .field("characteristics", &self.characteristics)
            .finish_non_exhaustive()
    }
}

fn claims(backend: &TestBackend) -> Result<Characteristics, String> {
    let url = BackendUrl::parse(backend.url()).map_err(|error| error.to_string())?;
    let registered = tooz_core::drivers();
    let registration = registered
        .iter()
        .find(|registration| registration.schemes().contains(&url.scheme()))
        .ok_or_else(|| format!("no driver for {}:// is linked into this test", url.scheme()))?;
    Ok(registration.characteristics(&url))
}
