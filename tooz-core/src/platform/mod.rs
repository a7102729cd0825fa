//! Clocks, tasks, randomness and waiting: the only rooms in which they are used.

pub(crate) mod await_point;
pub(crate) mod clock;
pub mod descriptors;
pub(crate) mod entropy;
pub(crate) mod runtime;
pub(crate) mod state_cell;
