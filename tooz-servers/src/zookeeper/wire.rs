//! The form of ZooKeeper's messages, which its servers call jute: big-endian numbers, and bytes behind their length.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::Way;

/// What a request asks for, in the numbers of the protocol.
pub mod kind {
    /// Makes a node.
    pub const CREATE: i32 = 1;
    /// Deletes a node.
    pub const DELETE: i32 = 2;
    /// Asks for what is known of a node, and may watch it.
    pub const EXISTS: i32 = 3;
    /// Reads a node.
    pub const GET: i32 = 4;
    /// Writes a node.
    pub const SET: i32 = 5;
    /// Lists the children of a node.
    pub const CHILDREN: i32 = 8;
    /// Proves that the connection lives.
    pub const PING: i32 = 11;
    /// Proves the version of a node.
    pub const CHECK: i32 = 13;
    /// Does several things at one moment, or none of them.
    pub const MULTI: i32 = 14;
    /// Makes a node, and says more about it.
    pub const CREATE2: i32 = 15;
    /// Makes a node that goes after its last child.
    pub const CREATE_CONTAINER: i32 = 19;
    /// Deletes a node that had children.
    pub const DELETE_CONTAINER: i32 = 20;
    /// Makes a node that goes when nobody has changed it for long enough.
    pub const CREATE_TTL: i32 = 21;
    /// Ends the session.
    pub const CLOSE: i32 = -11;
}

/// Why a server refuses, in the numbers of the protocol.
pub mod code {
    /// The request cannot be meant.
    pub const BAD_ARGUMENTS: i32 = -8;
    /// There is no such node.
    pub const NO_NODE: i32 = -101;
    /// There is such a node.
    pub const NODE_EXISTS: i32 = -110;
    /// The node has children.
    pub const NOT_EMPTY: i32 = -111;
    /// The server has too much to do, and did not do it.
    pub const THROTTLED: i32 = -127;
}

/// Number of an answer to a ping, and of its request.
const PING_XID: i32 = -2;
/// Number of what nobody asked for: a watch fired.
const EVENT_XID: i32 = -1;

/// Reads a message from its beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn flag(&mut self) -> Option<bool> {
        self.take(1).map(|byte| byte != [0])
    }

    pub(crate) fn int(&mut self) -> Option<i32> {
        self.take(4)?.try_into().ok().map(i32::from_be_bytes)
    }

    pub(crate) fn long(&mut self) -> Option<i64> {
        self.take(8)?.try_into().ok().map(i64::from_be_bytes)
    }

    /// Bytes behind their length, which is -1 for none.
    pub(crate) fn buffer(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.int()?.max(0)).ok()?;
        self.take(length)
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        self.buffer().map(|text| String::from_utf8_lossy(text).into_owned())
    }
}

/// Writes a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    /// A request of this number for this.
    pub(crate) fn request(xid: i32, kind: i32) -> Self {
        Self::default().int(xid).int(kind)
    }

    pub(crate) fn flag(mut self, flag: bool) -> Self {
        self.0.push(u8::from(flag));
        self
    }

    pub(crate) fn int(mut self, number: i32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(crate) fn long(mut self, number: i64) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(crate) fn buffer(self, bytes: &[u8]) -> Self {
        // No message may be as long as this number can say.
        let mut written = self.int(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
        written.0.extend_from_slice(bytes);
        written
    }

    /// Everybody may do everything.
    pub(crate) fn open_to_all(self) -> Self {
        self.int(1).int(0x1f).buffer(b"world").buffer(b"anyone")
    }

    /// The head of one of several requests in one; `None`: it was the last.
    pub(crate) fn part(self, kind: Option<i32>) -> Self {
        self.int(kind.unwrap_or(-1)).flag(kind.is_none()).int(-1)
    }

    /// The message behind its length.
    pub(crate) fn framed(self) -> Vec<u8> {
        Self::default().buffer(&self.0).0
    }
}

/// One thing that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation<'a> {
    /// What.
    pub kind: i32,
    /// On which node; of a sequential one, without its number.
    pub path: &'a [u8],
}

