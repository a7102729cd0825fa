//! Coordination for programs that run in several processes or on several hosts: group membership, leader election,
//! distributed locks and watches through one API, on the store that you already run.
//!
//! This crate is the contract and everything that is the same for all backends. A program takes it together with the
//! drivers it wants, or takes the `tooz` crate, whose features link the drivers. The URL chooses the backend.
//!
//! ```
//! use tooz_core::{Capabilities, Characteristics, Coordinator};
//! use tooz_memory as _; // links the driver: a crate that is never named registers nothing
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> tooz_core::Result<()> {
//! let c = Coordinator::builder("memory://guide", "host-1")
//!     .require(Characteristics::FAIR_LOCKS)
//!     .connect()
//!     .await?;
//!
//! // A lock. Its token grows with every grant; the resource that it protects compares it.
//! let guard = c.lock("reindex")?.acquire().await?;
//! let written = guard.run(async { format!("row written with token {}", guard.token()) }).await?;
//! println!("{written}"); // an error instead: the lock was lost, and the work was cancelled
//! guard.release().await?;
//!
//! // A group: who is there, and what they say about themselves.
//! let group = c.group("workers")?;
//! group.join_or_create(Capabilities::new(&("gpu", 2))?).await?;
//! let mut watch = group.watch().await?;
//! println!("{:?}", watch.next().await); // a snapshot first, then each change
//!
//! // An election.
//! let leadership = c.election("workers")?.campaign().await?;
//! println!("leading in term {}", leadership.term());
//! leadership.resign().await?;
//! c.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Words
//!
//! A **coordinator** is a member's handle on everything; it owns one **session**, the backend's record that it lives.
//! Everything that it holds hangs on the session. The **heart** renews the session; until the **deadline**, counted
//! from the sending of the last renewal that was answered, the coordinator is **alive**. A **guard** is the proof of
//! holding a lock, a **leadership** that of leading; both know when they are **lost**. What a *driver* promises are
//! its **characteristics**; what a *member* publishes are its **capabilities**.
//!
//! # What is promised
//!
//! Where a promise depends on the backend, it is a [characteristic](Characteristics), proven by the suite that every
//! driver runs. In short, and for every backend: at most one valid exclusive guard per name, whatever happens to
//! clients and network; a guard is valid until its deadline, computed from a clock that counts suspend; the
//! [fencing token](FencingToken) of every later grant is larger; a future that is dropped at any await leaves neither
//! a lock nor a place in a queue; a caller that is told nothing definite gets an
//! [indeterminate](Error::is_indeterminate) error, never a guess.
//!
//! # Where things run
//!
//! On one thread of the library (see [`Runtime`]): a runtime of the program that is starved or has ended neither
//! delays a renewal nor swallows a release. The futures of this API run on any executor.
//!
//! # For authors of drivers
//!
//! [`driver`] has the traits; `tooz-conformance` is the suite.

mod builder;
pub mod capabilities;
pub mod characteristics;
mod coordinator;
pub mod driver;
mod election;
mod error;
mod group;
mod guard;
mod heart;
mod hooks;
mod lock;
mod lock_set;
mod loss;
mod names;
mod near;
mod options;
mod platform;
mod session;
mod token;
mod url;
mod viewer;
mod watch;

pub use inventory;

pub use builder::{Builder, COMMON_OPTIONS};
pub use capabilities::Capabilities;
pub use characteristics::Characteristics;
pub use coordinator::Coordinator;
#[doc(hidden)]
pub use driver::FEATURES;
pub use driver::{
    Departure, Finding, HolderRecord, Holders, LockMode, MemberRecord, Previous, Released, Severity, drivers,
};
pub use election::{Election, Leader, Leadership, Observer};
pub use error::{Error, ErrorKind, Result};
pub use group::Group;
pub use guard::{LockGuard, LossSignal};
pub use heart::{Heart, Liveness};
pub use hooks::Hooks;
pub use lock::Lock;
pub use lock_set::{LockSet, LockSetGuard};
pub use loss::{LossReason, Lost};
pub use names::{GroupId, LockName, MAX_NAME_BYTES, MemberId};
#[doc(hidden)]
pub use platform::await_point::AWAIT_TARGET;
pub use platform::clock::Deadline;
pub use platform::runtime::Runtime;
pub use session::events::{Event, Events};
pub use session::hook_registry::{BoxError, HookEvent, HookId};
pub use token::{FencingToken, Term};
pub use url::{BackendUrl, Host};
pub use viewer::Viewer;
pub use watch::{GroupEvent, GroupWatch};
