//! The connection: made, watched and made again by one task, the supervisor.
//!
//! A link that does not answer is not ended at once: another is made beside it, and takes its place unless the first answers
//! meanwhile. The scripts refuse what arrives over an older link than the newest they have heard of, so what is still on its
//! way over the old one cannot come between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::{mpsc, watch};
use tooz_core::driver::Context;
use tooz_core::{Error, ErrorKind, Result};

use crate::channels::Channels;
use crate::config::Config;
use crate::error;
use crate::keys::Keys;
use crate::link::{Link, Sent};
use crate::script::Call;
use crate::server::{self, Facts};

/// The first pause between two tries to connect; it grows with each.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often one call is sent: more ends of connections than this in one operation are a backend that is away.
const TRIES: usize = 5;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) config: Config,
    pub(crate) keys: Keys,
    pub(crate) context: Context,
    pub(crate) channels: Channels,
    state: watch::Sender<State>,
    suspicions: mpsc::UnboundedSender<Suspicion>,
    generation: AtomicU64,
}

#[derive(Clone, Debug)]
enum State {
    Up(Arc<Link>),
    Down(Error),
    Closed,
}

/// Somebody found a link wanting.
#[derive(Debug)]
pub(crate) struct Suspicion {
    generation: u64,
    /// An answer to a command does not clear it: messages do not come through.
    deaf: bool,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) value: Value,
    /// It was sent before, and nobody knows whether that was done.
    pub(crate) repeated: bool,
}

/// Whether a call may be sent again when its answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// The second time finds what the first did, and the caller can tell.
    Yes,
    /// The core decides: a beat that is late is another beat.
    No,
}

impl Client {
    /// Connects for the first time; the task keeps the connection up as long as it is kept.
    pub(crate) async fn connect(
        config: Config,
        context: Context,
    ) -> Result<(Arc<Self>, Facts, impl Future<Output = ()> + Send + 'static)> {
        let (suspicions, orders) = mpsc::unbounded_channel();
        let client = Arc::new(Self {
            keys: Keys::new(&config.namespace, config.db),
            config,
            context,
            channels: Channels::default(),
            state: watch::Sender::new(State::Down(Error::from(ErrorKind::Unavailable))),
            suspicions,
            generation: AtomicU64::new(0),
        });
        // On the coordinator's runtime: what the connections' tasks run on must not end with the caller's.
        let first = Arc::clone(&client);
        let first = client.context.spawner.spawn(async move {
            let link = Arc::new(first.link_up().await?);
            let facts = server::ask(&first, &link).await?;
            Ok::<_, Error>((link, facts))
        });
        let (link, facts) =
            first.await.ok_or_else(|| Error::new(ErrorKind::Closed, "the runtime ended"))??;
        client.state.send_replace(State::Up(Arc::clone(&link)));
        let supervisor = Supervisor { client: Arc::clone(&client), orders };
        Ok((client, facts, supervisor.run(link)))
    }

    async fn link_up(self: &Arc<Self>) -> Result<Link> {
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        let address = self.config.address.clone();
        let explain = |error| error::connecting(&address.to_string(), error);
        let weak: Weak<Self> = Arc::downgrade(self);
        let link = Link::connect(&self.config, address.clone(), generation, weak).await.map_err(explain)?;
        link.subscribe(self.channels.all()).await.map_err(explain)?;
        Ok(link)
    }

    /// Nothing is sent any more.
    pub(crate) fn close(&self) {
        if let State::Up(link) = self.state.send_replace(State::Closed) {
            link.end("the driver was closed");
        }
    }

    /// The connection, waited for while a new one is being made.
    pub(crate) async fn link(&self, limit: Duration) -> Result<Arc<Link>> {
        self.link_after(0, limit).await
    }

    /// The first connection that is newer than `generation`.
    async fn link_after(&self, generation: u64, limit: Duration) -> Result<Arc<Link>> {
        let mut state = self.state.subscribe();
        let waiting = state.wait_for(|state| match state {
            State::Up(link) => link.generation > generation && !link.is_broken(),
            State::Down(_) => false,
            State::Closed => true,
        });
        let found =
            self.context.spawner.timeout(limit, waiting).await.map(|state| state.map(|state| state.clone()));
        match found {
            Some(Ok(State::Up(link))) => Ok(link),
            None => {
                let why = match &*self.state.borrow() {
                    State::Down(why) => why.clone(),
                    _ => Error::new(
                        ErrorKind::Unavailable,
                        format!("no connection to {}", self.config.address),
                    ),
                };
                Err(why)
            }
            _ => Err(Error::new(ErrorKind::Closed, "connect a new coordinator")),
        }
    }

    /// A link is suspected: a beat over it was not answered in time, or its messages do not come through.
    pub(crate) fn suspect(&self, generation: u64, deaf: bool) {
        // The supervisor is gone only when the driver is.
        let _ = self.suspicions.send(Suspicion { generation, deaf });
    }

