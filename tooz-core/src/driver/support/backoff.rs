//! Pauses between tries.

use std::time::Duration;

use crate::platform::entropy::Entropy;

/// Pauses between tries: decorrelated jitter (M. Brooker, *Exponential Backoff and Jitter*, 2015), so that many
/// clients of a backend that came back do not call in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    initial: Duration,
    most: Duration,
    last: Duration,
}

impl Backoff {
    pub(crate) fn new(initial: Duration, most: Duration) -> Self {
        Self { initial, most, last: initial }
    }

    pub(crate) fn next(&mut self, entropy: &Entropy) -> Duration {
        self.last = entropy.between(self.initial, self.last * 3).min(self.most);
        self.last
    }
}
