//! The words in which scripts and this driver speak of modes, ends and times.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tooz_core::driver::{End, LockMode, Previous};
use tooz_core::{LossReason, MemberId};

/// The letter of a mode, and its limit.
pub(crate) fn mode_code(mode: LockMode) -> (&'static str, u32) {
    match mode {
        LockMode::Shared => ("s", 0),
        LockMode::Permit { limit } => ("p", limit.get()),
        _ => ("x", 0),
    }
}

/// The mode of a letter and a limit; `None`: the limit is none.
pub(crate) fn parse_mode(letter: &str, limit: &str) -> Option<LockMode> {
    Some(match letter {
        "s" => LockMode::Shared,
        "p" => LockMode::Permit { limit: limit.parse().ok()? },
        _ => LockMode::Exclusive,
    })
}

/// What a script leaves in a lock for the next holder.
pub(crate) fn end_code(end: End) -> &'static str {
    match end {
        End::Clean => "",
        End::Unclean => "E",
    }
}

/// How the last holder ended.
pub(crate) fn parse_previous(word: &str) -> Previous {
    match word {
        "E" => Previous::Expired,
        "B" => Previous::Broken,
        "U" => Previous::Unknown,
        _ => Previous::Clean,
    }
}

/// The two byte strings that `pair` joined: the length of the first, a colon, and both.
pub(crate) fn unpair(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = text.iter().position(|byte| *byte == b':')?;
    let length = std::str::from_utf8(&text[..colon]).ok()?.parse().ok()?;
    text[colon + 1..].split_at_checked(length)
}

/// Who broke a lock and why, as a pair.
pub(crate) fn parse_broken(text: &[u8]) -> LossReason {
    let (by, why) = unpair(text).unwrap_or((b"", text));
    LossReason::Broken { by: MemberId::new(by).ok(), why: String::from_utf8_lossy(why).into_owned() }
}

/// A time that the server wrote, in microseconds.
pub(crate) fn parse_time(text: &str) -> Option<SystemTime> {
    text.parse().ok().and_then(|micros| UNIX_EPOCH.checked_add(Duration::from_micros(micros)))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn a_permit_without_a_limit_is_none() {
        let three = NonZeroU32::new(3).unwrap();
        assert_eq!(parse_mode("p", "3"), Some(LockMode::Permit { limit: three }));
        assert_eq!(
            (parse_mode("s", "0"), parse_mode("x", "0")),
            (Some(LockMode::Shared), Some(LockMode::Exclusive))
        );
        for damaged in ["", "0", "-1", "many", "4294967296"] {
            assert_eq!(parse_mode("p", damaged), None, "{damaged}");
        }
    }

    #[test]
    fn who_and_why() {
        assert_eq!(
            parse_broken(b"2:meit hangs"),
            LossReason::Broken { by: MemberId::new("me").ok(), why: "it hangs".into() }
        );
        assert_eq!(parse_broken(b"0:x"), LossReason::Broken { by: None, why: "x".into() });
        for hostile in [&b""[..], b":", b"99:x", b"18446744073709551615:x", b"x"] {
            assert!(matches!(parse_broken(hostile), LossReason::Broken { .. }));
        }
    }
}
