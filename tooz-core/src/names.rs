//! Names that users give: groups, members, locks. Any bytes, 1 to 255 of them.

use std::fmt;
use std::sync::Arc;

use crate::{Error, ErrorKind, Result};

/// The longest name in bytes.
pub const MAX_NAME_BYTES: usize = 255;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<[u8]>);

        impl $name {
            /// Validates `bytes`: 1 to 255 bytes of any value.
            ///
            /// # Errors
            /// [`ErrorKind::Invalid`] if it is empty or longer than 255 bytes.
            pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self> {
                let bytes = bytes.as_ref();
                check($what, bytes)?;
                Ok(Self(bytes.into()))
            }

            /// The bytes, as given.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        /// Readable on one line: what is not printable is escaped as in Rust's byte strings.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_escaped(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(\"{}\")"), self)
            }
        }
    };
}

name! {
    /// A group's id.
    GroupId, "a group id"
}
name! {
    /// A member's id: who takes part. One live session per namespace may use it as a member.
    MemberId, "a member id"
}
name! {
    /// A lock's name.
    LockName, "a lock name"
}

fn check(what: &str, bytes: &[u8]) -> Result<()> {
    match bytes.len() {
        0 => Err(Error::new(ErrorKind::Invalid, format!("{what} must not be empty"))),
        1..=MAX_NAME_BYTES => Ok(()),
        length => Err(Error::new(
            ErrorKind::Invalid,
            format!("{what} has {length} bytes, at most {MAX_NAME_BYTES} are allowed"),
        )),
    }
}

/// Whether it would break a line, or show the rest of it in another order (N. Boucher and R. Anderson, *Trojan
/// Source*, 2021).
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// UTF-8 text stays readable; control characters, quotes and what is not UTF-8 are escaped.
fn write_escaped(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' | '"' => write!(f, "\\{character}")?,
                c if is_unsafe(c) => write!(f, "{}", c.escape_default())?,
                c => write!(f, "{c}")?,
            }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_up_to_255() {
        for bytes in [&b"a"[..], b"\0", b"..", b"a/b\n", b"\xff\xfe", &[7; 255]] {
            assert_eq!(LockName::new(bytes).unwrap().as_bytes(), bytes);
        }
        for bytes in [&b""[..], &[7; 256]] {
            assert_eq!(GroupId::new(bytes).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn display_stays_on_one_line() {
        let id = MemberId::new(b"h\xc3\xa9\n\0\"\\\xff").unwrap();
        assert_eq!(id.to_string(), "hé\\n\\u{0}\\\"\\\\\\xff");
    }
}