impl Operation<'_> {
    /// Whether it makes a node.
    pub fn creates(&self) -> bool {
        matches!(self.kind, kind::CREATE | kind::CREATE2 | kind::CREATE_CONTAINER | kind::CREATE_TTL)
    }

    /// Whether it deletes a node.
    pub fn deletes(&self) -> bool {
        matches!(self.kind, kind::DELETE | kind::DELETE_CONTAINER)
    }
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its number in its connection.
    pub xid: i32,
    /// What it asks for.
    pub kind: i32,
    /// The same with paths; a [`MULTI`](kind::MULTI) asks for several things.
    pub operations: Vec<Operation<'a>>,
}

/// The messages that begin in these bytes, which begin with one, without their lengths. The last may lack its end.
fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let mut reader = Reader(rest);
        let length = usize::try_from(reader.int()?).ok()?;
        let (message, after) = reader.0.split_at(length.min(reader.0.len()));
        rest = after;
        Some(message)
    })
}

/// Whether a message is that with which a connection begins, which has no number.
fn greets(message: &[u8]) -> bool {
    // Version, last change, limit, session, password; old clients say nothing of reading only.
    let password = || {
        let mut reader = Reader(message.get(24..)?);
        let password = reader.buffer()?;
        Some(matches!(password.len(), 0 | 16) && reader.0.len() <= 1)
    };
    message.starts_with(&[0; 4]) && password().unwrap_or(false)
}

/// One operation, from behind its kind; `None`: it names no path.
fn operation<'a>(kind: i32, reader: &mut Reader<'a>) -> Option<Operation<'a>> {
    let has_path = matches!(kind, 1..=9 | 12 | 13 | 15 | 17..=21 | 106);
    let path = if has_path { reader.buffer()? } else { return None };
    Some(Operation { kind, path })
}

/// Goes on behind the path of an operation among several.
fn skip(kind: i32, reader: &mut Reader<'_>) -> Option<()> {
    match kind {
        kind::CREATE | kind::CREATE2 | kind::CREATE_CONTAINER | kind::CREATE_TTL => {
            reader.buffer()?;
            for _ in 0..reader.int()? {
                reader.int()?;
                reader.buffer()?;
                reader.buffer()?;
            }
            reader.int()?;
            if kind == kind::CREATE_TTL {
                reader.long()?;
            }
        }
        kind::SET => {
            reader.buffer()?;
            reader.int()?;
        }
        kind::DELETE | kind::CHECK => {
            reader.int()?;
        }
        _ => return None,
    }
    Some(())
}

fn request(message: &[u8]) -> Option<Request<'_>> {
    let mut reader = Reader(message);
    let (xid, kind) = (reader.int()?, reader.int()?);
    let mut operations = Vec::new();
    if kind == kind::MULTI {
        while let (Some(kind), Some(false), Some(_)) = (reader.int(), reader.flag(), reader.int()) {
            let Some(operation) = operation(kind, &mut reader) else { break };
            operations.push(operation);
            if skip(kind, &mut reader).is_none() {
                break;
            }
        }
    } else {
        operations.extend(operation(kind, &mut reader));
    }
    Some(Request { xid, kind, operations }).filter(|_| !greets(message))
}

/// The requests that begin in these bytes, which begin with one. A client that sends so much at a time that it arrives in
/// pieces is not understood.
pub fn requests(bytes: &[u8]) -> impl Iterator<Item = Request<'_>> {
    messages(bytes).filter_map(request)
}

/// The numbers of the requests that are answered in these bytes.
pub fn answers(bytes: &[u8]) -> impl Iterator<Item = i32> {
    messages(bytes).filter_map(|message| Reader(message).int()).filter(|xid| *xid != EVENT_XID)
}

/// Whether bytes ask or answer something: pings and watches that fire do not.
pub fn counts(way: Way, bytes: &[u8]) -> bool {
    match way {
        Way::Up => messages(bytes).any(|message| Reader(message).int() != Some(PING_XID)),
        Way::Down => answers(bytes).any(|xid| xid != PING_XID),
    }
}

/// Requests that a server is to refuse as one that has too much to do: it did not do them, and may do them later. No server can
/// be made to say so of one request. So it gets another one in the place of each, which it cannot do, and answers that in its
/// turn under the same number; on its way back the answer says why.
#[derive(Debug, Default)]
pub struct Throttled(Mutex<BTreeSet<i32>>);

