//! Commands as they go over the wire, and the server's answers to them.
//!
//! Stores are the classic `add`, `cas` and `set`: memcached 1.6.18 deletes the item at the key, whosever it is, where it
//! refuses a meta set (no memory, too large). Looks and deletes are meta commands.

use std::vec;

use memcache::exp::{Error as Native, MetaResponse, ReturnCode};
use tooz_core::{Error, ErrorKind, Result};

/// The longest line of an answer; an answer with a longer one is none of memcached's.
const MOST_LINE: usize = 8_192;

/// The largest value; memcached's own limit for one is 1 GiB, and its default 1 MiB.
const MOST_VALUE: usize = 1 << 27;

/// Commands that are sent together. The server answers each, in order; other clients' commands may come in between.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    commands: usize,
    changes: bool,
}

/// What a look at an item asks for beside whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing.
    Presence,
    /// Its cas number.
    Cas,
    /// Its remaining time.
    Time,
    /// Its value, cas number and remaining time.
    Whole,
}

/// Which call of the driver a batch belongs to. It stands in the batch that takes effect, so that traffic can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Acquire,
    Break,
    Close,
    Create,
    Join,
    Leave,
    Open,
    Release,
    Renew,
    Update,
    Withdraw,
}

impl Call {
    fn word(self) -> &'static str {
        match self {
            Self::Acquire => "Oacquire",
            Self::Break => "Obreak",
            Self::Close => "Oclose",
            Self::Create => "Ocreate",
            Self::Join => "Ojoin",
            Self::Leave => "Oleave",
            Self::Open => "Oopen",
            Self::Release => "Orelease",
            Self::Renew => "Orenew",
            Self::Update => "Oupdate",
            Self::Withdraw => "Owithdraw",
        }
    }
}

/// An item to be stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Store<'a> {
    pub(crate) key: &'a [u8],
    /// Python's flags: 1 are bytes, 2 is MessagePack.
    pub(crate) flags: u8,
    /// In seconds; 0: for ever.
    pub(crate) expires: u32,
    pub(crate) value: &'a [u8],
}

/// Python's flag for bytes.
pub(crate) const BYTES: u8 = 1;
/// Python's flag for MessagePack.
pub(crate) const MSGPACK: u8 = 2;

impl<'a> Store<'a> {
    pub(crate) fn bytes(key: &'a [u8], expires: u32, value: &'a [u8]) -> Self {
        Self { key, flags: BYTES, expires, value }
    }
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn commands(&self) -> usize {
        self.commands
    }

    /// Whether it changes anything.
    pub(crate) fn changes(&self) -> bool {
        self.changes
    }

    /// Appends a meta command. Its key stands there as it is: Python's keys may hold any byte but white space and NUL.
    fn meta<'a>(&mut self, verb: &str, key: &[u8], flags: impl IntoIterator<Item = &'a str>) {
        self.bytes.extend_from_slice(verb.as_bytes());
        self.bytes.extend_from_slice(key);
        for flag in flags {
            self.bytes.push(b' ');
            self.bytes.extend_from_slice(flag.as_bytes());
        }
        self.bytes.extend_from_slice(b"\r\n");
        self.commands += 1;
    }

    fn store(&mut self, verb: &str, item: Store<'_>, cas: Option<u64>) -> &mut Self {
        let Store { key, flags, expires, value } = item;
        let numbers = format!(" {flags} {expires} {}", value.len());
        self.bytes.extend_from_slice(verb.as_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(numbers.as_bytes());
        if let Some(cas) = cas {
            self.bytes.extend_from_slice(format!(" {cas}").as_bytes());
        }
        self.bytes.extend_from_slice(b"\r\n");
        self.bytes.extend_from_slice(value);
        self.bytes.extend_from_slice(b"\r\n");
        self.commands += 1;
        self.changes = true;
        self
    }

    /// Stores an item if there is none.
    pub(crate) fn add(&mut self, item: Store<'_>) -> &mut Self {
        self.store("add ", item, None)
    }

    /// Stores an item in the place of the one with this cas number.
    pub(crate) fn cas(&mut self, item: Store<'_>, cas: u64) -> &mut Self {
        self.store("cas ", item, Some(cas))
    }

    /// Stores an item in the place of the one that was read, or adds it.
    pub(crate) fn replace(&mut self, item: Store<'_>, read: Option<u64>) -> &mut Self {
        match read {
            Some(cas) => self.cas(item, cas),
            None => self.add(item),
        }
    }

    /// Stores an item, whatever stands there. Only for keys of which nothing depends on what stood there before.
    pub(crate) fn set(&mut self, item: Store<'_>) -> &mut Self {
        self.store("set ", item, None)
    }

    /// Looks at an item.
    pub(crate) fn get(&mut self, key: &[u8], look: Look) -> &mut Self {
        self.get_for(key, look, None)
    }

    /// Looks at an item, in the batch in which `call` takes effect.
    pub(crate) fn get_in(&mut self, key: &[u8], look: Look, call: Call) -> &mut Self {
        self.get_for(key, look, Some(call))
    }

    fn get_for(&mut self, key: &[u8], look: Look, call: Option<Call>) -> &mut Self {
        let flags: &[&str] = match look {
            Look::Presence => &[],
            Look::Cas => &["c"],
            Look::Time => &["t"],
            Look::Whole => &["v", "c", "t"],
        };
        self.meta("mg ", key, flags.iter().copied().chain(call.map(Call::word)));
        self
    }

    /// Deletes the item with this cas number.
    pub(crate) fn delete(&mut self, key: &[u8], cas: u64) -> &mut Self {
        self.delete_for(key, Some(cas))
    }

    /// Deletes an item whose key no other ever has.
    pub(crate) fn delete_own(&mut self, key: &[u8]) -> &mut Self {
        self.delete_for(key, None)
    }

    fn delete_for(&mut self, key: &[u8], cas: Option<u64>) -> &mut Self {
        let cas = cas.map(|cas| format!("C{cas}"));
        self.meta("md ", key, cas.as_deref());
        self.changes = true;
        self
    }
}

