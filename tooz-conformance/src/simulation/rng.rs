//! The random numbers of a run. Every choice of a run comes from here, and all of them from one seed.

use std::time::Duration;
use tooz_core::driver::Entropy;

/// A sequence of choices.
#[derive(Clone, Debug)]
pub(super) struct Rng(Entropy);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(Entropy::seeded(seed))
    }

    /// A sequence of its own for a task, so that the choices of one task do not shift those of the others.
    pub(super) fn split(&self) -> Self {
        Self::new(self.seed())
    }

    pub(super) fn seed(&self) -> u64 {
        // The lower half of 128 random bits.
        u64::try_from(self.0.id() & u128::from(u64::MAX)).unwrap_or(0)
    }

    /// One of 0 to `end` - 1.
    pub(super) fn below(&self, end: u64) -> u64 {
        self.seed() % end.max(1)
    }

    pub(super) fn one_in(&self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    pub(super) fn one_of<T: Copy>(&self, choices: &[T]) -> Option<T> {
        let index = self.below(choices.len() as u64);
        choices.get(usize::try_from(index).ok()?).copied()
    }

    /// A time of so many milliseconds.
    pub(super) fn millis(&self, low: u64, high: u64) -> Duration {
        self.0.between(Duration::from_millis(low), Duration::from_millis(high))
    }
}
