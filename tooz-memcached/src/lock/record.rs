//! The record that stands at a named lock's gate: every holder, and the one waiter that readers let pass.
//!
//! Python compares the value of its key with its own member id alone, so the whole record stands there, and one compare-and-swap
//! changes it. The token of the newest grant is not written: it is the cas number of the item, on top of the base that is.
//! Whoever writes the record again writes the token, too.

use std::num::NonZeroU32;

use tooz_core::driver::support::lock_state::{Holder, LockState, Waiter};
use tooz_core::driver::{AttemptId, LockMode, Previous, SessionId};
use tooz_core::{FencingToken, MemberId};

/// What a holder or a waiter has beside what the state machine knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Data {
    pub(crate) member: MemberId,
    /// In seconds, by the server's clock.
    pub(crate) since: u64,
    /// Its session's ttl in seconds.
    pub(crate) ttl: u32,
    /// It is granted by the write that is under way, which makes its token.
    pub(crate) fresh: bool,
}

/// One lock.
pub(crate) type State = LockState<Data>;

/// What a record begins with; no member id of Python's does.
const MAGIC: &[u8] = b"\0tooz-rs 1 ";

/// The token of a grant that is being written. It is not written: see [`Data::fresh`].
pub(crate) fn unwritten(waiter: &mut Waiter<Data>) -> FencingToken {
    waiter.data.fresh = true;
    FIRST
}

const FIRST: FencingToken = match FencingToken::new(1) {
    Some(token) => token,
    None => unreachable!(),
};

/// The token of the grant that was written by the store with this cas number.
pub(crate) fn token(base: u64, cas: u64) -> FencingToken {
    FencingToken::new(base.saturating_add(cas)).unwrap_or(FIRST)
}

pub(crate) fn previous_code(previous: Previous) -> &'static str {
    match previous {
        Previous::Clean => "c",
        Previous::Expired => "e",
        Previous::Broken => "b",
        _ => "u",
    }
}

pub(crate) fn parse_previous(code: &[u8]) -> Option<Previous> {
    Some(match code {
        b"c" => Previous::Clean,
        b"e" => Previous::Expired,
        b"b" => Previous::Broken,
        b"u" => Previous::Unknown,
        _ => return None,
    })
}

/// Of two ends, the one that says more (L12).
pub(crate) fn worse(one: Previous, other: Previous) -> Previous {
    let rank = |how| match how {
        Previous::Clean => 0,
        Previous::Expired => 2,
        Previous::Broken => 3,
        _ => 1,
    };
    if rank(other) > rank(one) { other } else { one }
}

/// Reads words that a space or the end of a line ends.
#[derive(Debug)]
pub(crate) struct Words<'a>(pub(crate) &'a [u8]);

impl<'a> Words<'a> {
    pub(crate) fn word(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| matches!(byte, b' ' | b'\n'))?;
        let word = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(word)
    }

    pub(crate) fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.word()?).ok()
    }

    pub(crate) fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.text()?.parse().ok()
    }

    /// Bytes with their length before them.
    pub(crate) fn counted(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }
}

/// Bytes with their length before them.
pub(crate) fn counted(bytes: &[u8]) -> Vec<u8> {
    [format!("{} ", bytes.len()).as_bytes(), bytes].concat()
}

/// Writes a holder.
pub(crate) fn write_holder(out: &mut Vec<u8>, holder: &Holder<Data>) {
    let Holder { attempt, session, mode, data, token, previous } = holder;
    let (mode, limit) = match mode {
        LockMode::Shared => ("s", 0),
        LockMode::Permit { limit } => ("p", limit.get()),
        _ => ("x", 0),
    };
    let token = if data.fresh { 0 } else { token.get() };
    let previous = previous_code(*previous);
    let numbers =
        format!("{attempt} {session} {mode} {limit} {token} {previous} {} {} ", data.since, data.ttl);
    out.extend_from_slice(numbers.as_bytes());
    out.extend_from_slice(&counted(data.member.as_bytes()));
    out.push(b'\n');
}

