//! The errors that every driver answers with the same words.

use std::fmt::Display;

use crate::driver::LockKey;
use crate::{Error, ErrorKind, GroupId, LossReason, MemberId};

/// There is no such group.
pub fn group_not_found(group: &GroupId) -> Error {
    Error::new(ErrorKind::GroupNotFound, format!("group \"{group}\"; create it first"))
}

/// The group exists already.
pub fn group_exists(group: &GroupId) -> Error {
    Error::new(ErrorKind::GroupExists, format!("group \"{group}\""))
}

/// The group cannot be deleted: it has so many living members.
pub fn group_not_empty(group: &GroupId, members: u64) -> Error {
    let members = if members == 1 { "1 member".to_owned() } else { format!("{members} members") };
    Error::new(ErrorKind::GroupNotEmpty, format!("group \"{group}\" has {members}; let them leave first"))
}

/// The group has no such living member.
pub fn member_not_found(group: &GroupId, member: &MemberId) -> Error {
    Error::new(ErrorKind::MemberNotFound, format!("member \"{member}\" is not in group \"{group}\""))
}

/// This session is in the group already.
pub fn joined_before(group: &GroupId, member: &MemberId) -> Error {
    Error::new(ErrorKind::MemberExists, format!("member \"{member}\" is in group \"{group}\" already"))
}

/// Another living session has this member id.
pub fn member_id_taken(member: &MemberId) -> Error {
    let why = format!("member id \"{member}\" belongs to another live coordinator; use another id");
    Error::new(ErrorKind::MemberExists, why)
}

/// Permits of two limits were asked for (L15).
pub fn other_limit(key: &LockKey, asked: impl Display, other: impl Display) -> Error {
    let why =
        format!("{key}: permits of limit {asked} were asked for where permits of limit {other} are in use");
    Error::new(ErrorKind::Invalid, why)
}

/// What a session answers after it has ended.
pub fn session_ended(reason: &LossReason) -> Error {
    match reason {
        LossReason::SessionClosed => Error::new(ErrorKind::Closed, "the session was closed"),
        reason => Error::new(ErrorKind::SessionLost, reason.to_string()),
    }
}
