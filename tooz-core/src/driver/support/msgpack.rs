//! As much MessagePack as Python's records need: values are skipped and taken over as they stand, never decoded.

/// Writes one value. The caller writes as many entries as a header announces.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Begins a map of this many entries.
    pub fn map(entries: usize) -> Self {
        let mut writer = Self::default();
        writer.begin(0x80, 0xde, entries);
        writer
    }

    /// Begins an array of this many elements.
    pub fn array(elements: usize) -> Self {
        let mut writer = Self::default();
        writer.begin(0x90, 0xdc, elements);
        writer
    }

    /// The header of a map or an array. No backend holds a record of 2^32 entries.
    fn begin(&mut self, short: u8, long: u8, entries: usize) {
        match (u8::try_from(entries), u16::try_from(entries)) {
            (Ok(few @ ..16), _) => self.0.push(short | few),
            (_, Ok(many)) => {
                self.0.push(long);
                self.0.extend(many.to_be_bytes());
            }
            _ => {
                self.0.push(long + 1);
                self.0.extend(u32::try_from(entries).unwrap_or(u32::MAX).to_be_bytes());
            }
        }
    }

    /// The header of bytes of any length; `code` is that for at most 255 of them.
    fn header(&mut self, code: u8, bytes: &[u8]) {
        match (u8::try_from(bytes.len()), u16::try_from(bytes.len())) {
            (Ok(length), _) => self.0.extend([code, length]),
            (_, Ok(length)) => {
                self.0.push(code + 1);
                self.0.extend(length.to_be_bytes());
            }
            _ => {
                self.0.push(code + 2);
                self.0.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            }
        }
    }

    /// A text.
    pub fn str(&mut self, text: &str) -> &mut Self {
        match u8::try_from(text.len()) {
            Ok(length @ ..32) => self.0.push(0xa0 | length),
            _ => self.header(0xd9, text.as_bytes()),
        }
        self.raw(text.as_bytes())
    }

    /// Bytes.
    pub fn bin(&mut self, bytes: &[u8]) -> &mut Self {
        self.header(0xc4, bytes);
        self.raw(bytes)
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.0.push(if value { 0xc3 } else { 0xc2 });
        self
    }

    /// A number.
    pub fn uint(&mut self, value: u64) -> &mut Self {
        self.0.push(0xcf);
        self.raw(&value.to_be_bytes())
    }

    /// A value of an extension type.
    pub fn ext(&mut self, kind: i8, bytes: &[u8]) -> &mut Self {
        self.header(0xc7, bytes);
        self.0.extend(kind.to_be_bytes());
        self.raw(bytes)
    }

    /// An encoded value.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// What was written.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// Reads any bytes; `None` at the first byte that makes no sense.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A reader of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// A big-endian number of this many bytes.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self, bytes: usize) -> Option<usize> {
        usize::try_from(self.number(bytes)?).ok()
    }

    /// The number of entries of the map that begins here.
    pub fn map(&mut self) -> Option<usize> {
        match self.byte()? {
            code @ 0x80..=0x8f => Some(usize::from(code & 0x0f)),
            0xde => self.length(2),
            0xdf => self.length(4),
            _ => None,
        }
    }

    /// The number of elements of the array that begins here.
    pub fn array(&mut self) -> Option<usize> {
        match self.byte()? {
            code @ 0x90..=0x9f => Some(usize::from(code & 0x0f)),
            0xdc => self.length(2),
            0xdd => self.length(4),
            _ => None,
        }
    }

    /// The bytes of a text or of bytes.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let length = match self.byte()? {
            code @ 0xa0..=0xbf => usize::from(code & 0x1f),
            0xd9 | 0xc4 => self.length(1)?,
            0xda | 0xc5 => self.length(2)?,
            0xdb | 0xc6 => self.length(4)?,
            _ => return None,
        };
        self.take(length)
    }

    /// The number that begins here.
    pub fn uint(&mut self) -> Option<u64> {
        match self.byte()? {
            code @ 0..=0x7f => Some(u64::from(code)),
            0xcc => self.number(1),
            0xcd => self.number(2),
            0xce => self.number(4),
            0xcf => self.number(8),
            _ => None,
        }
    }

    /// The bytes of the whole value that begins here. Counts what is still to come instead of recursing: a hostile
    /// record may nest deeply.
    pub fn value(&mut self) -> Option<&'a [u8]> {
        let start = self.0;
        let mut pending: usize = 1;
        while pending > 0 {
            pending -= 1;
            let (skip, more) = match self.byte()? {
                code @ 0x80..=0x8f => (0, usize::from(code & 0x0f) * 2),
                code @ 0x90..=0x9f => (0, usize::from(code & 0x0f)),
                code @ 0xa0..=0xbf => (usize::from(code & 0x1f), 0),
                0xc4 | 0xd9 => (self.length(1)?, 0),
                0xc5 | 0xda => (self.length(2)?, 0),
                0xc6 | 0xdb => (self.length(4)?, 0),
                // An extension has a byte for its kind.
                0xc7 => (self.length(1)?.checked_add(1)?, 0),
                0xc8 => (self.length(2)?.checked_add(1)?, 0),
                0xc9 => (self.length(4)?.checked_add(1)?, 0),
                0xcc | 0xd0 => (1, 0),
                0xcd | 0xd1 | 0xd4 => (2, 0),
                0xd5 => (3, 0),
                0xce | 0xd2 | 0xca => (4, 0),
                0xd6 => (5, 0),
                0xcf | 0xd3 | 0xcb => (8, 0),
                0xd7 => (9, 0),
                0xd8 => (17, 0),
                0xdc => (0, self.length(2)?),
                0xdd => (0, self.length(4)?),
                0xde => (0, self.length(2)?.checked_mul(2)?),
                0xdf => (0, self.length(4)?.checked_mul(2)?),
                0xc1 => return None,
                _ => (0, 0), // nil, booleans and small integers
            };
            self.take(skip)?;
            pending = pending.checked_add(more)?;
        }
        start.get(..start.len() - self.0.len())
    }
}

