//! A bounded memory of attempts that have ended.

use std::collections::{BTreeMap, VecDeque};

use crate::driver::AttemptId;

/// The most attempts that one memory keeps. An attempt has to be remembered only from its end to the arrival of a
/// request that was sent earlier and comes late, and no session has so many under way. 4096 cost about 100 KiB.
pub const MOST_ATTEMPTS: usize = 4_096;

/// Attempts that have ended, each with what is known of its end. When it is full the oldest is forgotten.
#[derive(Debug)]
pub struct EndedAttempts<T> {
    ends: BTreeMap<AttemptId, T>,
    order: VecDeque<AttemptId>,
}

impl<T> Default for EndedAttempts<T> {
    fn default() -> Self {
        Self { ends: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<T> EndedAttempts<T> {
    /// What is known of an attempt's end; `None`: it is not known to have ended.
    pub fn get(&self, attempt: AttemptId) -> Option<&T> {
        self.ends.get(&attempt)
    }

    /// Whether an attempt has ended.
    pub fn contains(&self, attempt: AttemptId) -> bool {
        self.ends.contains_key(&attempt)
    }

    /// Notes an end. The first end counts: a withdrawal after a break does not hide the break.
    pub fn put(&mut self, attempt: AttemptId, end: T) {
        if self.contains(attempt) {
            return;
        }
        self.ends.insert(attempt, end);
        self.order.push_back(attempt);
        if self.order.len() > MOST_ATTEMPTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.ends.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts_and_the_oldest_is_forgotten() {
        let mut ended = EndedAttempts::default();
        ended.put(AttemptId(0), "broken");
        ended.put(AttemptId(0), "withdrawn");
        assert_eq!(ended.get(AttemptId(0)), Some(&"broken"));
        for attempt in 1..MOST_ATTEMPTS as u128 {
            ended.put(AttemptId(attempt), "withdrawn");
        }
        assert!(ended.contains(AttemptId(0)));
        ended.put(AttemptId(MOST_ATTEMPTS as u128), "withdrawn");
        assert!(!ended.contains(AttemptId(0)) && ended.contains(AttemptId(1)));
        assert_eq!(ended.ends.len(), MOST_ATTEMPTS);
    }
}
