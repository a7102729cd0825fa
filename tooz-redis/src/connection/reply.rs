//! Reads the answers of scripts; an answer of another form is `Corrupt`.

use redis::Value;
use tooz_core::{Error, ErrorKind, Result};

pub(crate) fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a reply of the server lacks {what}"))
}

/// The parts of an answer.
pub(crate) struct Parts(std::vec::IntoIter<Value>);

impl Parts {
    pub(crate) fn of(value: Value) -> Result<Self> {
        match value {
            Value::Array(parts) => Ok(Self(parts.into_iter())),
            _ => Err(corrupt("its parts")),
        }
    }

    pub(crate) fn one(&mut self, what: &str) -> Result<Value> {
        self.0.next().ok_or_else(|| corrupt(what))
    }

    pub(crate) fn bytes(&mut self, what: &str) -> Result<Vec<u8>> {
        bytes(self.one(what)?).ok_or_else(|| corrupt(what))
    }

    pub(crate) fn text(&mut self, what: &str) -> Result<String> {
        String::from_utf8(self.bytes(what)?).map_err(|_| corrupt(what))
    }

    pub(crate) fn number(&mut self, what: &str) -> Result<i64> {
        match self.one(what)? {
            Value::Int(number) => Ok(number),
            other => {
                let text = bytes(other).and_then(|bytes| String::from_utf8(bytes).ok());
                text.and_then(|text| text.parse().ok()).ok_or_else(|| corrupt(what))
            }
        }
    }

    pub(crate) fn parts(&mut self, what: &str) -> Result<Self> {
        Self::of(self.one(what)?)
    }
}

impl Iterator for Parts {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.0.next()
    }
}

/// Whether an answer of several parts begins with this word.
pub(crate) fn begins_with(answer: &Value, word: &[u8]) -> bool {
    let Value::Array(parts) = answer else { return false };
    matches!(parts.first(), Some(Value::BulkString(first)) if first == word)
}

pub(crate) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.into_bytes()),
        Value::Okay => Some(b"OK".to_vec()),
        _ => None,
    }
}
