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
mod lock_break;
mod lock_ends;
mod lock_loss;
mod locks;
mod locks_many;
mod locks_queue;
mod locks_shared;
mod names;
mod order;
mod prelude;
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
