//! Which names running processes of Python tooz see, too, in the namespace `tooz`; in any other they see none. A group
//! or member whose id is not shared works among processes of this library like any other; the first one that is used is
//! warned of through `tracing`.
//!
//! ```
//! use tooz_core::{GroupId, LockName};
//! use tooz_etcd::shared_with_python;
//!
//! assert!(shared_with_python::lock(&LockName::new("disks/sda")?));
//! assert!(shared_with_python::group(&GroupId::new("workers")?));
//! assert!(!shared_with_python::group(&GroupId::new("workers/eu")?));
//! # Ok::<(), tooz_core::Error>(())
//! ```

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};

use tooz_core::{GroupId, LockName, MemberId};

/// Whether Python's processes exclude ours from the lock of this name, and the other way round: always.
pub fn lock(_: &LockName) -> bool {
    true
}

/// Whether Python's processes are in the group of this id with ours: if it has no slash, which in Python's keys begins
/// the member's id.
pub fn group(group: &GroupId) -> bool {
    !group.as_bytes().contains(&b'/')
}

/// Whether Python's processes see a member of this id: if it has no slash.
pub fn member(member: &MemberId) -> bool {
    !member.as_bytes().contains(&b'/')
}

/// Whether Python's processes are candidates in the election of this group: never, Python's driver has no elections.
pub fn election(_: &GroupId) -> bool {
    false
}

/// Whether a warning named an id that is not shared with Python, by kind.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    pub(crate) group: AtomicBool,
    pub(crate) member: AtomicBool,
}

impl Warnings {
    pub(crate) fn warn_of_group(&self, id: &GroupId) {
        warn_once(&self.group, group(id), "group", id);
    }

    pub(crate) fn warn_of_member(&self, id: &MemberId) {
        warn_once(&self.member, member(id), "member", id);
    }
}

fn warn_once(warned: &AtomicBool, shared: bool, kind: &str, id: &dyn Display) {
    if !shared && !warned.swap(true, Ordering::Relaxed) {
        tracing::warn!(%id, "this {kind} id contains a slash, so processes of Python tooz do not see it; others like it will not be reported");
    }
}
