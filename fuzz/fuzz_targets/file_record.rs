//! Records of members and groups in a directory, and the fencing counter.
#![no_main]

use tooz_file::checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checks::member(bytes);
    checks::group(bytes);
    checks::value(bytes);
    checks::fence(bytes);
});
