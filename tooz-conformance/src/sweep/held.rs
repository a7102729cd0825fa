//! What a scene takes, and that it is free again.

use std::time::Duration;

use tooz_core::{Coordinator, Leadership, LockGuard, LockSetGuard, LossReason, LossSignal, Lost, Result};

use super::point::Point;
use crate::tools::{Outcome, ensure, eventually};

/// What is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Lock,
    Shared,
    Permit,
    Set,
    Leadership,
}

/// How long it is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Forever,
    Try,
    Within(Duration),
}

/// What was taken.
pub(super) enum Held {
    Lock(LockGuard),
    Set(LockSetGuard),
    Leadership(Leadership),
}

impl Held {
    pub(super) async fn give_back(self) -> Result<()> {
        match self {
            Self::Lock(guard) => guard.release().await.map(drop),
            Self::Set(guards) => guards.release().await,
            Self::Leadership(leadership) => leadership.resign().await.map(drop),
        }
    }

    pub(super) fn is_held(&self) -> bool {
        match self {
            Self::Lock(guard) => guard.is_held(),
            Self::Set(guards) => guards.is_held(),
            Self::Leadership(leadership) => leadership.is_held(),
        }
    }

    /// Of the contested lock.
    pub(super) fn signal(&self) -> Option<LossSignal> {
        match self {
            Self::Lock(guard) => Some(guard.loss_signal()),
            Self::Set(guards) => guards.guards().iter().map(LockGuard::loss_signal).nth(1),
            Self::Leadership(leadership) => Some(leadership.loss_signal()),
        }
    }

    pub(super) async fn lost(&self) -> LossReason {
        match self {
            Self::Lock(guard) => guard.lost().await,
            Self::Set(guards) => guards.lost().await,
            Self::Leadership(leadership) => leadership.lost().await,
        }
    }

    pub(super) async fn run<F: Future>(&self, work: F) -> Result<F::Output, Lost<F::Output>> {
        match self {
            Self::Lock(guard) => guard.run(work).await,
            Self::Set(guards) => guards.run(work).await,
            Self::Leadership(leadership) => leadership.run(work).await,
        }
    }
}

/// The contested lock: in a set the middle one, so that one stands before it and one behind.
pub(super) fn contested(name: &str) -> String {
    format!("{name}-m")
}

fn names(what: What, name: &str) -> Vec<String> {
    match what {
        What::Set => ["a", "m", "z"].map(|part| format!("{name}-{part}")).to_vec(),
        _ => vec![contested(name)],
    }
}

pub(super) async fn take(c: &Coordinator, what: What, how: How, name: &str) -> Result<Option<Held>> {
    let lock = c.lock(contested(name))?;
    let lock = match what {
        What::Shared => lock.shared(),
        What::Permit => lock.permits(2)?,
        _ => lock,
    };
    let (set, election) = (c.lock_all(names(what, name))?, c.election(name)?);
    Ok(match (what, how) {
        (What::Set, How::Forever) => Some(Held::Set(set.acquire().await?)),
        (What::Set, How::Try) => set.try_acquire().await?.map(Held::Set),
        (What::Set, How::Within(limit)) => set.acquire_within(limit).await?.map(Held::Set),
        (What::Leadership, How::Forever) => Some(Held::Leadership(election.campaign().await?)),
        (What::Leadership, How::Try) => election.try_campaign().await?.map(Held::Leadership),
        (What::Leadership, How::Within(limit)) => {
            election.campaign_within(limit).await?.map(Held::Leadership)
        }
        (_, How::Forever) => Some(Held::Lock(lock.acquire().await?)),
        (_, How::Try) => lock.try_acquire().await?.map(Held::Lock),
        (_, How::Within(limit)) => lock.acquire_within(limit).await?.map(Held::Lock),
    })
}

/// Held by `c`, so that no other can have what is to be taken.
pub(super) async fn held_by(c: &Coordinator, what: What, name: &str) -> Outcome<Held> {
    let what = if what == What::Leadership { what } else { What::Lock };
    let held = take(c, what, How::Try, name).await?;
    held.ok_or_else(|| format!("{name} is not free to begin with").into())
}

/// The same, all of it.
pub(super) async fn all_held_by(c: &Coordinator, what: What, name: &str) -> Outcome<Held> {
    let held = take(c, what, How::Try, name).await?;
    held.ok_or_else(|| format!("{name} is not free to begin with").into())
}

/// It can be had at once, by another coordinator and by the same one, and no attempt waits for it.
pub(super) async fn ensure_free(p: &Point, what: What) -> Outcome {
    p.world().nothing_stands()?;
    // On the virtual clock it is free now, or it is left behind.
    let limit = if p.h().is_virtual() { Duration::ZERO } else { p.h().limit(Duration::from_millis(100)) };
    for c in [p.b(), p.a()] {
        let at_once = async || {
            let Some(held) = take(c, what, How::Try, p.name()).await? else { return Ok(false) };
            held.give_back().await?;
            Ok::<_, tooz_core::Error>(true)
        };
        if limit.is_zero() {
            ensure(at_once().await?, format!("\"{}\" cannot have it", c.member()))?;
        } else {
            eventually(&format!("\"{}\" can have it", c.member()), limit, at_once).await?;
        }
    }
    for name in names(what, p.name()) {
        let holders = p.b().lock(name)?.holders().await?;
        ensure(holders.holders.is_empty(), format!("still held: {holders:?}"))?;
        ensure(holders.waiters.unwrap_or(0) == 0, format!("somebody still waits: {holders:?}"))?;
    }
    ensure(p.b().election(p.name())?.leader().await?.is_none(), "somebody still leads")?;
    p.world().nothing_stands()
}
