//! The connections to one server: one for commands, one on which messages arrive, and where replicas have to confirm one for
//! what they confirm. They live and end together.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, PushInfo, PushKind, RedisError, Value};
use tokio::sync::Notify;
use tooz_core::{Error, ErrorKind};

use crate::client::Client;
use crate::config::Config;
use crate::connection::address::Address;
use crate::connection::discovery::Found;
use crate::connection::reply::bytes;
use crate::error;

/// The connections to one server.
pub(crate) struct Link {
    /// Grows with every link of this client; scripts refuse what comes over an older one than they have heard of.
    pub(crate) generation: u64,
    pub(crate) address: Address,
    commands: MultiplexedConnection,
    listener: MultiplexedConnection,
    /// Nothing else goes over it: the server answers what comes behind a WAIT only when that is over, and a WAIT counts who has
    /// the last write of its own connection.
    proofs: Option<MultiplexedConnection>,
    /// How many replicas must have a proof for it to count.
    needed: AtomicU32,
    /// Held by each proof but beats: a beat must not stand behind a row of others that wait for replicas.
    pub(crate) turnstile: tokio::sync::Mutex<()>,
    state: Arc<Life>,
    /// The channels that were asked for over this link. One change at a time, or an end could overtake a beginning.
    subscribed: tokio::sync::Mutex<BTreeSet<Vec<u8>>>,
}

/// Whether a link lives; known to the connections' tasks, too.
#[derive(Debug, Default)]
struct Life {
    broken: AtomicBool,
    /// Another one took its place: what is unanswered is waited for a little longer.
    retired: AtomicBool,
    answers: AtomicU64,
    /// Any of these changed.
    changed: Notify,
    why: Mutex<Option<&'static str>>,
}

impl Life {
    fn end(&self, why: &'static str) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.broken.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Waits until `check` says yes.
    async fn until(&self, check: impl Fn(&Self) -> bool + Send) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, or a change in between would be missed.
            changed.as_mut().enable();
            if check(self) {
                return;
            }
            changed.await;
        }
    }
}

/// What became of a command.
#[derive(Debug)]
pub(crate) enum Sent {
    Answered(Value),
    Refused(RedisError),
    /// The server has done it, and too few replicas have it.
    Unconfirmed(Value, Error),
    /// The link ended first.
    Lost,
}

