//! The in-process driver: what it does, what its kit does to it, and that a simulation of it replays.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

mod common;
mod faults;
mod groups;
mod kit;
mod locks;
mod sessions;
mod simulation;
