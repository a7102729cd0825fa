//! The attempts of one session that wait or hold, as far as this process has heard. A message may come before the answer to
//! the request that it is about, so an attempt is noted before it is sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tooz_core::clock::Instant;
use tooz_core::driver::{Acquire, AttemptId, Grant, Previous};
use tooz_core::{Error, ErrorKind, FencingToken, Result};

#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<BTreeMap<AttemptId, Slot>>);

#[derive(Debug)]
struct Slot {
    request: Acquire,
    grant: Option<Grant>,
    /// Whether the grant counts: where replicas have to have it, they do.
    confirmed: bool,
    /// How long until the server is asked again, because nobody may have told.
    look: Duration,
    woken: Arc<Notify>,
}

/// What stands for an attempt.
#[derive(Debug)]
pub(crate) enum Standing {
    Granted(Grant),
    /// The server says that it is held; that counts once replicas say so, too.
    Unconfirmed,
    /// Look again after this long, or when woken.
    Waits(Duration, Arc<Notify>),
    Unknown,
}

impl Slots {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<AttemptId, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an attempt before it is asked for.
    pub(crate) fn note(&self, request: &Acquire) -> Result<()> {
        let mut slots = self.slots();
        let slot = slots.entry(request.attempt).or_insert_with(|| Slot {
            request: request.clone(),
            grant: None,
            confirmed: false,
            look: Duration::ZERO,
            woken: Arc::default(),
        });
        if slot.request.key != request.key {
            let why = format!("attempt {} asked for {} before", request.attempt, slot.request.key);
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Ok(())
    }

    pub(crate) fn forget(&self, attempt: AttemptId) {
        if let Some(slot) = self.slots().remove(&attempt) {
            // Whoever waits for its turn learns that there is none.
            slot.woken.notify_waiters();
        }
    }

    /// The server said that it is held; `None`: nobody asked for it. `confirmed`: it counts.
    pub(crate) fn granted(
        &self,
        attempt: AttemptId,
        token: FencingToken,
        how: Previous,
        proved: Instant,
        confirmed: bool,
    ) -> Option<Grant> {
        let mut slots = self.slots();
        let slot = slots.get_mut(&attempt)?;
        let mut grant = Grant::new(attempt, slot.request.key.clone(), slot.request.mode, token, how);
        // Of two proofs the later one counts.
        let earlier = slot.grant.as_ref().and_then(|grant| grant.proved_at);
        grant.proved_at = earlier.max(Some(proved));
        slot.grant = Some(grant.clone());
        slot.confirmed |= confirmed;
        slot.woken.notify_waiters();
        Some(grant)
    }

    /// The server said that it waits.
    pub(crate) fn waits(&self, attempt: AttemptId, look: Duration) {
        if let Some(slot) = self.slots().get_mut(&attempt) {
            slot.look = look;
        }
    }

    /// Messages may have been missed: everybody who waits looks.
    pub(crate) fn look_all(&self) {
        for slot in self.slots().values_mut().filter(|slot| slot.grant.is_none()) {
            slot.look = Duration::ZERO;
            slot.woken.notify_waiters();
        }
    }

    pub(crate) fn standing(&self, attempt: AttemptId) -> Standing {
        match self.slots().get(&attempt) {
            Some(Slot { grant: Some(grant), confirmed: true, .. }) => Standing::Granted(grant.clone()),
            Some(Slot { grant: Some(_), .. }) => Standing::Unconfirmed,
            Some(slot) => Standing::Waits(slot.look, Arc::clone(&slot.woken)),
            None => Standing::Unknown,
        }
    }

    pub(crate) fn request(&self, attempt: AttemptId) -> Option<Acquire> {
        self.slots().get(&attempt).map(|slot| slot.request.clone())
    }
}
