//! What went wrong elsewhere, played again: each case is named after the public thread that tells its story, and
//! stands in `docs/incidents.md`.

mod breaking;
mod cancelling;
mod dying;
mod leading;
mod losing;
mod naming;
mod queueing;
mod steps;
mod watching;

use crate::case::Case;

/// Every table of this folder.
pub(super) const TABLES: &[&[Case]] = &[
    losing::CASES,
    dying::CASES,
    queueing::CASES,
    cancelling::CASES,
    breaking::CASES,
    leading::CASES,
    watching::CASES,
    naming::CASES,
];

/// The source of this folder's cases.
pub(super) const SOURCES: &[&str] = &[
    include_str!("losing.rs"),
    include_str!("dying.rs"),
    include_str!("queueing.rs"),
    include_str!("cancelling.rs"),
    include_str!("breaking.rs"),
    include_str!("leading.rs"),
    include_str!("watching.rs"),
    include_str!("naming.rs"),
];
