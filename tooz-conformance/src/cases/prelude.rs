//! What nearly every case uses.

pub(super) use std::time::Duration;

use std::sync::Arc;

use tooz_core::LockName;
use tooz_core::driver::{Acquire, Acquired, AttemptId, Grant, LockKey, QueueEntry, Session};
pub(super) use tooz_core::driver::{End, LockMode, Previous, Released};
pub(super) use tooz_core::{
    Capabilities, Characteristics, Coordinator, Departure, Error, ErrorKind, Event, GroupEvent, Liveness,
    LockGuard, LossReason, Lost, Result,
};

pub(super) use crate::case::{Case, case};
pub(super) use crate::harness::Harness;
pub(super) use crate::tools::{Outcome, ensure, eventually, linger, within};

use crate::tools::random;

pub(super) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A success of tooz's own result, for tasks, whose type nothing else says.
#[allow(clippy::unnecessary_wraps)] // that is what it is for
pub(super) fn fine<T>(value: T) -> Result<T> {
    Ok(value)
}

/// The error, which has to be of this kind.
pub(super) fn refused<T>(result: Result<T>, kind: ErrorKind) -> Outcome<Error> {
    match result {
        Ok(_) => Err(format!("it went well where {kind:?} was due").into()),
        Err(error) if error.kind() == kind => Ok(error),
        Err(error) => Err(format!("{kind:?} was due, not {:?}: {error}", error.kind()).into()),
    }
}

/// The lock, which has to be free.
pub(super) async fn taken(coordinator: &Coordinator, name: &str) -> Outcome<LockGuard> {
    let guard = coordinator.lock(name)?.try_acquire().await?;
    guard.ok_or_else(|| format!("lock {name} is not free").into())
}

/// The lock, which must not be free.
pub(super) async fn held_by_another(coordinator: &Coordinator, name: &str) -> Outcome {
    match coordinator.lock(name)?.try_acquire().await? {
        None => Ok(()),
        Some(_) => Err(format!("lock {name} was granted beside its holder").into()),
    }
}

/// The ids of a group's members.
pub(super) async fn ids(coordinator: &Coordinator, group: &str) -> Result<Vec<String>> {
    let members = coordinator.group(group)?.members().await?;
    Ok(members.iter().map(|record| record.member.to_string()).collect())
}

/// Text as capabilities.
pub(super) fn caps(text: &str) -> Result<Capabilities> {
    Capabilities::new(text)
}

/// Waits for an event of the session; others may come before it.
pub(super) async fn event(
    events: &mut tooz_core::Events,
    limit: Duration,
    what: &str,
    matches: impl Fn(&Event) -> bool,
) -> Outcome<Event> {
    within(&format!("the event {what}"), limit, async {
        while let Some(event) = events.next().await {
            if matches(&event) {
                return Ok(event);
            }
        }
        Err(format!("the events ended before {what}").into())
    })
    .await?
}

fn request(name: &str, shared: bool) -> Outcome<Acquire> {
    let mode = if shared { LockMode::Shared } else { LockMode::Exclusive };
    Ok(Acquire::new(AttemptId(random()), LockKey::Named(LockName::new(name)?), mode))
}

/// A grant, which has to be given at once.
pub(super) async fn granted(session: &Arc<dyn Session>, name: &str, shared: bool) -> Outcome<Grant> {
    match session.locks().request(&request(name, shared)?).await? {
        Acquired::Granted(grant) => Ok(grant),
        other => Err(format!("not granted, but {other:?}").into()),
    }
}

/// A place in the queue.
pub(super) async fn queued(session: &Arc<dyn Session>, name: &str, shared: bool) -> Outcome<QueueEntry> {
    match session.locks().request(&request(name, shared)?).await? {
        Acquired::Queued(place) => Ok(place),
        other => Err(format!("not queued, but {other:?}").into()),
    }
}
