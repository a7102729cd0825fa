//! The directory tree: its files, their formats, and what the kernel tells of them.

mod base;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod checks;
pub(crate) mod directory;
mod fence;
mod inotify;
pub(crate) mod layout;
pub(crate) mod liveness;
pub(crate) mod lock_records;
pub(crate) mod member_record;
pub(crate) mod members;
pub(crate) mod mutex;
mod open_tree;
mod owner;
mod predecessor;
pub(crate) mod python_lock;
pub(crate) mod registry;
mod stamp;
mod topics;

pub(crate) use directory::Directory;
pub(crate) use inotify::{Area, Watch};
pub(crate) use liveness::{LivenessMemo, LocalSession, Sessions};
pub(crate) use lock_records::{Before, Entry, LockRecords, Mark, Named, Record, Role};
pub(crate) use member_record::Member;
pub(crate) use members::Membership;
pub(crate) use mutex::{Access, DriverLock, Moment};
pub(crate) use open_tree::Tree;
pub(crate) use owner::Owner;
pub(crate) use predecessor::{Coverage, Predecessors};
pub(crate) use python_lock::Tried;
pub(crate) use topics::{Listener, Topic};
