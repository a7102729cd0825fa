//! Numbers that grow with every grant, for the protected resource to compare.

use std::fmt;
use std::num::NonZeroU64;

/// A number that is larger for every later grant of the same lock name.
///
/// Send it along with every write to what the lock protects, and let that side refuse a token smaller than the
/// largest it has seen. It is the only protection against a holder that does not know yet that it lost the lock
/// (M. Kleppmann, *How to do distributed locking*, 2016; Burrows' *sequencers* in Chubby, 2006).
///
/// A shared grant's token is larger than every earlier and smaller than every later exclusive grant's; readers
/// are unordered among themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(NonZeroU64);

impl FencingToken {
    /// The token with this number; `None` for 0, which is no token.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number to send to the protected resource, at least 1.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a leadership: its fencing token. It grows with each leadership of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(FencingToken);

impl Term {
    /// The number, at least 1.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The same number as a fencing token.
    pub const fn token(self) -> FencingToken {
        self.0
    }
}

impl From<FencingToken> for Term {
    fn from(token: FencingToken) -> Self {
        Self(token)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
