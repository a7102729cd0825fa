//! The values of our keys: lines of text, the last one of free bytes. A value of another form is of another program.

use std::time::{Duration, SystemTime};

use tooz_core::driver::{AttemptId, LockMode, Previous, SessionId};
use tooz_core::{LossReason, MemberId};

/// The first line of every value. Another number is of a version that this one does not understand.
const FORM: &str = "tooz1";

fn lines<const N: usize>(value: &[u8]) -> Option<[&[u8]; N]> {
    let mut parts = value.splitn(N + 1, |byte| *byte == b'\n');
    (parts.next()? == FORM.as_bytes()).then_some(())?;
    let lines: Vec<&[u8]> = parts.collect();
    lines.try_into().ok()
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn write(lines: &[&str], last: &[u8]) -> Vec<u8> {
    let mut value = FORM.as_bytes().to_vec();
    for line in lines {
        value.push(b'\n');
        value.extend(line.as_bytes());
    }
    value.push(b'\n');
    value.extend(last);
    value
}

fn write_mode(mode: LockMode) -> Option<String> {
    match mode {
        LockMode::Exclusive => Some("exclusive".into()),
        LockMode::Shared => Some("shared".into()),
        LockMode::Permit { limit } => Some(format!("permit {limit}")),
        _ => None,
    }
}

/// The word for an unclean end.
fn ended(how: Previous) -> &'static str {
    match how {
        Previous::Expired => "expired",
        Previous::Broken => "broken",
        _ => "unknown",
    }
}

fn read_mode(line: &[u8]) -> Option<LockMode> {
    match text(line)? {
        "exclusive" => Some(LockMode::Exclusive),
        "shared" => Some(LockMode::Shared),
        other => Some(LockMode::Permit { limit: other.strip_prefix("permit ")?.parse().ok()? }),
    }
}

/// A holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) attempt: AttemptId,
    pub(crate) session: SessionId,
    pub(crate) member: MemberId,
    pub(crate) mode: LockMode,
    /// The lease of the gate that the holder shares with other holders.
    pub(crate) shared_gate: Option<i64>,
    pub(crate) since: Option<SystemTime>,
    pub(crate) previous: Previous,
    /// The create revision of its key, which is the token until a raise is added.
    pub(crate) created: i64,
    pub(crate) token: i64,
    pub(crate) revision: i64,
}

impl Holder {
    /// Its value; `None` for a mode that this version does not know.
    pub(crate) fn write(&self) -> Option<Vec<u8>> {
        let gate = self.shared_gate.map_or_else(|| "-".to_owned(), |lease| lease.to_string());
        let millis =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok().map(|d| d.as_millis());
        let since = self.since.and_then(millis).map_or_else(|| "-".to_owned(), |millis| millis.to_string());
        let previous = if self.previous == Previous::Clean { "clean" } else { ended(self.previous) };
        let session = self.session.to_string();
        Some(write(&[&write_mode(self.mode)?, &session, &gate, &since, previous], self.member.as_bytes()))
    }

    /// Reads a value; `None`: it is of another form.
    pub(crate) fn read(attempt: AttemptId, value: &[u8], created: i64, revision: i64) -> Option<Self> {
        let [mode, session, gate, since, previous, member] = lines(value)?;
        Some(Self {
            attempt,
            session: SessionId::parse(text(session)?)?,
            member: MemberId::new(member).ok()?,
            mode: read_mode(mode)?,
            shared_gate: if gate == b"-" { None } else { Some(text(gate)?.parse().ok()?) },
            since: match since {
                b"-" => None,
                millis => {
                    let millis = Duration::from_millis(text(millis)?.parse().ok()?);
                    Some(SystemTime::UNIX_EPOCH.checked_add(millis)?)
                }
            },
            previous: match previous {
                b"expired" => Previous::Expired,
                b"broken" => Previous::Broken,
                b"clean" => Previous::Clean,
                _ => Previous::Unknown,
            },
            created,
            token: created,
            revision,
        })
    }
}

/// A waiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) attempt: AttemptId,
    pub(crate) mode: LockMode,
    /// The create revision of its key, which is its position in the queue.
    pub(crate) position: i64,
    pub(crate) key: Vec<u8>,
}

impl Waiter {
    pub(crate) fn value(mode: LockMode, session: SessionId, member: &MemberId) -> Option<Vec<u8>> {
        Some(write(&[&write_mode(mode)?, &session.to_string()], member.as_bytes()))
    }

