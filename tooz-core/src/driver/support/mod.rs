//! What drivers would otherwise write again.

pub(crate) mod backoff;
