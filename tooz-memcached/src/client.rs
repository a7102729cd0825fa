//! Exchanges over the current link, repeated over the next one where a link ends.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tooz_core::driver::support::backoff::Backoff;
use tooz_core::driver::{Context, Instant};
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::connection::command::{Answers, Batch, Stored};
use crate::connection::link::Link;
use crate::error;
use crate::keys::Keys;

/// An operation is tried over at most this many links; then the server counts as unavailable.
const TRIES: usize = 5;
/// Pauses between two tries to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

pub(crate) struct Client {
    pub(crate) config: Config,
    pub(crate) context: Context,
    pub(crate) keys: Keys,
    /// Where the tokens begin, as last read.
    pub(crate) base: AtomicU64,
    links: Arc<Links>,
}

/// The current link, and who makes the next one.
struct Links {
    config: Config,
    context: Context,
    current: Mutex<Option<Arc<Link>>>,
    /// Held by the one task that connects; how many links there were.
    connecting: tokio::sync::Mutex<u64>,
    closed: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.config.shown()).finish()
    }
}

/// What the server answered to a batch.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) link: Arc<Link>,
    /// Just before the batch was sent.
    pub(crate) sent: Instant,
    pub(crate) answers: Answers,
}

impl Client {
    /// Connects.
    pub(crate) async fn connect(config: Config, context: Context) -> Result<Arc<Self>> {
        let links = Links {
            config: config.clone(),
            context: context.clone(),
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(0),
            closed: AtomicBool::new(false),
        };
        let client = Self {
            keys: Keys::new(&config.namespace),
            base: AtomicU64::new(0),
            links: Arc::new(links),
            config,
            context,
        };
        client.links.connect(0).await?;
        Ok(Arc::new(client))
    }

    /// The first link that is newer than this one. Waits for at most `limit`.
    pub(crate) async fn link(&self, newer_than: u64, limit: Duration) -> Result<Arc<Link>> {
        if let Some(link) = self.links.current(newer_than) {
            return Ok(link);
        }
        let (mut pauses, mut last) = (Backoff::new(PAUSES.0, PAUSES.1), None);
        let connecting = async {
            loop {
                match self.links.connect(newer_than).await {
                    Err(error) if error.is_retryable() => last = Some(error),
                    ended => return ended,
                }
                self.context.spawner.sleep(pauses.next(&self.context.entropy)).await;
            }
        };
        let connected = self.context.spawner.timeout(limit, connecting).await;
        connected.unwrap_or_else(|| Err(last.unwrap_or_else(|| error::silent(&self.config))))
    }

    /// Ends the link, and there is no other.
    pub(crate) fn close(&self) {
        self.links.closed.store(true, Ordering::Release);
        if let Some(link) = self.links.current.lock().unwrap_or_else(PoisonError::into_inner).take() {
            link.end();
        }
    }

    /// Sends a batch over this link; `None`: no answer came, and none will. A link that does not answer within
    /// `operation_timeout` is ended: what it was sent later would wait behind the same silence.
    pub(crate) async fn exchange(&self, link: &Arc<Link>, batch: &Batch) -> Option<Reply> {
        let sent = self.context.clock.now();
        let limit = self.config.limits.operation_timeout;
        let answers = self.context.spawner.timeout(limit, link.exchange(batch)).await;
        if answers.is_none() {
            link.end();
        }
        answers.flatten().map(|answers| Reply { link: Arc::clone(link), sent, answers })
    }

    /// The same for a beat. Where its answer takes longer than a beat may, later exchanges take another link: that one may be
    /// cut off. An answer that comes late counts still, and shows that the link is slow and nothing worse.
    pub(crate) async fn exchange_beat(&self, link: &Arc<Link>, batch: &Batch) -> Option<Reply> {
        let exchanging = self.exchange(link, batch);
        tokio::pin!(exchanging);
        let in_time = self.context.spawner.timeout(self.config.beat_limit(), exchanging.as_mut()).await;
        if let Some(reply) = in_time {
            return reply;
        }
        link.set_retired(true);
        let late = exchanging.await;
        link.set_retired(late.is_none());
        late
    }

