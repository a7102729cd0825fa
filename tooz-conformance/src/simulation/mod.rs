//! Simulation: the whole core on the in-process backend and on virtual time, with everything that can go wrong going
//! wrong, and all of it from one number.
//!
//! A run has a few members (coordinators with several tasks each) that use locks, leaderships, groups, watches and
//! hooks, give up in the middle, and are cut off, paused, suspended, broken, evicted, killed and closed. Everything
//! is recorded, together with what the backend itself says that happened, and judged by [`crate::history`]. Nothing
//! is left to chance but the seed: the same seed gives the same trace, byte by byte.
//!
//! ```
//! let run = tooz_conformance::simulation::run(&tooz_conformance::simulation::Plan::new(1));
//! assert!(run.violations.is_empty(), "{}", run.report());
//! ```

#![allow(clippy::large_futures)] // a step of a worker is as large as all that it may do

mod follower;
mod grouping;
mod locking;
mod many;
mod nemesis;
mod participants;
mod rng;
mod run;
mod worker;
mod world;

pub use many::{Summary, many};
pub use run::{Met, Plan, Run, run};

pub use crate::targets::memory::CLOCKS_STOP;
