//! The cases, by family. The name of a function is the id of its case; the first line of its doc comment names
//! the clauses of the contract that it tests.

mod cancel;
mod election;
mod errors;
mod files;
mod groups;
mod heart;
mod hooks;
mod incidents;
mod level;
mod lock_break;
mod lock_ends;
mod lock_loss;
mod locks;
mod locks_many;
mod locks_queue;
mod locks_shared;
mod names;
mod order;
mod processes;
mod reconnect;
mod runtimes;
mod session;
mod tokens;
mod unknown;
mod views;
mod watch;

use crate::case::Case;

/// Every case.
pub fn all() -> Vec<Case> {
    let families = [
        session::CASES,
        heart::CASES,
        reconnect::CASES,
        runtimes::CASES,
        processes::CASES,
        groups::CASES,
        names::CASES,
        locks::CASES,
        tokens::CASES,
        locks_many::CASES,
        locks_queue::CASES,
        locks_shared::CASES,
        lock_ends::CASES,
        lock_loss::CASES,
        lock_break::CASES,
        cancel::CASES,
        unknown::CASES,
        election::CASES,
        watch::CASES,
        views::CASES,
        hooks::CASES,
        order::CASES,
        errors::CASES,
        files::CASES,
    ];
    [&families[..], incidents::TABLES].concat().concat()
}

/// The cases' source, in which their doc comments stand.
pub fn sources() -> Vec<&'static str> {
    [SOURCES, incidents::SOURCES].concat()
}

const SOURCES: &[&str] = &[
    include_str!("session.rs"),
    include_str!("heart.rs"),
    include_str!("reconnect.rs"),
    include_str!("runtimes.rs"),
    include_str!("processes.rs"),
    include_str!("groups.rs"),
    include_str!("names.rs"),
    include_str!("locks.rs"),
    include_str!("tokens.rs"),
    include_str!("locks_many.rs"),
    include_str!("locks_queue.rs"),
    include_str!("locks_shared.rs"),
    include_str!("lock_ends.rs"),
    include_str!("lock_loss.rs"),
    include_str!("lock_break.rs"),
    include_str!("cancel.rs"),
    include_str!("unknown.rs"),
    include_str!("election.rs"),
    include_str!("watch.rs"),
    include_str!("views.rs"),
    include_str!("hooks.rs"),
    include_str!("order.rs"),
    include_str!("errors.rs"),
    include_str!("files.rs"),
];

/// Stays where it is while others run: long enough for a second holder to come in, if one is let in.
pub(crate) async fn linger() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// What nearly every case uses.
mod prelude {
    pub(super) use std::time::Duration;

    pub(super) use tooz_core::driver::{End, LockMode, Previous, Released};
    pub(super) use tooz_core::{
        Capabilities, Characteristics, Coordinator, Error, ErrorKind, Event, GroupEvent, Liveness, LockGuard,
        LossReason, Lost, Result,
    };

    pub(super) use crate::case::{Case, Outcome, case};
    pub(super) use crate::harness::Harness;
    pub(super) use crate::tools::{ensure, eventually, within};

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
}
