//! What tests do to a backend: the kit, the gate that it controls, planted faults, and the oracle.

pub(crate) mod gate;
pub(crate) mod kit;
pub(crate) mod oracle;
pub(crate) mod planted;
