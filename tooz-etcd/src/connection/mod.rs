//! Connections: one at a time, to one endpoint; the next endpoint when that one fails.
//!
//! The client's own balancing over several endpoints sends every second request to one that is closed
//! (hyperium/tonic#2839, 2026-08), so it is given one endpoint at a time. Everything runs on the coordinator's runtime:
//! the transport starts tasks of its own and must not depend on the program's.

pub(crate) mod answer;
pub(crate) mod call;
mod lease;
pub(crate) mod version;
pub(crate) mod watcher;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, KvClient, LeaseClient, WatchClient};
use tokio::sync::watch;
use tooz_core::driver::Context;
use tooz_core::driver::support::tls::Files;
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::error::{Peer, Then, closed, explain};

/// The largest answer that is read: a thousand members with 64 KiB each.
const LARGEST_ANSWER: usize = 64 << 20;

/// HTTP/2 pings notice a connection that fell silent between calls. etcd ends connections that ping more often
/// than every 5 s (`--grpc-keepalive-min-time`); beats, which are more frequent, notice it earlier.
const PING: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);

/// Between two tries of a background task.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));

/// The connection of one driver: a channel to one endpoint, and a new one to the next endpoint when that fails.
pub(crate) struct Connection {
    pub(crate) context: Context,
    /// The hosts to ask.
    pub(crate) endpoints: Vec<String>,
    /// The certificates, for errors.
    files: Option<Files>,
    /// Whether etcd has answered a request.
    is_known: AtomicBool,
    options: ConnectOptions,
    /// How long a connection may be silent.
    pub(crate) limit: Duration,
    /// How long a call may take.
    timeout: Duration,
    /// Held while connecting: calls that come meanwhile wait for that connection.
    connecting: tokio::sync::Mutex<()>,
    current: Mutex<Current>,
    /// Grows with every connection that was given up: streams open anew.
    generation: watch::Sender<u64>,
    closed: AtomicBool,
}

/// The endpoint in use, and the client that is connected to it.
#[derive(Clone, Default)]
struct Current {
    endpoint: usize,
    client: Option<Client>,
}

/// A gRPC channel, and the generation of the connection that it is.
#[derive(Clone)]
pub(crate) struct Channel {
    pub(crate) client: Client,
    pub(crate) generation: u64,
    pub(crate) endpoint: usize,
}

impl Channel {
    pub(crate) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(crate) fn leases(&self) -> LeaseClient {
        self.client.lease_client()
    }

    pub(crate) fn watches(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(LARGEST_ANSWER)
    }
}

impl Connection {
    pub(crate) fn new(config: &Config, options: ConnectOptions, context: Context) -> Arc<Self> {
        let (several, limits) = (config.endpoints.len() > 1, config.limits);
        let timeout = limits.operation_timeout;
        // With another endpoint, a call tries it before the session is over. With one endpoint it can only wait.
        let limit = if several { timeout.min(limits.ttl / 3) } else { timeout };
        let options = options
            .with_keep_alive(PING, PING_ANSWER)
            .with_connect_timeout(limits.connect_timeout.min(limit))
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        Arc::new(Self {
            context,
            endpoints: config.endpoints.clone(),
            files: config.files.clone(),
            is_known: AtomicBool::new(false),
            options,
            limit,
            timeout,
            connecting: tokio::sync::Mutex::default(),
            current: Mutex::default(),
            generation: watch::Sender::new(0),
            closed: AtomicBool::new(false),
        })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server at an endpoint, for errors.
    fn peer(&self, endpoint: usize) -> Peer<'_> {
        Peer {
            name: host_and_port(&self.endpoints[endpoint]),
            files: self.files.as_ref(),
            is_known: self.is_known.load(Ordering::Relaxed),
        }
    }

    fn present_peer(&self) -> Peer<'_> {
        let endpoint = self.current().endpoint;
        self.peer(endpoint)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends all connections; streams end, and calls are refused.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.current().client = None;
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// The endpoint in use, its client, and the generation of that connection.
    fn present(&self) -> Result<(Current, u64), (Error, Then)> {
        let current = self.current();
        if self.is_closed() {
            return Err((closed(), Then::Nothing));
        }
        Ok((current.clone(), *self.generation.borrow()))
    }

    /// The present connection, made if there is none.
    pub(crate) async fn channel(&self) -> Result<Channel, (Error, Then)> {
        if let (Current { client: Some(client), endpoint }, generation) = self.present()? {
            return Ok(Channel { client, generation, endpoint });
        }
        // A call that waited too long connects beside the other one, whose endpoint may not answer.
        let _one_at_a_time = self.context.spawner.timeout(self.limit, self.connecting.lock()).await;
        let (Current { client, endpoint }, generation) = self.present()?;
        if let Some(client) = client {
            return Ok(Channel { client, generation, endpoint });
        }
        let connecting = Box::pin(Client::connect([&self.endpoints[endpoint]], Some(self.options.clone())));
        let connected = self.context.spawner.timeout(self.limit, connecting).await;
        let peer = self.peer(endpoint);
        let silent = || {
            let what = format!("{}: etcd does not answer; check the host and the port", peer.name);
            Err((Error::new(ErrorKind::Unavailable, what), Then::Elsewhere))
        };
        let connected =
            connected.map_or_else(silent, |connected| connected.map_err(|error| explain(&error, &peer)));
        let client = connected.map_err(|(error, then)| {
            if then != Then::Nothing {
                self.give_up(generation);
            }
            match then {
                // Connecting changes nothing: it may always be tried elsewhere.
                Then::Unknown => (error, Then::Elsewhere),
                // No request was refused, so there is none to send again.
                Then::Anew => (error, Then::Nothing),
                then => (error, then),
            }
        })?;
        let mut current = self.current();
        if *self.generation.borrow() == generation && !self.is_closed() {
            current.client = Some(client.clone());
        }
        Ok(Channel { client, generation, endpoint })
    }

    /// The connection of `generation` failed: the next call goes to the next endpoint, over a new one.
    pub(crate) fn give_up(&self, generation: u64) {
        let mut current = self.current();
        let given_up = self.generation.send_if_modified(|present| {
            let same = *present == generation;
            *present += u64::from(same);
            same
        });
        if given_up {
            current.endpoint = (current.endpoint + 1) % self.endpoints.len();
            current.client = None;
        }
    }

    /// Waits before a background task tries again.
    pub(crate) async fn pause(&self) {
        self.context.spawner.sleep(self.context.entropy.between(PAUSE.0, PAUSE.1)).await;
    }
}

/// What an endpoint's URL is about.
pub(crate) fn host_and_port(endpoint: &str) -> &str {
    endpoint.split_once("://").map_or(endpoint, |(_, address)| address)
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}
