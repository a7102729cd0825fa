//! One suite that every tooz driver runs.

pub mod history;
#[cfg(feature = "memory")]
pub mod simulation;
