//! A session: what a coordinator has on the backend.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::groups::SessionGroups;
use super::ids::{AttemptId, Epoch, SessionId};
use super::locks::{End, LockKey, SessionLocks};
use crate::platform::clock::Instant;
use crate::{GroupId, LossReason, Result};

/// A coordinator's life on the backend.
#[async_trait]
pub trait Session: fmt::Debug + Send + Sync + 'static {
    /// Its id; a new session always has a new one.
    fn id(&self) -> SessionId;

    /// Which data of the backend it lives in.
    fn epoch(&self) -> Epoch;

    /// The ttl as granted; `None`: liveness does not depend on time.
    fn ttl(&self) -> Option<Duration>;

    /// The instant just before the request was sent that proved this session's start.
    fn opened_at(&self) -> Instant;

    /// One beat: proves to the backend that this session lives, and compares what the core believes with what
    /// the backend says.
    ///
    /// **Contract** S4: one round trip. S7: a member record that is gone is named as evicted. A session that is
    /// gone is never created again. An error means that the outcome is unknown.
    async fn renew(&self, held: &Held) -> Result<Renewal>;

    /// Waits until the backend has something to say about this session by itself. Cancel-safe: a notice is
    /// either returned or kept. A driver that can say nothing waits for ever.
    async fn notice(&self) -> Notice;

    /// Memberships of this session.
    fn groups(&self) -> &dyn SessionGroups;

    /// Locks of this session.
    fn locks(&self) -> &dyn SessionLocks;

    /// Ends every membership, grant and waiting attempt of this session, and the session. Can be called twice.
    ///
    /// **Contract** L12: after [`End::Unclean`] the next holders of what it held are told [`Previous::Expired`](super::Previous::Expired). It frees
    /// them as fast as a clean end does: a session that was lost is never left to its ttl. W7: after [`End::Clean`] watches
    /// are told that its memberships left, otherwise that they died.
    ///
    /// Dropping a session without closing it must leave it as a crash would: nothing explicit is sent, and
    /// operating-system locks go with the file that holds them.
    async fn close(&self, end: End) -> Result<()>;
}

/// What the core believes that a session has, sent along with a beat.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Held {
    /// Grants that were not released.
    pub grants: Vec<(LockKey, AttemptId)>,
    /// Attempts that wait.
    pub waiting: Vec<(LockKey, AttemptId)>,
    /// Groups that were joined.
    pub groups: Vec<GroupId>,
}

/// The backend's answer to a beat.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Renewal {
    /// Set when the session itself is gone, with the reason.
    pub lost: Option<LossReason>,
    /// Grants of [`Held`] that are no longer there, and why.
    pub gone: Vec<(AttemptId, LossReason)>,
    /// Waiting attempts of [`Held`] that have lost their place: they queue again.
    pub unqueued: Vec<AttemptId>,
    /// Groups of [`Held`] in which our member record is missing.
    pub evicted: Vec<GroupId>,
}

impl Renewal {
    /// Everything stands as the core believes.
    pub fn confirmed() -> Self {
        Self::default()
    }

    /// The session is gone.
    pub fn lost(reason: LossReason) -> Self {
        Self { lost: Some(reason), ..Self::default() }
    }
}

/// What a backend says about a session by itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// The session is gone.
    SessionLost(LossReason),
    /// One grant is gone.
    GrantLost(AttemptId, LossReason),
    /// Our member record in this group was removed.
    Evicted(GroupId),
}