impl Throttled {
    /// What the server gets: other requests in the place of those that satisfy `which`.
    pub fn requests(&self, bytes: &[u8], which: impl Fn(&Request<'_>) -> bool) -> Vec<u8> {
        let mut sent = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while let Some(message) = messages(rest).next() {
            let (whole, after) = rest.split_at(message.len() + 4);
            match request(message).filter(&which) {
                Some(request) => {
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(request.xid);
                    // A path begins with a slash.
                    let impossible = Writer::request(request.xid, kind::CREATE).buffer(b"by-the-test");
                    sent.extend(impossible.buffer(b"").open_to_all().int(0).framed());
                }
                None => sent.extend_from_slice(whole),
            }
            rest = after;
        }
        sent.extend_from_slice(rest);
        sent
    }

    /// What the client gets of these answers; `None`: none is about such a request.
    pub fn answers(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut due = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = None;
        due.retain(|xid| {
            // Number, last change, error, and nothing else.
            let head = Writer::default().int(16).int(*xid).0;
            let refusal = |answer: &[u8]| {
                answer.starts_with(&head) && answer.ends_with(&code::BAD_ARGUMENTS.to_be_bytes())
            };
            let Some(at) = bytes.windows(20).position(refusal) else { return true };
            told.get_or_insert_with(|| bytes.to_vec())[at + 16..at + 20]
                .copy_from_slice(&code::THROTTLED.to_be_bytes());
            false
        });
        told
    }
}

/// The password of a session: every server of this world makes it of the session's number, as `java.util.Random` with this seed
/// does.
pub fn password(session: i64) -> [u8; 16] {
    const SECRET: u64 = 0xB341_5C00;
    const FACTOR: u64 = 0x5_DEEC_E66D;
    const MASK: u64 = (1 << 48) - 1;
    let mut state = (session.cast_unsigned() ^ SECRET ^ FACTOR) & MASK;
    let mut password = [0; 16];
    for four in password.chunks_exact_mut(4) {
        state = state.wrapping_mul(FACTOR).wrapping_add(0xB) & MASK;
        // The upper 32 of its 48 bits, the lowest byte first.
        let bytes = (state >> 16).to_le_bytes();
        four.copy_from_slice(&bytes[..4]);
    }
    password
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(xid: i32, path: &[u8]) -> Vec<u8> {
        Writer::request(xid, kind::CREATE2).buffer(path).buffer(b"data").open_to_all().int(3).framed()
    }

    fn several(xid: i32) -> Vec<u8> {
        let all = Writer::request(xid, kind::MULTI)
            .part(Some(kind::CHECK))
            .buffer(b"/a")
            .int(7)
            .part(Some(kind::CREATE_TTL))
            .buffer(b"/b")
            .buffer(b"")
            .open_to_all()
            .int(5)
            .long(1_000)
            .part(Some(kind::SET))
            .buffer(b"/c")
            .buffer(b"/not-a-path")
            .int(-1)
            .part(Some(kind::DELETE))
            .buffer(b"/d")
            .int(-1);
        all.part(None).framed()
    }

    fn greeting(read_only: Option<bool>) -> Vec<u8> {
        let greeting = Writer::default().int(0).long(0).int(4_000).long(0).buffer(&[0; 16]);
        read_only.map_or(greeting.clone(), |flag| greeting.flag(flag)).framed()
    }

    fn ping() -> Vec<u8> {
        Writer::request(-2, kind::PING).framed()
    }

    fn answer(xid: i32, error: i32, more: &[u8]) -> Vec<u8> {
        let mut answer = Writer::default().int(xid).long(9).int(error);
        answer.0.extend_from_slice(more);
        answer.framed()
    }

    #[test]
    fn numbers_and_bytes_stand_as_the_protocol_has_them() {
        let written = Writer::default().int(-2).long(1).flag(true).buffer(b"ab").0;
        assert_eq!(written, b"\xff\xff\xff\xfe\0\0\0\0\0\0\0\x01\x01\0\0\0\x02ab");
        let mut reader = Reader(&written);
        assert_eq!((reader.int(), reader.long(), reader.flag()), (Some(-2), Some(1), Some(true)));
        assert_eq!((reader.text().as_deref(), reader.int()), (Some("ab"), None));
        assert_eq!(Reader(b"\xff\xff\xff\xffx").buffer(), Some(&b""[..]));
        assert_eq!(Reader(b"\0\0\0\x02x").buffer(), None);
        assert_eq!(Writer::default().flag(false).framed(), b"\0\0\0\x01\0");
    }

    #[test]
    fn requests_are_told_apart_in_a_batch() {
        let batch = [greeting(Some(false)), create(1, b"/x"), ping(), several(2)].concat();
        let found: Vec<_> = requests(&batch).collect();
        assert_eq!(found.iter().map(|request| request.xid).collect::<Vec<_>>(), [1, -2, 2]);
        assert_eq!(found[0].operations, [Operation { kind: kind::CREATE2, path: b"/x" }]);
        assert_eq!(found[1].operations, []);
        let named: Vec<_> = found[2].operations.iter().map(|one| (one.kind, one.path)).collect();
        let wanted =
            [(kind::CHECK, b"/a"), (kind::CREATE_TTL, b"/b"), (kind::SET, b"/c"), (kind::DELETE, b"/d")];
        assert_eq!(named, wanted.map(|(kind, path)| (kind, &path[..])));
        assert!(found[2].operations[1].creates() && found[2].operations[3].deletes());
        assert!(!found[2].operations[0].creates() && !found[2].operations[2].deletes());
        assert_eq!(requests(&greeting(None)).count(), 0);
        for length in 0..batch.len() {
            assert!(requests(&batch[..length]).count() <= 3, "{length}");
        }
    }

    #[test]
    fn pings_and_events_do_not_count() {
        assert!(!counts(Way::Up, &ping()) && counts(Way::Up, &[ping(), create(1, b"/x")].concat()));
        assert!(counts(Way::Up, &greeting(Some(false))));
        let (pong, event, said) = (answer(-2, 0, b""), answer(-1, 0, b"event"), answer(7, 0, b"more"));
        assert!(!counts(Way::Down, &[&pong[..], &event].concat()));
        assert!(counts(Way::Down, &[&event[..], &said].concat()));
        assert_eq!(answers(&[event, said].concat()).collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn a_throttled_request_is_not_sent_and_is_answered_so() {
        let throttled = Throttled::default();
        let sent = throttled.requests(&[ping(), create(4, b"/x"), create(5, b"/y")].concat(), |request| {
            request.operations.iter().any(|one| one.path == b"/x")
        });
        let paths: Vec<_> = requests(&sent).map(|one| (one.xid, one.operations)).collect();
        assert_eq!(paths[0], (-2, vec![]));
        assert_eq!(paths[1], (4, vec![Operation { kind: kind::CREATE, path: b"by-the-test" }]));
        assert_eq!(paths[2], (5, vec![Operation { kind: kind::CREATE2, path: b"/y" }]));
        // Another request may fail the same way.
        assert_eq!(throttled.answers(&answer(5, code::BAD_ARGUMENTS, b"")), None);
        let (before, after) = (answer(-1, 0, b"event"), answer(5, 0, b"/y"));
        let said = [&before[..], &answer(4, code::BAD_ARGUMENTS, b""), &after].concat();
        let told = [&before[..], &answer(4, code::THROTTLED, b""), &after].concat();
        assert_eq!(throttled.answers(&said), Some(told));
        assert_eq!(throttled.answers(&said), None);
        let piece = &create(6, b"/x")[..9];
        assert_eq!(throttled.requests(piece, |_| true), piece);
    }

    #[test]
    fn a_password_is_what_java_makes_of_the_number() {
        for (session, wanted) in [
            (0, 0xf22a_cd4a_97e6_9d6d_20a4_9bb6_38ea_db38_u128),
            (0x1000_05f3_a7b2_0000, 0x7cf3_b7c0_5945_f91d_ba48_7d7b_ca5b_c910),
            (-5, 0xd471_44b5_e45e_45c4_9c3b_7fdc_d662_57ba),
        ] {
            assert_eq!(u128::from_be_bytes(password(session)), wanted, "{session}");
        }
    }
}
