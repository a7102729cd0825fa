//! Groups at the driver's level.

use std::pin::Pin;
use std::time::SystemTime;

use async_trait::async_trait;
use futures_core::Stream;

use crate::{Capabilities, GroupId, MemberId, Result};

/// A member as the backend knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberRecord {
    /// Who.
    pub member: MemberId,
    /// What it publishes about itself.
    pub capabilities: Capabilities,
    /// Differs between two joins of one member: a new incarnation always shows as left and joined (W1).
    pub incarnation: u128,
    /// When it joined, by the backend's clock where it has one.
    pub joined_at: Option<SystemTime>,
    /// When its capabilities last changed.
    pub updated_at: Option<SystemTime>,
}

impl MemberRecord {
    /// A record without timestamps.
    pub fn new(member: MemberId, capabilities: Capabilities, incarnation: u128) -> Self {
        Self { member, capabilities, incarnation, joined_at: None, updated_at: None }
    }

    /// Adds the times of joining and of the last change.
    #[must_use]
    pub fn at(mut self, joined: Option<SystemTime>, updated: Option<SystemTime>) -> Self {
        self.joined_at = joined;
        self.updated_at = updated;
        self
    }
}

/// How a member's time in a group ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Departure {
    /// The member's own process said so: it left the group, or closed its coordinator in order.
    Left,
    /// Its session ended in another way (it expired, or its process was killed), or another process removed it.
    Died,
    /// The backend cannot tell, as for a member of another program that is gone.
    Unknown,
}

/// What a group's watch delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupChange {
    /// The whole group: first at the start, then after every gap.
    View(Vec<MemberRecord>),
    /// A member joined.
    Joined(MemberRecord),
    /// A member published other capabilities.
    Updated(MemberRecord),
    /// A member left, was removed, or died, and which of these.
    Left(MemberRecord, Departure),
    /// The group was deleted; the stream ends.
    Deleted,
}

/// A group's changes. Dropping it frees what it took on the backend; it survives a reconnect, after which it
/// delivers a [`GroupChange::View`]. It costs bounded memory: a reader that fell behind gets a view, too.
pub type ChangeStream = Pin<Box<dyn Stream<Item = Result<GroupChange>> + Send>>;

/// Groups, for every client.
#[async_trait]
pub trait Groups: Send + Sync {
    /// Creates a group; `GroupExists` (G1).
    async fn create(&self, group: &GroupId) -> Result<()>;

    /// Deletes an empty group; `GroupNotFound`, `GroupNotEmpty`; dead members do not count (G1).
    async fn delete(&self, group: &GroupId) -> Result<()>;

    /// Every group, sorted by bytes, and nothing else (G1).
    async fn list(&self) -> Result<Vec<GroupId>>;

    /// One consistent view of the live members, sorted by bytes; `GroupNotFound` (G4).
    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>>;

    /// One live member; `GroupNotFound`, `MemberNotFound`.
    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord>;

    /// Follows a group, starting with a view; `GroupNotFound` (W1 to W6).
    async fn watch(&self, group: &GroupId) -> Result<ChangeStream>;
}

/// A request to join.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Join {
    /// The group.
    pub group: GroupId,
    /// What to publish.
    pub capabilities: Capabilities,
    /// Create the group in the same step if it is missing.
    pub create: bool,
}

impl Join {
    /// Joins an existing group.
    pub fn new(group: GroupId, capabilities: Capabilities) -> Self {
        Self { group, capabilities, create: false }
    }

    /// Sets whether a missing group is created in the same step.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }
}

/// Memberships of one session.
#[async_trait]
pub trait SessionGroups: Send + Sync {
    /// Joins; `GroupNotFound`, `MemberExists` (also when this session is a member already; its capabilities
    /// stay). A record of a dead session, or of [`OpenSession::previous`](super::OpenSession::previous), is
    /// replaced atomically (G2, S9).
    async fn join(&self, request: &Join) -> Result<()>;

    /// Leaves, and says so to watches in the same step; `MemberNotFound`, `GroupNotFound` (G3, W7).
    async fn leave(&self, group: &GroupId) -> Result<()>;

    /// Publishes other capabilities; `MemberNotFound`, `GroupNotFound` (G5).
    async fn update(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()>;
}
