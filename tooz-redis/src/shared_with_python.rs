//! Which names running processes of Python tooz see, too, in the same namespace. A lock whose name is not shared works
//! among processes of this library like any other; the first one that is used is warned of through `tracing`.
//!
//! ```
//! use tooz_core::LockName;
//! use tooz_redis::shared_with_python;
//!
//! assert!(shared_with_python::lock(&LockName::new("reindex")?));
//! assert!(!shared_with_python::lock(&LockName::new("group:workers")?));
//! # Ok::<(), tooz_core::Error>(())
//! ```

use tooz_core::{GroupId, LockName, MemberId};

/// Whether Python's processes exclude ours from the lock of this name, and the other way round: unless its key would be
/// that of another thing, which names have that begin with `leader_of_`, `group:` or `beats:`.
pub fn lock(name: &LockName) -> bool {
    ![&b"leader_of_"[..], b"group:", b"beats:"].iter().any(|other| name.as_bytes().starts_with(other))
}

/// Whether Python's processes are in the group of this id with ours: always.
pub fn group(_: &GroupId) -> bool {
    true
}

/// Whether Python's processes see a member of this id: unless it is `__created__`, which is a field of Python's groups.
pub fn member(member: &MemberId) -> bool {
    member.as_bytes() != b"__created__"
}

/// Whether Python's processes are candidates in the election of this group: always.
pub fn election(_: &GroupId) -> bool {
    true
}
