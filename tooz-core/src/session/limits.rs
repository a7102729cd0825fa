//! The time limits of a coordinator, and those that follow from a session's ttl.

use std::time::Duration;

use crate::driver::Limits;
use crate::driver::support::backoff::Backoff;
use crate::{BackendUrl, MemberId};

/// Time limits and habits, from the builder and the URL.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) url: BackendUrl,
    pub(crate) member: MemberId,
    pub(crate) limits: Limits,
    pub(crate) initial_backoff: Duration,
    pub(crate) max_backoff: Duration,
    pub(crate) rejoin: bool,
}

impl Config {
    /// The pauses between tries.
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.initial_backoff, self.max_backoff)
    }
}

/// How long an answer that is on its way is still waited for when a caller's limit is over: half of the 100 ms
/// that the contract allows beyond the limit, so that a limit shorter than a round trip gets an answer too.
pub(crate) const LAST_WORD: Duration = Duration::from_millis(50);

/// A session whose life does not depend on time is still asked after this often: whether its file was deleted, a
/// lock broken, a member record removed.
const BEAT_WITHOUT_TTL: Duration = Duration::from_secs(5);

/// How often a session of this ttl is renewed: two renewals may fail and the third still comes in time.
pub(crate) fn period(ttl: Option<Duration>) -> Duration {
    ttl.map_or(BEAT_WITHOUT_TTL, |ttl| ttl / 3)
}

/// How long one renewal may take before the next is sent, over another connection where there is one.
pub(crate) fn time_limit(ttl: Option<Duration>, operation_timeout: Duration) -> Duration {
    ttl.map_or(operation_timeout, |ttl| ttl / 6)
}

/// We stop believing this much before the backend does. It is also the clock-rate error that is tolerated: a
/// twentieth, 5 %, which no working clock comes near; and 100 ms for scheduling.
pub(crate) fn margin(ttl: Duration) -> Duration {
    (ttl / 20).max(Duration::from_millis(100))
}
