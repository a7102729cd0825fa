//! Locks at the driver's level.

use std::fmt;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::time::SystemTime;

use async_trait::async_trait;
use futures_core::Stream;

use super::ids::AttemptId;
use crate::platform::clock::Instant;
use crate::{FencingToken, GroupId, LockName, MemberId, Result};

/// Which lock: an election is a lock with a key space of its own and a public holder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum LockKey {
    /// A lock that a user named.
    Named(LockName),
    /// The leadership of a group.
    Leader(GroupId),
}

impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "lock \"{name}\""),
            Self::Leader(group) => write!(f, "leadership of group \"{group}\""),
        }
    }
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockMode {
    /// Alone.
    Exclusive,
    /// Together with other shared holders.
    Shared,
    /// As one of at most `limit` holders.
    Permit {
        /// The same for all sessions that use the name.
        limit: NonZeroU32,
    },
}

/// A request for a lock.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Acquire {
    /// The wish that this is.
    pub attempt: AttemptId,
    /// The lock.
    pub key: LockKey,
    /// How to hold it.
    pub mode: LockMode,
    /// Whether to take a place in the queue when it cannot be had at once.
    pub wait: bool,
}

impl Acquire {
    /// A request that waits.
    pub fn new(attempt: AttemptId, key: LockKey, mode: LockMode) -> Self {
        Self { attempt, key, mode, wait: true }
    }

    /// Sets whether it takes a place in the queue.
    #[must_use]
    pub fn wait(mut self, wait: bool) -> Self {
        self.wait = wait;
        self
    }
}

/// The answer to a request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Acquired {
    /// It is held.
    Granted(Grant),
    /// It waits at this place.
    Queued(QueueEntry),
    /// Another attempt holds it or is before this one, and the request did not want to wait. Nothing was left behind.
    Held,
}

/// The driver's record that a lock was given.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Grant {
    /// The wish that was fulfilled.
    pub attempt: AttemptId,
    /// The lock.
    pub key: LockKey,
    /// How it is held.
    pub mode: LockMode,
    /// Its fencing token.
    pub token: FencingToken,
    /// How the last holder ended (L12).
    pub previous: Previous,
    /// Where the backend keeps a ttl per lock: the instant just before the request was sent that proved this
    /// grant. `None`: it lives as long as the session.
    pub proved_at: Option<Instant>,
}

impl Grant {
    /// A grant that lives as long as its session.
    pub fn new(
        attempt: AttemptId,
        key: LockKey,
        mode: LockMode,
        token: FencingToken,
        previous: Previous,
    ) -> Self {
        Self { attempt, key, mode, token, previous, proved_at: None }
    }
}

/// How the last holder of a lock ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Previous {
    /// It released, or nothing unclean is known.
    #[default]
    Clean,
    /// It was cut off while it held: its session ended, or its work was dropped before it was done or panicked. What the
    /// lock protects may be half done.
    Expired,
    /// An operator broke the lock.
    Broken,
    /// A foreign holder may have come between.
    Unknown,
}

/// How a grant or a session ends, as far as its owner knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The owner gave it back: what the lock protects is whole.
    Clean,
    /// The owner was cut off, or its work did not come to its end: what the lock protects may be half done.
    Unclean,
}

impl End {
    /// What the next holder is told.
    pub fn previous(self) -> Previous {
        match self {
            Self::Clean => Previous::Clean,
            Self::Unclean => Previous::Expired,
        }
    }
}

/// A place in a lock's queue.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QueueEntry {
    /// The wish that waits.
    pub attempt: AttemptId,
    /// The lock.
    pub key: LockKey,
}

impl QueueEntry {
    /// The place of `attempt` in the queue of `key`.
    pub fn new(attempt: AttemptId, key: LockKey) -> Self {
        Self { attempt, key }
    }
}

/// How waiting ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Turn {
    /// It is held.
    Granted(Grant),
    /// The place is gone (a wiped queue, a record deleted by hand): ask again.
    Gone,
}

/// What a release found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// The grant was there and is gone.
    Released,
    /// The grant had ended before. Another may hold the lock now.
    WasNotHolder,
}

/// Locks of one session.
#[async_trait]
pub trait SessionLocks: Send + Sync {
    /// Asks for a lock; never waits for the holder.
    ///
    /// **Contract** L1, L2, L8, L11, L14, L15: decided in one atomic step on the backend. Sent again with the
    /// same attempt it answers what stands.
    async fn request(&self, request: &Acquire) -> Result<Acquired>;

    /// Waits until the place is granted. Dropping it leaves the place as it was, also when it was just granted.
    ///
    /// **Contract** L14: the grant re-checked atomically that this session lives.
    async fn turn(&self, entry: &QueueEntry) -> Result<Turn>;

