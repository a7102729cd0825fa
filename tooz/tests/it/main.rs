//! The facade: which drivers it links, and that its README says what they promise.

mod drivers;
mod none;
mod readme;
