//! The only place that reads a clock.
//!
//! A deadline must count the time that a machine spent suspended: a laptop that slept for an hour has lost its
//! leases. `CLOCK_MONOTONIC`, and with it [`std::time::Instant`] and tokio's timers, stand still in suspend;
//! `CLOCK_BOOTTIME` does not. So the library's own runtime reads the boot-time clock and sleeps on a timer of
//! that clock, and on a user's runtime (whose clock may be paused, in simulation) tokio's clock is read and the
//! time spent suspended is added.
#![allow(clippy::disallowed_methods)] // this is the room in which clocks are read

use std::fmt;
use std::ops::{Add, Sub};
#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A moment on the boot-time clock. It means nothing to another machine, and nothing after a reboot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// How long ago `earlier` was; zero if it is later than this.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Nanoseconds since the clock's origin, for an atomic; enough for 584 years.
    pub(crate) fn nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn from_nanos(nanos: u64) -> Self {
        Self(Duration::from_nanos(nanos))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at the end of time.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    /// Saturates at the clock's origin.
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instant({:?})", self.0)
    }
}

/// Smaller differences between the two clocks come from reading them one after the other; taking those over
/// would make time jump back and forth.
const SUSPEND_GRAIN: Duration = Duration::from_millis(10);

/// The clock of a coordinator. Clones are the same clock.
#[derive(Clone)]
pub struct Clock(Arc<Source>);

enum Source {
    /// The kernel's boot-time clock.
    Boot,
    /// Tokio's clock, which may be paused, plus the time spent suspended.
    Tokio { origin: tokio::time::Instant, wall: SystemTime, suspended: Mutex<Suspended> },
}

/// INVARIANT: `taken` and `simulated` only grow, so the clock never goes back.
struct Suspended {
    initial: Duration,
    /// What tokio's clock showed when the time spent suspended was last read.
    read_at: Option<Duration>,
    taken: Duration,
    simulated: Duration,
}

impl Clock {
    /// The kernel's boot-time clock.
    pub fn boot() -> Self {
        Self(Arc::new(Source::Boot))
    }

    /// Tokio's clock of the runtime that polls, plus the time spent suspended. With a paused clock it shows
    /// virtual time, and [`Clock::wall`] counts from `wall`.
    pub fn tokio(wall: SystemTime) -> Self {
        let initial = time_suspended();
        Self(Arc::new(Source::Tokio {
            origin: tokio::time::Instant::now(),
            wall,
            suspended: Mutex::new(Suspended {
                initial,
                read_at: None,
                taken: initial,
                simulated: Duration::ZERO,
            }),
        }))
    }

    /// The clock for the caller's runtime.
    pub(crate) fn current() -> Self {
        Self::tokio(SystemTime::now())
    }

    /// Now.
    pub fn now(&self) -> Instant {
        match &*self.0 {
            Source::Boot => Instant(boot_time()),
            Source::Tokio { origin, suspended, .. } => {
                let mut suspended = suspended.lock().unwrap_or_else(PoisonError::into_inner);
                // An origin of its own keeps differences representable: nothing is ever before zero.
                let passed = origin.elapsed();
                // A clock that has not moved since is a virtual one at rest: no machine falls asleep and wakes within
                // a nanosecond, and asking the kernel was a tenth of what a simulation cost.
                if suspended.read_at.replace(passed) != Some(passed) {
                    let seen = time_suspended();
                    if seen > suspended.taken + SUSPEND_GRAIN {
                        suspended.taken = seen;
                    }
                }
                let slept = suspended.taken.saturating_sub(suspended.initial) + suspended.simulated;
                Instant(passed + slept)
            }
        }
    }

    /// The wall clock, for timestamps that people read; nothing is decided by it.
    pub fn wall(&self) -> SystemTime {
        match &*self.0 {
            Source::Boot => SystemTime::now(),
            Source::Tokio { wall, .. } => *wall + self.now().0,
        }
    }

    /// Simulation: lets `duration` pass as if the machine had been suspended, so that no timer notices.
    /// Without effect on the real boot-time clock.
    pub fn simulate_suspend(&self, duration: Duration) {
        if let Source::Tokio { suspended, .. } = &*self.0 {
            suspended.lock().unwrap_or_else(PoisonError::into_inner).simulated += duration;
        }
    }

    /// Whether it is the kernel's clock and no timer of it can be virtual.
    pub(crate) fn is_boot(&self) -> bool {
        matches!(*self.0, Source::Boot)
    }
}

/// An instant at which something ends by itself.
#[derive(Clone, Debug)]
pub struct Deadline {
    at: Instant,
    clock: Clock,
}

impl Deadline {
    pub(crate) fn new(at: Instant, clock: Clock) -> Self {
        Self { at, clock }
    }

    /// How long it is until then; zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.at.saturating_since(self.clock.now())
    }

    /// Whether it has passed.
    pub fn has_passed(&self) -> bool {
        self.remaining().is_zero()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_boot() { "Clock(boot)" } else { "Clock(tokio)" })
    }
}