    /// `Ok`: this attempt neither holds, nor waits, nor ever will; a late request of it fails. Safe to repeat.
    ///
    /// **Contract** L6.
    async fn withdraw(&self, key: &LockKey, attempt: AttemptId) -> Result<()>;

    /// Gives a grant back, compared on its attempt in one atomic step; wakes the next waiter (L4, L8). After
    /// [`End::Unclean`] the next holder is told [`Previous::Expired`] (L12). Safe to repeat.
    async fn release(&self, grant: &Grant, end: End) -> Result<Released>;
}

/// One holder of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HolderRecord {
    /// Who holds it, where it is known.
    pub member: Option<MemberId>,
    /// Its fencing token; a Python holder has none.
    pub token: Option<FencingToken>,
    /// How it is held.
    pub mode: LockMode,
    /// Since when, by the backend's clock where it has one.
    pub since: Option<SystemTime>,
    /// What the backend has in the place of a token for a holder that does not use this library; empty where it has
    /// nothing that tells one such holder from the next.
    pub foreign: Option<Vec<u8>>,
}

impl HolderRecord {
    /// A holder that does not use this library, with what tells it from the next one.
    pub fn foreign(mode: LockMode, value: Vec<u8>) -> Self {
        Self { foreign: Some(value), ..Self::new(None, None, mode, None) }
    }

    /// A record of these.
    pub fn new(
        member: Option<MemberId>,
        token: Option<FencingToken>,
        mode: LockMode,
        since: Option<SystemTime>,
    ) -> Self {
        Self { member, token, mode, since, foreign: None }
    }
}

/// Who holds a lock, and how many wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holders {
    /// The holders in the order of their grants.
    pub holders: Vec<HolderRecord>,
    /// How many wait, where the backend can say.
    pub waiters: Option<u64>,
}

impl Holders {
    /// These holders and waiters.
    pub fn new(holders: Vec<HolderRecord>, waiters: Option<u64>) -> Self {
        Self { holders, waiters }
    }
}

/// The one grant that a break is to end. Compared in the step that ends it: a later holder is not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Meant {
    /// The grant with this token.
    Token(FencingToken),
    /// The holder that does not use this library, if [`HolderRecord::foreign`] is still this.
    Foreign(Vec<u8>),
}

/// A request to break a lock.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BreakRequest {
    /// The lock.
    pub key: LockKey,
    /// Only this grant; `None`: every holder.
    pub only: Option<Meant>,
    /// Who breaks it.
    pub by: MemberId,
    /// Why, in the operator's words.
    pub why: String,
}

impl BreakRequest {
    /// Breaks every holder's grant.
    pub fn new(key: LockKey, by: MemberId, why: impl Into<String>) -> Self {
        Self { key, only: None, by, why: why.into() }
    }

    /// Breaks only this grant.
    #[must_use]
    pub fn only(mut self, meant: Meant) -> Self {
        self.only = Some(meant);
        self
    }

    /// The token of the only grant that is meant, if it is one with a token.
    pub fn token(&self) -> Option<FencingToken> {
        match self.only {
            Some(Meant::Token(token)) => Some(token),
            _ => None,
        }
    }

    /// Whether the grant with this token is meant.
    pub fn means(&self, token: Option<FencingToken>) -> bool {
        self.only.is_none() || (token.is_some() && self.token() == token)
    }

    /// Whether the holder that does not use this library, and of which the backend has this value, is meant.
    pub fn means_foreign(&self, value: &[u8]) -> bool {
        match &self.only {
            None => true,
            Some(Meant::Foreign(meant)) => meant == value,
            Some(Meant::Token(_)) => false,
        }
    }
}

/// The holder of a lock, again and again: starts with the present state, then each change; ends in the present.
pub type HolderStream = Pin<Box<dyn Stream<Item = Result<Holders>> + Send>>;

/// Locks as an operator sees them.
#[async_trait]
pub trait Locks: Send + Sync {
    /// Who holds the lock (L10).
    async fn holders(&self, key: &LockKey) -> Result<Holders>;

    /// Frees the lock before it returns, records who and why for the victim, and answers whom it broke; an empty
    /// answer means that it was free (L10).
    async fn break_lock(&self, request: &BreakRequest) -> Result<Vec<HolderRecord>>;

    /// Raises the counter of tokens to `least - 1`, if it is below. Safe to repeat.
    ///
    /// **Contract** L3: one atomic step. Once it has returned, every grant has a token of at least `least`, also that of a
    /// lock that was waited for before. Kept as durably as the counter itself: synced where tokens grow across a power cut,
    /// confirmed by the replicas where these confirm a grant. The core passes at most [`FencingToken::RAISE_LIMIT`].
    async fn raise_tokens(&self, least: FencingToken) -> Result<()>;

    /// Follows the holders of one lock (E3). Dropping the stream frees what it took; it survives a reconnect.
    async fn watch(&self, key: &LockKey) -> Result<HolderStream>;
}
