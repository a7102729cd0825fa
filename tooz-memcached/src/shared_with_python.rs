//! Which names running processes of Python tooz see, too, in the default namespace. A name that is not shared works among
//! processes of this library like any other; the first lock of such a name is warned of through `tracing`.
//!
//! ```
//! use tooz_core::LockName;
//! use tooz_memcached::shared_with_python;
//!
//! assert!(shared_with_python::lock(&LockName::new("reindex")?));
//! assert!(!shared_with_python::lock(&LockName::new("two words")?));
//! # Ok::<(), tooz_core::Error>(())
//! ```

use tooz_core::{GroupId, LockName, MemberId};

/// The longest key that memcached has.
pub(crate) const LONGEST: usize = 250;
/// What Python's keys begin with.
pub(crate) const GROUP: &str = "_TOOZ_GROUP_";
pub(crate) const MEMBER: &str = "_TOOZ_MEMBER_";
pub(crate) const LOCK: &str = "__TOOZ_LOCK_";
pub(crate) const LEADER: &str = "__TOOZ_LOCK__TOOZ_GROUP_LEADER_";

/// Whether memcached can have `name` behind `prefix` as a key: no ASCII white space, no NUL, 250 bytes in all.
fn is_key(prefix: &str, name: &[u8]) -> bool {
    prefix.len() + name.len() <= LONGEST && !name.iter().any(|byte| matches!(byte, 0 | 9..=13 | b' '))
}

/// Whether Python's processes exclude ours from the lock of this name, and the other way round: unless memcached has no key
/// for it, or its key is that of an election, which names have that begin with `_TOOZ_GROUP_LEADER_`.
pub fn lock(name: &LockName) -> bool {
    is_key(LOCK, name.as_bytes()) && !name.as_bytes().starts_with(b"_TOOZ_GROUP_LEADER_")
}

/// Whether Python's processes are in the group of this id with ours: unless memcached has no key for it, or its key is that of
/// the list of groups, which the id `LIST` has.
pub fn group(group: &GroupId) -> bool {
    is_key(GROUP, group.as_bytes()) && group.as_bytes() != b"LIST"
}

/// Whether Python's processes see a member of this id alive: unless memcached has no key for it.
pub fn member(member: &MemberId) -> bool {
    is_key(MEMBER, member.as_bytes())
}

/// Whether Python's processes are candidates in the election of this group: unless memcached has no key for it.
pub fn election(group: &GroupId) -> bool {
    is_key(LEADER, group.as_bytes())
}
