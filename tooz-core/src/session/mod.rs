//! One session of a coordinator, from its opening to its end.

pub(crate) mod acquire;
pub(crate) mod call;
pub(crate) mod cleanup;
pub(crate) mod events;
pub(crate) mod hook_registry;
pub(crate) mod keeper;
pub(crate) mod latch;
pub(crate) mod limits;
pub(crate) mod live;
pub(crate) mod queue;
pub(crate) mod rejoin;
pub(crate) mod release;
pub(crate) mod run;
pub(crate) mod state;
pub(crate) mod watchers;
