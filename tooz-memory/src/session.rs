//! A coordinator's life on the backend.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::clock::Instant;
use tooz_core::driver::{
    End, Epoch, Held, Notice, Previous, Renewal, Session, SessionGroups, SessionId, SessionLocks,
};
use tooz_core::{GroupId, LossReason, Result};

use crate::backend::Step;
use crate::client::Client;
use crate::fault::Fault;
use crate::gate::Operation;
use crate::state::{Ended, Fate, State};

/// One session.
#[derive(Debug)]
pub(crate) struct MemorySession {
    pub(crate) client: Arc<Client>,
    pub(crate) fate: Arc<Fate>,
    epoch: Epoch,
    ttl: Option<Duration>,
    opened_at: Instant,
    /// Whether its end was told as a notice, which happens once.
    told: AtomicBool,
    /// The answer of a beat that is over, where a planted fault gives it to the next.
    earlier: Arc<Mutex<Option<Renewal>>>,
}

impl MemorySession {
    pub(crate) fn new(
        client: Arc<Client>,
        fate: Arc<Fate>,
        epoch: Epoch,
        ttl: Option<Duration>,
        opened_at: Instant,
    ) -> Self {
        Self { client, fate, epoch, ttl, opened_at, told: AtomicBool::new(false), earlier: Arc::default() }
    }
}

impl MemorySession {
    /// The planted fault of a beat that is not answered by its own renewal: that goes on by itself, and its answer
    /// is the next beat's.
    async fn renew_by_the_earlier_answer(&self, held: &Held) -> Result<Renewal> {
        let lock =
            |earlier: &Mutex<Option<Renewal>>| earlier.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(renewal) = lock(&self.earlier) else {
            let renewal =
                self.client.call(Operation::Renew, |state| Ok(state.renew(&self.fate, held))).await?;
            *self.earlier.lock().unwrap_or_else(PoisonError::into_inner) = Some(renewal.clone());
            return Ok(renewal);
        };
        let (client, fate, held) = (self.client.clone(), self.fate.clone(), held.clone());
        let earlier = Arc::downgrade(&self.earlier);
        let renewing = async move {
            let answer = client.call(Operation::Renew, |state| Ok(state.renew(&fate, &held))).await;
            if let (Some(earlier), Ok(renewal)) = (earlier.upgrade(), answer) {
                *earlier.lock().unwrap_or_else(PoisonError::into_inner) = Some(renewal);
            }
        };
        self.client.context.spawner.spawn(renewing).detach();
        Ok(renewal)
    }
}

impl State {
    /// The ttl that a new session is told.
    pub(crate) fn reported_ttl(&self, ttl: Option<Duration>) -> Option<Duration> {
        if self.has(Fault::DeadlineLate) { ttl.map(|ttl| ttl * 2) } else { ttl }
    }

    /// One beat.
    pub(crate) fn renew(&mut self, fate: &Fate, held: &Held) -> Renewal {
        self.prolong(fate.id);
        let Some(session) = self.sessions.get(&fate.id) else {
            return if self.has(Fault::RenewsTheDead) {
                Renewal::confirmed()
            } else {
                Renewal::lost(fate.why())
            };
        };
        let space = self.spaces.get(&session.space);
        let mut renewal = Renewal::confirmed();
        for (key, attempt) in &held.grants {
            let lock = space.and_then(|space| space.locks.get(key));
            if lock.is_some_and(|lock| lock.holds(*attempt)) {
                continue;
            }
            match session.ended.get(*attempt) {
                Some(Ended::Silenced) => {}
                Some(Ended::Broken(why)) => renewal.gone.push((*attempt, why.clone())),
                Some(Ended::Settled) | None => renewal.gone.push((*attempt, LossReason::Vanished)),
            }
        }
        let waiting = held.waiting.iter().map(|(_, attempt)| *attempt);
        renewal.unqueued = waiting.filter(|attempt| !session.attempts.contains_key(attempt)).collect();
        if self.has(Fault::PlaceLost) {
            renewal.unqueued.clear();
        }
        let member = |group: &GroupId| session.groups.contains(&self.folded(group));
        renewal.evicted = held.groups.iter().filter(|group| !member(group)).cloned().collect();
        renewal
    }
}

#[async_trait]
impl Session for MemorySession {
    fn id(&self) -> SessionId {
        self.fate.id
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    fn opened_at(&self) -> Instant {
        self.opened_at
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        if self.client.has(Fault::DeadlineFromReply) {
            return self.renew_by_the_earlier_answer(held).await;
        }
        self.client.call(Operation::Renew, |state| Ok(state.renew(&self.fate, held))).await
    }

    async fn notice(&self) -> Notice {
        self.client
            .listen(|state| {
                if let Some(session) = state.sessions.get_mut(&self.fate.id) {
                    if let Some(notice) = session.next_notice() {
                        return Step::Done(notice);
                    }
                } else if !state.has(Fault::RenewsTheDead) && !self.told.swap(true, Ordering::AcqRel) {
                    return Step::Done(Notice::SessionLost(self.fate.why()));
                }
                Step::Wait(self.fate.woken.clone())
            })
            .await
    }

    fn groups(&self) -> &dyn SessionGroups {
        self
    }

    fn locks(&self) -> &dyn SessionLocks {
        self
    }

    async fn close(&self, end: End) -> Result<()> {
        self.client
            .call(Operation::Close, |state| {
                if state.has(Fault::CloseLeaks) {
                    return Ok(());
                }
                let how = state.how_ended(end);
                state.end_session(self.fate.id, &LossReason::SessionClosed, how);
                Ok(())
            })
            .await
    }
}

/// As a crash: without a ttl the backend notices at once, with one when it is over.
impl Drop for MemorySession {
    fn drop(&mut self) {
        if self.client.config.ttl.is_none() {
            self.client.backend.act(|state| {
                state.end_session(self.fate.id, &LossReason::Expired, Previous::Expired);
            });
        }
    }
}
