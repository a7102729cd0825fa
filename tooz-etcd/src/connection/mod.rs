//! Connections: one at a time, to one endpoint; the next endpoint when that one fails.
//!
//! The client's own balancing over several endpoints sends every second request to one that is closed
//! (hyperium/tonic#2839, 2026-08), so it is given one endpoint at a time. Everything runs on the coordinator's runtime:
//! the transport starts tasks of its own and must not depend on the program's.

pub(crate) mod version;
pub(crate) mod watcher;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, KvClient, LeaseClient, Txn, TxnResponse, WatchClient};
use tokio::sync::watch;
use tooz_core::driver::Context;
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::error::{Then, closed, explain};

/// The largest answer that is read: a thousand members with 64 KiB each.
const LARGEST_ANSWER: usize = 64 << 20;

/// HTTP/2 pings notice a connection that fell silent while nobody calls. etcd ends connections that ping more often
/// than every 5 s (`--grpc-keepalive-min-time`); beats, which are more frequent, notice it earlier.
const PING: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);

/// How often a request is sent again whose token was refused: users may be changed once more meanwhile.
const REAUTHENTICATIONS: usize = 5;

/// Between two tries of something that goes on by itself.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));

/// All connections of one driver.
pub(crate) struct Hub {
    pub(crate) context: Context,
    endpoints: Vec<String>,
    options: ConnectOptions,
    /// How long a connection may be silent.
    limit: Duration,
    /// How long a call may take.
    patience: Duration,
    /// Held while connecting: whoever comes meanwhile waits for that connection.
    connecting: tokio::sync::Mutex<()>,
    line: Mutex<Line>,
    /// Grows with every connection that was given up: streams open anew.
    generation: watch::Sender<u64>,
    closed: AtomicBool,
}

#[derive(Default)]
struct Line {
    /// Which endpoint.
    at: usize,
    client: Option<Client>,
}

enum Present {
    Connected(Box<Connected>),
    To(String, u64),
}

/// A connection, and which one it is.
#[derive(Clone)]
pub(crate) struct Connected {
    client: Client,
    pub(crate) generation: u64,
}

impl Connected {
    pub(crate) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn leases(&self) -> LeaseClient {
        self.client.lease_client()
    }

