//! Fencing tokens that keep growing across a power cut: what the counters of all drivers for files do alike.
//!
//! What was written may be lost when the machine loses power, and with it the last numbers that were given out. So a store
//! holds `next`, `ceiling` and the id of the boot. No number at or above `ceiling` is given out before a higher ceiling was
//! synced. A process that finds the id of another boot continues at the ceiling, since all numbers below it may have been
//! given out. Each driver does this in steps of its own store.

use std::time::{SystemTime, UNIX_EPOCH};

/// How many tokens one sync covers: at 300,000 grants a second still only three syncs a second, and a reboot skips no more
/// than this.
pub const STEP: u64 = 100_000;

/// No token is larger: [`FencingToken`](tooz_core::FencingToken) fits into a signed number.
pub const MOST: u64 = i64::MAX.cast_unsigned();

/// The ceiling that has to be synced before `next` is given out; `None` at the end of all numbers.
pub fn ceiling_above(next: u64) -> Option<u64> {
    next.checked_add(STEP).filter(|ceiling| *ceiling <= MOST)
}

/// The first token of a new counter, above `floor`. If the counter replaces one that was deleted, clients have seen that
/// one's tokens; microseconds since 1970 are above all of them unless the clock was set back meanwhile.
pub fn first_token(wall: SystemTime, floor: u64) -> u64 {
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(1).max(floor + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_token_is_above_all_that_were_seen() {
        let at = |micros| UNIX_EPOCH + Duration::from_micros(micros);
        assert_eq!(first_token(at(1_000), 0), 1_000);
        assert_eq!(first_token(at(1_000), 2_000), 2_001);
        assert_eq!(first_token(UNIX_EPOCH, 0), 1, "0 is no token");
        assert_eq!(first_token(UNIX_EPOCH - Duration::from_secs(1), 0), 1);
    }

    #[test]
    fn no_ceiling_is_above_all_numbers() {
        assert_eq!(ceiling_above(7), Some(7 + STEP));
        assert_eq!((ceiling_above(MOST - STEP), ceiling_above(MOST - STEP + 1)), (Some(MOST), None));
    }
}
