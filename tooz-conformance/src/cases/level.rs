//! Short words for promises at the driver's level.

use std::sync::Arc;

use tooz_core::LockName;
use tooz_core::driver::{Acquire, Acquired, AttemptId, Grant, LockKey, LockMode, Place, Session};

use crate::case::Outcome;
use crate::harness::random;

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
pub(super) async fn queued(session: &Arc<dyn Session>, name: &str, shared: bool) -> Outcome<Place> {
    match session.locks().request(&request(name, shared)?).await? {
        Acquired::Queued(place) => Ok(place),
        other => Err(format!("not queued, but {other:?}").into()),
    }
}
