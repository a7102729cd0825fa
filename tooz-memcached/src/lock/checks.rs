//! What has to hold of any bytes that stand on the server or come from it: one function for each parser. The property tests
//! below call it with what proptest generates, the target in `fuzz/` with what the fuzzer finds. No part of the interface.

use super::mark::Mark;
use super::record::{self, State};
use crate::connection::command::Answer;
use crate::view::{read_list, read_members, write_list, write_members};

/// Any bytes are an answer, the beginning of one, or none.
pub fn answer(bytes: &[u8]) {
    if let Ok(Some((answer, length))) = Answer::parse(bytes) {
        assert!(0 < length && length <= bytes.len());
        assert_eq!(Answer::parse(&bytes[..length]).ok(), Some(Some((answer, length))));
    }
}

/// Any bytes are a lock's record or none, and what was understood is written so that it is understood alike.
pub fn lock_record(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), [b"\0tooz-rs 1 ", bytes].concat()] {
        if let Some(state) = record::read(&bytes, 7) {
            let again = |state: &State| record::read(&record::write(1, state), 9);
            assert_eq!(again(&state).as_ref(), Some(&state));
        }
    }
}

/// Any bytes are a lock's mark or none.
pub fn mark(bytes: &[u8]) {
    if let Some(mark) = Mark::read(bytes, 7) {
        assert_eq!(Mark::read(&mark.write(), 9), Some(mark));
    }
}

/// Any bytes are a group's members or none, and the list of groups or none.
pub fn group(bytes: &[u8]) {
    if let Some(entries) = read_members(bytes) {
        for entry in &entries {
            let _ = entry.record();
        }
        assert_eq!(read_members(&write_members(&entries)), Some(entries));
    }
    if let Some(ids) = read_list(bytes) {
        assert_eq!(read_list(&write_list(&ids)), Some(ids));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, kind in 0_usize..5) {
            let begin: &[u8] = [&b""[..], b"VA ", b"t 1 ", b"x e\n", b"\x81"][kind];
            let bytes = [begin, &bytes[..]].concat();
            answer(&bytes);
            lock_record(&bytes);
            mark(&bytes);
            group(&bytes);
        }

        #[test]
        fn damaged_records_are_read_without_panic(at: usize, byte: u8) {
            let whole = b"\0tooz-rs 1 1700000000000000 e 1 0\n\
                00000000000000000000000000000001 00000000000000000000000000000002 p 3 0 c 1700000000 15 1 m\n";
            let mut bytes = whole.to_vec();
            assert!(record::read(&bytes, 1).is_some());
            let at = at % bytes.len();
            bytes[at] = byte;
            lock_record(&bytes);
            mark(&bytes[11..]);
        }
    }
}