    pub(crate) fn watches(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn raw(&self) -> Client {
        self.client.clone()
    }
}

impl Hub {
    pub(crate) fn new(config: &Config, options: ConnectOptions, context: Context) -> Arc<Self> {
        let several = config.endpoints.len() > 1;
        // Another endpoint is worth trying before the session is over; where there is none, waiting is all there is.
        let limit =
            if several { (config.ttl / 3).min(config.operation_timeout) } else { config.operation_timeout };
        let mut options = options
            .with_keep_alive(PING, PING_ANSWER)
            .with_connect_timeout(config.connect_timeout.min(limit))
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &config.user {
            options = options.with_user(user, password);
        }
        Arc::new(Self {
            context,
            endpoints: config.endpoints.clone(),
            options,
            limit,
            patience: config.operation_timeout.max(limit),
            connecting: tokio::sync::Mutex::default(),
            line: Mutex::default(),
            generation: watch::Sender::new(0),
            closed: AtomicBool::new(false),
        })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// How long a connection may be silent.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends all connections; streams end, and calls are refused.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.line().client = None;
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// The connection that stands, or what to connect to.
    fn present(&self) -> Result<Present, (Error, Then)> {
        let line = self.line();
        if self.is_closed() {
            return Err((closed(), Then::Nothing));
        }
        let generation = *self.generation.borrow();
        Ok(match &line.client {
            Some(client) => Present::Connected(Box::new(Connected { client: client.clone(), generation })),
            None => Present::To(self.endpoints[line.at % self.endpoints.len()].clone(), generation),
        })
    }

    /// The present connection, made if there is none.
    pub(crate) async fn connected(&self) -> Result<Connected, (Error, Then)> {
        if let Present::Connected(connected) = self.present()? {
            return Ok(*connected);
        }
        let waiting = self.context.spawner.timeout(self.limit, self.connecting.lock()).await;
        // Whoever waited too long connects beside the other: where that one went nobody may answer.
        let _one_at_a_time = waiting;
        let (endpoint, generation) = match self.present()? {
            Present::Connected(connected) => return Ok(*connected),
            Present::To(endpoint, generation) => (endpoint, generation),
        };
        let connecting = Client::connect([endpoint], Some(self.options.clone()));
        let client = match self.context.spawner.timeout(self.limit, connecting).await {
            Some(Ok(client)) => client,
            Some(Err(error)) => {
                let (error, then) = explain(error);
                if then != Then::Nothing {
                    self.give_up(generation);
                }
                // Connecting changes nothing: it may always be tried elsewhere.
                let then = if then == Then::Unknown { Then::Elsewhere } else { then };
                return Err((error, then));
            }
            None => {
                self.give_up(generation);
                let error = Error::new(ErrorKind::Unavailable, "etcd does not answer");
                return Err((error, Then::Elsewhere));
            }
        };
        let mut line = self.line();
        if *self.generation.borrow() == generation && !self.is_closed() {
            line.client = Some(client.clone());
        }
        Ok(Connected { client, generation })
    }

    /// The connection of `generation` failed: the next call goes to the next endpoint, over a new one.
    pub(crate) fn give_up(&self, generation: u64) {
        let mut line = self.line();
        let given_up = self.generation.send_if_modified(|present| {
            let same = *present == generation;
            *present += u64::from(same);
            same
        });
        if given_up {
            line.at = (line.at + 1) % self.endpoints.len();
            line.client = None;
        }
    }

    /// Makes a call on the coordinator's runtime. What surely was not done is sent to the next endpoint, once to each;
    /// with `again` so is what may have been done, because doing it twice is the same.
    pub(crate) async fn call<T, F, Fut>(self: &Arc<Self>, again: bool, make: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(Connected) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, etcd_client::Error>> + Send + 'static,
    {
        let hub = Arc::clone(self);
        let calling = self.context.spawner.spawn(async move { hub.call_here(again, make).await });
        calling.await.unwrap_or_else(|| Err(closed()))
    }

    /// A connection on which something takes longer than the limit is given up, but what was sent on it is waited for: a
    /// server that is merely slow answers in the end, and asking it anew would make it slower.
    async fn call_here<T, F, Fut>(&self, again: bool, make: F) -> Result<T>
    where
        T: Send,
        F: Fn(Connected) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let mut tries = self.endpoints.len() + usize::from(again);
        // Whether an earlier try may have been done: then no later refusal is definite.
        let mut open = false;
        let mut flights = Flights::default();
        let mut over = std::pin::pin!(self.context.spawner.sleep(self.patience));
        flights.begin(self.fly(&make));
        loop {
            tries = tries.saturating_sub(1);
            let failed = tokio::select! {
                biased; // an answer counts even when the time is over
                landed = flights.landed() => match landed {
                    Ok(answer) => return Ok(answer),
                    Err(failed) => Some(failed),
                },
                () = &mut over => None,
                () = self.context.spawner.sleep(self.limit), if again && tries > 0 => Some((self.silent(), Then::Unknown)),
            };
            let Some((error, then)) = failed else { return Err(self.silent()) };
            open |= then == Then::Unknown;
            if tries > 0 && (then == Then::Elsewhere || (again && then == Then::Unknown)) {
                flights.begin(self.fly(&make));
            } else if flights.is_empty() || then == Then::Nothing {
                return Err(if open { error.indeterminate() } else { error });
            }
        }
    }

    /// One try, and another over a new connection where only the token was refused. It ends with its answer only; the
    /// connection is given up before that if it takes too long.
    async fn fly<T, F, Fut>(&self, make: &F) -> Result<T, (Error, Then)>
    where
        T: Send,
        F: Fn(Connected) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let mut anew = REAUTHENTICATIONS;
        loop {
            let connected = self.connected().await?;
            let generation = connected.generation;
            let mut call = std::pin::pin!(make(connected));
            let answered = if let Some(answered) = self.context.spawner.timeout(self.limit, &mut call).await {
                answered
            } else {
                self.give_up(generation);
                call.await
            };
            let (error, then) = match answered {
                Ok(answer) => return Ok(answer),
                Err(error) => explain(error),
            };
            if then != Then::Nothing {
                self.give_up(generation);
            }
            if then != Then::Anew {
                return Err((error, then));
            }
            if anew == 0 {
                return Err((error, Then::Nothing));
            }
            anew -= 1;
        }
    }

