//! A driver of a third party: this is all that its test file holds.

#[path = "toy/driver.rs"]
mod driver;

use std::process::ExitCode;

use tooz_conformance::{Place, Target, random};

fn main() -> ExitCode {
    tooz_conformance::main(&[Target::new("toy", |_| Ok(Place::new(format!("toy://{:x}", random()))))])
}