/// How deep Python's values may nest here; the core's own limit for reading capabilities.
const MOST_DEPTH: usize = 64;

/// Whether Python can read the value: it refuses maps with keys other than text and bytes, and then fails on every
/// member of the group.
pub fn python_can_read(bytes: &[u8]) -> bool {
    fn check(bytes: &[u8], depth: usize) -> Option<bool> {
        let mut reader = Reader::new(bytes);
        let (values, is_map) = match *bytes.first()? {
            0x80..=0x8f | 0xde | 0xdf => (reader.map()?.checked_mul(2)?, true),
            0x90..=0x9f | 0xdc | 0xdd => (reader.array()?, false),
            _ => return Some(true),
        };
        if depth == 0 {
            return Some(false);
        }
        for index in 0..values {
            let value = reader.value()?;
            if is_map && index % 2 == 0 && Reader::new(value).text().is_none() {
                return Some(false);
            }
            if !check(value, depth - 1)? {
                return Some(false);
            }
        }
        Some(true)
    }
    check(bytes, MOST_DEPTH).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_every_length_are_read_again() {
        for length in [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536] {
            let bytes = vec![7; length];
            let written = Writer::default().bin(&bytes).finish();
            assert_eq!(Reader::new(&written).text(), Some(&bytes[..]), "{length} bytes");
            assert_eq!(Reader::new(&written).value(), Some(&written[..]));
            for (mut writer, is_map) in [(Writer::map(length), true), (Writer::array(length), false)] {
                for _ in 0..length {
                    writer.bool(true);
                    if is_map {
                        writer.bool(false);
                    }
                }
                let written = writer.finish();
                let mut reader = Reader::new(&written);
                assert_eq!(if is_map { reader.map() } else { reader.array() }, Some(length));
                assert_eq!(Reader::new(&written).value(), Some(&written[..]), "{length} entries");
            }
        }
    }

    #[test]
    fn python_wants_text_as_keys() {
        for (bytes, expected) in [
            (&b"\xc0"[..], true),
            (b"\x81\xa1a\x01", true),
            (b"\x81\xc4\x01a\x92\x01\x80", true),
            (b"\x81\x01\x02", false),
            (b"\x91\x81\x01\x02", false),
            (b"\x81\xa1a\x81\xc0\x02", false),
            (&[0x91; 200], false),
        ] {
            assert_eq!(python_can_read(bytes), expected, "{bytes:02x?}");
        }
    }
}
