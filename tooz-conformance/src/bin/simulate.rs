//! Runs the simulation for many seeds, or shows one.
//!
//! ```text
//! cargo run --profile simulation -p tooz-conformance --no-default-features --features memory --bin simulate
//! ```
//!
//! `TOOZ_SEEDS=n` makes n runs (5000), `TOOZ_FIRST=n` begins at seed n (0). `TOOZ_SEED=n` makes the run of one seed
//! and prints its trace. `TOOZ_FAULT=word` makes the backend wrong in this way.
#![allow(clippy::print_stdout, clippy::print_stderr)] // it is a program that prints

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use tooz_conformance::simulation::{Plan, many, run};

/// How often a long run says how far it is: about once a minute on two cores.
const SAID_EVERY: u64 = 10_000;

fn number(name: &str, default: Option<u64>) -> Result<Option<u64>, String> {
    let Some(text) = std::env::var_os(name) else { return Ok(default) };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| format!("{name} must be a number, and is {}", text.display()))
}

fn simulate() -> Result<bool, String> {
    let fault = std::env::var("TOOZ_FAULT").ok();
    // It lives as long as the program.
    let fault: Option<&'static str> = fault.map(|word| &*word.leak());
    let plan = |seed| {
        let plan = Plan::new(seed);
        fault.map_or(plan, |fault| plan.with_fault(fault))
    };
    if let Some(seed) = number("TOOZ_SEED", None)? {
        let run = run(&plan(seed));
        println!("{}", run.report());
        return Ok(run.violations.is_empty());
    }
    let (first, seeds) = (number("TOOZ_FIRST", Some(0))?, number("TOOZ_SEEDS", Some(5_000))?);
    let first = first.unwrap_or_default();
    let last = first.saturating_add(seeds.unwrap_or_default());
    let (start, done) = (tooz_core::clock::Clock::boot().now(), AtomicU64::new(0));
    let since = || tooz_core::clock::Clock::boot().now().saturating_since(start).as_secs_f64();
    let summary = many(first..last, plan, |run| {
        if let Some(violation) = run.violations.first() {
            eprintln!("seed {}: {violation}", run.seed);
        }
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(SAID_EVERY) {
            eprintln!("{done} seeds in {:.0} s", since());
        }
    });
    println!("{summary}\n{:.1} s", since());
    Ok(summary.is_well())
}

fn main() -> ExitCode {
    match simulate() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("simulate: {why}");
            ExitCode::from(2)
        }
    }
}
