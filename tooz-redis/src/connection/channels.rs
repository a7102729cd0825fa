//! Who listens to what.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tooz_core::Result;

use crate::client::Client;

/// What comes over a channel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Heard<'a> {
    /// A message.
    Message(&'a [u8]),
    /// The connection was replaced: messages may have been missed.
    Gap,
}

/// Is called on the connection's own task: it must not block.
pub(crate) type Ear = Arc<dyn Fn(Heard<'_>) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Channels(Mutex<Book>);

#[derive(Default)]
struct Book {
    next: u64,
    ears: BTreeMap<Vec<u8>, BTreeMap<u64, Ear>>,
}

impl Channels {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every channel that somebody listens to.
    pub(crate) fn all(&self) -> Vec<Vec<u8>> {
        self.book().ears.keys().cloned().collect()
    }

    pub(crate) fn has(&self, channel: &[u8]) -> bool {
        self.book().ears.contains_key(channel)
    }

    fn add(&self, channel: &[u8], ear: Ear) -> u64 {
        let mut book = self.book();
        book.next += 1;
        let id = book.next;
        book.ears.entry(channel.to_vec()).or_default().insert(id, ear);
        id
    }

    /// Answers whether nobody listens any more.
    fn remove(&self, channel: &[u8], id: u64) -> bool {
        let mut book = self.book();
        let Some(ears) = book.ears.get_mut(channel) else { return false };
        ears.remove(&id);
        let silent = ears.is_empty();
        if silent {
            book.ears.remove(channel);
        }
        silent
    }

    pub(crate) fn hear(&self, channel: &[u8], message: &[u8]) {
        let ears: Vec<Ear> =
            self.book().ears.get(channel).map(|ears| ears.values().cloned().collect()).unwrap_or_default();
        for ear in ears {
            ear(Heard::Message(message));
        }
    }

    /// Tells everybody that messages may have been missed.
    pub(crate) fn gap(&self) {
        let ears: Vec<Ear> = self.book().ears.values().flat_map(BTreeMap::values).cloned().collect();
        for ear in ears {
            ear(Heard::Gap);
        }
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels").field("count", &self.book().ears.len()).finish()
    }
}

/// Somebody listens; dropping it ends that, on the server too.
pub(crate) struct Subscription {
    client: Arc<Client>,
    channel: Vec<u8>,
    id: u64,
}

impl Subscription {
    /// Listens to a channel; what is published after this returned is heard, or a gap.
    pub(crate) async fn start(client: &Arc<Client>, channel: Vec<u8>, ear: Ear) -> Result<Self> {
        // Noted before it is asked for: a connection that is made meanwhile asks for everything that is noted.
        let id = client.channels.add(&channel, ear);
        let subscription = Self { client: Arc::clone(client), channel, id };
        client.subscribe(&subscription.channel).await?;
        Ok(subscription)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.client.channels.remove(&self.channel, self.id) {
            let (client, channel) = (Arc::clone(&self.client), std::mem::take(&mut self.channel));
            let spawner = client.context.spawner.clone();
            spawner.spawn(async move { client.unsubscribe(&channel).await }).detach();
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subscription({})", self.channel.escape_ascii())
    }
}
