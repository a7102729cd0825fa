//! Calls over the connection of the moment, which a task of its own keeps up, the supervisor.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::{Notify, mpsc, watch};
use tooz_core::driver::Context;
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::connection::channels::Channels;
use crate::connection::discovery::{Finder, Found};
use crate::connection::link::{Link, Sent};
use crate::connection::server_info::{self, Facts};
use crate::connection::supervisor::Supervisor;
use crate::error;
use crate::keys::Keys;
use crate::scripts::{Call, Question, Script};

/// How often one call is sent: more ends of connections than this in one operation are a backend that is away.
const TRIES: usize = 5;
/// So many different servers are tried in one go where others say which it is: the first may lag behind.
const CANDIDATES: usize = 3;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) config: Config,
    pub(crate) keys: Keys,
    pub(crate) context: Context,
    pub(crate) channels: Channels,
    pub(crate) state: watch::Sender<State>,
    suspicions: mpsc::UnboundedSender<Suspicion>,
    generation: AtomicU64,
    pub(crate) finder: Finder,
    /// Replicas did not confirm: one of them may have taken the server's place, or be gone.
    pub(crate) doubts: Notify,
    /// The server is older than Redis 7, which brought `EVALSHA_RO`.
    lacks_read_only: AtomicBool,
}

#[derive(Clone, Debug)]
pub(crate) enum State {
    Up(Arc<Link>),
    Down(Error),
    Closed,
}