    fn silent(&self) -> Error {
        Error::new(ErrorKind::Timeout, format!("etcd did not answer within {:?}", self.patience))
            .indeterminate()
    }

    /// One transaction. `again`: doing it twice is the same.
    pub(crate) async fn txn(self: &Arc<Self>, again: bool, txn: Txn) -> Result<TxnResponse> {
        self.call(again, move |connected| {
            let (mut kv, txn) = (connected.kv(), txn.clone());
            async move { kv.txn(txn).await }
        })
        .await
    }

    /// One transaction that the caller can make void. Where there is another endpoint it is not waited for as long as a
    /// member of the cluster may stand still.
    pub(crate) async fn txn_or_doubt(self: &Arc<Self>, txn: Txn) -> Result<TxnResponse> {
        let hub = Arc::clone(self);
        let calling = async move { hub.txn(false, txn).await };
        if self.endpoints.len() == 1 {
            return calling.await;
        }
        // A little longer, so that the connection is given up when the next request goes out.
        let limit = self.limit + self.limit / 8;
        self.context.spawner.timeout(limit, calling).await.unwrap_or_else(|| Err(self.silent()))
    }

    /// How many hosts there are to ask.
    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Waits a moment before something is tried again by itself.
    pub(crate) async fn pause(&self) {
        self.context.spawner.sleep(self.context.entropy.between(PAUSE.0, PAUSE.1)).await;
    }
}

/// A try that is under way.
type Flight<'a, T> = Pin<Box<dyn Future<Output = Result<T, (Error, Then)>> + Send + 'a>>;

/// The tries of one call, each on a connection of its own.
struct Flights<'a, T>(Vec<Flight<'a, T>>);

impl<T> Default for Flights<'_, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'a, T> Flights<'a, T> {
    fn begin(&mut self, flight: impl Future<Output = Result<T, (Error, Then)>> + Send + 'a) {
        self.0.push(Box::pin(flight));
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first of them that ends.
    async fn landed(&mut self) -> Result<T, (Error, Then)> {
        std::future::poll_fn(|cx| {
            for at in 0..self.0.len() {
                if let Poll::Ready(landed) = self.0[at].as_mut().poll(cx) {
                    drop(self.0.swap_remove(at));
                    return Poll::Ready(landed);
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// What a transaction answered, by its operations.
pub(crate) mod answer {
    use etcd_client::{KeyValue, TxnOpResponse, TxnResponse};

    /// The revision at which it was done.
    pub(crate) fn revision(response: &TxnResponse) -> i64 {
        response.header().map_or(0, etcd_client::ResponseHeader::revision)
    }

    /// What the `get` at this place of the operations that were done has found.
    pub(crate) fn found(response: &TxnResponse, at: usize) -> Vec<KeyValue> {
        match response.op_responses().into_iter().nth(at) {
            Some(TxnOpResponse::Get(mut got)) => got.take_kvs(),
            _ => Vec::new(),
        }
    }

    /// The nested transaction at this place.
    pub(crate) fn nested(response: &TxnResponse, at: usize) -> Option<TxnResponse> {
        match response.op_responses().into_iter().nth(at) {
            Some(TxnOpResponse::Txn(nested)) => Some(nested),
            _ => None,
        }
    }
}
