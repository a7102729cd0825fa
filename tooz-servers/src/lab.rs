//! Tests without the compiler's harness: what is missing on a machine is known only when the tests are listed.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;

use libtest_mimic::Arguments;
pub use libtest_mimic::{Failed, Trial};

use crate::wait::Outcome;

/// A test that needs something which may be missing on this machine. If it is missing, the test is listed as *ignored* with
/// the reason, and fails with `TOOZ_REQUIRE=all`.
pub fn trial(
    name: impl Into<String>,
    missing: Option<String>,
    run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    needing(name, missing, is_required(), run)
}

/// As [`trial`], where the caller says whether what is missing is a failure.
pub fn needing(
    name: impl Into<String>,
    missing: Option<String>,
    require: bool,
    run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    match missing.map(|why| format!("missing: {}", why.replace('\n', " | "))) {
        Some(why) if require => Trial::test(name, move || Err(Failed::from(why))),
        Some(why) => Trial::test(name, run).with_kind(why).with_ignored_flag(true),
        None => Trial::test(name, run),
    }
}

/// Tests that are left out of this build: they are listed as *ignored* in one line, with the feature that they need.
pub fn left_out(area: &str, feature: &str) -> Trial {
    let why = format!("left out without the feature {feature}");
    let failed = Failed::from(why.clone());
    Trial::test(area, move || Err(failed)).with_kind(why).with_ignored_flag(true)
}

/// Whether what is missing is a failure.
pub fn is_required() -> bool {
    std::env::var("TOOZ_REQUIRE").is_ok_and(|value| value == "all")
}

/// An asynchronous test.
pub type Case = fn() -> Pin<Box<dyn Future<Output = Outcome>>>;

/// What a case may return: nothing, or an [`Outcome`].
pub trait Verdict {
    /// The outcome of the case.
    ///
    /// # Errors
    /// Why the case failed.
    fn outcome(self) -> Outcome;
}

impl Verdict for () {
    fn outcome(self) -> Outcome {
        Ok(())
    }
}

impl Verdict for Outcome {
    fn outcome(self) -> Outcome {
        self
    }
}

/// Asynchronous functions and their names, as [`Case`]s.
#[macro_export]
macro_rules! cases {
    ($($case:path),* $(,)?) => {
        &[$((stringify!($case), || {
            Box::pin(async { $crate::lab::Verdict::outcome($case().await) })
        })),*]
    };
}

/// The tests of `area`, each on a runtime of its own, which need a program that may be missing.
pub fn trials(area: &str, program: &Result<PathBuf, String>, cases: &[(&str, Case)]) -> Vec<Trial> {
    let missing = program.as_ref().err();
    let run = |case: Case| {
        move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(case()).map_err(|error| Failed::from(error.to_string()))
        }
    };
    cases.iter().map(|(name, case)| trial(format!("{area}::{name}"), missing.cloned(), run(*case))).collect()
}

/// The size of a test: `default`, unless the environment's `variable` names another.
///
/// # Panics
/// The variable's value is no number.
pub fn size(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable}={text}: a number is wanted"))
    })
}

/// How many tests on servers run at a time: most of each is waiting.
pub const WAITING: Option<usize> = Some(4);

/// Runs the tests that the arguments of this process name, so many `threads` at a time unless they say otherwise. `None`: as
/// many as there are processors.
pub fn run(trials: Vec<Trial>, threads: Option<usize>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(threads);
    libtest_mimic::run(&arguments, trials).exit_code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_ignored_unless_all_is_required() {
        let trial =
            |missing: Option<&str>, require| needing("x", missing.map(str::to_owned), require, || Ok(()));
        assert!(trial(Some("no server"), false).has_ignored_flag());
        assert_eq!(trial(Some("no\nserver"), false).kind(), "missing: no | server");
        assert!(!trial(Some("no server"), true).has_ignored_flag());
        assert!(!trial(None, true).has_ignored_flag());
    }
}
