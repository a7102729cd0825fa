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
