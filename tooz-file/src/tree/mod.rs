//! The directory tree: its files, their formats, and what the kernel tells of them.

pub(crate) mod base;
#[cfg(any(test, feature = "fuzzing"))]
pub mod checks;
pub(crate) mod directory;
pub(crate) mod fence;
pub(crate) mod inotify;
pub(crate) mod layout;
pub(crate) mod lock_records;
pub(crate) mod member_record;
pub(crate) mod members;
pub(crate) mod msgpack;
pub(crate) mod open_tree;
pub(crate) mod owner;
pub(crate) mod predecessor;
pub(crate) mod python_lock;
pub(crate) mod topics;
