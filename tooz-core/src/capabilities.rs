//! What a member publishes about itself.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::{Error, ErrorKind, Result};

/// The most that a member can publish: 64 KiB of MessagePack.
pub const MAX_CAPABILITIES_BYTES: usize = 64 * 1024;

/// Reading is recursive; more would overflow the stack of a small thread.
const MAX_DEPTH: usize = 64;

/// What a member publishes about itself: one MessagePack value, as Python tooz writes it.
///
/// # Examples
/// ```
/// use tooz_core::Capabilities;
/// #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
/// struct Worker { weight: u32 }
///
/// let published = Capabilities::new(&Worker { weight: 3 })?;
/// assert_eq!(published.as_msgpack(), b"\x81\xa6weight\x03");
/// assert_eq!(published.get::<Worker>()?, Worker { weight: 3 });
///
/// // Another program, or another version of it, may publish something else: that is an error, not a panic.
/// let foreign = Capabilities::new(&("gpu", 2))?;
/// assert!(foreign.get::<Worker>().is_err());
/// # Ok::<(), tooz_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Capabilities(Arc<[u8]>);

impl Capabilities {
    /// Nothing: MessagePack's nil, Python's `None`.
    pub fn none() -> Self {
        Self([0xc0_u8].as_slice().into())
    }

    /// Any value through serde; structs become maps with their fields' names.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if it cannot be written as MessagePack or is larger than 64 KiB.
    pub fn new<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        let bytes = rmp_serde::to_vec_named(value).map_err(|error| {
            Error::new(ErrorKind::Invalid, "the capabilities cannot be written as MessagePack")
                .caused_by(error)
        })?;
        let size = bytes.len();
        if size > MAX_CAPABILITIES_BYTES {
            let why =
                format!("the capabilities have {size} bytes, at most {MAX_CAPABILITIES_BYTES} are allowed");
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Ok(Self(bytes.into()))
    }

    /// Raw bytes, which readers get back with [`Capabilities::raw`]: MessagePack's bin, Python's `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if they are larger than 64 KiB.
    pub fn from_raw(bytes: impl AsRef<[u8]>) -> Result<Self> {
        struct Bin<'a>(&'a [u8]);
        impl Serialize for Bin<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(self.0)
            }
        }
        Self::new(&Bin(bytes.as_ref()))
    }

    /// What a backend holds, which any program may have written.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is not exactly one MessagePack value of at most 64 KiB.
    pub fn from_msgpack(bytes: &[u8]) -> Result<Self> {
        let corrupt = |why| Error::new(ErrorKind::Corrupt, format!("a member's capabilities {why}"));
        if bytes.len() > MAX_CAPABILITIES_BYTES {
            return Err(corrupt("are larger than 64 KiB"));
        }
        let mut reader = bytes;
        let mut decoder = rmp_serde::Deserializer::new(&mut reader);
        decoder.set_max_depth(MAX_DEPTH);
        serde::Deserialize::deserialize(&mut decoder)
            .map(|IgnoredAny| ())
            .map_err(|error| corrupt("are not MessagePack").caused_by(error))?;
        if !reader.is_empty() {
            return Err(corrupt("have bytes after the end of the MessagePack value"));
        }
        Ok(Self(bytes.into()))
    }

    /// Reads them as `T`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if the member published something else.
    pub fn get<T: DeserializeOwned>(&self) -> Result<T> {
        let mut decoder = rmp_serde::Deserializer::new(&*self.0);
        decoder.set_max_depth(MAX_DEPTH);
        T::deserialize(&mut decoder).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "the capabilities do not have the requested type").caused_by(error)
        })
    }

    /// The raw bytes, if that is what the member published.
    pub fn raw(&self) -> Option<&[u8]> {
        let (header, length) = match *self.0 {
            [0xc4, length, ..] => (2, usize::from(length)),
            [0xc5, high, low, ..] => (3, usize::from(u16::from_be_bytes([high, low]))),
            [0xc6, a, b, c, d, ..] => (5, usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?),
            _ => return None,
        };
        self.0.get(header..).filter(|rest| rest.len() == length)
    }

    /// The MessagePack bytes, as they stand on the backend.
    pub fn as_msgpack(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is nothing.
    pub fn is_none(&self) -> bool {
        *self.0 == [0xc0]
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::none()
    }
}

/// Only the size: what members publish may be private.
impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_python_tooz() {
        assert_eq!(Capabilities::none().as_msgpack(), b"\xc0");
        assert_eq!(Capabilities::from_raw(b"").unwrap().as_msgpack(), b"\xc4\x00");
    }

    #[test]
    fn raw_bytes_come_back() {
        for length in [0, 1, 255, 256, 65_000] {
            let bytes = vec![7; length];
            let capabilities = Capabilities::from_raw(&bytes).unwrap();
            assert_eq!(capabilities.raw(), Some(bytes.as_slice()));
            assert_eq!(Capabilities::from_msgpack(capabilities.as_msgpack()).unwrap(), capabilities);
        }
        assert_eq!(Capabilities::none().raw(), None);
    }

    #[test]
    fn too_large_is_invalid_and_hostile_bytes_are_corrupt() {
        assert_eq!(Capabilities::from_raw(vec![0; 65_536]).unwrap_err().kind(), ErrorKind::Invalid);
        let deep = [0x91; 5_000];
        for bytes in [&b""[..], b"\xc1", b"\xc0\xc0", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", &deep]
        {
            assert_eq!(
                Capabilities::from_msgpack(bytes).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "{bytes:02x?}"
            );
        }
    }
}
