//! Locks on the server: the recipe, and Python's key.
//!
//! A holder is a key on its session's lease, created by the transaction that grants. Its create revision makes the fencing
//! token ([`fence`]). A waiter is such a key, too, and its create revision is its position in the queue. One transaction
//! asks: it grants if the lock has no holder, no waiter and no mark of an unclean end, else it queues.
//!
//! Beside the holder stands the **gate**, Python's key of the lock. A grant needs the gate, so no holder of ours stands
//! beside one of Python's. A key hangs on one lease only, so the gate that several holders share has a lease of its own,
//! which all of them prolong. It goes when the last of them is gone, and not with the first.

pub(crate) mod attempt;
pub(crate) mod cleanup;
pub(crate) mod fence;
pub(crate) mod monitor;
pub(crate) mod record;
pub(crate) mod state;
pub(crate) mod turn;
pub(crate) mod verify;

use etcd_client::KeyValue;
use tooz_core::driver::AttemptId;

/// The begin of a gate's value, before the attempt. Python's values have 16 bytes, ours are longer.
const GATE_HOLDER: &[u8] = b"tooz1 holder ";
const GATE_SHARED: &[u8] = b"tooz1 shared";

/// Whose gate it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateKind {
    /// The gate of this holder alone.
    Holder(AttemptId),
    /// The gate of all holders that share the lock, on a lease of its own.
    Shared,
    /// The gate of a Python process, or of another program.
    Foreign,
}

/// Python's key of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gate {
    pub(crate) kind: GateKind,
    pub(crate) revision: i64,
    pub(crate) lease: i64,
}

impl Gate {
    pub(crate) fn holder(attempt: AttemptId) -> Vec<u8> {
        [GATE_HOLDER, attempt.to_string().as_bytes()].concat()
    }

    pub(crate) fn shared() -> Vec<u8> {
        GATE_SHARED.to_vec()
    }

    pub(crate) fn read(kv: &KeyValue) -> Self {
        Self { kind: GateKind::read(kv.value()), revision: kv.mod_revision(), lease: kv.lease() }
    }
}

impl GateKind {
    fn read(value: &[u8]) -> Self {
        let holder = value
            .strip_prefix(GATE_HOLDER)
            .and_then(|attempt| std::str::from_utf8(attempt).ok())
            .and_then(AttemptId::parse);
        match holder {
            Some(attempt) => Self::Holder(attempt),
            None if value == GATE_SHARED => Self::Shared,
            None => Self::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gate_is_ours_or_foreign() {
        assert_eq!(GateKind::read(&Gate::holder(AttemptId(7))), GateKind::Holder(AttemptId(7)));
        assert_eq!(GateKind::read(&Gate::shared()), GateKind::Shared);
        for value in [&[7; 16][..], b"", b"tooz1", b"tooz1 holder x"] {
            assert_eq!(GateKind::read(value), GateKind::Foreign);
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_without_panic(value in prop::collection::vec(any::<u8>(), 0..60), ours in any::<bool>()) {
            let value = if ours { [b"tooz1\n", value.as_slice()].concat() } else { value };
            let _ = GateKind::read(&value);
        }
    }
}
