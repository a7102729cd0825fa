//! How long the operations take.

use std::time::Duration;

use tooz::driver::{Clock, Instant};
use tooz::{Capabilities, Coordinator, Error, Group};

use crate::backend::{any_builder, random_suffix};
use crate::exit::Failure;
use crate::lock::unless_signaled;
use crate::run::Signals;
use crate::settings::Backend;

/// Connecting is measured again only where it is faster than this. Past an endpoint that does not answer it takes seconds.
const SLOW: Duration = Duration::from_secs(1);

/// How long the operations took, and the first that failed.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) times: Times,
    pub(super) failed: Option<(&'static str, Error)>,
}

/// How long each operation took, once per round.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) connect: Vec<Duration>,
    lock: Vec<Duration>,
    group: Vec<Duration>,
    members: Vec<Duration>,
    beat: Vec<Duration>,
    list: Vec<Duration>,
    /// The time from one beat to the next, where sessions have a ttl.
    pub(super) due: Option<Duration>,
}

impl Times {
    /// How often the operations were measured; connecting may have been measured less often.
    pub(super) fn rounds(&self) -> usize {
        [&self.connect, &self.lock, &self.list].map(Vec::len).into_iter().max().unwrap_or(0)
    }

    /// The median of each, under its name.
    pub(super) fn medians(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let median = |times: &Vec<Duration>| {
            let mut times = times.clone();
            times.sort_unstable();
            times.get(times.len() / 2).copied()
        };
        [
            ("connect", median(&self.connect)),
            ("acquire+release", median(&self.lock)),
            ("join+leave", median(&self.group)),
            ("members", median(&self.members)),
            ("beat", median(&self.beat)),
            ("list", median(&self.list)),
        ]
        .into_iter()
        .filter_map(|(name, time)| Some((name, time?)))
    }
}

/// Measures what writes nothing.
pub(super) async fn without_writing(backend: &Backend, rounds: u32) -> Measured {
    let mut times = Times::default();
    let failed = list(backend, rounds, &mut times).await.err();
    Measured { times, failed }
}

async fn list(backend: &Backend, rounds: u32, times: &mut Times) -> Result<(), (&'static str, Error)> {
    let clock = Clock::boot();
    for _ in 0..rounds {
        if times.connect.iter().any(|took| *took >= SLOW) {
            break;
        }
        let begun = clock.now();
        let viewer = any_builder(backend).view().await.map_err(|error| ("connect", error))?;
        times.connect.push(clock.now().saturating_since(begun));
        let begun = clock.now();
        let listed = viewer.groups().await;
        times.list.push(clock.now().saturating_since(begun));
        let _ = viewer.close().await;
        listed.map_err(|error| ("list", error))?;
    }
    Ok(())
}

/// Connects; also returns how long that took.
pub(super) async fn connect(
    signals: &mut Signals,
    backend: &Backend,
) -> Result<Result<(Coordinator, Duration), Error>, Failure> {
    let clock = Clock::boot();
    let begun = clock.now();
    let connected = unless_signaled(signals, any_builder(backend).connect()).await?;
    Ok(connected.map(|coordinator| (coordinator, clock.now().saturating_since(begun))))
}

/// Measures every operation, removes what that made, also after a signal, and closes.
pub(super) async fn every_operation(
    signals: &mut Signals,
    (coordinator, took): (Coordinator, Duration),
    backend: &Backend,
    rounds: u32,
) -> Result<Measured, Failure> {
    let mut times = Times { connect: vec![took], ..Times::default() };
    let group = coordinator.group(format!("tooz-doctor-{}", random_suffix()))?;
    let clock = Clock::boot();
    let measured = measure(&coordinator, &group, backend, rounds, &clock, &mut times);
    let measured = unless_signaled(signals, measured).await;
    // What cannot be removed ends with the session.
    let _ = group.leave().await;
    let _ = group.delete().await;
    let _ = coordinator.close().await;
    Ok(Measured { failed: measured?.err(), times })
}

/// Measures every operation once per round, under the group's own random name.
async fn measure(
    coordinator: &Coordinator,
    group: &Group,
    backend: &Backend,
    rounds: u32,
    clock: &Clock,
    times: &mut Times,
) -> Result<(), (&'static str, Error)> {
    let since = |begun: Instant| clock.now().saturating_since(begun);
    // Below `tmp` Python tooz has no locks, so the file driver makes no file there, which would stay.
    let name = [b"tmp/", group.id().as_bytes()].concat();
    let lock = coordinator.lock(name).map_err(|error| ("acquire", error))?;
    group.create().await.map_err(|error| ("create", error))?;
    for round in 0..rounds {
        if round > 0 && times.connect.iter().all(|took| *took < SLOW) {
            // Another member id, since this coordinator uses ours.
            let other = any_builder(&backend.of_another_member());
            let begun = clock.now();
            let other = other.connect().await.map_err(|error| ("connect", error))?;
            times.connect.push(since(begun));
            let _ = other.close().await;
        }
        let begun = clock.now();
        let guard = lock.acquire().await.map_err(|error| ("acquire", error))?;
        guard.release().await.map_err(|error| ("release", error))?;
        times.lock.push(since(begun));
        let begun = clock.now();
        group.join(Capabilities::none()).await.map_err(|error| ("join", error))?;
        let joined = since(begun);
        let begun = clock.now();
        group.members().await.map_err(|error| ("members", error))?;
        times.members.push(since(begun));
        let begun = clock.now();
        group.leave().await.map_err(|error| ("leave", error))?;
        times.group.push(joined + since(begun));
        let begun = clock.now();
        times.due = coordinator.heartbeat().await.map_err(|error| ("beat", error))?;
        times.beat.push(since(begun));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_each_operation() {
        let times = Times {
            beat: [5, 1, 9].map(Duration::from_millis).into(),
            connect: vec![Duration::from_millis(2)],
            ..Times::default()
        };
        let medians: Vec<_> = times.medians().collect();
        assert_eq!(medians, [("connect", Duration::from_millis(2)), ("beat", Duration::from_millis(5))]);
    }
}
