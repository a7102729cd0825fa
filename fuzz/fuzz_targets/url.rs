//! Backend URLs and what is read from them.
#![no_main]

#[path = "../../tooz-core/tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|text: &str| {
    checks::url(text);
    checks::id(text);
});
