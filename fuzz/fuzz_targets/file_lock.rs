//! Names of the records of locks, the owners that they name, and files of sessions.
#![no_main]

use tooz_file::checks;

libfuzzer_sys::fuzz_target!(|text: &str| {
    checks::lock_record(text);
    checks::owner(text);
});