/// An item that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) value: Vec<u8>,
    pub(crate) cas: u64,
    /// How many seconds it has left; `None`: it does not expire.
    pub(crate) left: Option<u32>,
}

/// What became of a store or a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It was done.
    Done,
    /// Another item stands there.
    Taken,
    /// No item stands there.
    Missing,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Stored(Stored),
    There(Item),
    Missing,
    Refused(String),
}

impl Answer {
    /// Reads the answer at the beginning of `bytes` and says how long it is; `None`: it is not complete.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>> {
        let Some(end) = bytes.iter().take(MOST_LINE).position(|byte| *byte == b'\n') else {
            return if bytes.len() < MOST_LINE { Ok(None) } else { Err(strange(&bytes[..80])) };
        };
        let line = bytes.get(..end).and_then(|line| line.strip_suffix(b"\r"));
        let (line, end) = (line.ok_or_else(|| strange(&bytes[..end]))?, end + 1);
        let answer = match line {
            b"STORED" => Self::Stored(Stored::Done),
            b"NOT_STORED" | b"EXISTS" => Self::Stored(Stored::Taken),
            b"NOT_FOUND" => Self::Stored(Stored::Missing),
            _ => match MetaResponse::parse_header(line) {
                Ok(header) => return Self::of_meta(&header, line, &bytes[end..], end),
                Err(Native::Rejected(why) | Native::Server(why)) => Self::Refused(why),
                Err(_) => return Err(strange(line)),
            },
        };
        Ok(Some((answer, end)))
    }

    fn of_meta(header: &MetaResponse, line: &[u8], rest: &[u8], end: usize) -> Result<Option<(Self, usize)>> {
        let (mut item, mut length) = (Item { value: Vec::new(), cas: 0, left: None }, end);
        match header.rc() {
            ReturnCode::Hd => {}
            ReturnCode::Va => {
                let value = number(line.split(|byte| *byte == b' ').nth(1).unwrap_or_default());
                let value = value.and_then(|length| usize::try_from(length).ok());
                let value = value.filter(|length| *length <= MOST_VALUE).ok_or_else(|| strange(line))?;
                let Some(data) = rest.get(..value + 2) else { return Ok(None) };
                item.value = data.strip_suffix(b"\r\n").ok_or_else(|| strange(line))?.to_vec();
                length += data.len();
            }
            ReturnCode::En => return Ok(Some((Self::Missing, end))),
            ReturnCode::Nf => return Ok(Some((Self::Stored(Stored::Missing), end))),
            ReturnCode::Ns | ReturnCode::Ex => return Ok(Some((Self::Stored(Stored::Taken), end))),
            _ => return Err(strange(line)),
        }
        for flag in header.flags() {
            match flag.split_first() {
                Some((b'c', cas)) => item.cas = number(cas).ok_or_else(|| strange(line))?,
                // -1: it does not expire.
                Some((b't', left)) => item.left = number(left).and_then(|left| u32::try_from(left).ok()),
                _ => {}
            }
        }
        Ok(Some((Self::There(item), length)))
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn strange(line: &[u8]) -> Error {
    let line = &line[..line.len().min(80)];
    let why = format!("what answers there does not speak memcached's protocol: \"{}\"", line.escape_ascii());
    Error::new(ErrorKind::Backend, why)
}

/// The answers to one batch, in order.
#[derive(Debug)]
pub(crate) struct Answers(vec::IntoIter<Answer>);

impl Answers {
    pub(crate) fn new(answers: Vec<Answer>) -> Self {
        Self(answers.into_iter())
    }

    fn next(&mut self) -> Result<Answer> {
        match self.0.next() {
            Some(Answer::Refused(why)) => Err(refused(&why)),
            Some(answer) => Ok(answer),
            // INVARIANT: there is an answer for each command.
            None => Err(Error::new(ErrorKind::Backend, "the server gave fewer answers than it got commands")),
        }
    }

    /// The answer to a look.
    pub(crate) fn item(&mut self) -> Result<Option<Item>> {
        match self.next()? {
            Answer::There(item) => Ok(Some(item)),
            Answer::Missing => Ok(None),
            other => Err(strange(format!("{other:?}").as_bytes())),
        }
    }

    /// The answer to a store or a delete.
    pub(crate) fn stored(&mut self) -> Result<Stored> {
        match self.next()? {
            Answer::Stored(stored) => Ok(stored),
            Answer::There(_) => Ok(Stored::Done), // a delete
            Answer::Missing => Ok(Stored::Missing),
            Answer::Refused(why) => Err(refused(&why)),
        }
    }
}

/// What the server's refusal means; the command was not done.
fn refused(why: &str) -> Error {
    let (kind, advice) = if why.contains("too large") {
        (ErrorKind::Invalid, "; it holds more than the server's item size allows (option -I)")
    } else if why.contains("out of memory") {
        (ErrorKind::Unavailable, "; give the server more memory (option -m), or let it evict (no -M)")
    } else if why.contains("unauthenticated") {
        (ErrorKind::Denied, "; it asks for a login, which this driver does not have")
    } else {
        (ErrorKind::Unavailable, "")
    };
    Error::new(kind, format!("the server refuses: {why}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_as_the_server_reads_them() {
        let mut batch = Batch::new();
        batch
            .add(Store::bytes(b"k", 3, b"value"))
            .cas(Store { key: b"k", flags: MSGPACK, expires: 0, value: b"" }, 7)
            .get(b"k", Look::Whole)
            .get_in(b"k", Look::Presence, Call::Acquire)
            .delete(b"k", 9)
            .delete_own(b"own");
        let expected = "add k 1 3 5\r\nvalue\r\ncas k 2 0 0 7\r\n\r\nmg k v c t\r\nmg k Oacquire\r\nmd k C9\r\nmd own\r\n";
        assert_eq!(String::from_utf8_lossy(batch.bytes()), expected);
        assert_eq!((batch.commands(), batch.changes()), (6, true));
        let mut look = Batch::new();
        look.get(b"k", Look::Cas);
        assert!(!look.changes());
    }

    #[test]
    fn answers_are_read_as_the_server_writes_them() {
        let item = |value: &[u8], cas, left| Answer::There(Item { value: value.to_vec(), cas, left });
        for (text, expected) in [
            (&b"STORED\r\n"[..], Answer::Stored(Stored::Done)),
            (b"NOT_STORED\r\n", Answer::Stored(Stored::Taken)),
            (b"EXISTS\r\n", Answer::Stored(Stored::Taken)),
            (b"NOT_FOUND\r\n", Answer::Stored(Stored::Missing)),
            (b"EX\r\n", Answer::Stored(Stored::Taken)),
            (b"NF\r\n", Answer::Stored(Stored::Missing)),
            (b"EN Oacquire\r\n", Answer::Missing),
            (b"HD c12 t-1 Orenew\r\n", item(b"", 12, None)),
            (b"VA 4 c3 t10\r\na\r\nb\r\n", item(b"a\r\nb", 3, Some(10))),
            (
                b"SERVER_ERROR out of memory storing object\r\n",
                Answer::Refused("out of memory storing object".into()),
            ),
            (b"ERROR\r\n", Answer::Refused("ERROR".into())),
        ] {
            assert_eq!(Answer::parse(text).unwrap(), Some((expected, text.len())), "{}", text.escape_ascii());
            for length in 0..text.len() {
                assert_eq!(
                    Answer::parse(&text[..length]).unwrap(),
                    None,
                    "{}",
                    text[..length].escape_ascii()
                );
            }
        }
        for text in
            [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"\n", b"VA x\r\n", b"VA 2 c1\r\nabcd", &[b'x'; MOST_LINE]]
        {
            assert!(Answer::parse(text).is_err(), "{}", text.escape_ascii());
        }
    }
}