/// Somebody found a link wanting.
#[derive(Debug)]
pub(crate) struct Suspicion {
    pub(crate) generation: u64,
    /// An answer to a command does not clear it: messages do not come through.
    pub(crate) deaf: bool,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) value: Value,
    /// It was sent before, and nobody knows whether that was done.
    pub(crate) repeated: bool,
    /// Why a proof does not count although the server has done it: too few replicas have it.
    pub(crate) unconfirmed: Option<Error>,
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
            finder: Finder::default(),
            doubts: Notify::new(),
            lacks_read_only: AtomicBool::new(false),
        });
        // On the coordinator's runtime: what the connections' tasks run on must not end with the caller's.
        let first = Arc::clone(&client);
        let first = client.context.spawner.spawn(async move {
            let link = Arc::new(first.link_up().await?);
            let facts = server_info::ask(&first, &link).await?;
            if first.config.view {
                server_info::check_layout(&first, &link).await?;
            }
            Ok::<_, Error>((link, facts))
        });
        let (link, facts) =
            first.await.ok_or_else(|| Error::new(ErrorKind::Closed, "the runtime ended"))??;
        client.state.send_replace(State::Up(Arc::clone(&link)));
        let supervisor = Supervisor::new(&client, orders);
        Ok((client, facts, supervisor.run(link)))
    }

    pub(crate) async fn link_up(self: &Arc<Self>) -> Result<Link> {
        if !self.config.place.is_sought() {
            let found = self.finder.find(&self.config, &self.context.spawner).await?;
            return Box::pin(self.link_to(&found)).await;
        }
        let mut failure = Error::from(ErrorKind::Unavailable);
        for _ in 0..CANDIDATES {
            let found = self.finder.find(&self.config, &self.context.spawner).await?;
            let named = |why: Error| {
                if why.kind() != ErrorKind::Unavailable {
                    return why; // it was reached
                }
                let by = found.by.as_deref().unwrap_or("named by the URL");
                Error::new(
                    why.kind(),
                    format!("{} was {by}; it has to be reachable from here", found.address),
                )
                .caused_by(why)
            };
            let limit = self.greeting_limit() / 2;
            failure = match self.context.spawner.timeout(limit, Box::pin(self.link_to(&found))).await {
                Some(Ok(link)) => match server_info::is_master(self, &link).await {
                    Ok(()) => return Ok(link),
                    Err(error) => error,
                },
                Some(Err(error)) => named(error),
                None => {
                    named(Error::new(ErrorKind::Unavailable, format!("it does not greet within {limit:?}")))
                }
            };
            tracing::debug!(error = %failure, "not this one");
        }
        Err(failure)
    }

    async fn link_to(self: &Arc<Self>, found: &Found) -> Result<Link> {
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        let explain = |error| error::connecting(&found.address.to_string(), error);
        let weak: Weak<Self> = Arc::downgrade(self);
        let link = Link::connect(&self.config, found, generation, weak).await.map_err(explain)?;
        link.subscribe(self.channels.all()).await.map_err(explain)?;
        Ok(link)
    }

    /// How long a server may take to greet: one that takes longer than a session lives is no help.
    pub(crate) fn greeting_limit(&self) -> Duration {
        let least = if self.config.place.is_sought() { 4 } else { 1 };
        self.config.ttl.max(Duration::from_secs(least)).min(Duration::from_secs(5))
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
                    _ => {
                        Error::new(ErrorKind::Unavailable, format!("no connection to {}", self.config.place))
                    }
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
        let sent = self.in_time(link, link.send(self, command, self.config.beat_limit())).await;
        self.weighed(link, sent)
    }

    async fn prove(&self, link: &Link, command: &Cmd) -> Sent {
        let sent = self.in_time(link, link.prove(self, command, self.config.beat_limit())).await;
        self.weighed(link, sent)
    }

    async fn in_time(&self, link: &Link, asking: impl Future<Output = Sent>) -> Sent {
        tokio::pin!(asking);
        let in_time = self.context.spawner.timeout(self.config.operation_timeout, asking.as_mut()).await;
        if let Some(sent) = in_time {
            return sent;
        }
        // Others may be answered; this one never was.
        self.suspect(link.generation, true);
        asking.await
    }

    /// Draws the conclusions about the link.
    fn weighed(&self, link: &Link, sent: Sent) -> Sent {
        match &sent {
            Sent::Refused(refusal) if error::is_elsewhere(refusal) => {
                link.end("the server gave its part to another");
            }
            Sent::Unconfirmed(_, why) => {
                tracing::debug!(%why, "not confirmed");
                self.doubts.notify_one();
            }
            _ => {}
        }
        sent
    }

    /// Calls a script over this link, with its source where the server does not know it.
    pub(crate) async fn call_over(&self, link: &Link, call: &Call) -> Sent {
        match self.call_as(link, call, false).await {
            Sent::Refused(refusal) if error::is_unknown_script(&refusal) => {
                self.call_as(link, call, true).await
            }
            sent => sent,
        }
    }

    async fn call_as(&self, link: &Link, call: &Call, whole: bool) -> Sent {
        if call.only_reads() && !self.lacks_read_only.load(Ordering::Relaxed) {
            match self.send(link, &call.command(link.generation, whole, true)).await {
                Sent::Refused(refusal) if error::is_unknown_command(&refusal) => {
                    self.lacks_read_only.store(true, Ordering::Relaxed);
                }
                sent => return sent,
            }
        }
        let command = call.command(link.generation, whole, false);
        if call.is_proof() { self.prove(link, &command).await } else { self.send(link, &command).await }
    }

    /// Calls a script over this link; proofs one after the other.
    async fn call_in_turn(&self, link: &Link, call: &Call) -> Sent {
        if !call.is_proof() || !self.config.confirms() {
            return self.call_over(link, call).await;
        }
        let _turn = link.turnstile.lock().await;
        self.call_over(link, call).await
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
            match self.call_in_turn(&link, call).await {
                Sent::Answered(value) | Sent::Unconfirmed(value, _) if is_late(&value) => {
                    newer_than = link.generation;
                }
                Sent::Answered(value) => return Ok(Answer { value, repeated, unconfirmed: None }),
                Sent::Unconfirmed(value, why) => {
                    return Ok(Answer { value, repeated, unconfirmed: Some(why) });
                }
                // Not done, and the one that does it is being found.
                Sent::Refused(refusal)
                    if repeat == Repeat::Yes
                        && self.config.place.is_sought()
                        && error::is_elsewhere(&refusal) =>
                {
                    newer_than = link.generation;
                }
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
            format!("the connections to {} end again and again", self.config.place),
        );
        Err(if repeated { error.indeterminate() } else { error })
    }

    /// A command that changes nothing.
    pub(crate) async fn ask(&self, command: &Cmd) -> Result<Value> {
        let mut newer_than = 0;
        for _ in 0..TRIES {
            let link = self.link_after(newer_than, self.config.operation_timeout).await?;
            match self.send(&link, command).await {
                Sent::Answered(value) | Sent::Unconfirmed(value, _) => return Ok(value),
                Sent::Refused(refusal) => return Err(error::of(refusal)),
                Sent::Lost => newer_than = link.generation,
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("the connections to {} end again and again", self.config.place),
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
            format!("the connections to {} end again and again", self.config.place),
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
    pub(crate) fn script(&self, script: &'static Script) -> Call {
        Call::new(script, self.keys.namespace(), self.keys.database())
    }

    /// A question's call in this namespace.
    pub(crate) fn question(&self, question: &Question) -> Call {
        let view = self.config.view;
        self.script(question.script(view)).reading(view)
    }
}

/// Whether a script refused a call because it came over an older link than the newest it has heard of.
fn is_late(value: &Value) -> bool {
    let Value::Array(parts) = value else { return false };
    matches!(parts.first(), Some(Value::BulkString(word)) if word == b"late")
}
