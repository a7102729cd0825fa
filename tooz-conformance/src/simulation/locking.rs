//! Locks in all modes, leaderships, and breaking them.

use std::num::NonZeroU32;

use tooz_core::driver::LockMode;
use tooz_core::{Leadership, Lock, LockGuard};

use super::worker::Worker;
use super::world::{Patience, leader_of, mode_of, outcome_of, patiently};
use crate::history::{Answer, Asked, Outcome};

/// `x` is held exclusive and shared, the others only exclusive: those can be linearized.
const LOCKS: [&str; 3] = ["x", "y", "z"];
const PERMITS: NonZeroU32 = NonZeroU32::new(2).unwrap();

impl Worker {
    pub(super) async fn use_lock(&self) {
        let name = self.rng.one_of(&LOCKS).unwrap_or("x");
        let Ok(lock) = self.coordinator.lock(name) else { return };
        if self.rng.one_in(12) {
            let asked = Asked::Break(self.world.recorder.name(name));
            let broken = lock.break_lock("the simulation says so");
            self.perform(asked, self.patience(), broken, |_| Answer::Done).await;
            return;
        }
        if self.rng.one_in(12) {
            let asked = Asked::Other("holders");
            self.perform(asked, self.patience(), lock.holders(), |_| Answer::Done).await;
            return;
        }
        if name == "x" && self.rng.one_in(2) {
            self.acquire(&lock.shared(), name, LockMode::Shared).await;
        } else {
            self.acquire(&lock, name, LockMode::Exclusive).await;
        }
    }

    pub(super) async fn use_permit(&self) {
        let Ok(lock) = self.coordinator.lock("p").and_then(|lock| lock.permits(PERMITS.get())) else {
            return;
        };
        self.acquire(&lock, "p", LockMode::Permit { limit: PERMITS }).await;
    }

    async fn acquire(&self, lock: &Lock, name: &str, mode: LockMode) {
        let way = self.rng.below(3);
        let lock_name = self.world.recorder.name(name);
        let asked = Asked::Acquire { lock: lock_name, mode: mode_of(mode), waits: way == 0 };
        let limit = self.rng.millis(1, 2_000);
        let trying = async {
            match way {
                0 => lock.acquire().await.map(Some),
                1 => lock.try_acquire().await,
                _ => lock.acquire_within(limit).await,
            }
        };
        let (id, result) = self.perform(asked, self.patience(), trying, granted).await;
        let Some(Ok(Some(guard))) = result else { return };
        self.world.believes(id, guard.loss_signal());
        self.hold(&guard.loss_signal()).await;
        self.give_back(id, guard, LockGuard::release).await;
    }

    /// Two locks together; each is an operation of its own in the history.
    pub(super) async fn use_set(&self) {
        let Ok(set) = self.coordinator.lock_all(["z", "y", "z"]) else { return };
        let limit = self.rng.millis(1, 2_000);
        // A set that waits for its second lock holds its first: without a limit it would look like a lost grant.
        let trying = self.rng.one_in(2);
        let asked = |name: &str| Asked::Acquire {
            lock: self.world.recorder.name(name),
            mode: mode_of(LockMode::Exclusive),
            waits: false,
        };
        let ids = [self.world.called(&self.me, asked("y")), self.world.called(&self.me, asked("z"))];
        let acquiring =
            async { if trying { set.try_acquire().await } else { set.acquire_within(limit).await } };
        let result = patiently(self.patience(), acquiring).await;
        let outcomes: Vec<Outcome> = match &result {
            Some(Ok(Some(guards))) => guards
                .guards()
                .iter()
                .map(|guard| Outcome::Ok(Answer::Granted(guard.token().get())))
                .collect(),
            // Which of them was held is not said; that nothing is left behind is seen elsewhere.
            Some(Ok(None)) => vec![Outcome::Ok(Answer::NotGranted); 2],
            Some(Err(error)) => vec![outcome_of(error); 2],
            None => vec![Outcome::Unknown; 2],
        };
        for (id, outcome) in ids.iter().zip(outcomes) {
            self.world.returned(&self.me, *id, outcome);
        }
        let Some(Ok(Some(guards))) = result else { return };
        for (id, guard) in ids.iter().zip(guards.guards()) {
            self.world.believes(*id, guard.loss_signal());
        }
        if let Some(first) = guards.guards().first() {
            self.hold(&first.loss_signal()).await;
        }
        for id in ids {
            self.world.believes_no_more(id);
        }
        let release = Asked::Other("release of a set");
        self.perform(release, self.patience(), guards.release(), |()| Answer::Done).await;
    }

    pub(super) async fn lead(&self) {
        let Ok(election) = self.coordinator.election("g") else { return };
        let lock = self.world.recorder.name(&leader_of("g"));
        if self.rng.one_in(10) {
            let broken = election.break_leadership("the simulation says so");
            self.perform(Asked::Break(lock), self.patience(), broken, |_| Answer::Done).await;
            return;
        }
        if self.rng.one_in(6) {
            self.observe(&election).await;
            return;
        }
        let (way, limit) = (self.rng.below(3), self.rng.millis(1, 2_000));
        let asked = Asked::Acquire { lock, mode: mode_of(LockMode::Exclusive), waits: way == 0 };
        let running = async {
            match way {
                0 => election.campaign().await.map(Some),
                1 => election.try_campaign().await,
                _ => election.campaign_within(limit).await,
            }
        };
        let won = |leadership: &Option<Leadership>| match leadership {
            Some(leadership) => Answer::Granted(leadership.term().get()),
            None => Answer::Held,
        };
        // A campaign without limit that nobody gives up would wait for a leader who was elected by a hook.
        let patience = match (way, self.patience()) {
            (0, Patience::Endless) => Patience::Until(u64::MAX, self.rng.millis(1_000, 5_000)),
            (_, patience) => patience,
        };
        let (id, result) = self.perform(asked, patience, running, won).await;
        let Some(Ok(Some(leadership))) = result else { return };
        self.world.believes(id, leadership.loss_signal());
        self.hold(&leadership.loss_signal()).await;
        self.give_back(id, leadership, Leadership::resign).await;
    }
}

#[allow(clippy::ref_option)] // as the operations answer it
fn granted(guard: &Option<LockGuard>) -> Answer {
    match guard {
        Some(guard) => Answer::Granted(guard.token().get()),
        None => Answer::Held,
    }
}
