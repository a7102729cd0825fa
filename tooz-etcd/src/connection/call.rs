//! Calls over the connections, in three layers: [`Connection::exchange`] asks once, over the present connection;
//! [`Connection::call`] asks again where that is safe; [`Connection::send`] does one transaction.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use etcd_client::{Txn, TxnResponse};
use tooz_core::{Error, ErrorKind, Result};

use crate::connection::{Channel, Connection};
use crate::error::{Then, closed, explain};

/// etcd refuses transactions with more operations (`--max-txn-ops`, default 128).
pub(crate) const MOST_OPERATIONS: usize = 100;

/// How often a request is sent again whose token was refused. Users may be changed again meanwhile.
const REAUTHENTICATIONS: usize = 5;

impl Connection {
    /// Makes a call on the coordinator's runtime. A request that surely was not executed is sent to the next endpoint, once
    /// to each. With `again` so is one that may have been executed, because executing it twice is the same.
    ///
    /// A connection on which a request takes longer than the limit is given up, but its answer is waited for: a server that
    /// is merely slow answers in the end, and asking it again would make it slower.
    pub(crate) async fn call<T, F, Fut>(self: &Arc<Self>, again: bool, make: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(Channel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, etcd_client::Error>> + Send + 'static,
    {
        let connection = Arc::clone(self);
        let calling = self.context.spawner.spawn(async move {
            let mut tries = connection.endpoints.len() + usize::from(again);
            // Whether an earlier try may have been executed: then no later refusal is definite.
            let mut open = false;
            let mut exchanges: Vec<Exchange<'_, T>> = Vec::new();
            let mut over = std::pin::pin!(connection.context.spawner.sleep(connection.timeout));
            exchanges.push(Box::pin(connection.exchange_authenticated(&make)));
            loop {
                tries = tries.saturating_sub(1);
                let look_elsewhere = connection.context.spawner.sleep(connection.limit);
                let failed = tokio::select! {
                    biased; // an answer counts even when the time is over
                    ended = first(&mut exchanges) => match ended {
                        Ok(answer) => return Ok(answer),
                        Err(failed) => Some(failed),
                    },
                    () = &mut over => None,
                    () = look_elsewhere, if again && tries > 0 => Some((connection.silent(), Then::Unknown)),
                };
                let Some((error, then)) = failed else { return Err(connection.silent()) };
                open |= then == Then::Unknown;
                if tries > 0 && (then == Then::Elsewhere || (again && then == Then::Unknown)) {
                    exchanges.push(Box::pin(connection.exchange_authenticated(&make)));
                } else if exchanges.is_empty() || then == Then::Nothing {
                    return Err(if open { error.indeterminate() } else { error });
                }
            }
        });
        calling.await.unwrap_or_else(|| Err(closed()))
    }

    /// One exchange, and another over a new connection where only the token was refused.
    async fn exchange_authenticated<T, F, Fut>(&self, make: &F) -> Result<T, (Error, Then)>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        for _ in 0..REAUTHENTICATIONS {
            match self.exchange(self.limit, make).await {
                Err((_, Then::Anew)) => {}
                ended => return ended,
            }
        }
        let ended = self.exchange(self.limit, make).await;
        ended.map_err(|(error, then)| (error, if then == Then::Anew { Then::Nothing } else { then }))
    }

    /// Asks once, over the present connection, and waits for the answer. If that takes longer than `limit`, the connection
    /// is given up meanwhile.
    pub(crate) async fn exchange<T, F, Fut>(&self, limit: Duration, make: F) -> Result<T, (Error, Then)>
    where
        F: FnOnce(Channel) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let channel = self.channel().await?;
        let (generation, endpoint) = (channel.generation, channel.endpoint);
        let mut call = std::pin::pin!(make(channel));
        let answered = if let Some(answered) = self.context.spawner.timeout(limit, &mut call).await {
            answered
        } else {
            self.give_up(generation);
            call.await
        };
        if answered.is_ok() {
            self.is_known.store(true, Ordering::Relaxed);
        }
        answered.map_err(|error| {
            let (error, then) = explain(&error, &self.peer(endpoint));
            if then != Then::Nothing {
                self.give_up(generation);
            }
            (error, then)
        })
    }

    /// Sends one transaction. `again`: executing it twice is the same.
    pub(crate) async fn send(self: &Arc<Self>, again: bool, txn: Txn) -> Result<TxnResponse> {
        self.call(again, move |channel| {
            let (mut kv, txn) = (channel.kv(), txn.clone());
            async move { kv.txn(txn).await }
        })
        .await
    }

    /// For a background task: asks until the server answers; `None`: the driver was closed.
    pub(crate) async fn ask_again<T, Fut>(&self, what: &str, ask: impl Fn() -> Fut) -> Option<T>
    where
        Fut: Future<Output = Result<T>>,
    {
        loop {
            match ask().await {
                Ok(answer) => return Some(answer),
                Err(error) if error.kind() == ErrorKind::Closed => return None,
                Err(error) => {
                    tracing::debug!(%error, what, "could not be asked; it is asked again");
                    self.pause().await;
                }
            }
        }
    }

    pub(crate) fn silent(&self) -> Error {
        Error::new(ErrorKind::Timeout, format!("etcd did not answer within {:?}", self.timeout))
            .indeterminate()
    }
}

/// An exchange that is under way. Each one of a call is on a connection of its own.
type Exchange<'a, T> = Pin<Box<dyn Future<Output = Result<T, (Error, Then)>> + Send + 'a>>;

/// The first of them that ends.
async fn first<T>(exchanges: &mut Vec<Exchange<'_, T>>) -> Result<T, (Error, Then)> {
    std::future::poll_fn(|cx| {
        for at in 0..exchanges.len() {
            if let Poll::Ready(ended) = exchanges[at].as_mut().poll(cx) {
                drop(exchanges.swap_remove(at));
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    })
    .await
}
