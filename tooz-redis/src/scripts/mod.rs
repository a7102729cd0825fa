//! The scripts: every change is one of them, so the server makes it as a whole or not at all.

pub(crate) mod codes;

use std::sync::OnceLock;

use redis::Cmd;
use sha1::{Digest, Sha1};

use crate::keys::Keys;

/// A script, and the name under which tests find it.
#[derive(Debug)]
pub(crate) struct Script {
    name: &'static str,
    pub(crate) source: &'static str,
    hash: OnceLock<String>,
}

impl Script {
    const fn new(name: &'static str, source: &'static str) -> Self {
        Self { name, source, hash: OnceLock::new() }
    }

    /// A call of it.
    pub(crate) fn call(&'static self) -> Call {
        Call {
            script: self,
            keys: Vec::new(),
            arguments: Vec::new(),
            needs_confirmation: false,
            only_reads: false,
        }
    }

    /// SHA-1 of the source in hexadecimal, as `EVALSHA` takes it.
    pub(crate) fn hash(&self) -> &str {
        self.hash.get_or_init(|| format!("{:x}", Sha1::digest(self.source)))
    }
}

macro_rules! scripts {
    ($($name:ident: $($file:literal)+;)+) => {
        $(pub(crate) static $name: Script = Script::new(
            stringify!($name),
            concat!(include_str!("base.lua"), $(include_str!(concat!($file, ".lua"))),+),
        );)+

        /// Every script there is.
        pub(crate) static ALL: &[&Script] = &[$(&$name),+];
    };
}

scripts! {
    REQUEST: "lock" "request";
    RELEASE: "lock" "give_back" "release";
    WITHDRAW: "lock" "give_back" "withdraw";
    HOLDERS: "lock" "holders";
    BREAK: "lock" "break";
    RAISE: "lock" "raise";
    JOIN: "group" "join";
    LEAVE: "group" "leave";
    UPDATE: "group" "update";
    CREATE: "group" "create";
    DELETE: "group" "delete";
    MEMBERS: "group" "members";
    TICK: "group" "tick";
    SEE_HOLDERS: "lock" "see_holders";
    SEE_MEMBERS: "group" "see_members";
    SEE_TICK: "group" "see_tick";
    OPEN: "lock" "group" "session" "open";
    CLOSE: "lock" "group" "session" "close";
    RENEW: "lock" "group" "renew";
}

/// The hash under which a script of this name is called, for tests that look at the network.
pub fn hash_of(name: &str) -> Option<&'static str> {
    ALL.iter().find(|script| script.name.eq_ignore_ascii_case(name)).map(|script| script.hash())
}

/// A call of a script.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    script: &'static Script,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
    /// A session will rely on the effect, so replicas must have it, where there are any.
    pub(crate) needs_confirmation: bool,
    /// The script writes nothing.
    pub(crate) only_reads: bool,
}

impl Call {
    pub(crate) fn confirm(self) -> Self {
        Self { needs_confirmation: true, ..self }
    }

    pub(crate) fn keys(mut self, keys: impl IntoIterator<Item = Vec<u8>>) -> Self {
        self.keys.extend(keys);
        self
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<[u8]>) -> Self {
        self.arguments.push(argument.as_ref().to_vec());
        self
    }

    pub(crate) fn number(self, number: impl TryInto<u64>) -> Self {
        let number = number.try_into().unwrap_or(u64::MAX >> 11);
        self.arg(number.to_string())
    }

    /// The command. `whole`: with the source, for a server that does not know the script. `read_only`: so that the user needs
    /// no right to write the keys.
    pub(crate) fn command(&self, keys: &Keys, generation: u64, whole: bool, read_only: bool) -> Cmd {
        let mut command = redis::cmd(match (whole, read_only) {
            (true, false) => "EVAL",
            (false, false) => "EVALSHA",
            (true, true) => "EVAL_RO",
            (false, true) => "EVALSHA_RO",
        });
        command.arg(if whole { self.script.source } else { self.script.hash() }).arg(self.keys.len());
        for key in &self.keys {
            command.arg(key.as_slice());
        }
        // Every script takes the namespace first, then the number of the connection with the database.
        command.arg(&keys.namespace).arg(format!("{generation}{}", keys.database));
        for argument in &self.arguments {
            command.arg(argument.as_slice());
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_servers() {
        let hash = REQUEST.hash();
        assert!(hash.len() == 40 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{hash}");
        assert_eq!(hash_of("request"), Some(hash));
        assert_eq!(hash_of("nothing"), None);
    }
}
