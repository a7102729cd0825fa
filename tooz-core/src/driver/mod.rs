//! What a backend implements: the narrow waist between the core and the drivers.
//!
//! Words. A **driver** is the code for one backend, reached through its [`Registration`](crate::Registration). A
//! **session** is the backend's record that a coordinator lives; everything a coordinator holds hangs on it. An
//! **attempt** is one wish for one lock: it is asked for with [`SessionLocks::request`], may wait, may become a
//! [`Grant`], and ends with [`SessionLocks::release`] or [`SessionLocks::withdraw`].
//!
//! All methods are required: a provided one would silently defeat a wrapper. Growth goes through the
//! `#[non_exhaustive]` request and answer structs.
//!
//! # Rules for drivers
//! - A future of a driver need not be cancel-safe, except [`SessionLocks::turn`], [`Session::notice`] and the
//!   watch streams: the core drives every other call to its end, also when the caller is gone. A beat is dropped once its
//!   session was closed.
//! - A driver never decides from its own memory alone that a lock is held.
//! - Clocks, randomness, tasks and timers come from the [`Context`] only. No task outlives [`Driver::close`].
//! - An error whose effect may have happened is marked [`Error::indeterminate`](crate::Error::indeterminate).
//! - A record that somebody else wrote never panics: it is a `Corrupt` error, or skipped and logged in listings.

mod examine;
mod groups;
mod locks;
mod registry;
mod stamp;
pub(crate) mod support;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use examine::{Examining, Finding, Severity};
pub use groups::{ChangeStream, GroupChange, Groups, Join, MemberRecord, SessionGroups};
pub use locks::{
    Acquire, Acquired, Admission, AttemptId, BreakRequest, End, Grant, HolderRecord, HolderStream, Holders,
    LockKey, LockMode, Locks, Place, Previous, Released, SessionLocks, Turn, admits,
};
#[doc(hidden)]
pub use registry::FEATURES;
pub(crate) use registry::find;
pub use registry::{Connecting, Registration, drivers};
pub use stamp::{LAYOUT_OPTION, Stamp, earlier_layout, earlier_layout_in_use, later_layout, layout_of};

use crate::platform::clock::{Clock, Instant};
use crate::platform::entropy::Entropy;
use crate::platform::runtime::Spawner;
use crate::{BackendUrl, Characteristics, GroupId, LossReason, MemberId, Result};

/// What a driver is given to connect.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Connect {
    /// The backend URL with all options merged into it, checked against the registration's option list.
    pub url: BackendUrl,
    /// Clock, randomness, tasks and timers.
    pub context: Context,
    /// For an examination only: a backend that was moved belongs to its new place from now on
    /// ([`Builder::adopt`](crate::Builder::adopt)). Its finding has the topic `adopt`.
    pub adopt: bool,
    /// For looking alone ([`Builder::view`](crate::Builder::view)).
    ///
    /// **Contract** S13: neither connecting nor looking writes anything to the backend, so both work where nothing can be
    /// written: on a full store, for a user who may only read. What does not exist yet is not made: there are no groups and
    /// no holders then. Connecting fails with `Incompatible` on data of another layout, later or earlier (X7). No session
    /// is opened on such a driver, and nothing is created, deleted, broken or raised.
    pub view: bool,
}

impl Connect {
    /// A request to connect to `url`.
    pub fn new(url: BackendUrl, context: Context) -> Self {
        Self { url, context, adopt: false, view: false }
    }
}

/// The only clock, randomness and task starter that a driver uses.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Context {
    /// Boot-time clock, virtual in simulation.
    pub clock: Clock,
    /// Randomness, seeded in simulation.
    pub entropy: Entropy,
    /// Starts tasks and timers on the runtime on which this coordinator lives.
    pub spawner: Spawner,
}

impl Context {
    /// A context of these three.
    pub fn new(clock: Clock, entropy: Entropy, spawner: Spawner) -> Self {
        Self { clock, entropy, spawner }
    }
}

/// A connected backend: what needs no session.
#[async_trait]
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// What this backend keeps: the registration's claim, lowered by what the server said.
    fn characteristics(&self) -> Characteristics;

    /// Opens a session.
    ///
    /// **Contract** S2, S7, S9: the returned session is alive on the backend. It does not claim the member id
    /// yet; the first join does.
    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>>;

    /// The groups.
    fn groups(&self) -> &dyn Groups;

    /// The locks, as an operator sees them.
    fn locks(&self) -> &dyn Locks;

    /// Ends the connection and all tasks of this driver; can be called twice.
    async fn close(&self) -> Result<()>;
}

/// A request for a session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenSession {
    /// Whose session it is.
    pub member: MemberId,
    /// The coordinator object, the same for all its sessions.
    pub instance: InstanceId,
    /// The ttl asked for; a driver whose liveness does not depend on time ignores it.
    pub ttl: Option<Duration>,
    /// The coordinator's earlier session, which ended or may still stand on the backend. The driver ends it
    /// there as far as the backend answers, and takes its member records over instead of reporting them as
    /// `MemberExists` (S7, S9).
    pub previous: Option<SessionId>,
}

impl OpenSession {
    /// A request for a first session.
    pub fn new(member: MemberId, instance: InstanceId, ttl: Option<Duration>) -> Self {
        Self { member, instance, ttl, previous: None }
    }

    /// Names the coordinator's earlier session.
    #[must_use]
    pub fn after(mut self, previous: Option<SessionId>) -> Self {
        self.previous = previous;
        self
    }
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        /// 32 hexadecimal digits.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl $name {
            /// Reads 32 hexadecimal digits, as they are written: each id has one form, so no two names are its own.
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self)
            }
        }
    };
}
pub(crate) use id128;

id128! {
    /// A session's id, unique among all sessions ever.
    SessionId
}
id128! {
    /// A coordinator object's id, the same for all its sessions.
    InstanceId
}
id128! {
    /// An id of the backend's data: another epoch means that the data was lost or replaced.
    Epoch
}

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
    /// **Contract** L12: after [`End::Unclean`] the next holders of what it held are told [`Previous::Expired`]. It frees
    /// them as fast as a clean end does: a session that was lost is never left to its ttl.
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
