//! The channels that this driver listens to, and the listeners of each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Receives a message, or `None` for a gap: the connection was replaced, and messages may have been missed. Runs on the
/// connection's own task, so it must not block.
pub(crate) type Listener = Arc<dyn Fn(Option<&[u8]>) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Channels(Mutex<Listeners>);

#[derive(Default)]
struct Listeners {
    next: u64,
    by_channel: BTreeMap<Vec<u8>, BTreeMap<u64, Listener>>,
}

impl Channels {
    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every channel that has a listener.
    pub(crate) fn all(&self) -> Vec<Vec<u8>> {
        self.listeners().by_channel.keys().cloned().collect()
    }

    pub(crate) fn has(&self, channel: &[u8]) -> bool {
        self.listeners().by_channel.contains_key(channel)
    }

    /// Adds a listener and returns its id.
    pub(crate) fn add(&self, channel: &[u8], listener: Listener) -> u64 {
        let mut listeners = self.listeners();
        listeners.next += 1;
        let id = listeners.next;
        listeners.by_channel.entry(channel.to_vec()).or_default().insert(id, listener);
        id
    }

    /// Removes a listener; returns whether it was the channel's last.
    pub(crate) fn remove(&self, channel: &[u8], id: u64) -> bool {
        let mut listeners = self.listeners();
        let Some(others) = listeners.by_channel.get_mut(channel) else { return false };
        others.remove(&id);
        let last = others.is_empty();
        if last {
            listeners.by_channel.remove(channel);
        }
        last
    }

    /// Gives a message to the channel's listeners.
    pub(crate) fn deliver(&self, channel: &[u8], message: &[u8]) {
        let listeners = self.listeners().by_channel.get(channel).cloned().unwrap_or_default();
        for listener in listeners.values() {
            listener(Some(message));
        }
    }

    /// Tells every listener that messages may have been missed.
    pub(crate) fn announce_gap(&self) {
        let listeners: Vec<Listener> =
            self.listeners().by_channel.values().flat_map(BTreeMap::values).cloned().collect();
        for listener in listeners {
            listener(None);
        }
    }
}
