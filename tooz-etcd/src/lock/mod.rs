//! Locks on the server.
//!
//! The recipe. A holder is a key on its session's lease, created by the transaction that grants; its create revision makes
//! the fencing token ([`fence`]). A waiter is such a key, too, and its create revision is its place. One transaction asks: if
//! nobody holds the lock, waits for it or left it uncleanly, it grants, else it queues. Beside the holder stands the
//! **gate**, which is Python's key for this lock: no holder without it, and none beside somebody else's. A key hangs on
//! one lease only, so the gate that several holders share has a lease of its own, which all of them keep alive: it
//! goes when the last of them is gone, and not with the one who came first.

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

/// Before the attempt in a gate's value. Python's values are 16 bytes, ours are longer.
const GATE_HOLDER: &[u8] = b"tooz1 holder ";
const GATE_SHARED: &[u8] = b"tooz1 shared";

/// What Python's key of a lock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateKind {
    /// It belongs to this holder alone.
    Holder(AttemptId),
    /// It belongs to all who share the lock, and hangs on a lease of its own.
    Shared,
    /// It is not ours.
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
    fn a_gate_is_ours_or_somebody_elses() {
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
