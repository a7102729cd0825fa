//! Clocks, tasks, randomness and waiting: the only rooms in which they are used.

pub(crate) mod await_point;
pub mod clock;
pub mod entropy;
pub mod runtime;
pub(crate) mod state_cell;