    /// Sends one command over one link.
    pub(crate) async fn send(&self, link: &Link, command: &Cmd) -> Sent {
        let limit = self.config.operation_timeout;
        let asking = link.send(self, command, self.config.beat_limit());
        tokio::pin!(asking);
        let in_time = self.context.spawner.timeout(limit, asking.as_mut()).await;
        let sent = if let Some(sent) = in_time {
            sent
        } else {
            // Others may be answered; this one never was.
            self.suspect(link.generation, true);
            asking.await
        };
        if let Sent::Refused(refusal) = &sent
            && error::is_elsewhere(refusal)
        {
            link.end("the server gave its part to another");
        }
        sent
    }

    /// Calls a script over this link, with its source where the server does not know it.
    pub(crate) async fn call_over(&self, link: &Link, call: &Call) -> Sent {
        match self.send(link, &call.command(link.generation, false)).await {
            Sent::Refused(refusal) if error::is_unknown_script(&refusal) => {
                self.send(link, &call.command(link.generation, true)).await
            }
            sent => sent,
        }
    }

    /// Calls a script until it is answered, or is refused, or the time is over.
    pub(crate) async fn call(&self, call: &Call, repeat: Repeat) -> Result<Answer> {
        let limit = match repeat {
            Repeat::Yes => self.config.operation_timeout,
            Repeat::No => self.config.beat_limit(),
        };
        let (mut repeated, mut newer_than) = (false, 0);
        for _ in 0..TRIES {
            let link = match self.link_after(newer_than, limit).await {
                Ok(link) => link,
                Err(error) if repeated => return Err(error.indeterminate()),
                Err(error) => return Err(error),
            };
            match self.call_over(&link, call).await {
                Sent::Answered(value) if is_late(&value) => newer_than = link.generation,
                Sent::Answered(value) => return Ok(Answer { value, repeated }),
                Sent::Refused(refusal) => {
                    let error = error::of(refusal);
                    return Err(if repeated { error.indeterminate() } else { error });
                }
                Sent::Lost if repeat == Repeat::No => return Err(error::lost()),
                Sent::Lost => (repeated, newer_than) = (true, link.generation),
            }
        }
        let error = Error::new(
            ErrorKind::Unavailable,
            format!("the connections to {} end again and again", self.config.address),
        );
        Err(if repeated { error.indeterminate() } else { error })
    }

    /// A command that changes nothing.
    pub(crate) async fn ask(&self, command: &Cmd) -> Result<Value> {
        let mut newer_than = 0;
        for _ in 0..TRIES {
            let link = self.link_after(newer_than, self.config.operation_timeout).await?;
            match self.send(&link, command).await {
                Sent::Answered(value) => return Ok(value),
                Sent::Refused(refusal) => return Err(error::of(refusal)),
                Sent::Lost => newer_than = link.generation,
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("the connections to {} end again and again", self.config.address),
        ))
    }

    /// Sees to it that the link of now listens to a channel.
    pub(crate) async fn subscribe(&self, channel: &[u8]) -> Result<()> {
        let mut newer_than = 0;
        for _ in 0..TRIES {
            let link = self.link_after(newer_than, self.config.operation_timeout).await?;
            match link.subscribe(vec![channel.to_vec()]).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_io_error() => newer_than = link.generation,
                Err(error) => return Err(error::of(error)),
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("the connections to {} end again and again", self.config.address),
        ))
    }

    pub(crate) async fn unsubscribe(&self, channel: &[u8]) {
        let link = match &*self.state.borrow() {
            State::Up(link) => Arc::clone(link),
            _ => return,
        };
        link.unsubscribe(channel, || !self.channels.has(channel)).await;
    }

    /// A script's call in this namespace.
    pub(crate) fn script(&self, script: &'static crate::script::Script) -> Call {
        Call::new(script, self.keys.namespace(), self.keys.database())
    }
}

/// Whether a script refused a call because it came over an older link than the newest it has heard of.
fn is_late(value: &Value) -> bool {
    let Value::Array(parts) = value else { return false };
    matches!(parts.first(), Some(Value::BulkString(word)) if word == b"late")
}

struct Supervisor {
    client: Arc<Client>,
    orders: mpsc::UnboundedReceiver<Suspicion>,
}

impl Supervisor {
    async fn run(mut self, mut link: Arc<Link>) {
        loop {
            let suspicion = tokio::select! {
                biased; // what is broken needs no suspicion
                () = link.broken() => None,
                suspicion = self.orders.recv() => suspicion,
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

    async fn try_once(&self) -> Result<Link> {
        // A server that takes longer to greet than a session lives is no help.
        let limit = self.client.config.ttl.max(Duration::from_secs(1)).min(Duration::from_secs(5));
        match self.client.context.spawner.timeout(limit, self.client.link_up()).await {
            Some(result) => result,
            None => Err(Error::new(
                ErrorKind::Unavailable,
                format!("{} does not greet", self.client.config.address),
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
