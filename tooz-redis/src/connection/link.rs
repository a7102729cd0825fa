//! The connections to one server: one for commands, one for messages, and where replicas have to confirm, one for what they
//! confirm. They live and end together.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, PushInfo, PushKind, RedisError, Value};
use tokio::sync::{Notify, mpsc, watch};
use tooz_core::driver::Context;
use tooz_core::{Error, ErrorKind};

use super::address::Address;
use super::channels::Channels;
use super::discovery::Found;
use super::reply::bytes;
use crate::config::Config;
use crate::error;

/// What the links of one driver have in common with the supervisor and the calls.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) context: Context,
    pub(crate) channels: Channels,
    /// They lead to the supervisor.
    pub(crate) suspicions: mpsc::UnboundedSender<Suspicion>,
    /// Replicas did not confirm: one of them may have been promoted, or be gone.
    pub(crate) doubts: Notify,
}

/// A link that may not work any more.
pub(crate) struct Suspicion {
    pub(crate) generation: u64,
    /// An answer to a command does not clear it: messages do not come through.
    pub(crate) deaf: bool,
}

impl Shared {
    /// Reports a link: a beat over it was not answered in time, or its messages do not come through.
    pub(crate) fn suspect(&self, generation: u64, deaf: bool) {
        // The supervisor is gone only when the driver is.
        let _ = self.suspicions.send(Suspicion { generation, deaf });
    }
}

/// The connections to one server.
pub(crate) struct Link {
    /// Grows with every link of this driver; scripts refuse what comes over an older one than they have heard of.
    pub(crate) generation: u64,
    pub(crate) address: Address,
    shared: Arc<Shared>,
    commands: MultiplexedConnection,
    listener: MultiplexedConnection,
    /// Carries only what replicas confirm: the server answers what comes behind a WAIT only when the WAIT is over, and a WAIT
    /// counts the replicas that have the last write of its own connection.
    confirmed: Option<MultiplexedConnection>,
    /// How many replicas must have a write for it to count.
    needed: AtomicU32,
    /// Held by each call that replicas confirm, except beats: a beat must not wait behind a row of other calls.
    pub(crate) confirming: tokio::sync::Mutex<()>,
    health: watch::Sender<LinkHealth>,
    /// The channels that were asked for over this link. One change at a time, or an end could overtake a beginning.
    subscribed: tokio::sync::Mutex<BTreeSet<Vec<u8>>>,
}

/// Whether a link works; the connections' tasks know it, too.
#[derive(Default)]
struct LinkHealth {
    /// Why the link is broken.
    broken: Option<&'static str>,
    /// Another link replaced this one, which waits a little longer for what is unanswered.
    retired: bool,
    answers: u64,
}

impl LinkHealth {
    fn end(&mut self, why: &'static str) {
        self.broken.get_or_insert(why);
    }
}

/// What became of a command.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The server ran it; the error says that too few replicas have it.
    Answered(Value, Option<Error>),
    Refused(RedisError),
    /// The link ended first.
    Lost,
}

