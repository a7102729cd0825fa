//! Names as they are shown.
#![no_main]

#[path = "../../tooz-core/tests/it/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|names: (&[u8], &[u8])| {
    checks::name(names.0);
    checks::names(names.0, names.1);
});