#[cfg(target_os = "linux")]
fn read(clock: nix::time::ClockId) -> Duration {
    // The two clocks used here exist on every Linux since 2.6.39 and cannot fail.
    nix::time::clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

#[cfg(target_os = "linux")]
fn boot_time() -> Duration {
    read(nix::time::ClockId::CLOCK_BOOTTIME)
}

/// How far apart two readings of one clock may be for a reading of the other between them to belong to them.
#[cfg(target_os = "linux")]
const TOGETHER: Duration = Duration::from_millis(1);

#[cfg(target_os = "linux")]
fn time_suspended() -> Duration {
    // A thread that is put off between two readings sees the time until it goes on as time suspended; on a busy
    // machine that is many milliseconds, and the clock would never give them back.
    for _ in 0..16 {
        let before = read(nix::time::ClockId::CLOCK_MONOTONIC);
        let boot = boot_time();
        let after = read(nix::time::ClockId::CLOCK_MONOTONIC);
        if after.saturating_sub(before) <= TOGETHER {
            return boot.saturating_sub(after);
        }
    }
    // Never together: too little is corrected by the next reading, too much by none.
    let boot = boot_time();
    boot.saturating_sub(read(nix::time::ClockId::CLOCK_MONOTONIC))
}

// Elsewhere `std::time::Instant` is the best there is; on macOS it counts no suspend.
#[cfg(not(target_os = "linux"))]
fn boot_time() -> Duration {
    static ORIGIN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    ORIGIN.get_or_init(std::time::Instant::now).elapsed()
}

#[cfg(not(target_os = "linux"))]
fn time_suspended() -> Duration {
    Duration::ZERO
}

/// A longer sleep of tokio's would notice a suspend late by this much.
const SLICE: Duration = Duration::from_millis(250);

/// Sleeps until moments on the boot-time clock; made once and used again, since the keeper re-arms it often.
#[derive(Debug)]
pub(crate) struct Sleeper {
    clock: Clock,
    #[cfg(target_os = "linux")]
    timer: Option<BootTimer>,
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct BootTimer {
    fd: tokio::io::unix::AsyncFd<TimerFd>,
    armed: Option<Instant>,
}

/// `AsyncFd` asks for a raw descriptor too, which nix's type does not offer.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct TimerFd(nix::sys::timerfd::TimerFd);

#[cfg(target_os = "linux")]
impl AsRawFd for TimerFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Sleeper {
    /// Must be made on the runtime that polls it.
    pub(crate) fn new(clock: Clock) -> Self {
        #[cfg(target_os = "linux")]
        let timer = clock.is_boot().then(BootTimer::new).flatten();
        Self {
            clock,
            #[cfg(target_os = "linux")]
            timer,
        }
    }

    /// Returns when `moment` has come, never when it is `None`. Cancel-safe.
    pub(crate) async fn until(&mut self, moment: Option<Instant>) {
        let Some(moment) = moment else { return std::future::pending().await };
        #[cfg(target_os = "linux")]
        if let Some(timer) = &mut self.timer {
            while self.clock.now() < moment {
                if timer.wait(moment).await.is_err() {
                    break; // the timer cannot be armed: sleep in slices instead
                }
            }
        }
        loop {
            let left = moment.saturating_since(self.clock.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(SLICE)).await;
        }
    }
}

#[cfg(target_os = "linux")]
impl BootTimer {
    fn new() -> Option<Self> {
        use nix::sys::timerfd::{ClockId, TimerFlags};
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        // Out of file descriptors: slices of tokio's timer do, too.
        let fd = nix::sys::timerfd::TimerFd::new(ClockId::CLOCK_BOOTTIME, flags).ok()?;
        // Deprecated since tokio 1.54 for types that do not keep their descriptor open as long as they live
        // (tokio-rs/tokio#8587); ours owns it, and the replacement needs unsafe code.
        #[allow(deprecated)]
        let fd = tokio::io::unix::AsyncFd::new(TimerFd(fd)).ok()?;
        Some(Self { fd, armed: None })
    }

    async fn wait(&mut self, moment: Instant) -> std::io::Result<()> {
        use nix::sys::time::TimeSpec;
        use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};
        if self.armed != Some(moment) {
            self.armed = None;
            self.fd.get_ref().0.set(
                Expiration::OneShot(TimeSpec::from_duration(moment.0)),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            )?;
            self.armed = Some(moment);
        }
        let mut ready = self.fd.readable().await?;
        // Setting the timer again clears its readiness in the kernel; tokio's copy is cleared here.
        self.armed = None;
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn simulated_suspend_moves_the_clock_but_no_timer() {
        let clock = Clock::tokio(SystemTime::UNIX_EPOCH);
        let start = clock.now();
        clock.simulate_suspend(Duration::from_mins(1));
        assert_eq!(clock.now().saturating_since(start), Duration::from_mins(1));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(clock.wall(), SystemTime::UNIX_EPOCH + Duration::from_secs(61));
    }

    #[tokio::test]
    async fn the_boot_timer_wakes_again_and_again() {
        let clock = Clock::boot();
        let mut sleeper = Sleeper::new(clock.clone());
        for _ in 0..3 {
            let moment = clock.now() + Duration::from_millis(20);
            sleeper.until(Some(moment)).await;
            assert!(clock.now() >= moment);
            sleeper.until(Some(moment)).await; // past: at once
        }
    }

    #[tokio::test]
    async fn a_cancelled_sleep_does_not_wake_the_next_one_early() {
        let clock = Clock::boot();
        let mut sleeper = Sleeper::new(clock.clone());
        let short = clock.now() + Duration::from_millis(5);
        let long = clock.now() + Duration::from_millis(60);
        tokio::select! {
            biased;
            () = sleeper.until(Some(short)) => {}
            () = std::future::ready(()) => {}
        }
        sleeper.until(Some(long)).await;
        assert!(clock.now() >= long);
    }
}
