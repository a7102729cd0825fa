//! What becomes of the calls to the backend while a future is swept.

use std::fmt;
use std::time::Duration;

use tooz_memory::{Operation, Outcome};

use super::call::{Called, LATENCY};
use super::world::World;

/// What becomes of the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conditions {
    /// Every call is done and answered.
    Normal,
    /// The call is done, and its answer is lost.
    AnswerLost(Called),
    /// The call is not done, and its caller is not told.
    RequestLost(Called),
    /// The call fails.
    Fails(Called),
    /// The backend does not answer for a while.
    Hangs,
    /// The first call that clears up fails.
    ClearingFails(Called),
}

/// How long a backend that hangs does so: longer than the shortest limit in a scene, shorter than what is waited for
/// an answer after it.
const HANGS: Duration = Duration::from_millis(40);

/// The longest pause before a second try: three times the first (option `initial_reconnect_backoff`).
const AGAIN: Duration = Duration::from_millis(300);

impl Conditions {
    /// Everything that may become of this call.
    pub(super) fn all(call: Called) -> Vec<Self> {
        vec![
            Self::Normal,
            Self::AnswerLost(call),
            Self::RequestLost(call),
            Self::Fails(call),
            Self::Hangs,
            Self::ClearingFails(call),
        ]
    }

    /// Whether a call that was begun may end with an error.
    pub(super) fn allows_errors(self) -> bool {
        matches!(
            self,
            Self::AnswerLost(_) | Self::RequestLost(_) | Self::Fails(_) | Self::ClearingFails(Called::Leave)
        )
    }

    /// Whether a call that was begun takes effect.
    pub(super) fn lets_through(self) -> bool {
        !matches!(self, Self::RequestLost(_) | Self::Fails(_))
    }

    /// What is promised to be over then (L6): what was on its way is there and back, and so is one more call, which
    /// clears up after it; where that fails, it is tried again.
    pub(super) fn cleared_after(self) -> Duration {
        let two_calls = LATENCY * 4;
        match self {
            Self::ClearingFails(_) => two_calls + AGAIN + LATENCY * 2,
            _ => two_calls,
        }
    }

    pub(super) fn begin(self, world: &World) {
        let Some(kit) = world.kit() else { return };
        let next = |call: Called, outcome| match call {
            // Of a coordinator of the point's own.
            Called::Open | Called::Renew | Called::Close => kit.next(call.operation(), 1, outcome),
            _ => kit.next_of("a", call.operation(), 1, outcome),
        };
        match self {
            Self::Normal => {}
            Self::AnswerLost(call) => next(call, Outcome::Indeterminate),
            Self::RequestLost(call) => next(call, Outcome::Lost),
            Self::Fails(call) => next(call, Outcome::Fail),
            Self::Hangs => kit.pause(),
            Self::ClearingFails(_) => {
                for clearing in [Operation::Withdraw, Operation::Leave] {
                    kit.next_of("a", clearing, 1, Outcome::Fail);
                }
            }
        }
    }

    /// Until the end of what ends by itself.
    pub(super) async fn pass(self, world: &World) {
        if self == Self::Hangs {
            world.h.pass(HANGS).await;
            if let Some(kit) = world.kit() {
                kit.resume();
            }
        }
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "",
            Self::AnswerLost(_) => "answer lost",
            Self::RequestLost(_) => "request lost",
            Self::Fails(_) => "the call fails",
            Self::Hangs => "backend hangs",
            Self::ClearingFails(_) => "clearing up fails",
        })
    }
}
