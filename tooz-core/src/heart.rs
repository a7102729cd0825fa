//! Liveness, and what becomes of it: beats, the deadline, and the events of a session.
//!
//! The **heart** renews the session at a third of its ttl. The deadline is counted from the instant *before* the
//! renewal was sent, minus a margin, so the coordinator stops believing before the backend does (openraft's
//! notes on leader leases give the reason).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::sync::broadcast;

use crate::clock::Deadline;
use crate::shared::{Command, Life, Phase};
use crate::{GroupId, LossReason};

/// How many events a reader may fall behind before it is told that it missed some: more than a session can have
/// in an hour of flapping.
pub(crate) const EVENTS_KEPT: usize = 256;

/// A session whose life does not depend on time is still asked after this often: whether its file was deleted, a
/// lock broken, a member record removed.
const BEAT_WITHOUT_TTL: Duration = Duration::from_secs(5);

/// How often a session of this ttl is renewed: two renewals may fail and the third still comes in time.
pub(crate) fn period(ttl: Option<Duration>) -> Duration {
    ttl.map_or(BEAT_WITHOUT_TTL, |ttl| ttl / 3)
}

/// How long one renewal may take before the next is sent, over another connection where there is one.
pub(crate) fn time_limit(ttl: Option<Duration>, operation_timeout: Duration) -> Duration {
    ttl.map_or(operation_timeout, |ttl| ttl / 6)
}

/// Whether a coordinator's session lives, computed from the clock at the question.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Liveness {
    /// It lives, at least until then unless it is renewed; `None` where that does not depend on time.
    Alive {
        /// The deadline.
        until: Option<Deadline>,
    },
    /// A renewal failed and the deadline has not passed: nothing is lost yet, and nothing new should be begun.
    Suspended {
        /// The deadline.
        until: Deadline,
    },
    /// It is gone, and with it every lock and leadership. A new session is being opened.
    Lost {
        /// Why.
        why: LossReason,
    },
}

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
    /// Somebody removed our record from this group; it is joined again unless `rejoin` is off.
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
        let event = receiver.recv().await;
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

/// A coordinator's heart, under tooz's names: started at connect unless the builder says otherwise.
#[derive(Clone)]
pub struct Heart(pub(crate) Arc<Life>);

impl Heart {
    /// Beats by itself from now on.
    pub fn start(&self) {
        self.0.beating.store(true, Ordering::Release);
        self.0.command(Command::Wake);
    }

    /// Stops beating by itself: the session is lost at its deadline unless
    /// [`Coordinator::heartbeat`](crate::Coordinator::heartbeat) is called in time.
    pub fn stop(&self) {
        self.0.beating.store(false, Ordering::Release);
        // Whoever waits for the heart, or for a session that only the heart would open, looks again.
        self.0.phase.send_modify(|_| {});
    }

    /// Whether it beats by itself.
    pub fn is_alive(&self) -> bool {
        self.0.beating.load(Ordering::Acquire) && !matches!(*self.0.phase.borrow(), Phase::Closed(_))
    }

    /// How many beats were answered so far, those by hand included.
    pub fn beats(&self) -> u64 {
        self.0.beats.load(Ordering::Acquire)
    }

    /// Waits until it is stopped or the coordinator is closed.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn wait(&self) {
        let mut phase = self.0.phase.subscribe();
        while self.is_alive() {
            phase.changed().await;
        }
    }
}

impl fmt::Debug for Heart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heart").field("is_alive", &self.is_alive()).field("beats", &self.beats()).finish()
    }
}