    /// The tries of one operation.
    pub(crate) fn tries(&self) -> Tries<'_> {
        Tries { client: self, newer_than: 0, left: TRIES, unsure: false }
    }

    /// Sends a batch that may be sent again, over the links of one operation.
    pub(crate) async fn ask(&self, batch: &Batch) -> Result<Reply> {
        self.tries().ask(batch).await
    }

    /// The server's clock in seconds, as that of the current link goes on.
    pub(crate) fn seconds(&self, link: &Link) -> u64 {
        link.greeting.seconds(self.context.clock.now())
    }
}

impl Links {
    fn current(&self, newer_than: u64) -> Option<Arc<Link>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|link| link.number > newer_than && link.is_current()).cloned()
    }

    /// The current link, or one more try to make one. It runs as a task of the coordinator's: a caller may be polled outside its
    /// runtime, or not any more, and beats wait for the same link.
    async fn connect(self: &Arc<Self>, newer_than: u64) -> Result<Arc<Link>> {
        let links = Arc::clone(self);
        let connecting = self.context.spawner.spawn(async move { links.connect_here(newer_than).await });
        // Without an answer it was never run: trying again would never end.
        let gone = || Error::new(ErrorKind::Closed, "the runtime on which the connection lived has ended");
        connecting.await.unwrap_or_else(|| Err(gone()))
    }

    async fn connect_here(&self, newer_than: u64) -> Result<Arc<Link>> {
        let mut links = self.connecting.lock().await;
        if let Some(link) = self.current(newer_than) {
            return Ok(link); // another caller made it
        }
        self.check_open()?;
        let link = Arc::new(Link::connect(&self.config, &self.context, *links + 1).await?);
        *links += 1;
        // What is unanswered on an older link still waits for its answer there.
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&link));
        if let Err(closed) = self.check_open() {
            link.end();
            return Err(closed);
        }
        Ok(link)
    }

    fn check_open(&self) -> Result<()> {
        let closed = self.closed.load(Ordering::Acquire);
        if closed { Err(Error::new(ErrorKind::Closed, "connect a new coordinator")) } else { Ok(()) }
    }
}

/// The links that one operation is tried over, each newer than the one before.
pub(crate) struct Tries<'a> {
    client: &'a Client,
    newer_than: u64,
    left: usize,
    /// A batch that changes something was sent, and its answer never came.
    pub(crate) unsure: bool,
}

impl Tries<'_> {
    /// Marks an error as indeterminate if an earlier batch may have taken effect.
    pub(crate) fn failed(&self, error: Error) -> Error {
        if self.unsure { error.indeterminate() } else { error }
    }

    async fn link(&mut self) -> Result<Arc<Link>> {
        let limit = self.client.config.limits.operation_timeout;
        if self.left == 0 {
            let why = format!("the connections to {} end again and again", self.client.config.shown());
            return Err(self.failed(Error::new(ErrorKind::Unavailable, why)));
        }
        let link = self.client.link(self.newer_than, limit).await;
        link.map_err(|error| self.failed(error))
    }

    /// Sends a batch until it is answered. It holds no cas number, so it may be sent over another link again.
    pub(crate) async fn ask(&mut self, batch: &Batch) -> Result<Reply> {
        loop {
            let link = self.link().await?;
            if let Some(reply) = self.follow(&link, batch).await {
                return Ok(reply);
            }
        }
    }

    /// Sends a batch over the link of an earlier answer, whose cas numbers it may hold; `None`: there is no answer, and
    /// everything has to be read again.
    pub(crate) async fn follow(&mut self, link: &Arc<Link>, batch: &Batch) -> Option<Reply> {
        let reply = self.client.exchange(link, batch).await;
        if reply.is_none() {
            self.newer_than = self.newer_than.max(link.number);
            self.left = self.left.saturating_sub(1);
            self.unsure |= batch.changes();
        }
        reply
    }

    /// Sends a batch that begins with a store or a delete, and says whether that was done; `false`, too, if there is no answer.
    pub(crate) async fn store(&mut self, link: &Arc<Link>, batch: &Batch) -> Result<bool> {
        match self.follow(link, batch).await {
            Some(mut reply) => Ok(reply.answers.stored()? == Stored::Done),
            None => Ok(false),
        }
    }
}
