//! The cancellation sweep: every future of the core's public API, dropped at every point (L6).
//!
//! An **operation** is a public function that has to be awaited, or a public type that can be. A **scene** puts one in a
//! situation (the lock is free, it is handed over just now, the session is being opened again, …) under **conditions**
//! (the backend is slow, an answer is lost, …). A **point** is one run of a scene with names of its own, in which the
//! future is dropped after its n-th poll, or when it has been woken after it and before it sees why; a scene is swept
//! when the future ended by itself. After each point what the operation promises is asserted, and that the next caller
//! succeeds at once: on the virtual clock at the very instant that the contract names, elsewhere soon.
//!
//! # How it is known that every point was hit
//!
//! Three things could be forgotten, and each makes a test fail.
//!
//! - *An operation.* [`source::operations`] reads them in the core's source; they are compared with those of the scenes.
//! - *An await inside the core.* [`source::awaits`] reads them, too. While a future is polled for the last time before it
//!   is dropped, the stack is looked at whenever something in it says "not yet": a call of the memory driver, which lets
//!   others go first by waking its caller at once, or a wait of the core's own, all of which pass one function of
//!   `tooz-core` (in `platform/await_point.rs`) that emits a trace event. The lines of the core on that stack are the awaits at which the future is
//!   dropped. An await at which no future was ever dropped is an error, unless the table in `tests/it/sweep.rs` says why no
//!   caller can be there. The core carries no marks at its awaits, and nothing is switched on in it.
//! - *That leaks would be seen.* With the hand-over of unfinished calls switched off
//!   (`Coordinator::simulate_abandon`) scenes have to fail; which ones stands in `SWEEP.md`.
//!
//! `SWEEP.md` holds the outcome. The numbers are those of the virtual clock, on which a run is the same every time; on a
//! real one it is only certain that every point up to the end was passed.

mod acquire;
mod call;
mod conditions;
mod coordinators;
mod groups;
mod guards;
mod held;
mod hooks;
mod point;
mod scene;
pub mod source;
mod stack;
mod views;
mod watches;
mod world;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use scene::Scene;
pub use scene::Swept;
pub use stack::Line;

use crate::target::{Target, Time};

/// Which operations are swept.
pub fn operations() -> BTreeSet<&'static str> {
    scenes().iter().map(|scene| scene.operation).collect()
}

fn scenes() -> Vec<Scene> {
    [
        acquire::scenes(),
        guards::scenes(),
        groups::scenes(),
        watches::scenes(),
        views::scenes(),
        hooks::scenes(),
        coordinators::scenes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Sweeps every operation against a target, on the virtual clock where it can.
///
/// `abandons`: with the hand-over of unfinished calls switched off; then a scene ends with its first failure.
pub fn run(target: &Target, abandons: bool) -> Vec<Swept> {
    let time = if target.can_virtual_clock() { Time::Virtual } else { Time::Real };
    let memory = target.name().starts_with("memory");
    let scenes: Vec<_> = scenes().into_iter().filter(|scene| scene.fits(memory, target.has_ttl())).collect();
    let (queue, swept) = (Mutex::new(scenes.into_iter().rev().collect::<Vec<_>>()), Mutex::new(Vec::new()));
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    // On a real clock they mostly wait.
    let threads = if time == Time::Virtual { cores } else { cores * 2 };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let Some(scene) = next else { return };
                    let one = scene.sweep(target, time, abandons);
                    swept.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                }
            });
        }
    });
    let mut swept = swept.into_inner().unwrap_or_else(PoisonError::into_inner);
    swept.sort_by(|one, other| (one.operation, &one.scene).cmp(&(other.operation, &other.scene)));
    swept
}
