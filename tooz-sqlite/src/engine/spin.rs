//! A short busy wait before a sleep, as long as that pays.
//!
//! With a processor to spare, an answer comes sooner than a sleep and a wake-up take. Without one, the waiting thread
//! only keeps the processor from the thread that it waits for. Which of the two is the case shows in the outcome: each
//! failed busy wait doubles how many of the next waits sleep at once. A wait never calls `sched_yield`: beside a busy process
//! that costs a whole time slice.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tooz_core::driver::Clock;

/// After a failed busy wait, at most this many waits sleep before the next try. A try then costs each of them less than a µs.
const MOST_SLEEPS: u32 = 64;

/// How well busy waiting has paid. It is a hint, so a race between two threads costs time and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Spin {
    /// How many waits sleep at once, from now on.
    sleeps: AtomicU32,
    /// How many did after the last failed busy wait.
    last: AtomicU32,
}

impl Spin {
    /// Looks until there is something or `limit` is over; only once while busy waiting does not pay.
    pub(crate) fn wait<T>(
        &self,
        clock: &Clock,
        limit: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let sleeps = self.sleeps.load(Ordering::Relaxed);
        if sleeps > 0 {
            self.sleeps.store(sleeps - 1, Ordering::Relaxed);
            return look();
        }
        let until = clock.now() + limit;
        loop {
            let found = look();
            if found.is_some() {
                self.last.store(0, Ordering::Relaxed);
                return found;
            }
            if clock.now() >= until {
                let next = (self.last.load(Ordering::Relaxed) * 2 + 1).min(MOST_SLEEPS);
                self.last.store(next, Ordering::Relaxed);
                self.sleeps.store(next, Ordering::Relaxed);
                return None;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a wait that finds nothing looks; more than once only if it is a busy one.
    fn looks(spin: &Spin, clock: &Clock) -> u32 {
        let mut looks = 0;
        let look = || {
            looks += 1;
            (looks == u32::MAX).then_some(())
        };
        assert!(spin.wait(clock, Duration::from_millis(1), look).is_none());
        looks
    }

    #[test]
    fn what_does_not_pay_is_hardly_tried_again_and_what_pays_goes_on() {
        let (spin, clock) = (Spin::default(), Clock::boot());
        let mut gaps = Vec::new();
        for _ in 0..9 {
            spin.wait(&clock, Duration::ZERO, || None::<()>); // busy, and in vain
            let sleeps = spin.sleeps.load(Ordering::Relaxed);
            gaps.push(sleeps);
            assert!((0..sleeps).all(|_| looks(&spin, &clock) == 1));
        }
        assert_eq!(gaps, [1, 3, 7, 15, 31, 63, 64, 64, 64]);
        assert_eq!(spin.wait(&clock, Duration::ZERO, || Some(7)), Some(7));
        spin.wait(&clock, Duration::ZERO, || None::<()>);
        assert_eq!(spin.sleeps.load(Ordering::Relaxed), 1, "it began anew");
    }
}
