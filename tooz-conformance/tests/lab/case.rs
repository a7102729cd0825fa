//! Cases: asynchronous functions, each on a runtime of its own.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use libtest_mimic::{Failed, Trial};
use tooz_conformance::{Outcome, trial};

pub(crate) type Case = fn() -> Pin<Box<dyn Future<Output = Outcome>>>;

/// How a case may end: by itself, or with a reason.
pub(crate) trait Verdict {
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

/// Asynchronous functions and their names.
macro_rules! cases {
    ($($case:path),* $(,)?) => {
        &[$((stringify!($case), || {
            Box::pin(async { crate::case::Verdict::outcome($case().await) })
        })),*]
    };
}
pub(crate) use cases;

/// The tests of `area`, which need a program that may be missing.
pub(crate) fn trials(area: &str, program: &Result<PathBuf, String>, cases: &[(&str, Case)]) -> Vec<Trial> {
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
