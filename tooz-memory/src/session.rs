//! A coordinator's session on the backend.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::driver::{
    End, Epoch, Held, Instant, Notice, Previous, Renewal, Session, SessionGroups, SessionId, SessionLocks,
};
use tooz_core::{LossReason, Result};

use crate::client::Client;
use crate::faults::gate::Operation;
use crate::faults::planted::Fault;
use crate::store::state::{Fate, Step};

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

    /// The planted fault of a beat that returns before its own renewal: the renewal goes on by itself, and its answer
    /// is the next beat's.
    async fn renew_by_the_earlier_answer(&self, held: &Held) -> Result<Renewal> {
        let earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(renewal) = earlier else {
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
                    if let Some(notice) = session.notices.pop_front() {
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
                let how = state.mark_of(end);
                state.end_session(self.fate.id, &LossReason::SessionClosed, how);
                Ok(())
            })
            .await
    }
}

/// As a crash: without a ttl the backend ends the session at once, with a ttl when it is over.
impl Drop for MemorySession {
    fn drop(&mut self) {
        if self.client.ttl.is_none() {
            self.client.backend.act(|state| {
                state.end_session(self.fate.id, &LossReason::Expired, Previous::Expired);
            });
        }
    }
}
