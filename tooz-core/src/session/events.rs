//! The events of a session.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::sync::broadcast;

use crate::platform::await_point::traced;
use crate::{GroupId, LossReason};

/// How many events a reader may fall behind before it is told that it missed some: more than a session can have
/// in an hour of flapping.
pub(crate) const EVENTS_KEPT: usize = 256;

/// What happened to a coordinator's session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A renewal failed; the deadline has not passed.
    Suspended,
    /// A renewal succeeded after one that failed; nothing was lost.
    Recovered,
    /// The session is gone, and with it every lock and leadership.
    Lost(LossReason),
    /// A new session stands, and these groups were joined again.
    Rejoined(Vec<GroupId>),
    /// Our record was removed from this group; it is joined again unless `rejoin` is off.
    Evicted(GroupId),
    /// A group that we were a member of was deleted while we were away.
    GroupDeleted(GroupId),
    /// A beat took longer than the idle time left: the backend is slow, or the ttl too short for it.
    BeatLate {
        /// How long it took.
        took: Duration,
    },
    /// A hook failed or panicked.
    HookFailed {
        /// Which, and how.
        error: String,
    },
    /// This reader fell behind and missed so many events.
    Missed(u64),
}

/// The events of a coordinator from the time of asking.
pub struct Events {
    receive: Receive,
}

/// A broadcast receiver has no poll function, so the wait for the next event owns it.
type Receive = Pin<
    Box<
        dyn Future<Output = (broadcast::Receiver<Event>, Result<Event, broadcast::error::RecvError>)>
            + Send
            + Sync,
    >,
>;

fn receive(mut receiver: broadcast::Receiver<Event>) -> Receive {
    Box::pin(async move {
        let event = traced(pin!(receiver.recv())).await;
        (receiver, event)
    })
}

impl Events {
    pub(crate) fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Self { receive: receive(receiver) }
    }

    /// The next event; `None` when the coordinator is closed.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let (receiver, event) = std::task::ready!(self.receive.as_mut().poll(cx));
        self.receive = receive(receiver);
        Poll::Ready(match event {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        })
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}
