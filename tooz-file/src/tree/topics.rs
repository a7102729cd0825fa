//! Which tasks of this process are woken by what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tooz_core::driver::SessionId;

use crate::keys::KeyHash;

/// What a task can listen for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    /// The records of a lock changed.
    Lock(KeyHash),
    /// The file of a lock, by its path below the directory, was closed by a process that could write to it.
    LockFile(String),
    /// The file of some lock was removed or replaced.
    LockFileGone,
    /// Some session ended, perhaps.
    Deaths,
    /// Something happened to this session of this process.
    Session(SessionId),
    /// The files of a group changed; by the name of its directory.
    Group(String),
}

/// One listener's end: it is notified by each change of the value, which counts the times that events were lost.
type Subscriber = Arc<watch::Sender<u64>>;

/// All listeners of a tree in this process.
#[derive(Debug, Default)]
pub(crate) struct Topics(Mutex<HashMap<Topic, Vec<Subscriber>>>);

impl Topics {
    fn subscribers(&self) -> MutexGuard<'_, HashMap<Topic, Vec<Subscriber>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens from now on.
    pub(crate) fn listen(self: &Arc<Self>, topics: Vec<Topic>) -> Listener {
        let subscriber = Subscriber::default();
        let mut subscribers = self.subscribers();
        for topic in &topics {
            subscribers.entry(topic.clone()).or_default().push(subscriber.clone());
        }
        Listener { all: self.clone(), receiver: subscriber.subscribe(), subscriber, topics, missed: 0 }
    }

    pub(crate) fn notify(&self, topic: &Topic) {
        for subscriber in self.subscribers().get(topic).into_iter().flatten() {
            subscriber.send_modify(|_| {});
        }
    }

    /// Wakes all listeners, because events were lost (`missed`) or for another reason.
    pub(crate) fn notify_all(&self, missed: bool) {
        for subscriber in self.subscribers().values().flatten() {
            subscriber.send_modify(|lost| *lost += u64::from(missed));
        }
    }

    /// Whether there is a listener.
    pub(crate) fn has_listener(&self, topic: &Topic) -> bool {
        self.subscribers().contains_key(topic)
    }
}

/// One task that listens.
#[derive(Debug)]
pub(crate) struct Listener {
    all: Arc<Topics>,
    subscriber: Subscriber,
    receiver: watch::Receiver<u64>,
    topics: Vec<Topic>,
    missed: u64,
}

impl Listener {
    /// Returns when it was notified since the last return; at once if that was meanwhile. Cancel-safe.
    pub(crate) async fn heard(&mut self) {
        // The sender lives as long as `self`, so the channel cannot be closed.
        let _ = self.receiver.changed().await;
    }

    /// Whether events were lost since the last call.
    pub(crate) fn missed(&mut self) -> bool {
        let missed = *self.receiver.borrow();
        std::mem::replace(&mut self.missed, missed) != missed
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut subscribers = self.all.subscribers();
        for topic in &self.topics {
            if let Some(list) = subscribers.get_mut(topic) {
                list.retain(|subscriber| !Arc::ptr_eq(subscriber, &self.subscriber));
                if list.is_empty() {
                    subscribers.remove(topic);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_notification_between_two_looks_is_heard() {
        let topics = Arc::<Topics>::default();
        let mut listener = topics.listen(vec![Topic::Deaths, Topic::LockFileGone]);
        topics.notify(&Topic::LockFileGone);
        listener.heard().await;
        assert!(!listener.missed());
        topics.notify_all(true);
        listener.heard().await;
        assert!(listener.missed() && !listener.missed());
        assert!(topics.has_listener(&Topic::Deaths));
        drop(listener);
        assert!(!topics.has_listener(&Topic::Deaths));
    }
}
