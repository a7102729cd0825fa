//! The command, on backends that stand in files.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

#[allow(unreachable_pub, clippy::redundant_pub_crate)]
#[path = "../common/mod.rs"]
mod common;

mod doctor;
mod guard;
mod kill;
mod lock;
mod settings;
mod stress;
mod verbs;
