//! What becomes of the calls to the backend while a future is swept.

use std::fmt;
use std::time::Duration;

use super::world::World;

/// Which call of the driver a scene is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // without the memory driver nobody counts or disturbs them
pub(super) enum Called {
    Open,
    Renew,
    Request,
    Release,
    Join,
    Leave,
    Update,
    Create,
    Delete,
    List,
    Members,
    Watch,
    Holders,
    Break,
    Raise,
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// Every call is done and answered.
    Clear,
    /// The call is done, and its answer is lost.
    AnswerLost(Called),
    /// The call is not done, and nobody says so.
    RequestLost(Called),
    /// The call fails.
    Fails(Called),
    /// The backend does not answer for a while.
    Hangs,
    /// The first call that clears up fails.
    ClearingFails(Called),
}

/// How long a request is on its way to the memory driver's backend, and an answer on its way back. Without it a call
/// would be over before anybody could drop it.
pub(super) const LATENCY: Duration = Duration::from_millis(2);

/// How long a backend that hangs does so: longer than the shortest limit in a scene, shorter than what is waited for
/// an answer after it.
const HANGS: Duration = Duration::from_millis(40);

/// The longest pause before a second try: three times the first (option `initial_reconnect_backoff`).
const AGAIN: Duration = Duration::from_millis(300);

impl Weather {
    /// Everything that may become of this call.
    pub(super) fn all(call: Called) -> Vec<Self> {
        vec![
            Self::Clear,
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
}

impl fmt::Display for Weather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clear => "",
            Self::AnswerLost(_) => "answer lost",
            Self::RequestLost(_) => "request lost",
            Self::Fails(_) => "the call fails",
            Self::Hangs => "backend hangs",
            Self::ClearingFails(_) => "clearing up fails",
        })
    }
}

#[cfg(not(feature = "memory"))]
impl Weather {
    pub(super) fn begins(self, _: &World) {}

    pub(super) async fn passes(self, _: &World) {}
}

#[cfg(feature = "memory")]
impl Weather {
    pub(super) fn begins(self, world: &World) {
        use tooz_memory::{Operation, Outcome};
        let Some(kit) = world.kit() else { return };
        let next = |call: Called, outcome| match call {
            // Of a coordinator of the point's own.
            Called::Open | Called::Renew | Called::Close => kit.next(call.operation(), 1, outcome),
            _ => kit.next_of("a", call.operation(), 1, outcome),
        };
        match self {
            Self::Clear => {}
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
    pub(super) async fn passes(self, world: &World) {
        if self == Self::Hangs {
            world.h.pass(HANGS).await;
            if let Some(kit) = world.kit() {
                kit.resume();
            }
        }
    }
}

#[cfg(feature = "memory")]
impl Called {
    /// The same in the memory driver's words.
    pub(super) fn operation(self) -> tooz_memory::Operation {
        use tooz_memory::Operation;
        match self {
            Self::Open => Operation::Open,
            Self::Renew => Operation::Renew,
            Self::Request => Operation::Request,
            Self::Release => Operation::Release,
            Self::Join => Operation::Join,
            Self::Leave => Operation::Leave,
            Self::Update => Operation::Update,
            Self::Create => Operation::Create,
            Self::Delete => Operation::Delete,
            Self::List => Operation::List,
            Self::Members => Operation::Members,
            Self::Watch => Operation::Watch,
            Self::Holders => Operation::Holders,
            Self::Break => Operation::Break,
            Self::Raise => Operation::Raise,
            Self::Close => Operation::Close,
        }
    }
}
