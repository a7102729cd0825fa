//! What this host's kernel says about files, locks and processes, and does with them.

pub(crate) mod kernel;
pub(crate) mod ownership;
pub(crate) mod portable;
