//! One lock on the server: the gate, which is Python's key, and the mark, which says how its last holder ended.

pub(crate) mod cell;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::missing_panics_doc)] // a check fails by a panic
pub mod checks;
pub(crate) mod epoch;
pub(crate) mod give_back;
pub(crate) mod mark;
pub(crate) mod record;
pub(crate) mod renewal;
pub(crate) mod take;
