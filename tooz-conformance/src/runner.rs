//! Runs cases: names, gates, budgets.
#![allow(clippy::disallowed_methods)] // runtimes are made here, one per case

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use tooz_servers::lab::{is_required, needing};

use crate::case::Case;
use crate::harness::Harness;
use crate::target::{Target, Time, Wish};
use crate::tools::{Caught, panic_text};
use crate::{cases, helper};

/// The longest case lets ten minutes pass; one that waits for ever moves the virtual clock this far, within a second.
const VIRTUAL_LIMIT: Duration = Duration::from_secs(1000);

/// How long the backend of a case may take to be there: it is no part of the case. Servers bound that themselves.
const PREPARATION: Duration = Duration::from_mins(3);

/// Ends what is still running when a case is over; the case's verdict stands already.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// Runs every case against every target; a test file's whole `main`.
///
/// What does not apply to a target is listed as *ignored* with its reason. A target whose backend is missing is
/// ignored, too, and fails with `TOOZ_REQUIRE=all`.
pub fn main(targets: &[Target]) -> ExitCode {
    if let Some(code) = helper::if_helper() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    // Most cases mostly wait: eight to a processor take seven tenths of the time of four.
    let threads = 8 * std::thread::available_parallelism().map_or(2, usize::from);
    arguments.test_threads.get_or_insert(threads);
    let conclusion = libtest_mimic::run(&arguments, trials(targets, is_required()));
    if asks_for_all(&arguments) && conclusion.num_passed + conclusion.num_failed == 0 {
        eprintln!("no case ran: link a driver (`use tooz_memory as _;`) and name its target");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// Whether it is a mistake if nothing runs.
fn asks_for_all(arguments: &Arguments) -> bool {
    arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list && !arguments.ignored
}

fn trials(targets: &[Target], require: bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    for target in targets {
        for case in cases::all() {
            let name = format!("{}::{}", target.name(), case.name());
            let (target_here, reason) = (target.clone(), case.why_not(target));
            let run = move || match reason {
                Some(why) => Err(Failed::from(format!("does not apply: {why}"))),
                None => run(&target_here, &case).map_err(Failed::from),
            };
            let missing = target.missing().map(str::to_owned);
            trials.push(match case.why_not(target) {
                Some(why) if missing.is_none() => {
                    Trial::test(name, run).with_kind(why).with_ignored_flag(true)
                }
                _ => needing(name, missing, require, run),
            });
        }
    }
    trials
}

/// Runs one case against one target.
///
/// # Errors
/// Why it failed.
pub fn run(target: &Target, case: &Case) -> Result<(), String> {
    run_within(target, case, case.time_limit() * target.pace())
}

/// The same with another budget.
///
/// # Errors
/// Why it failed.
pub fn run_within(target: &Target, case: &Case, budget: Duration) -> Result<(), String> {
    let (sender, receiver) = channel();
    let (target, case) = (target.clone(), *case);
    let thread = std::thread::Builder::new().name(case.name().into()).spawn(move || {
        // Nobody listens any more once the budget is over.
        let begun = || drop(sender.send(None));
        let verdict = catch_unwind(AssertUnwindSafe(|| run_here(&target, &case, begun)));
        let _ = sender.send(Some(verdict.unwrap_or_else(|panic| Err(panic_text(&*panic)))));
    });
    thread.map_err(|error| format!("no thread for the case: {error}"))?;
    let mut limit = PREPARATION;
    loop {
        match receiver.recv_timeout(limit) {
            Ok(None) => limit = budget,
            Ok(Some(verdict)) => return verdict,
            // Its thread is left behind, since nothing can end it; the test process ends soon.
            Err(RecvTimeoutError::Timeout) => return Err(format!("over its budget of {limit:?}")),
            Err(RecvTimeoutError::Disconnected) => return Err("its thread ended without a verdict".into()),
        }
    }
}

/// Runs it; `begun` is called when its backend is there.
fn run_here(target: &Target, case: &Case, begun: impl FnOnce()) -> Result<(), String> {
    let time = if case.is_virtual(target) { Time::Virtual } else { Time::Real };
    let runtime = match time {
        Time::Virtual => {
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()
        }
        Time::Real => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build(),
    };
    let runtime = runtime.map_err(|error| format!("no runtime for the case: {error}"))?;
    let verdict = runtime.block_on(async {
        let wish = Wish { time, lasting: case.is_lasting() };
        let harness = Harness::new(target, wish).map_err(|error| error.to_string())?;
        begun();
        let running = Caught(Box::pin(case.run(harness.clone())));
        let verdict = match tokio::time::timeout(VIRTUAL_LIMIT, running).await {
            Ok(Ok(outcome)) => outcome.map_err(|error| explain(&*error)),
            Ok(Err(panic)) => Err(panic),
            Err(_) => Err("it waits for ever".into()),
        };
        harness.close_all().await;
        verdict
    });
    runtime.shutdown_timeout(SHUTDOWN);
    verdict
}

/// An error with its causes.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_backend_is_ignored_unless_all_are_required() {
        let targets = [Target::new("missing", |_| Err("it is not installed".into()))];
        assert!(trials(&targets, false).iter().all(Trial::has_ignored_flag));
        assert!(!trials(&targets, true).iter().any(Trial::has_ignored_flag));
        assert_eq!(trials(&targets, true).len(), cases::all().len());
    }

    #[test]
    fn nothing_is_a_mistake_only_where_all_was_asked_for() {
        assert!(asks_for_all(&Arguments::default()));
        for words in [&["x", "no_such_case"][..], &["x", "--list"], &["x", "--ignored"]] {
            assert!(!asks_for_all(&Arguments::from_iter(words)), "{words:?}");
        }
    }
}
