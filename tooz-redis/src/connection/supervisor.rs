//! The task that keeps the connection up.
//!
//! A link that does not answer is not ended at once: another is made beside it, and takes its place unless the first answers
//! meanwhile. The scripts refuse what arrives over an older link than the newest they have heard of, so what is still on its
//! way over the old one cannot come between.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tooz_core::{Error, ErrorKind, Result};

use crate::client::{Client, State, Suspicion};
use crate::connection::link::Link;

/// The first pause between two tries to connect; it grows with each.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often it is asked whether the server is still the one, and how many replicas it has.
const LOOK: Duration = Duration::from_secs(10);

pub(crate) struct Supervisor {
    client: Arc<Client>,
    orders: mpsc::UnboundedReceiver<Suspicion>,
}

impl Supervisor {
    pub(crate) fn new(client: &Arc<Client>, orders: mpsc::UnboundedReceiver<Suspicion>) -> Self {
        Self { client: Arc::clone(client), orders }
    }

    pub(crate) async fn run(mut self, mut link: Arc<Link>) {
        loop {
            let suspicion = tokio::select! {
                biased; // what is broken needs no suspicion
                () = link.broken() => None,
                suspicion = self.orders.recv() => suspicion,
                () = Self::look(&self.client, &link) => continue,
            };
            if self.is_closed() {
                return;
            }
            let next = match suspicion {
                Some(suspicion) if suspicion.generation == link.generation => {
                    self.beside(&link, suspicion.deaf).await
                }
                Some(_) => continue,
                None => Some(self.again(&link).await),
            };
            let Some(next) = next else { continue };
            let next = Arc::new(next);
            link.retire();
            link = Arc::clone(&next);
            // Closed meanwhile stays closed.
            let replaced = self.client.state.send_if_modified(|state| {
                let open = !matches!(state, State::Closed);
                if open {
                    *state = State::Up(next);
                }
                open
            });
            if !replaced {
                return;
            }
            tracing::info!(address = %link.address, generation = link.generation, "connected again");
            // What was asked for while this link was being made.
            if let Err(error) = link.subscribe(self.client.channels.all()).await {
                tracing::debug!(%error, "the channels could not be asked for");
                link.end("the channels could not be asked for");
            }
            self.client.channels.gap();
        }
    }

    fn is_closed(&self) -> bool {
        matches!(*self.client.state.borrow(), State::Closed)
    }

    /// Asks, where there is somebody to ask, whether the server is still the one, and how many replicas it has.
    async fn look(client: &Client, link: &Link) {
        if !client.config.place.is_sought() {
            return std::future::pending().await;
        }
        let doubted = tokio::select! {
            biased; // what is doubted is looked at now
            () = client.doubts.notified() => true,
            () = client.context.spawner.sleep(LOOK) => false,
        };
        match client.finder.find(&client.config, &client.context.spawner).await {
            Ok(found) if found.address == link.address => link.need(client.config.needed(found.replicas)),
            // One that replicas confirm is the master, whatever it is called elsewhere.
            Ok(found) if !doubted && client.config.confirms() => {
                tracing::debug!(address = %found.address, by = found.by, "another address of it, or a stale one");
            }
            Ok(found) => {
                tracing::info!(address = %found.address, by = found.by, "another server took its place");
                link.end("another server took its place");
            }
            Err(error) => tracing::debug!(%error, "nobody says whether the server is still the one"),
        }
    }

    async fn try_once(&self) -> Result<Link> {
        let limit = self.client.greeting_limit();
        match self.client.context.spawner.timeout(limit, self.client.link_up()).await {
            Some(result) => result,
            None => Err(Error::new(
                ErrorKind::Unavailable,
                format!("{} does not greet", self.client.config.place),
            )),
        }
    }

    /// The link is gone: another one, however long that takes.
    async fn again(&self, old: &Link) -> Link {
        tracing::warn!(address = %old.address, why = old.why(), "the connection ended");
        let mut why = Error::new(ErrorKind::Unavailable, format!("{}: {}", old.address, old.why()));
        let mut pause = Duration::ZERO;
        loop {
            self.client.state.send_if_modified(|state| {
                let open = !matches!(state, State::Closed);
                if open {
                    *state = State::Down(why.clone());
                }
                open
            });
            if !pause.is_zero() {
                self.client.context.spawner.sleep(pause).await;
            }
            match self.try_once().await {
                Ok(link) => return link,
                Err(error) => {
                    tracing::debug!(%error, "no connection yet");
                    why = error;
                }
            }
            pause = self.longer(pause);
        }
    }

    /// The link does not answer: another one beside it, unless it answers first.
    async fn beside(&self, old: &Arc<Link>, deaf: bool) -> Option<Link> {
        tracing::debug!(address = %old.address, deaf, "the connection is suspected");
        let mut pause = Duration::ZERO;
        let answered = async {
            if deaf {
                std::future::pending::<()>().await;
            }
            old.next_answer().await;
        };
        tokio::pin!(answered);
        loop {
            let attempt = async {
                self.client.context.spawner.sleep(pause).await;
                self.try_once().await
            };
            tokio::select! {
                biased; // whatever the old one says makes the new one needless or necessary
                () = old.broken() => return None,
                () = answered.as_mut() => return None,
                made = attempt => match made {
                    Ok(link) => return Some(link),
                    Err(error) => tracing::debug!(%error, "no second connection yet"),
                },
            }
            pause = self.longer(pause);
        }
    }

    /// Grows up to a second, with jitter: many clients of a server that came back must not call in step.
    fn longer(&self, pause: Duration) -> Duration {
        let most = (pause * 3).clamp(FIRST_PAUSE * 3, LONGEST_PAUSE);
        self.client.context.entropy.between(FIRST_PAUSE, most)
    }
}
