//! Following changes from a revision on, across reconnects: nothing is missed, or the follower is told to look again.

use std::sync::Arc;

use etcd_client::{Event, Txn, TxnOp, WatchOptions, WatchStream};
use tokio::sync::watch;
use tooz_core::Result;

use crate::connection::{Hub, answer};
use crate::error::{Then, explain};
use crate::keys::Keys;

/// Keys from one, to before another.
pub(crate) type Range = (Vec<u8>, Vec<u8>);

/// The range of one key alone.
pub(crate) fn only(key: &[u8]) -> Range {
    (key.to_vec(), [key, b"\0"].concat())
}

/// The range of everything that begins with `prefix`.
pub(crate) fn below(prefix: &[u8]) -> Range {
    (prefix.to_vec(), crate::keys::end_of(prefix))
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum News {
    /// Changes of one range, in order; and the revision of the last of them.
    Events(Vec<Event>, i64),
    /// Something happened before the server began to watch for us, and may be told late: a server looks only ten times a
    /// second for those who have history to catch up with. Only where it was asked for with [`Tail::hurried`], and once.
    Behind,
    /// The history between then and now is gone: look again, and follow from there with [`Tail::restart`].
    Gap,
    /// The driver was closed.
    End,
}

/// One follower. It holds a stream of its own on the shared connection.
#[derive(Debug)]
pub(crate) struct Tail {
    hub: Arc<Hub>,
    epoch_key: Vec<u8>,
    /// The id of the data when following began.
    epoch: Vec<u8>,
    ranges: Vec<Range>,
    /// The revision from which each range is still to be told. Each has its own: what happened in two ranges does not
    /// come in one order.
    next: Vec<i64>,
    stream: Option<WatchStream>,
    generations: watch::Receiver<u64>,
    /// Whether a stream was open before: then what is there now may be other data.
    interrupted: bool,
    /// Whether the follower would rather look than wait for history.
    hurried: bool,
}

impl Tail {
    /// Follows `ranges` after `revision` of the data with this epoch.
    pub(crate) fn new(
        hub: &Arc<Hub>,
        keys: &Keys,
        epoch: Vec<u8>,
        ranges: Vec<Range>,
        revision: i64,
    ) -> Self {
        Self {
            hub: Arc::clone(hub),
            epoch_key: keys.epoch(),
            epoch,
            next: vec![revision + 1; ranges.len()],
            ranges,
            stream: None,
            generations: hub.generations(),
            interrupted: false,
            hurried: false,
        }
    }

    /// The same, which says when it is [behind](News::Behind).
    pub(crate) fn hurried(mut self) -> Self {
        self.hurried = true;
        self
    }

    /// Goes on after `revision` of the data with this epoch.
    pub(crate) fn restart(&mut self, epoch: Vec<u8>, revision: i64) {
        self.epoch = epoch;
        self.next = vec![revision + 1; self.ranges.len()];
        self.stream = None;
        self.interrupted = false;
    }

    /// The next news.
    pub(crate) async fn next(&mut self) -> News {
        loop {
            if self.hub.is_closed() {
                return News::End;
            }
            let Some(stream) = &mut self.stream else {
                match self.open().await {
                    Ok(true) => {}
                    Ok(false) => return News::Gap,
                    Err(error) => {
                        tracing::debug!(%error, "a watch cannot be opened; it is tried again");
                        self.interrupted = true;
                        self.hub.pause().await;
                    }
                }
                continue;
            };
            let message = tokio::select! {
                biased; // a connection that was given up says nothing more that can be relied upon
                _ = self.generations.changed() => Err(None),
                message = stream.message() => message.map_err(Some),
            };
            let response = match message {
                Ok(Some(response)) => response,
                Ok(None) | Err(None) => {
                    self.interrupt();
                    continue;
                }
                Err(Some(error)) => {
                    let (error, then) = explain(error);
                    tracing::debug!(%error, "a watch ended; it is opened again");
                    self.interrupt();
                    if then == Then::Nothing {
                        self.hub.pause().await;
                    }
                    continue;
                }
            };
            if response.compact_revision() > 0 {
                self.stream = None;
                return News::Gap;
            }
            if response.canceled() {
                self.interrupt();
                self.hub.pause().await;
                continue;
            }
            let Some(next) =
                usize::try_from(response.watch_id() - 1).ok().and_then(|at| self.next.get_mut(at))
            else {
                continue;
            };
            let now = response.header().map_or(0, etcd_client::ResponseHeader::revision);
            if response.created() && now >= *next && std::mem::take(&mut self.hurried) {
                return News::Behind;
            }
            // Servers before 3.4.36 may tell something twice or again.
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
            let response = self.hub.txn(true, look).await?;
            let epoch = answer::found(&response, 0).pop().map(|kv| kv.value().to_vec()).unwrap_or_default();
            // A server that lost its data counts from the beginning: it would be silent until it came here again.
            let ahead = self.next.iter().any(|next| *next > answer::revision(&response) + 1);
            if epoch != self.epoch || ahead {
                self.interrupted = false;
                return Ok(false);
            }
        }
        let (hub, ranges) = (Arc::clone(&self.hub), self.ranges.clone());
        let next = self.next.clone();
        // Not by `call`: a stream belongs to the connection on which it was opened.
        let opening = self.hub.context.spawner.spawn(async move {
            let connected = hub.connected().await.map_err(|(error, _)| error)?;
            let generation = connected.generation;
            let mut watches = connected.watches();
            let opening = async {
                let mut stream: Option<WatchStream> = None;
                for ((id, (from, end)), next) in (1..).zip(ranges).zip(next) {
                    let options =
                        WatchOptions::new().with_watch_id(id).with_range(end).with_start_revision(next);
                    match &mut stream {
                        None => stream = Some(watches.watch(from, Some(options)).await?),
                        Some(stream) => stream.watch(from, Some(options)).await?,
                    }
                }
                Ok(stream)
            };
            match hub.context.spawner.timeout(hub.limit(), opening).await {
                Some(Ok(stream)) => Ok((stream, generation)),
                Some(Err(error)) => {
                    let (error, then) = explain(error);
                    if then != Then::Nothing {
                        hub.give_up(generation);
                    }
                    Err(error)
                }
                None => {
                    hub.give_up(generation);
                    Err(tooz_core::ErrorKind::Timeout.into())
                }
            }
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
