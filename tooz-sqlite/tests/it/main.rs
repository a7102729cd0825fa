//! The driver on real files, with real processes.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

#[path = "../common/mod.rs"]
mod common;
mod coordinator;
mod corrupt;
mod files;
mod groups;
mod histories;
mod linked;
mod locks;
mod processes;

#[test]
#[ignore = "the processes of the other tests"]
fn actor() {
    common::act();
}
