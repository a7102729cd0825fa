//! The driver on real directories, with real processes.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

#[path = "../common/mod.rs"]
mod common;
mod contention;
mod corrupt;
mod groups;
mod locks;

#[test]
#[ignore = "the helper process of the other tests"]
fn helper() {
    common::obey();
}
