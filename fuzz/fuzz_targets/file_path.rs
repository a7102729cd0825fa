//! From names to files: no two meet, and none leads elsewhere.
#![no_main]

use tooz_file::checks;

libfuzzer_sys::fuzz_target!(|names: (&[u8], &[u8])| checks::names(names.0, names.1));
