//! The task that replaces the link when it ends or is suspected.
//!
//! A link that does not answer is not ended at once: the supervisor makes another one beside it, which replaces the first
//! unless that answers meanwhile. The scripts refuse what arrives over an older link than the newest they have heard of, so
//! what is still on its way over the old one cannot come between.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tooz_core::driver::support::backoff::Backoff;
use tooz_core::{Error, ErrorKind, Result};

use super::discovery::{Discovery, Found};
use super::link::{Link, Suspicion};
use super::server_info;
use crate::client::Client;
use crate::error;

/// The first pause between two tries to connect; it grows with each, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often the supervisor asks whether the server is still the right one, and how many replicas it has.
const LOOK: Duration = Duration::from_secs(10);
/// So many discovered servers are tried in one go, because those who announce the first may lag behind.
const CANDIDATES: usize = 3;

pub(crate) struct Supervisor {
    client: Arc<Client>,
    suspicions: mpsc::UnboundedReceiver<Suspicion>,
    discovery: Discovery,
    generation: u64,
}

impl Supervisor {
    pub(crate) fn new(client: &Arc<Client>, suspicions: mpsc::UnboundedReceiver<Suspicion>) -> Self {
        Self { client: Arc::clone(client), suspicions, discovery: Discovery::default(), generation: 0 }
    }

    /// Discovers the server and connects; must run on the coordinator's runtime.
    pub(crate) async fn link_up(&mut self) -> Result<Link> {
        let client = Arc::clone(&self.client);
        let (config, spawner) = (client.config(), &client.context().spawner);
        if !config.topology.is_discovered() {
            let found = self.discovery.find(config, spawner).await?;
            return Box::pin(self.link_to(&found)).await;
        }
        let mut failure = Error::from(ErrorKind::Unavailable);
        for _ in 0..CANDIDATES {
            let found = self.discovery.find(config, spawner).await?;
            let named = |why: Error| {
                if why.kind() != ErrorKind::Unavailable {
                    return why; // the server was reached
                }
                let by = &found.by;
                Error::new(
                    why.kind(),
                    format!("{} was {by}; make it reachable from this machine", found.address),
                )
                .caused_by(why)
            };
            let limit = config.greeting_limit() / 2;
            failure = match spawner.timeout(limit, Box::pin(self.link_to(&found))).await {
                Some(Ok(link)) => match server_info::check_master(&link).await {
                    Ok(()) => return Ok(link),
                    Err(error) => error,
                },
                Some(Err(error)) => named(error),
                None => named(Error::new(ErrorKind::Unavailable, format!("no greeting within {limit:?}"))),
            };
            tracing::debug!(error = %failure, "not this one");
        }
        Err(failure)
    }

    async fn link_to(&mut self, found: &Found) -> Result<Link> {
        self.generation += 1;
        let shared = &self.client.shared;
        let config = &shared.config;
        let explain =
            |error: redis::RedisError| error::connecting(config, config.login(), &found.address, &error);
        let link = Link::connect(shared, found, self.generation).await.map_err(explain)?;
        link.subscribe(shared.channels.all()).await.map_err(explain)?;
        Ok(link)
    }

    pub(crate) async fn run(mut self, mut link: Arc<Link>) {
        loop {
            let suspicion = tokio::select! {
                biased; // a broken link needs no suspicion
                () = link.broken() => None,
                suspicion = self.suspicions.recv() => suspicion,
                () = Self::look(&self.client, &mut self.discovery, &link) => continue,
            };
            if self.client.current.is_closed() {
                return;
            }
            let next = match suspicion {
                Some(suspicion) if suspicion.generation == link.generation => {
                    self.replace_suspected(&link, suspicion.deaf).await
                }
                Some(_) => continue,
                None => Some(self.replace_ended(&link).await),
            };
            let Some(next) = next else { continue };
            link.retire();
            link = Arc::new(next);
            if !self.client.current.replace(Arc::clone(&link)) {
                return;
            }
            tracing::info!(address = %link.address, generation = link.generation, "connected again");
            // The channels that were asked for while this link was being made.
            let channels = &self.client.shared.channels;
            if let Err(error) = link.subscribe(channels.all()).await {
                tracing::debug!(%error, "the channels could not be asked for");
                link.end("the channels could not be asked for");
            }
            channels.announce_gap();
        }
    }

    /// Where the server is discovered, asks again which it is, and how many replicas it has.
    async fn look(client: &Client, discovery: &mut Discovery, link: &Link) {
        let (config, spawner) = (client.config(), &client.context().spawner);
        if !config.topology.is_discovered() {
            return std::future::pending().await;
        }
        let doubted = tokio::select! {
            biased; // a doubt is not put off
            () = client.shared.doubts.notified() => true,
            () = spawner.sleep(LOOK) => false,
        };
        match discovery.find(config, spawner).await {
            Ok(found) if found.address == link.address => link.need(config.needed(found.replicas)),
            // The server whose writes replicas confirm is the master, whatever others announce.
            Ok(found) if !doubted && config.confirms() => {
                tracing::debug!(address = %found.address, by = found.by, "another address of it, or a stale one");
            }
            Ok(found) => {
                tracing::info!(address = %found.address, by = found.by, "another server took its place");
                link.end("another server took its place");
            }
            Err(error) => tracing::debug!(%error, "no server tells whether this is still the master"),
        }
    }

    /// Makes a link, however long that takes; `failed` hears of each try.
    async fn make_link(&mut self, failed: impl Fn(Error)) -> Link {
        // With jitter: many clients of a server that came back must not call in step.
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let client = Arc::clone(&self.client);
        let (config, context) = (client.config(), client.context());
        let silent =
            || Err(Error::new(ErrorKind::Unavailable, format!("{} sends no greeting", config.topology)));
        loop {
            let linked = context.spawner.timeout(config.greeting_limit(), self.link_up()).await;
            match linked.unwrap_or_else(silent) {
                Ok(link) => return link,
                Err(error) => {
                    tracing::debug!(%error, "no connection yet");
                    failed(error);
                }
            }
            context.spawner.sleep(pauses.next(&context.entropy)).await;
        }
    }

    /// The link is gone: makes another one.
    async fn replace_ended(&mut self, old: &Link) -> Link {
        tracing::warn!(address = %old.address, why = old.why(), "the connection ended");
        let client = Arc::clone(&self.client);
        let down = |why| client.current.set_down(why);
        down(Error::new(ErrorKind::Unavailable, format!("{}: {}", old.address, old.why())));
        self.make_link(down).await
    }

    /// The link does not answer: makes another one beside it, unless the link answers first.
    async fn replace_suspected(&mut self, old: &Link, deaf: bool) -> Option<Link> {
        tracing::debug!(address = %old.address, deaf, "the connection is suspected");
        let answered = async {
            if deaf {
                std::future::pending::<()>().await;
            }
            old.next_answer().await;
        };
        tokio::select! {
            biased; // an end or an answer of the old link decides whether a new one is needed
            () = old.broken() => None,
            () = answered => None,
            link = self.make_link(drop) => Some(link),
        }
    }
}
