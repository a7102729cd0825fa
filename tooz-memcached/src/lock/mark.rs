//! The mark of a lock: it stands while the lock is held and after an unclean end, so that the next holder learns of it (L12).
//!
//! It has no time limit, and is deleted before the gate: who finds a free gate and a mark knows that the holder did not
//! release. For an election it holds the leader's whole record besides, for the gate has room for the member id alone.

use tooz_core::driver::Previous;
use tooz_core::driver::support::lock_state::Holder;

use super::record::{self, Data, Words, parse_previous, previous_code, worse};

/// A mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Of a holder, or of a session that tries to become one.
    Holder {
        /// It has held the lock since its last beat at least.
        confirmed: bool,
        base: u64,
        holder: Holder<Data>,
    },
    /// The last holder ended in this way.
    Ended(Previous),
}

impl Mark {
    pub(crate) fn write(&self) -> Vec<u8> {
        match self {
            Self::Ended(previous) => format!("x {}\n", previous_code(*previous)).into_bytes(),
            Self::Holder { confirmed, base, holder } => {
                let kind = if *confirmed { "h" } else { "t" };
                let mut out = format!("{kind} {base} ").into_bytes();
                record::write_holder(&mut out, holder);
                out
            }
        }
    }

    /// Reads a mark. `gate`: the cas number of the gate's item, which makes a token that is not written. `None`: it cannot be
    /// understood.
    pub(crate) fn read(value: &[u8], gate: u64) -> Option<Self> {
        let mut words = Words(value);
        let mark = match words.word()? {
            b"x" => Self::Ended(parse_previous(words.word()?)?),
            kind @ (b"h" | b"t") => {
                let base = words.number()?;
                let holder = record::read_holder(&mut words, record::token(base, gate))?;
                Self::Holder { confirmed: kind == b"h", base, holder }
            }
            _ => return None,
        };
        words.0.is_empty().then_some(mark)
    }

    /// How the last holder ended, where no lock is at the gate. `lives`: whether the session of the mark does.
    ///
    /// A session that lives and is not confirmed only tries to become the holder: it has read how the last one ended.
    pub(crate) fn ended(&self, lives: bool) -> Previous {
        match self {
            Self::Ended(previous) => *previous,
            Self::Holder { confirmed: false, holder, .. } if lives => holder.previous,
            Self::Holder { holder, .. } => worse(holder.previous, Previous::Expired),
        }
    }
}

#[cfg(test)]
mod tests {
    use tooz_core::MemberId;
    use tooz_core::driver::{AttemptId, LockMode, SessionId};

    use super::*;

    fn mark(confirmed: bool, previous: Previous) -> Mark {
        let data = Data { member: MemberId::new("m").unwrap(), since: 1, ttl: 2, fresh: true };
        let (attempt, session) = (AttemptId(1), SessionId(2));
        let token = record::token(10, 5);
        Mark::Holder {
            confirmed,
            base: 10,
            holder: Holder { attempt, session, mode: LockMode::Exclusive, data, token, previous },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for mark in [mark(true, Previous::Clean), mark(false, Previous::Broken)] {
            let Some(Mark::Holder { holder, .. }) = Mark::read(&mark.write(), 5) else { panic!("{mark:?}") };
            assert_eq!(holder.token.get(), 15);
        }
        let ended = Mark::Ended(Previous::Broken);
        assert_eq!(Mark::read(&ended.write(), 5), Some(ended));
    }

    #[test]
    fn a_dead_or_confirmed_holder_ended_uncleanly() {
        use Previous::{Broken, Clean, Expired};
        for (mark, lives, expected) in [
            (mark(true, Clean), true, Expired),
            (mark(true, Clean), false, Expired),
            (mark(false, Clean), false, Expired),
            (mark(false, Clean), true, Clean),
            (mark(false, Broken), true, Broken),
            (mark(false, Broken), false, Broken),
            (Mark::Ended(Broken), true, Broken),
        ] {
            assert_eq!(mark.ended(lives), expected, "{mark:?}");
        }
    }
}
