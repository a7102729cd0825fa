//! Answers of a memcached, and the records of locks and groups that stand on it.
#![no_main]

use tooz_memcached::checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checks::answer(bytes);
    checks::lock_record(bytes);
    checks::mark(bytes);
    checks::group(bytes);
});
