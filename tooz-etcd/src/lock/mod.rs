//! Locks on the server.

pub(crate) mod attempt;
pub(crate) mod fence;
pub(crate) mod monitor;
pub(crate) mod record;
pub(crate) mod state;
pub(crate) mod turn;
pub(crate) mod verify;
