//! Every case against every driver of this workspace.

use std::process::ExitCode;

fn main() -> ExitCode {
    tooz_conformance::main(&tooz_conformance::targets::all())
}
