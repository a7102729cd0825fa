//! Fencing tokens. A token is the create revision of the holder's key, plus the largest raise that was there before it.
//!
//! So the token is a function of keys on the server. A transaction that reads a holder and the raises gives the token that
//! was granted, also after later raises. A raise is a key of its own that is created and never written again. A revision
//! grows with every write to the cluster, and the largest raise with each raise.

use std::time::UNIX_EPOCH;

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp, TxnResponse};
use tooz_core::driver::Clock;
use tooz_core::{Error, FencingToken};

use crate::connection::answer;
use crate::error::corrupt;
use crate::keys::Fence;

/// The value of a raise; its key says all.
const RAISE: &str = "tooz1\nraise";

/// Every raise, with its create revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Raises(Vec<(i64, i64)>);

impl Raises {
    pub(crate) fn read(fence: &Fence, found: &[KeyValue]) -> Self {
        let mut raises = Self::default();
        for kv in found {
            raises.add(fence, kv);
        }
        raises
    }

    /// Adds a raise; a key that is no raise is left alone.
    pub(crate) fn add(&mut self, fence: &Fence, kv: &KeyValue) {
        if let Some(by) = fence.parse(kv.key()) {
            self.0.push((by, kv.create_revision()));
        } else {
            tracing::warn!(key = %kv.key().escape_ascii(), "not a raise of ours; it is left alone");
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The token of a holder whose key was created at this revision.
    pub(crate) fn token(&self, created: i64) -> i64 {
        let before = self.0.iter().filter(|(_, raised)| *raised < created);
        created.saturating_add(before.map(|(by, _)| *by).max().unwrap_or(0))
    }
}

/// Reads every raise.
pub(crate) fn look(fence: &Fence) -> TxnOp {
    TxnOp::get(fence.prefix().to_vec(), Some(GetOptions::new().with_prefix()))
}

/// True while there is a raise. Without one, tokens would be smaller than before.
pub(crate) fn exists(fence: &Fence) -> Compare {
    Compare::create_revision(fence.prefix().to_vec(), CompareOp::Greater, 0).with_prefix()
}

pub(crate) fn is_gone(fence: &Fence) -> Error {
    corrupt(
        fence.prefix(),
        "is gone, and tokens would be smaller than before; raise them (`tooz tokens raise`)",
    )
}

/// The first raise of a namespace, at the present revision: it raises tokens to the microseconds since 1970. So they look
/// like those of other backends, and are larger than those of an earlier namespace of this name that was deleted.
pub(crate) fn first(fence: &Fence, clock: &Clock, revision: i64) -> TxnOp {
    let micros = clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let micros = i64::try_from(micros).unwrap_or(0).min(FencingToken::RAISE_LIMIT.cast_signed());
    TxnOp::put(fence.raise(micros.saturating_sub(revision).max(0)), RAISE, None)
}

/// The transaction that raises the tokens of all later grants to `least`; `None`: they are that large. `found`: what
/// [`look`] read. A raise that was read late is one more, and no smaller one.
pub(crate) fn raise_to(fence: &Fence, least: FencingToken, found: &TxnResponse) -> Option<Txn> {
    let next = answer::revision(found).saturating_add(1);
    if Raises::read(fence, &answer::found(found, 0)).token(next) >= least.as_i64() {
        return None;
    }
    // Only created, never written again: the create revision says from where on a raise counts.
    let raise = fence.raise(least.as_i64().saturating_sub(next));
    let missing = Compare::version(raise.clone(), CompareOp::Equal, 0);
    Some(Txn::new().when([missing]).and_then([TxnOp::put(raise, RAISE, None)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raise_counts_for_what_is_created_after_it() {
        let raises = Raises(vec![(1_000, 10), (500, 20), (2_000, 30)]);
        let tokens = [5, 10, 11, 25, 30, 31].map(|created| raises.token(created));
        assert_eq!(tokens, [5, 10, 1_011, 1_025, 1_030, 2_031]);
        assert_eq!(Raises::default().token(7), 7);
        assert_eq!(Raises(vec![(i64::MAX, 1)]).token(7), i64::MAX);
    }
}
