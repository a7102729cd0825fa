//! Backend URLs and what is read from them.
#![no_main]

#[path = "../../tooz-core/tests/it/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|text: &str| {
    checks::url(text);
    checks::id(text);
});
