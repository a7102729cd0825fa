//! Many runs on all cores, and what came of all of them together.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::run::{Met, Plan, Run, run};
use super::world::locked;

/// So many failed seeds are kept with what is wrong; the others are only counted.
const KEPT: usize = 100;

/// What came of many runs.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many runs there were.
    pub seeds: u64,
    /// What was met in all of them.
    pub met: Met,
    /// How many of them showed something that the contract forbids.
    pub failed: u64,
    /// The first of those by seed, with the first violation of each.
    pub shown: BTreeMap<u64, String>,
}

impl Summary {
    fn add(&mut self, run: &Run) {
        self.seeds += 1;
        self.met = self.met.and(run.met);
        let Some(violation) = run.violations.first() else { return };
        self.failed += 1;
        self.shown.insert(run.seed, violation.to_string());
        if self.shown.len() > KEPT {
            self.shown.pop_last();
        }
    }

    /// Whether all is well: nothing was found, nothing was too busy to be judged, and enough happened for that to
    /// mean something.
    pub fn is_well(&self) -> bool {
        self.failed == 0 && self.met.unsearched == 0 && self.met.counts()
    }
}

/// What was judged; then the failed seeds, each with how to replay it.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Met { operations, grants, hand_overs, expiries, unknown, cancelled, watched, unsearched } =
            self.met;
        write!(
            f,
            "{} seeds, {operations} operations judged: {grants} grants, {hand_overs} of them after an end that \
             nobody wanted, {expiries} expiries, {unknown} unknown outcomes, {cancelled} cancellations, {watched} \
             watched changes",
            self.seeds
        )?;
        if unsearched > 0 {
            write!(f, "\n{unsearched} keys were too busy to be judged")?;
        }
        if !self.met.counts() {
            write!(f, "\ntoo little happened to prove anything")?;
        }
        for (seed, what) in &self.shown {
            write!(f, "\nTOOZ_SEED={seed}: {what}")?;
        }
        if self.failed > 0 {
            write!(f, "\n{} of {} seeds FAILED", self.failed, self.seeds)?;
        }
        Ok(())
    }
}

/// Runs these seeds on all cores, with `plan` for each. A run that fails or panics takes nothing from the others.
/// `done` is told after each run, by whichever thread made it.
pub fn many(seeds: Range<u64>, plan: impl Fn(u64) -> Plan + Sync, done: impl Fn(&Run) + Sync) -> Summary {
    let (next, summary) = (AtomicU64::new(seeds.start), Mutex::new(Summary::default()));
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let run = run(&plan(seed));
                    locked(&summary).add(&run);
                    done(&run);
                }
            });
        }
    });
    summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
