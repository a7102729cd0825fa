//! A value whose changes can be waited for.
//!
//! As `tokio::sync::watch`, whose waiters are woken in an order that is random (tokio 1.54 spreads them over eight
//! queues by a generator that only `tokio_unstable` can seed): with it no seed would replay. Here they are woken in
//! the order in which they came.

use std::ops::Deref;
use std::pin::pin;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

use crate::platform::await_point::traced;

pub(crate) struct StateCell<T> {
    value: RwLock<(u64, T)>,
    changed: Notify,
}

/// The value, read-locked: it must not be held while the value is set.
pub(crate) struct Ref<'a, T>(RwLockReadGuard<'a, (u64, T)>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.1
    }
}

impl<T> StateCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: RwLock::new((0, value)), changed: Notify::new() }
    }

    fn read(&self) -> RwLockReadGuard<'_, (u64, T)> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, (u64, T)> {
        self.value.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn borrow(&self) -> Ref<'_, T> {
        Ref(self.read())
    }

    /// Changes the value and wakes every waiter, also when it is the same afterwards.
    pub(crate) fn send_modify(&self, change: impl FnOnce(&mut T)) {
        let mut value = self.write();
        value.0 += 1;
        change(&mut value.1);
        drop(value);
        self.changed.notify_waiters();
    }

    pub(crate) fn send_replace(&self, mut value: T) -> T {
        self.send_modify(|now| std::mem::swap(now, &mut value));
        value
    }

    /// Follows the value from now on.
    pub(crate) fn subscribe(&self) -> Subscription<'_, T> {
        Subscription { watched: self, seen: self.read().0 }
    }
}

pub(crate) struct Subscription<'a, T> {
    watched: &'a StateCell<T>,
    seen: u64,
}

impl<T> Subscription<'_, T> {
    pub(crate) fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.watched.read();
        self.seen = value.0;
        Ref(value)
    }

    /// Waits until the value was set since it was last looked at. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        loop {
            let mut notified = pin!(self.watched.changed.notified());
            // Registered before looking, or a change in between would be missed.
            notified.as_mut().enable();
            let now = self.watched.read().0;
            if now != self.seen {
                self.seen = now;
                return;
            }
            traced(notified).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn no_change_is_missed_and_none_is_seen_twice() {
        let watched = StateCell::new(1);
        let mut follower = watched.subscribe();
        watched.send_replace(2);
        assert_eq!(watched.send_replace(3), 2);
        follower.changed().await;
        let again = tokio::time::timeout(std::time::Duration::from_millis(1), follower.changed()).await;
        assert!(again.is_err());
        assert_eq!(*follower.borrow_and_update(), 3);
        watched.send_replace(4);
        assert_eq!(*follower.borrow_and_update(), 4);
        let looked_at = tokio::time::timeout(std::time::Duration::from_millis(1), follower.changed()).await;
        assert!(looked_at.is_err());
    }

    /// The reason for this type.
    #[tokio::test]
    async fn waiters_are_woken_in_the_order_in_which_they_came() {
        let (watched, woken) = (Arc::new(StateCell::new(0)), Arc::new(Mutex::new(Vec::new())));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..32 {
            let (watched, woken) = (Arc::clone(&watched), Arc::clone(&woken));
            tasks.spawn(async move {
                watched.subscribe().changed().await;
                woken.lock().unwrap().push(number);
            });
        }
        tokio::task::yield_now().await;
        watched.send_replace(1);
        tasks.join_all().await;
        assert_eq!(*woken.lock().unwrap(), (0..32).collect::<Vec<_>>());
    }
}