impl Link {
    /// Connects. Must run on the coordinator's runtime, because the connections start tasks of their own.
    pub(crate) async fn connect(
        shared: &Arc<Shared>,
        found: &Found,
        generation: u64,
    ) -> redis::RedisResult<Self> {
        let (config, health) = (&shared.config, watch::Sender::new(LinkHealth::default()));
        // The limits are ours: those of the redis crate would give up an answer without giving up the connection.
        let options = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let ended = health.clone();
        let on_commands = options.clone().set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                ended.send_modify(|health| health.end("the connection for commands ended"));
            }
            Ok::<_, ()>(())
        });
        let listening = Arc::clone(shared);
        let on_listener = options.set_push_sender(move |push: PushInfo| {
            match push.kind {
                // Commands are still answered over the other connection, while a new link is made.
                PushKind::Disconnection => listening.suspect(generation, true),
                PushKind::Message => {
                    let mut data = push.data.into_iter().filter_map(bytes);
                    if let (Some(channel), Some(message)) = (data.next(), data.next()) {
                        listening.channels.deliver(&channel, &message);
                    }
                }
                _ => {}
            }
            Ok::<_, ()>(())
        });
        let address = found.address.clone();
        let server = super::tls::open(config.connection(&address)?, config.tls.as_ref())?;
        let confirmed = async {
            if !config.confirms() {
                return Ok(None);
            }
            server.get_multiplexed_async_connection_with_config(&on_commands).await.map(Some)
        };
        let (commands, listener, confirmed) = tokio::try_join!(
            server.get_multiplexed_async_connection_with_config(&on_commands),
            server.get_multiplexed_async_connection_with_config(&on_listener),
            confirmed,
        )?;
        Ok(Self {
            generation,
            address,
            shared: Arc::clone(shared),
            commands,
            listener,
            confirmed,
            needed: AtomicU32::new(config.needed(found.replicas)),
            confirming: tokio::sync::Mutex::default(),
            health,
            subscribed: tokio::sync::Mutex::default(),
        })
    }

    /// Sends a command and waits for its answer, or for the end of the link. `confirm`: the command counts only once replicas
    /// have it, where replicas are waited for.
    pub(crate) async fn exchange(&self, command: &Cmd, confirm: bool) -> Outcome {
        let exchanging = async {
            match self.confirmed.clone() {
                Some(connection) if confirm => self.exchange_confirmed(connection, command).await,
                _ => {
                    let mut connection = self.commands.clone();
                    let asking = async move { connection.send_packed_command(command).await };
                    match self.answer(asking).await {
                        Some(answer) => self.outcome(answer.and_then(Value::extract_error)),
                        None => Outcome::Lost,
                    }
                }
            }
        };
        tokio::pin!(exchanging);
        let (spawner, limit) = (&self.shared.context.spawner, self.shared.config.limits.operation_timeout);
        let in_time = spawner.timeout(limit, exchanging.as_mut()).await;
        let outcome = if let Some(outcome) = in_time {
            outcome
        } else {
            // Answers to other commands do not clear the suspicion: this one was never answered.
            self.shared.suspect(self.generation, true);
            exchanging.await
        };
        match &outcome {
            Outcome::Refused(refusal) if error::is_elsewhere(refusal) => {
                self.end("the server gave its part to another");
            }
            Outcome::Answered(_, Some(why)) => {
                tracing::debug!(%why, "not confirmed");
                self.shared.doubts.notify_one();
            }
            _ => {}
        }
        outcome
    }

    /// Sends a command, and a WAIT for the replicas behind it.
    async fn exchange_confirmed(&self, mut connection: MultiplexedConnection, command: &Cmd) -> Outcome {
        let (needed, limit) = (self.needed.load(Ordering::Acquire), self.shared.config.confirmation_limit());
        let mut both = redis::pipe();
        both.add_command(command.clone()).cmd("WAIT").arg(needed).arg(limit.as_millis().max(1).to_string());
        let asking = async move { connection.send_packed_commands(&both, 0, 2).await };
        let (done, confirmed) = match self.answer(asking).await {
            Some(Ok(answers)) => {
                let mut answers = answers.into_iter().map(Value::extract_error);
                let nothing = || Ok(Value::Nil);
                (answers.next().unwrap_or_else(nothing), answers.next().unwrap_or_else(nothing))
            }
            Some(Err(error)) => (Err(error), Ok(Value::Nil)),
            None => return Outcome::Lost,
        };
        let value = match self.outcome(done) {
            Outcome::Answered(value, _) => value,
            other => return other,
        };
        let missing = match confirmed {
            Ok(Value::Int(have)) if have >= i64::from(needed) => return Outcome::Answered(value, None),
            Ok(Value::Int(have)) => Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{}: {have} of {needed} replicas had it within {limit:?} (option wait_replicas)",
                    self.address
                ),
            ),
            Ok(_) => Error::new(ErrorKind::Corrupt, format!("{}: WAIT returned no number", self.address)),
            Err(refusal) => error::of(&refusal),
        };
        Outcome::Answered(value, Some(missing))
    }

    /// The server's answer; `None`: there will be none. A retired link still waits for as long as a beat does.
    async fn answer<T>(&self, asking: impl Future<Output = T>) -> Option<T> {
        let over = async {
            self.broken_or_retired().await;
            let grace = self.shared.context.spawner.sleep(self.shared.config.beat_limit());
            tokio::select! {
                biased; // a broken link answers no more
                () = self.broken() => {}
                () = grace => {}
            }
        };
        tokio::select! {
            biased; // an answer that has come counts
            answer = asking => Some(answer),
            () = over => None,
        }
    }

    fn outcome(&self, answer: redis::RedisResult<Value>) -> Outcome {
        match answer {
            Ok(value) => {
                self.health.send_modify(|health| health.answers += 1);
                Outcome::Answered(value, None)
            }
            Err(error) if error.is_unrecoverable_error() || error.is_connection_dropped() => {
                self.end("a command failed on the connection");
                Outcome::Lost
            }
            Err(error) => {
                self.health.send_modify(|health| health.answers += 1);
                Outcome::Refused(error)
            }
        }
    }

    /// The error of a command that asks what server this is.
    pub(crate) fn explain(&self, error: &RedisError) -> Error {
        let config = &self.shared.config;
        error::connecting(config, config.login(), &self.address, error)
    }

    /// Sets how many replicas must have a write from now on.
    pub(crate) fn need(&self, replicas: u32) {
        self.needed.store(replicas, Ordering::Release);
    }

    async fn until(&self, check: impl FnMut(&LinkHealth) -> bool) {
        // It fails without a sender, and this link has one.
        let _ = self.health.subscribe().wait_for(check).await;
    }

    /// Waits until the link is broken.
    pub(crate) async fn broken(&self) {
        self.until(|health| health.broken.is_some()).await;
    }

    async fn broken_or_retired(&self) {
        self.until(|health| health.broken.is_some() || health.retired).await;
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.health.borrow().broken.is_some()
    }

    pub(crate) fn end(&self, why: &'static str) {
        self.health.send_modify(|health| health.end(why));
    }

    pub(crate) fn why(&self) -> &'static str {
        self.health.borrow().broken.unwrap_or("the connection ended")
    }

    /// Another link replaced this one.
    pub(crate) fn retire(&self) {
        self.health.send_modify(|health| health.retired = true);
    }

    /// Waits for the next answer to any command.
    pub(crate) async fn next_answer(&self) {
        let before = self.health.borrow().answers;
        self.until(|health| health.answers > before).await;
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
            () = self.broken_or_retired() => {
                Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe)))
            }
        };
        asked?;
        subscribed.extend(new);
        Ok(())
    }

    /// Stops listening to this channel, if it still has no listener once earlier changes are done.
    pub(crate) async fn unsubscribe(&self, channel: &[u8]) {
        let mut subscribed = self.subscribed.lock().await;
        if self.shared.channels.has(channel) || !subscribed.remove(channel) {
            return;
        }
        let mut listener = self.listener.clone();
        let asked = tokio::select! {
            biased; // as above
            asked = listener.unsubscribe(channel) => asked,
            () = self.broken_or_retired() => return,
        };
        if let Err(error) = asked {
            tracing::debug!(%error, "a channel could not be given up; it goes with the connection");
        }
    }
}
