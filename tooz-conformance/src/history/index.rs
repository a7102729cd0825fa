//! Maps that are only looked up: a history of a million operations fills and asks them a million times. Nothing
//! iterates them, so their order shows nowhere.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A map by numbers.
pub(super) struct Index<K, V>(HashMap<K, V, BuildHasherDefault<Mix>>);

impl<K, V> Default for Index<K, V> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<K: Eq + Hash, V> Index<K, V> {
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.insert(key, value)
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    pub(super) fn or_insert(&mut self, key: K, value: V) {
        self.0.entry(key).or_insert(value);
    }
}

impl<K: Eq + Hash, V> FromIterator<(K, V)> for Index<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

/// Keeps numbers in a row in a row: names, tokens and places mostly come so, and then neighbours in time are
/// neighbours in memory. Only the seven upper bits, by which a table tells neighbours apart, are mixed (by the golden
/// ratio, Knuth's multiplicative hashing). Nobody hostile chooses the keys.
#[derive(Default)]
pub(super) struct Mix(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const UPPER: u64 = 0x7f << 57;

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        (self.0 & !UPPER) | (self.0.wrapping_mul(GOLDEN) & UPPER)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = self.0.wrapping_mul(GOLDEN).wrapping_add(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}
