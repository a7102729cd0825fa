//! Pauses between tries.

use std::time::Duration;

use crate::platform::entropy::Entropy;

/// Pauses between tries: decorrelated jitter (M. Brooker, *Exponential Backoff and Jitter*, 2015), so that many
/// clients of a backend that came back do not call in step.
#[derive(Debug)]
pub struct Backoff {
    initial: Duration,
    most: Duration,
    last: Duration,
}

impl Backoff {
    /// Pauses from `initial` up to `most`.
    pub fn new(initial: Duration, most: Duration) -> Self {
        Self { initial, most, last: initial }
    }

    /// The next pause.
    pub fn next(&mut self, entropy: &Entropy) -> Duration {
        self.last = entropy.between(self.initial, self.last.saturating_mul(3)).min(self.most);
        self.last
    }
}
