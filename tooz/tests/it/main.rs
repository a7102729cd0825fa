//! The facade: which drivers it links, and that its README says what they promise. The floor plan of the workspace.

mod drivers;
mod house;
mod none;
mod readme;
