//! The core on the in-process driver, and on one whose answers a test can bend.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

mod answers;
mod beats;
mod cancellation;
mod checks;
mod closing;
mod common;
mod contention;
mod groups;
mod hooks;
mod keeper;
mod lock_state;
mod own_deadlines;
mod properties;
mod reopening;
mod runtimes;
mod scripted;
mod shown;
mod suspend;
