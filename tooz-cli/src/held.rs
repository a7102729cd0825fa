//! `TOOZ_HELD`: what outer `tooz` processes hold for this one. A `tooz` that waits for a lock which its own command's end
//! would free waits for ever.
//!
//! The variable has an entry for each grant, apart by spaces: `lock:PLACE:NAME:TOKEN`, or `leadership:…`. PLACE is a hash of
//! the backend's URL and namespace, and NAME is percent-encoded. An entry alone proves nothing: a process may have inherited
//! it from a command that ended long ago. The backend has to name its token as that of a holder.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use tooz::driver::LockMode;
use tooz::{Coordinator, FencingToken};

use crate::exit::{Failure, USAGE};
use crate::settings::Backend;

/// The variable.
const HELD: &str = "TOOZ_HELD";

/// What a `tooz` wants to get, or has got for its command.
#[derive(Debug)]
pub(crate) struct Wanted {
    entry: String,
    outer: OsString,
}

impl Wanted {
    pub(crate) fn lock(coordinator: &Coordinator, backend: &Backend, name: &[u8]) -> Self {
        Self::new("lock", coordinator, backend, name)
    }

    pub(crate) fn leadership(coordinator: &Coordinator, backend: &Backend, group: &[u8]) -> Self {
        Self::new("leadership", coordinator, backend, group)
    }

    fn new(kind: &str, coordinator: &Coordinator, backend: &Backend, name: &[u8]) -> Self {
        let url = coordinator.url();
        let namespace = backend.namespace().or_else(|| url.option("namespace"));
        // User, password and other options do not say which backend it is.
        let mut place = DefaultHasher::new();
        (url.scheme(), format!("{:?}", url.hosts()), url.path(), namespace).hash(&mut place);
        let name = percent_encode(name, NON_ALPHANUMERIC);
        Self {
            entry: format!("{kind}:{:x}:{name}:", place.finish()),
            outer: std::env::var_os(HELD).unwrap_or_default(),
        }
    }

    /// Whether outer processes have it by their word: then the backend has to be asked.
    pub(crate) fn may_be_held(&self) -> bool {
        !self.tokens().is_empty()
    }

    fn tokens(&self) -> Vec<u64> {
        let outer = self.outer.to_string_lossy();
        let entries = outer.split(' ').filter_map(|entry| entry.strip_prefix(&self.entry)?.parse().ok());
        entries.collect()
    }

    /// Refuses to wait for an outer process.
    pub(crate) fn refuse_if_held(
        &self,
        what: &str,
        token: Option<FencingToken>,
        mode: LockMode,
        ours: LockMode,
    ) -> Result<(), Failure> {
        let token = token.map(FencingToken::get).filter(|token| self.tokens().contains(token));
        let Some(token) = token else { return Ok(()) };
        let remedy = match (mode, ours) {
            (LockMode::Shared, LockMode::Shared) => return Ok(()),
            // The outer tooz lets go when its command ends, and its command waits for this one.
            (LockMode::Shared, _) => "hold it exclusive from the start: leave out --shared outside",
            _ => "take it once, or use another name",
        };
        Err(Failure::new(
            USAGE,
            format!(
                "{what} is held for this very command by an outer tooz ({}token {token}), so it would wait for itself; {remedy}",
                if mode == LockMode::Shared { "shared, " } else { "" }
            ),
        ))
    }

    /// The variable for the command.
    pub(crate) fn got(&self, token: u64) -> (&'static str, OsString) {
        let mut held = self.outer.clone();
        if !held.is_empty() {
            held.push(" ");
        }
        held.push(format!("{}{token}", self.entry));
        (HELD, held)
    }
}
