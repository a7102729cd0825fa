//! What this host's kernel says about files, locks and processes. Nothing here knows the rest of the driver.

pub(crate) mod filesystem;
pub(crate) mod os_lock;
pub(crate) mod ownership;
pub(crate) mod process;
