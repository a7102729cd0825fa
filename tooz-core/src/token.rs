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
    /// The largest number to which [`Coordinator::raise_tokens`](crate::Coordinator::raise_tokens) raises: 2^52. Redis
    /// counts exactly up to 2^53, so as many grants again can follow on any backend.
    pub const RAISE_LIMIT: u64 = 1 << 52;

    /// The token with this number; `None` for 0, which is no token, and for more than `i64::MAX`.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) if number.get() <= i64::MAX.cast_unsigned() => Some(Self(number)),
            _ => None,
        }
    }

    /// The number to send to the protected resource, at least 1.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The same number for a signed column, such as SQL's `BIGINT`. It always fits.
    pub const fn as_i64(self) -> i64 {
        // INVARIANT: `new` lets nothing above i64::MAX in.
        self.get().cast_signed()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_fits_into_a_signed_number() {
        let largest = u64::try_from(i64::MAX).unwrap();
        assert_eq!(FencingToken::new(0), None);
        assert_eq!(FencingToken::new(largest + 1), None);
        assert_eq!(FencingToken::new(u64::MAX), None);
        assert_eq!(FencingToken::new(largest).unwrap().as_i64(), i64::MAX);
        assert_eq!(FencingToken::new(FencingToken::RAISE_LIMIT).unwrap().as_i64(), 4_503_599_627_370_496);
    }
}
