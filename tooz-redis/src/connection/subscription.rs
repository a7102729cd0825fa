//! One listener on one channel of the server.

use std::sync::Arc;

use tooz_core::Result;

use super::channels::Listener;
use crate::client::Client;
use crate::error;

/// A listener that is registered; dropping the subscription removes it, and if it was the last, ends the channel on the
/// server.
#[derive(Debug)]
pub(crate) struct Subscription {
    client: Arc<Client>,
    channel: Vec<u8>,
    id: u64,
}

impl Subscription {
    /// Listens to a channel. The listener receives every message that is published after this returned, or a gap.
    pub(crate) async fn start(client: &Arc<Client>, channel: Vec<u8>, listener: Listener) -> Result<Self> {
        // Registered before the server is asked: a connection that is made meanwhile asks for all registered channels.
        let id = client.shared.channels.add(&channel, listener);
        let subscription = Self { client: Arc::clone(client), channel, id };
        let mut links = client.links();
        loop {
            match links.next().await?.subscribe(vec![subscription.channel.clone()]).await {
                Ok(()) => return Ok(subscription),
                Err(error) if error.is_io_error() => {}
                Err(error) => return Err(error::of(&error)),
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if !self.client.shared.channels.remove(&self.channel, self.id) {
            return;
        }
        let (client, channel) = (Arc::clone(&self.client), std::mem::take(&mut self.channel));
        let spawner = client.context().spawner.clone();
        let unsubscribing = async move {
            if let Some(link) = client.current.get() {
                link.unsubscribe(&channel).await;
            }
        };
        spawner.spawn(unsubscribing).detach();
    }
}
