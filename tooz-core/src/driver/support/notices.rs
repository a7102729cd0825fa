//! The queue behind [`Session::notice`](crate::driver::Session::notice).

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::LossReason;
use crate::driver::Notice;

/// The most notices that wait to be taken. What does not fit is found by the next beat.
const MOST: usize = 4_096;

/// Notices of one session, in their order.
#[derive(Debug, Default)]
pub struct Notices {
    queue: Mutex<Queue>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    notices: VecDeque<Notice>,
    ended: bool,
}

impl Notices {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a notice, unless the session has ended. In a queue that is full the oldest gives way.
    pub fn add(&self, notice: Notice) {
        {
            let mut queue = self.queue();
            if queue.ended {
                return;
            }
            if queue.notices.len() == MOST {
                queue.notices.pop_front();
            }
            queue.notices.push_back(notice);
        }
        self.added.notify_waiters();
    }

    /// The session has ended. That says it all, so it replaces every earlier notice, and none comes after it. An owner
    /// that closed the session itself is told nothing. Only the first end counts.
    pub fn end(&self, reason: LossReason) {
        {
            let mut queue = self.queue();
            if std::mem::replace(&mut queue.ended, true) {
                return;
            }
            queue.notices.clear();
            if reason != LossReason::SessionClosed {
                queue.notices.push_back(Notice::SessionLost(reason));
            }
        }
        self.added.notify_waiters();
    }

    /// Takes the next notice, and waits for one. Cancel-safe: what is not returned stays.
    pub async fn next(&self) -> Notice {
        loop {
            let mut added = pin!(self.added.notified());
            added.as_mut().enable(); // before the look, so that no notice falls between
            let notice = self.queue().notices.pop_front();
            if let Some(notice) = notice {
                return notice;
            }
            added.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::AttemptId;

    fn lost(attempt: u128) -> Notice {
        Notice::GrantLost(AttemptId(attempt), LossReason::Vanished)
    }

    #[tokio::test]
    async fn notices_come_in_order_and_the_end_replaces_them() {
        let notices = Notices::default();
        notices.add(lost(1));
        notices.add(lost(2));
        assert!(matches!(notices.next().await, Notice::GrantLost(AttemptId(1), _)));
        notices.end(LossReason::Expired);
        assert!(matches!(notices.next().await, Notice::SessionLost(LossReason::Expired)));
        notices.add(lost(3));
        notices.end(LossReason::Vanished);
        assert!(notices.queue().notices.is_empty(), "nothing comes after the end");
        let closed = Notices::default();
        closed.add(lost(1));
        closed.end(LossReason::SessionClosed);
        assert!(closed.queue().notices.is_empty(), "the owner knows");
    }

    #[tokio::test]
    async fn a_wait_that_is_dropped_loses_nothing() {
        let notices = Notices::default();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut waiting = Box::pin(notices.next());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        notices.add(lost(1));
        drop(waiting);
        assert!(matches!(notices.next().await, Notice::GrantLost(AttemptId(1), _)));
    }

    #[tokio::test]
    async fn of_too_many_the_oldest_give_way() {
        let notices = Notices::default();
        (0..=MOST as u128).for_each(|attempt| notices.add(lost(attempt)));
        assert!(matches!(notices.next().await, Notice::GrantLost(AttemptId(1), _)));
        assert_eq!(notices.queue().notices.len(), MOST - 1);
    }
}
