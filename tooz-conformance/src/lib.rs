//! One suite that every tooz driver runs.
#![doc = include_str!("../README.md")]

mod case;
pub mod cases;
pub mod contract;
mod harness;
mod helper;
pub mod history;
mod kit;
pub mod matrix;
mod process;
mod runner;
#[cfg(feature = "memory")]
pub mod simulation;
#[cfg(feature = "memory")]
pub mod sweep;
mod target;
pub mod targets;
mod tools;
mod victim;

pub use case::{Case, Running};
pub use harness::{Harness, Stopwatch};
pub use kit::{Call, Fate, Kit};
pub use process::Process;
pub use runner::{main, run, run_within};
pub use target::{Target, TestBackend, Time, Wish};
pub use tools::{Failure, Outcome, dropped_after, ensure, eventually, random, within};
pub use victim::Victim;
