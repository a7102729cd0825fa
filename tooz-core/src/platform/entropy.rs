//! The only source of randomness: ids and jitter. Seeded in simulation, so that a seed replays.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Randomness from the operating system, or from a seed. Clones share one sequence.
#[derive(Clone)]
pub struct Entropy(Option<Arc<Mutex<fastrand::Rng>>>);

impl Entropy {
    /// Randomness from the operating system.
    pub fn system() -> Self {
        Self(None)
    }

    /// The sequence of this seed, the same on every machine.
    pub fn seeded(seed: u64) -> Self {
        Self(Some(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)))))
    }

    /// 128 random bits, for an id.
    pub fn id(&self) -> u128 {
        if let Some(rng) = &self.0 {
            return rng.lock().unwrap_or_else(PoisonError::into_inner).u128(..);
        }
        let mut bytes = [0; 16];
        match getrandom::fill(&mut bytes) {
            Ok(()) => u128::from_ne_bytes(bytes),
            // Only a kernel without getrandom(2) and without /dev/urandom gets here; fastrand then still mixes
            // the time, the thread and the allocator's addresses.
            Err(_) => fastrand::u128(..),
        }
    }

    /// A duration between `low` and `high`, uniformly.
    pub fn between(&self, low: Duration, high: Duration) -> Duration {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let (low, high) = (nanos(low), nanos(high.max(low)));
        Duration::from_nanos(match &self.0 {
            Some(rng) => rng.lock().unwrap_or_else(PoisonError::into_inner).u64(low..=high),
            None => fastrand::u64(low..=high),
        })
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Entropy(seeded)" } else { "Entropy(system)" })
    }
}
