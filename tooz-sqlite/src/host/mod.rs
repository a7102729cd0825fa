//! What the operating system of this host says and does for files and processes.

pub(crate) mod kernel;
pub(crate) mod ownership;
