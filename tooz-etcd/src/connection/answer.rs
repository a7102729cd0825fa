//! The answer of a transaction, by its operations.

use etcd_client::{KeyValue, ResponseHeader, TxnOpResponse, TxnResponse};

/// The revision at which it was done.
pub(crate) fn revision(response: &TxnResponse) -> i64 {
    response.header().map_or(0, ResponseHeader::revision)
}

/// What the `get` at this index of the operations that were done has found.
pub(crate) fn found(response: &TxnResponse, at: usize) -> Vec<KeyValue> {
    response.op_responses().into_iter().nth(at).map(keys_and_values).unwrap_or_default()
}

/// What every `get` from this index on has found.
pub(crate) fn found_from(response: &TxnResponse, at: usize) -> Vec<KeyValue> {
    response.op_responses().into_iter().skip(at).flat_map(keys_and_values).collect()
}

/// The key that the `get` of one key at this index has found.
pub(crate) fn one(response: &TxnResponse, at: usize) -> Option<KeyValue> {
    found(response, at).pop()
}

/// The value that the `get` of one key at this index has found; empty: there is no such key.
pub(crate) fn value(response: &TxnResponse, at: usize) -> Vec<u8> {
    one(response, at).map(|kv| kv.value().to_vec()).unwrap_or_default()
}

/// The nested transaction at this index.
pub(crate) fn nested(response: &TxnResponse, at: usize) -> Option<TxnResponse> {
    match response.op_responses().into_iter().nth(at) {
        Some(TxnOpResponse::Txn(nested)) => Some(nested),
        _ => None,
    }
}

fn keys_and_values(done: TxnOpResponse) -> Vec<KeyValue> {
    match done {
        TxnOpResponse::Get(mut got) => got.take_kvs(),
        _ => Vec::new(),
    }
}
