//! What a driver finds when it looks at a backend: facts, and what endangers the promises.
//!
//! A **finding** is one thing that was looked at: how bad it is, a word for it, what was seen, and what to do about it.
//! It may name the characteristics that are not kept because of it. `tooz doctor` shows them.

use std::future::Future;
use std::pin::Pin;

use crate::{Characteristics, Result};

/// The answer of a driver's examination.
pub type Examining = Pin<Box<dyn Future<Output = Result<Vec<Finding>>> + Send>>;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// As it should be, or a fact that endangers nothing.
    Good,
    /// It works, but a foreseeable event (a restart, a full memory, another failure) costs locks, members or tokens.
    Warning,
    /// It does not work now, or may break at any moment.
    Bad,
}

impl Severity {
    /// Its name, in lower case.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
///
/// ```
/// use tooz_core::{Characteristics, Finding, Severity};
/// let finding = Finding::warning("persistence", "the append-only file is off", "set appendonly yes")
///     .lowers(Characteristics::DURABLE_FENCING);
/// assert_eq!(finding.severity(), Severity::Warning);
/// assert_eq!(finding.advice(), Some("set appendonly yes"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    severity: Severity,
    topic: &'static str,
    what: String,
    advice: Option<String>,
    lowers: Characteristics,
}

impl Finding {
    /// The topic of a place where no lock was ever granted, and where one could be granted. The first session and the first
    /// lock write records that stay (the stamp of the data, the counter of tokens), so `tooz doctor` begins none there. A
    /// warning on this topic says that the driver could not find out; then `tooz doctor` begins none, either.
    pub const UNUSED: &'static str = "unused";

    fn new(severity: Severity, topic: &'static str, what: impl Into<String>, advice: Option<String>) -> Self {
        Self { severity, topic, what: what.into(), advice, lowers: Characteristics::empty() }
    }

    /// Something that is as it should be, or a fact. `topic`: one word that programs can look for; `what` holds no
    /// secret.
    pub fn good(topic: &'static str, what: impl Into<String>) -> Self {
        Self::new(Severity::Good, topic, what, None)
    }

    /// Something that works now and is dangerous, and what to do about it.
    pub fn warning(topic: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Severity::Warning, topic, what, Some(advice.into()))
    }

    /// Something that does not work, and what to do about it.
    pub fn bad(topic: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Severity::Bad, topic, what, Some(advice.into()))
    }

    /// Names characteristics that are not kept because of it.
    #[must_use]
    pub fn lowers(mut self, characteristics: Characteristics) -> Self {
        self.lowers |= characteristics;
        self
    }

    /// How bad it is.
    pub const fn severity(&self) -> Severity {
        self.severity
    }

    /// A word for what was looked at.
    pub const fn topic(&self) -> &'static str {
        self.topic
    }

    /// What was seen.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to do.
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    /// The characteristics that are not kept because of it.
    pub const fn lowered(&self) -> Characteristics {
        self.lowers
    }
}
