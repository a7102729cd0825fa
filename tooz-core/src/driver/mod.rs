//! What a backend implements: the narrow waist between the core and the drivers.
//!
//! Words. A **driver** is the code for one backend, reached through its [`Registration`]. A
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
//! - A record that another program wrote never panics: it is a `Corrupt` error, or skipped and logged in listings.

mod connect;
mod examine;
mod groups;
mod ids;
mod locks;
mod registry;
mod session;
mod stamp;
pub mod support;

pub use connect::{Connect, Context, Driver, Limits, OpenSession};
pub use examine::{Examining, Finding, Severity};
pub use groups::{ChangeStream, Departure, GroupChange, Groups, Join, MemberRecord, SessionGroups};
pub use ids::{AttemptId, Epoch, InstanceId, SessionId};
pub use locks::{
    Acquire, Acquired, BreakRequest, End, Grant, HolderRecord, HolderStream, Holders, LockKey, LockMode,
    Locks, Meant, Previous, QueueEntry, Released, SessionLocks, Turn,
};
#[doc(hidden)]
pub use registry::FEATURES;
pub(crate) use registry::find;
pub use registry::{Connecting, Registration, drivers};
pub use session::{Held, Notice, Renewal, Session};
pub use stamp::{LAYOUT_OPTION, Stamp, earlier_layout, earlier_layout_in_use, later_layout, layout_of};

pub use crate::options::{OptionKind, OptionSpec, parse_duration};
pub use crate::platform::clock::{Clock, Instant};
pub use crate::platform::entropy::Entropy;
pub use crate::platform::runtime::{Sleep, Spawner, Task};
