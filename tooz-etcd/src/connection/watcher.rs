//! Watching keys from a revision on, across reconnects. A watcher misses no change, or says that its user must look again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use etcd_client::{Event, Txn, TxnOp, WatchOptions, WatchStream};
use tokio::sync::watch;
use tooz_core::{ErrorKind, Result};

use crate::connection::{Connection, answer};
use crate::error::{Then, explain};
use crate::keys::{Keys, Range};

/// What a watcher tells.
#[derive(Debug)]
pub(crate) enum News {
    /// Changes of one range, in order; and the revision of the last of them.
    Events(Vec<Event>, i64),
    /// There are changes from before the watch began, and they may be told late: for a watch with history to catch up, a
    /// server looks only ten times a second. Only if the watcher is `hurried`, and once.
    Behind,
    /// The history since then is gone: look again, and go on from there with [`Watcher::restart`].
    Gap,
    /// The watch went on after an interruption.
    Resumed,
    /// The other future of [`Watcher::next_or`] is done.
    Other,
    /// The driver was closed.
    End,
}

/// A watch of some ranges. It has a stream of its own on the shared connection.
#[derive(Debug)]
pub(crate) struct Watcher {
    connection: Arc<Connection>,
    epoch_key: Vec<u8>,
    /// The id of the data when the watch began.
    epoch: Vec<u8>,
    /// By the watch ids that the server uses.
    ranges: BTreeMap<i64, Followed>,
    last_number: i64,
    stream: Option<WatchStream>,
    generations: watch::Receiver<u64>,
    /// Whether a stream was open before: then the data there now may be other data.
    interrupted: bool,
    /// Whether the user would rather look than wait for history: tells [`News::Behind`].
    pub(crate) hurried: bool,
}

/// One range of a watcher.
#[derive(Clone, Debug)]
struct Followed {
    range: Range,
    /// The revision from which changes are still to be told. Each range has its own: the changes of two ranges do not come
    /// in one order.
    next: i64,
}

impl Followed {
    fn options(&self, number: i64) -> WatchOptions {
        let end = self.range.1.clone();
        WatchOptions::new().with_watch_id(number).with_range(end).with_start_revision(self.next)
    }
}

impl Watcher {
    /// Watches `ranges` after `revision` of the data with this epoch.
    pub(crate) fn new(
        connection: &Arc<Connection>,
        keys: &Keys,
        epoch: Vec<u8>,
        ranges: Vec<Range>,
        revision: i64,
    ) -> Self {
        let ranges: BTreeMap<i64, Followed> =
            (1..).zip(ranges.into_iter().map(|range| Followed { range, next: revision + 1 })).collect();
        Self {
            connection: Arc::clone(connection),
            epoch_key: keys.epoch(),
            epoch,
            last_number: ranges.keys().next_back().copied().unwrap_or_default(),
            ranges,
            stream: None,
            generations: connection.generation.subscribe(),
            interrupted: false,
            hurried: false,
        }
    }

    /// Watches one more range after `revision`, on the same stream. Returns its number.
    pub(crate) async fn add(&mut self, range: Range, revision: i64) -> i64 {
        self.last_number += 1;
        let number = self.last_number;
        let followed = Followed { range, next: revision + 1 };
        if let Some(stream) = &mut self.stream {
            // A stream that takes no request has ended; it is opened again with all ranges.
            let told = stream.watch(followed.range.0.clone(), Some(followed.options(number))).await;
            if told.is_err() {
                self.interrupt();
            }
        }
        self.ranges.insert(number, followed);
        number
    }

    /// Stops watching a range.
    pub(crate) async fn remove(&mut self, number: i64) {
        if self.ranges.remove(&number).is_some()
            && let Some(stream) = &mut self.stream
            && stream.cancel(number).await.is_err()
        {
            self.interrupt();
        }
    }

    /// Goes on after `revision` of the data with this epoch.
    pub(crate) fn restart(&mut self, epoch: Vec<u8>, revision: i64) {
        self.epoch = epoch;
        for followed in self.ranges.values_mut() {
            followed.next = revision + 1;
        }
        self.stream = None;
        self.interrupted = false;
    }

    /// The next news.
    pub(crate) async fn next(&mut self) -> News {
        self.next_or(std::future::pending()).await
    }

