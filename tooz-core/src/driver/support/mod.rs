//! What drivers would otherwise write again.

pub mod attempts;
pub mod backoff;
pub mod errors;
pub mod feed;
pub mod fork;
pub mod lock_state;
pub mod msgpack;
pub mod notices;
pub mod rule;
pub mod tls;

pub use crate::platform::descriptors;
