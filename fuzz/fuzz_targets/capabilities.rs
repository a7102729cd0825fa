//! What members publish.
#![no_main]

#[path = "../../tooz-core/tests/it/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::capabilities(bytes));