    /// Reads a value; `None`: it is of another form.
    pub(crate) fn read(attempt: AttemptId, key: &[u8], value: &[u8], position: i64) -> Option<Self> {
        let [mode, _, _] = lines(value)?;
        Some(Self { attempt, mode: read_mode(mode)?, position, key: key.to_vec() })
    }
}

/// A mark of a grant: what the next holder is told if the grant is not there any more. A grant whose own `previous` was
/// `Clean` leaves the word `held`: if only that mark is left, its session ended.
pub(crate) fn write_mark(how: Previous) -> Vec<u8> {
    write(&[], if how == Previous::Clean { "held" } else { ended(how) }.as_bytes())
}

/// Unknown words are unclean ends, too.
pub(crate) fn read_mark(value: &[u8]) -> Previous {
    match lines::<1>(value) {
        Some([b"broken"]) => Previous::Broken,
        Some([b"unknown"]) => Previous::Unknown,
        _ => Previous::Expired,
    }
}

/// A session.
pub(crate) fn write_session(member: &MemberId) -> Vec<u8> {
    write(&[], member.as_bytes())
}

pub(crate) fn read_session(value: &[u8]) -> Option<MemberId> {
    let [member] = lines(value)?;
    MemberId::new(member).ok()
}

/// Who broke a grant, and why.
pub(crate) fn write_broken(by: &MemberId, why: &str) -> Vec<u8> {
    let by = by.as_bytes().iter().fold(String::new(), |mut digits, byte| {
        let _ = std::fmt::Write::write_fmt(&mut digits, format_args!("{byte:02x}")); // a string takes everything
        digits
    });
    write(&[&by], why.as_bytes())
}

pub(crate) fn read_broken(value: &[u8]) -> Option<LossReason> {
    let [by, why] = lines(value)?;
    let pairs = by.chunks(2).map(|pair| u8::from_str_radix(text(pair)?, 16).ok());
    let by: Option<Vec<u8>> = pairs.collect();
    let why = String::from_utf8_lossy(why).into_owned();
    Some(LossReason::Broken { by: by.and_then(|by| MemberId::new(by).ok()), why })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn holder(mode: LockMode) -> Holder {
        Holder {
            attempt: AttemptId(3),
            session: SessionId(4),
            member: MemberId::new(b"a\nb\0").unwrap(),
            mode,
            shared_gate: Some(-5),
            since: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_234)),
            previous: Previous::Broken,
            created: 7,
            token: 7,
            revision: 9,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for mode in [LockMode::Exclusive, LockMode::Shared, LockMode::Permit { limit: NonZeroU32::MAX }] {
            let holder = holder(mode);
            assert_eq!(Holder::read(AttemptId(3), &holder.write().unwrap(), 7, 9).unwrap(), holder);
            let value = Waiter::value(mode, SessionId(4), &holder.member).unwrap();
            assert_eq!(Waiter::read(AttemptId(3), b"k", &value, 7).unwrap().mode, mode);
        }
        for how in [Previous::Expired, Previous::Broken, Previous::Unknown] {
            assert_eq!(read_mark(&write_mark(how)), how);
        }
        // The mark of a grant before which all ended cleanly says that this one did not.
        assert_eq!(read_mark(&write_mark(Previous::Clean)), Previous::Expired);
        let by = MemberId::new(b"x\n").unwrap();
        let LossReason::Broken { by: read, why } = read_broken(&write_broken(&by, "be\ncause")).unwrap()
        else {
            panic!("another reason");
        };
        assert_eq!((read, why.as_str()), (Some(by), "be\ncause"));
    }

    #[test]
    fn a_permit_without_a_limit_is_unreadable() {
        let value = Waiter::value(LockMode::Shared, SessionId(4), &MemberId::new("a").unwrap()).unwrap();
        let value = String::from_utf8(value).unwrap().replace("shared", "permit 0");
        assert!(Waiter::read(AttemptId(3), b"k", value.as_bytes(), 7).is_none());
    }

    proptest! {
        #[test]
        fn anything_is_read_without_panic(value in prop::collection::vec(any::<u8>(), 0..60), ours in any::<bool>()) {
            let value = if ours { [b"tooz1\n", value.as_slice()].concat() } else { value };
            let _ = (Holder::read(AttemptId(1), &value, 7, 9), Waiter::read(AttemptId(1), b"k", &value, 7));
            let _ = (read_mark(&value), read_broken(&value));
        }
    }
}
