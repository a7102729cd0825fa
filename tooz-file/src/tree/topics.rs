//! Who in this process wants to hear of what.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tooz_core::driver::SessionId;

use crate::keys::KeyHash;

/// What can be heard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    /// The records of a lock changed.
    Lock(KeyHash),
    /// The file of a lock, by its path below the directory, was closed by somebody who could write to it.
    LockFile(String),
    /// The file of some lock was removed or replaced.
    LockFileGone,
    /// Some session ended, perhaps.
    Deaths,
    /// Something happened to this session of ours.
    Session(SessionId),
    /// The files of a group changed; by the name of its directory.
    Group(String),
}

#[derive(Debug, Default)]
struct Ear {
    /// Grows with everything heard.
    heard: AtomicU64,
    /// Grows when events were lost.
    missed: AtomicU64,
    woken: Notify,
}

/// All listeners of a directory in this process.
#[derive(Debug, Default)]
pub(crate) struct Hub(Mutex<HashMap<Topic, Vec<Arc<Ear>>>>);

impl Hub {
    fn ears(&self) -> MutexGuard<'_, HashMap<Topic, Vec<Arc<Ear>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens from now on.
    pub(crate) fn listen(self: &Arc<Self>, topics: Vec<Topic>) -> Listener {
        let ear = Arc::<Ear>::default();
        let mut ears = self.ears();
        for topic in &topics {
            ears.entry(topic.clone()).or_default().push(ear.clone());
        }
        Listener { hub: self.clone(), ear, topics, heard: 0, missed: 0 }
    }

    pub(crate) fn say(&self, topic: &Topic) {
        for ear in self.ears().get(topic).into_iter().flatten() {
            ear.heard.fetch_add(1, Ordering::AcqRel);
            ear.woken.notify_waiters();
        }
    }

    /// Events were lost, or everything is to be looked at again for another reason.
    pub(crate) fn say_all(&self, missed: bool) {
        for ear in self.ears().values().flatten() {
            if missed {
                ear.missed.fetch_add(1, Ordering::AcqRel);
            }
            ear.heard.fetch_add(1, Ordering::AcqRel);
            ear.woken.notify_waiters();
        }
    }

    /// Whether anybody listens.
    pub(crate) fn wants(&self, topic: &Topic) -> bool {
        self.ears().contains_key(topic)
    }
}

/// One who listens.
#[derive(Debug)]
pub(crate) struct Listener {
    hub: Arc<Hub>,
    ear: Arc<Ear>,
    topics: Vec<Topic>,
    heard: u64,
    missed: u64,
}

impl Listener {
    /// Returns when something was said since the last return; at once if it was meanwhile. Cancel-safe.
    pub(crate) async fn heard(&mut self) {
        loop {
            let mut woken = pin!(self.ear.woken.notified());
            woken.as_mut().enable(); // before the look, so that nothing falls between
            let heard = self.ear.heard.load(Ordering::Acquire);
            if heard != self.heard {
                self.heard = heard;
                return;
            }
            woken.await;
        }
    }

    /// Whether events were lost since the last call.
    pub(crate) fn missed(&mut self) -> bool {
        let missed = self.ear.missed.load(Ordering::Acquire);
        std::mem::replace(&mut self.missed, missed) != missed
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut ears = self.hub.ears();
        for topic in &self.topics {
            if let Some(list) = ears.get_mut(topic) {
                list.retain(|ear| !Arc::ptr_eq(ear, &self.ear));
                if list.is_empty() {
                    ears.remove(topic);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_said_between_two_looks_is_heard() {
        let hub = Arc::<Hub>::default();
        let mut listener = hub.listen(vec![Topic::Deaths, Topic::LockFileGone]);
        hub.say(&Topic::LockFileGone);
        listener.heard().await;
        assert!(!listener.missed());
        hub.say_all(true);
        listener.heard().await;
        assert!(listener.missed() && !listener.missed());
        assert!(hub.wants(&Topic::Deaths));
        drop(listener);
        assert!(!hub.wants(&Topic::Deaths));
    }
}