    /// The next news, or that `other` is done, while the stream is open.
    pub(crate) async fn next_or(&mut self, other: impl Future<Output = ()>) -> News {
        let mut other = std::pin::pin!(other);
        loop {
            if self.connection.is_closed() {
                return News::End;
            }
            let Some(stream) = &mut self.stream else {
                let again = self.interrupted;
                match self.open().await {
                    Ok(true) if again && self.stream.is_some() => return News::Resumed,
                    Ok(true) => {}
                    Ok(false) => return News::Gap,
                    Err(error) => {
                        tracing::debug!(%error, "a watch cannot be opened; it is tried again");
                        self.interrupted = true;
                        self.connection.pause().await;
                    }
                }
                continue;
            };
            let message = tokio::select! {
                biased; // first the connection: nothing on one that was given up can be relied upon; then what is known
                _ = self.generations.changed() => Err(None),
                message = stream.message() => message.map_err(Some),
                () = &mut other => return News::Other,
            };
            let response = match message {
                Ok(Some(response)) => response,
                Ok(None) | Err(None) => {
                    self.interrupt();
                    continue;
                }
                Err(Some(error)) => {
                    let (error, then) = explain(&error, &self.connection.present_peer());
                    tracing::debug!(%error, "a watch ended; it is opened again");
                    self.interrupt();
                    if then == Then::Nothing {
                        self.connection.pause().await;
                    }
                    continue;
                }
            };
            let known = self.ranges.contains_key(&response.watch_id());
            if known && response.compact_revision() > 0 {
                self.stream = None;
                return News::Gap;
            }
            // The end of a range, or the server's refusal of a new one.
            if response.canceled() && (known || response.watch_id() < 0) {
                self.interrupt();
                self.connection.pause().await;
                continue;
            }
            // Otherwise an event of a range that is not watched any more.
            let Some(followed) = self.ranges.get_mut(&response.watch_id()) else { continue };
            let now = response.header().map_or(0, etcd_client::ResponseHeader::revision);
            if response.created() && now >= followed.next && std::mem::take(&mut self.hurried) {
                return News::Behind;
            }
            let next = &mut followed.next;
            // Servers before 3.4.36 may tell an event twice, or again later.
            let revision_of = |event: &Event| event.kv().map_or(0, etcd_client::KeyValue::mod_revision);
            let fresh = response.events().iter().filter(|event| revision_of(event) >= *next);
            let events: Vec<Event> = fresh.cloned().collect();
            if let Some(last) = events.iter().map(revision_of).max() {
                *next = last + 1;
                return News::Events(events, last);
            }
        }
    }

    fn interrupt(&mut self) {
        self.stream = None;
        self.interrupted = true;
    }

    /// Opens the stream; `false`: other data is there now, or the revision from which to follow is not.
    async fn open(&mut self) -> Result<bool> {
        if self.interrupted {
            let look = Txn::new().and_then([TxnOp::get(self.epoch_key.clone(), None)]);
            let response = self.connection.send(true, look).await?;
            let epoch = answer::value(&response, 0);
            // A server that lost its data counts revisions from the beginning. It would tell nothing up to this one.
            let ahead = self.ranges.values().any(|followed| followed.next > answer::revision(&response) + 1);
            if epoch != self.epoch || ahead {
                self.interrupted = false;
                return Ok(false);
            }
        }
        let (connection, ranges) = (Arc::clone(&self.connection), self.ranges.clone());
        // Not by `call`: a stream belongs to the connection on which it was opened.
        let opening = self.connection.context.spawner.spawn(async move {
            let (connection, limit) = (&connection, connection.limit);
            let opened = connection.exchange(limit, |channel| async move {
                let generation = channel.generation;
                let opening = async {
                    let (mut watches, mut stream) = (channel.watches(), None::<WatchStream>);
                    for (number, followed) in ranges {
                        let options = followed.options(number);
                        let from = followed.range.0;
                        match &mut stream {
                            None => stream = Some(watches.watch(from, Some(options)).await?),
                            Some(stream) => stream.watch(from, Some(options)).await?,
                        }
                    }
                    Ok((stream, generation))
                };
                let opened = connection.context.spawner.timeout(limit, opening).await;
                if opened.is_none() {
                    connection.give_up(generation);
                }
                opened.transpose()
            });
            Box::pin(opened).await.map_err(|(error, _)| error)?.ok_or_else(|| ErrorKind::Timeout.into())
        });
        let (stream, generation) = opening.await.unwrap_or_else(|| Err(crate::error::closed()))?;
        if *self.generations.borrow_and_update() == generation {
            self.stream = stream;
            self.interrupted = false;
        } else {
            self.interrupted = true;
        }
        Ok(true)
    }
}
