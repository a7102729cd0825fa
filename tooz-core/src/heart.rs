//! Liveness, and what becomes of it: beats, the deadline, and the events of a session.
//!
//! The **heart** renews the session at a third of its ttl. The deadline is counted from the instant *before* the
//! renewal was sent, minus a margin, so the coordinator stops believing before the backend does (openraft's
//! notes on leader leases give the reason).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::LossReason;
use crate::platform::clock::Deadline;
use crate::session::state::{CloseOnDrop, Command, Phase};

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

/// A coordinator's heart, under tooz's names: started at connect unless the builder says otherwise.
#[derive(Clone)]
pub struct Heart(pub(crate) Arc<CloseOnDrop>);

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
        // Waits for the heart, and for a session that only the heart would open, look again.
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