/// Reads a holder. `written`: the token of one whose token is not written.
pub(crate) fn read_holder(words: &mut Words<'_>, written: FencingToken) -> Option<Holder<Data>> {
    let attempt = AttemptId::parse(words.text()?)?;
    let session = SessionId::parse(words.text()?)?;
    let mode = words.text()?;
    let limit = words.number::<u32>()?;
    let mode = match mode {
        "x" => LockMode::Exclusive,
        "s" => LockMode::Shared,
        "p" => LockMode::Permit { limit: NonZeroU32::new(limit)? },
        _ => return None,
    };
    let token = words.number::<u64>()?;
    let token = if token == 0 { written } else { FencingToken::new(token)? };
    let previous = parse_previous(words.word()?)?;
    let (since, ttl) = (words.number()?, words.number()?);
    let member = MemberId::new(words.counted()?).ok()?;
    words.word()?; // the end of the line
    let data = Data { member, since, ttl, fresh: false };
    Some(Holder { attempt, session, mode, data, token, previous })
}

/// Whether the value at a gate is a record of ours.
pub(crate) fn is_record(value: &[u8]) -> bool {
    value.starts_with(MAGIC)
}

/// Writes a record. `base`: where tokens begin, as far as this process knows.
pub(crate) fn write(base: u64, state: &State) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let mark = previous_code(state.mark);
    let numbers = format!("{base} {mark} {} {}\n", state.holders.len(), state.queue.len());
    out.extend_from_slice(numbers.as_bytes());
    for holder in &state.holders {
        write_holder(&mut out, holder);
    }
    for Waiter { attempt, session, mode, data } in &state.queue {
        let (attempt, session, mode, data) = (*attempt, *session, *mode, data.clone());
        let previous = Previous::Clean;
        write_holder(&mut out, &Holder { attempt, session, mode, data, token: FIRST, previous });
    }
    out
}

/// Reads a record that was stored with this cas number; `None`: it cannot be understood.
pub(crate) fn read(value: &[u8], cas: u64) -> Option<State> {
    let mut words = Words(value.strip_prefix(MAGIC)?);
    let base = words.number()?;
    let mut state = State { mark: parse_previous(words.word()?)?, ..State::default() };
    let (holders, waiters) = (words.number::<usize>()?, words.number::<usize>()?);
    for _ in 0..holders {
        state.holders.push(read_holder(&mut words, token(base, cas))?);
    }
    for _ in 0..waiters {
        let Holder { attempt, session, mode, data, .. } = read_holder(&mut words, FIRST)?;
        state.queue.push_back(Waiter { attempt, session, mode, data });
    }
    words.0.is_empty().then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(number: u128, mode: LockMode) -> Waiter<Data> {
        let member = MemberId::new([&b"a \n\0"[..], &[7; 4]].concat()).unwrap();
        let data = Data { member, since: 100, ttl: 15, fresh: false };
        Waiter { attempt: AttemptId(number), session: SessionId(number + 1), mode, data }
    }

    #[test]
    fn what_is_written_is_read_and_the_newest_token_is_the_cas_number() {
        let mut state = State::default();
        let limit = NonZeroU32::new(3).unwrap();
        let _ = state.grant(waiter(1, LockMode::Permit { limit }), |_| token(1_000, 5));
        let _ = state.grant(waiter(2, LockMode::Shared), unwritten);
        state.queue.push_back(waiter(3, LockMode::Exclusive));
        state.mark = Previous::Expired;
        let written = write(1_000, &state);
        let read_back = read(&written, 9).unwrap();
        assert_eq!(read_back.holders[0].token.get(), 1_005);
        assert_eq!(read_back.holders[1].token.get(), 1_009);
        assert_eq!((&read_back.queue, read_back.mark), (&state.queue, Previous::Expired));
        // Written again it says all tokens.
        assert_eq!(read(&write(2_000, &read_back), 77), Some(read_back));
        for length in 0..written.len() {
            assert_eq!(read(&written[..length], 9), None, "{length} bytes");
        }
    }

    #[test]
    fn the_end_that_says_more_counts() {
        use Previous::{Broken, Clean, Expired, Unknown};
        for (one, other, expected) in [
            (Clean, Unknown, Unknown),
            (Unknown, Expired, Expired),
            (Broken, Expired, Broken),
            (Expired, Broken, Broken),
        ] {
            assert_eq!(worse(one, other), expected);
            assert_eq!(parse_previous(previous_code(expected).as_bytes()), Some(expected));
        }
    }
}