impl Link {
    /// Connects; must run on the coordinator's runtime, where the connections' own tasks are to live.
    pub(crate) async fn connect(
        config: &Config,
        found: &Found,
        generation: u64,
        client: Weak<Client>,
    ) -> redis::RedisResult<Self> {
        let state = Arc::new(Life::default());
        // The limits are ours: theirs would give up an answer without giving up the connection.
        let options = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let life = Arc::clone(&state);
        let on_commands = options.clone().set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                life.end("the connection for commands ended");
            }
            Ok::<_, ()>(())
        });
        let on_listener = options.set_push_sender(move |push: PushInfo| {
            match push.kind {
                // What was asked over the other connection is still answered there, while a new pair is made.
                PushKind::Disconnection => {
                    if let Some(client) = client.upgrade() {
                        client.suspect(generation, true);
                    }
                }
                PushKind::Message => {
                    let mut data = push.data.into_iter().filter_map(bytes);
                    if let (Some(client), Some(channel), Some(message)) =
                        (client.upgrade(), data.next(), data.next())
                    {
                        client.channels.hear(&channel, &message);
                    }
                }
                _ => {}
            }
            Ok::<_, ()>(())
        });
        let address = found.address.clone();
        let server = crate::connection::tls::open(config.connection(&address)?, config.tls.as_ref())?;
        let proofs = async {
            if !config.confirms() {
                return Ok(None);
            }
            server.get_multiplexed_async_connection_with_config(&on_commands).await.map(Some)
        };
        let (commands, listener, proofs) = tokio::try_join!(
            server.get_multiplexed_async_connection_with_config(&on_commands),
            server.get_multiplexed_async_connection_with_config(&on_listener),
            proofs,
        )?;
        Ok(Self {
            generation,
            address,
            commands,
            listener,
            proofs,
            needed: AtomicU32::new(config.needed(found.replicas)),
            turnstile: tokio::sync::Mutex::default(),
            state,
            subscribed: tokio::sync::Mutex::default(),
        })
    }

    /// Sends a command and waits for its answer, or for the end of the link. `grace`: how long an answer is waited for
    /// after another link took over.
    pub(crate) async fn send(&self, client: &Client, command: &Cmd, grace: Duration) -> Sent {
        let mut connection = self.commands.clone();
        let asking = async move { connection.send_packed_command(command).await };
        match self.answer(client, grace, asking).await {
            Some(answer) => self.understood(answer.and_then(Value::extract_error)),
            None => Sent::Lost,
        }
    }

    /// The same for what counts only when replicas have it; where none are waited for, it is the same.
    pub(crate) async fn prove(&self, client: &Client, command: &Cmd, grace: Duration) -> Sent {
        let Some(mut connection) = self.proofs.clone() else {
            return self.send(client, command, grace).await;
        };
        let (needed, limit) = (self.needed.load(Ordering::Acquire), client.config.confirmation_limit());
        let mut both = redis::pipe();
        both.add_command(command.clone()).cmd("WAIT").arg(needed).arg(limit.as_millis().max(1).to_string());
        let asking = async move { connection.send_packed_commands(&both, 0, 2).await };
        let (done, confirmed) = match self.answer(client, grace, asking).await {
            Some(Ok(answers)) => {
                let mut answers = answers.into_iter().map(Value::extract_error);
                let nothing = || Ok(Value::Nil);
                (answers.next().unwrap_or_else(nothing), answers.next().unwrap_or_else(nothing))
            }
            Some(Err(error)) => (Err(error), Ok(Value::Nil)),
            None => return Sent::Lost,
        };
        let value = match self.understood(done) {
            Sent::Answered(value) => value,
            other => return other,
        };
        let missing = match confirmed {
            Ok(Value::Int(have)) if have >= i64::from(needed) => return Sent::Answered(value),
            Ok(Value::Int(have)) => Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{}: {have} of {needed} replicas had it within {limit:?} (option wait_replicas)",
                    self.address
                ),
            ),
            Ok(_) => Error::new(ErrorKind::Corrupt, format!("{}: WAIT answers no number", self.address)),
            Err(refusal) => error::of(refusal),
        };
        Sent::Unconfirmed(value, missing)
    }

    /// An answer of the server; `None`: there will be none.
    async fn answer<T>(
        &self,
        client: &Client,
        grace: Duration,
        asking: impl Future<Output = T>,
    ) -> Option<T> {
        let over = async {
            self.state
                .until(|life| life.broken.load(Ordering::Acquire) || life.retired.load(Ordering::Acquire))
                .await;
            let nap = client.context.spawner.sleep(grace);
            tokio::select! {
                biased; // a broken one answers no more
                () = self.broken() => {}
                () = nap => {}
            }
        };
        tokio::select! {
            biased; // an answer that has come counts
            answer = asking => Some(answer),
            () = over => None,
        }
    }

    fn understood(&self, answer: redis::RedisResult<Value>) -> Sent {
        match answer {
            Ok(value) => {
                self.answered();
                Sent::Answered(value)
            }
            Err(error) if error.is_unrecoverable_error() || error.is_connection_dropped() => {
                self.state.end("a command failed on the connection");
                Sent::Lost
            }
            Err(error) => {
                self.answered();
                Sent::Refused(error)
            }
        }
    }

    /// How many replicas must have a proof from now on.
    pub(crate) fn need(&self, replicas: u32) {
        self.needed.store(replicas, Ordering::Release);
    }

    fn answered(&self) {
        self.state.answers.fetch_add(1, Ordering::AcqRel);
        self.state.changed.notify_waiters();
    }

    /// Waits until it is broken.
    pub(crate) async fn broken(&self) {
        self.state.until(|life| life.broken.load(Ordering::Acquire)).await;
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.state.broken.load(Ordering::Acquire)
    }

    pub(crate) fn end(&self, why: &'static str) {
        self.state.end(why);
    }

    pub(crate) fn why(&self) -> &'static str {
        self.state.why.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or("the connection ended")
    }

    /// Another link took its place.
    pub(crate) fn retire(&self) {
        self.state.retired.store(true, Ordering::Release);
        self.state.changed.notify_waiters();
    }

    /// Waits for the next answer of any command.
    pub(crate) async fn next_answer(&self) {
        let before = self.state.answers.load(Ordering::Acquire);
        self.state.until(|life| life.answers.load(Ordering::Acquire) > before).await;
    }

    /// Listens to these channels.
    pub(crate) async fn subscribe(&self, channels: Vec<Vec<u8>>) -> redis::RedisResult<()> {
        let mut subscribed = self.subscribed.lock().await;
        let new: Vec<_> = channels.into_iter().filter(|channel| !subscribed.contains(channel)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut listener = self.listener.clone();
        let asked = tokio::select! {
            biased; // a confirmation that has come counts
            asked = listener.subscribe(&new) => asked,
            () = self.over() => Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe))),
        };
        asked?;
        subscribed.extend(new);
        Ok(())
    }

    /// Listens to this channel no more, if `unwanted` still says so when it is its turn.
    pub(crate) async fn unsubscribe(&self, channel: &[u8], unwanted: impl Fn() -> bool) {
        let mut subscribed = self.subscribed.lock().await;
        if !unwanted() || !subscribed.remove(channel) {
            return;
        }
        let mut listener = self.listener.clone();
        let asked = tokio::select! {
            biased; // as above
            asked = listener.unsubscribe(channel) => asked,
            () = self.over() => return,
        };
        if let Err(error) = asked {
            tracing::debug!(%error, "a channel could not be given up; it goes with the connection");
        }
    }

    async fn over(&self) {
        self.state
            .until(|life| life.broken.load(Ordering::Acquire) || life.retired.load(Ordering::Acquire))
            .await;
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("generation", &self.generation)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
