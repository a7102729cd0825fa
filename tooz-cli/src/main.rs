//! The `tooz` command. See `tooz --help`, and [`guard`] for how a command never outlives its lock.
#![cfg_attr(not(target_os = "linux"), allow(missing_docs))]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "the tooz command needs Linux: it ends the command before the lock can move, by parent-death signals, \
     timers on the boot-time clock and /proc"
);

mod args;
mod backend;
mod doctor;
mod drivers;
mod elect;
mod exit;
mod groups;
mod guard;
mod held;
mod holders;
mod lock;
mod manual;
mod messages;
mod patience;
mod run;
mod settings;
mod settings_file;
mod text;
mod usage;
mod watching;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Tokens, Verb};
use exit::{Code, Failure};
use settings::Backend;

fn main() -> ExitCode {
    if let Some(code) = guard::dispatch(std::env::args_os()) {
        messages::flush();
        return code;
    }
    let code = tooz();
    messages::flush();
    code.end()
}

fn tooz() -> Code {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let error = usage::explained(error);
            // Help and version are no errors. An error while printing is ignored: standard error fails as well then.
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE } else { exit::DONE };
        }
    };
    messages::set(cli.quiet, cli.verbose);
    // A runtime that lacks a descriptor for its signals panics (tokio 1.54, 2026).
    if let Some(remedy) = tooz::driver::support::descriptors::shortage() {
        return Failure::new(exit::UNAVAILABLE, remedy).report();
    }
    // On the main thread, which lives as long as the process: see `run::run`.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::from(error).report(),
    };
    let ended = runtime.block_on(dispatch(&cli));
    // Not by dropping it: it would wait for a write to an output whose reader stands still.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

async fn dispatch(cli: &Cli) -> Result<Code, Failure> {
    let backend = || Backend::of(&cli.backend, None);
    match &cli.verb {
        Verb::Lock(options) => lock::lock(&backend()?, options).await,
        Verb::Holders(options) => holders::holders(&backend()?, options).await,
        Verb::Break(options) => holders::break_lock(&backend()?, options).await,
        Verb::Groups(options) => groups::groups(&backend()?, options).await,
        Verb::Members(options) => groups::members(&backend()?, options).await,
        Verb::Join(options) => groups::join(&backend()?, options).await,
        Verb::Elect(options) => elect::elect(&backend()?, options).await,
        Verb::Leader(options) => elect::leader(&backend()?, options).await,
        Verb::Tokens { verb: Tokens::Raise(options) } => holders::raise_tokens(&backend()?, options).await,
        Verb::Doctor(options) => {
            doctor::doctor(&Backend::of(&cli.backend, options.at.as_deref())?, options).await
        }
        Verb::Drivers(options) => drivers::list(options),
        Verb::Completions(options) => manual::completions(options),
        Verb::Man(options) => manual::man(options),
    }
}

/// Whether `condition` comes true within `limit`.
#[cfg(test)]
fn eventually(limit: std::time::Duration, condition: impl Fn() -> bool) -> bool {
    let end = guard::boot_time() + limit;
    while guard::boot_time() < end {
        if condition() {
            return true;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(1));
    }
    condition()
}
