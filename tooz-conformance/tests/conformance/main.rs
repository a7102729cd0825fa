//! Every case against every driver of this workspace, and against one of a third party.

use std::process::ExitCode;

#[cfg(feature = "memory")]
mod toy;

fn main() -> ExitCode {
    #[allow(unused_mut)] // without the driver that it stands on there is no toy
    let mut targets = tooz_conformance::targets::all();
    #[cfg(feature = "memory")]
    targets.push(toy::target());
    tooz_conformance::main(&targets)
}
