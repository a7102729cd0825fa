//! Ids of 128 bits.

use std::fmt;

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        /// 32 hexadecimal digits.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl $name {
            /// Reads 32 hexadecimal digits, as they are written: each id has one form, so no two names are its own.
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self)
            }
        }
    };
}

id128! {
    /// A session's id, unique among all sessions ever.
    SessionId
}
id128! {
    /// A coordinator object's id, the same for all its sessions.
    InstanceId
}
id128! {
    /// An id of the backend's data: another epoch means that the data was lost or replaced.
    Epoch
}
id128! {
    /// One wish for one lock; every record that is written for it carries this id.
    AttemptId
}
