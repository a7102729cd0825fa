//! The facade: which drivers it links, and that its README says what they promise. The floor plan of the workspace.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

mod drivers;
mod house;
mod none;
mod readme;
