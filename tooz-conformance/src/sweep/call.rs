//! The calls of the driver, and how long each is on its way.

use std::time::Duration;

use tooz_memory::Operation;

/// Which call of the driver a scene is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// How long a request is on its way to the memory driver's backend, and an answer on its way back. Without it a call
/// would be over before it could be dropped.
pub(super) const LATENCY: Duration = Duration::from_millis(2);

impl Called {
    /// The same in the memory driver's words.
    pub(super) fn operation(self) -> Operation {
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
