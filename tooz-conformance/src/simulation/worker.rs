//! One task of a member: does one thing after the other and records it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tooz_core::{Coordinator, LossSignal, Released, Result};

use super::rng::Rng;
use super::world::{Patience, Task, World, locked, outcome_of, patiently};
use crate::history::{Answer, Asked, Name, OperationId, Outcome};

/// What the tasks of one coordinator share.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// Tasks that follow watches and observers.
    pub(super) followers: Mutex<Vec<Task>>,
    /// Watches that still go on.
    pub(super) watches: Mutex<BTreeSet<usize>>,
    /// Of which groups this coordinator is to be a member.
    pub(super) wanted: Mutex<BTreeMap<Name, Wanted>>,
    pub(super) hooks: Mutex<Hooks>,
}

#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) wish: Wish,
    /// Changes under way, and whether there were two at once.
    pub(super) changing: u32,
    pub(super) mixed: bool,
}

/// What a coordinator was told about its own membership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Wish {
    /// It is no member.
    #[default]
    Out,
    /// It is a member, and publishes this where that is known.
    In(Option<u64>),
    /// Nobody can know.
    Open,
}

/// The elected hook, if there is one, and the operation that it would answer.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    pub(super) elected: bool,
    pub(super) running: Option<OperationId>,
}

pub(super) struct Worker {
    pub(super) world: Arc<World>,
    pub(super) me: (String, Name),
    pub(super) rng: Rng,
    pub(super) coordinator: Coordinator,
    pub(super) crowd: Arc<Crowd>,
}

impl Worker {
    pub(super) async fn work(self) {
        while !self.world.over() {
            let turn: Pin<Box<dyn Future<Output = ()> + '_>> = match self.rng.below(20) {
                0..=7 => Box::pin(self.use_lock()),
                8 => Box::pin(self.use_permit()),
                9 | 10 => Box::pin(self.use_set()),
                11 | 12 => Box::pin(self.lead()),
                13..=16 => Box::pin(self.change_group()),
                17 => Box::pin(self.follow()),
                18 => Box::pin(self.run_hooks()),
                _ => Box::pin(self.look_around()),
            };
            turn.await;
            tokio::time::sleep(self.rng.millis(0, 300)).await;
        }
        self.stand_down().await;
    }

    /// One in four callers gives up: at the n-th wake-up, or after a while.
    pub(super) fn patience(&self) -> Patience {
        if self.rng.one_in(4) {
            Patience::Until(self.rng.below(8) + 1, self.rng.millis(1, 3_000))
        } else {
            Patience::Endless
        }
    }

    /// Performs one operation and records it.
    pub(super) async fn perform<T>(
        &self,
        asked: Asked,
        patience: Patience,
        future: impl Future<Output = Result<T>>,
        answer: impl FnOnce(&T) -> Answer,
    ) -> (OperationId, Option<Result<T>>) {
        let id = self.world.called(&self.me, asked);
        let result = patiently(patience, future).await;
        let outcome = match &result {
            Some(Ok(value)) => Outcome::Ok(answer(value)),
            Some(Err(error)) => outcome_of(error),
            None => {
                self.world.cancelled.fetch_add(1, Ordering::Relaxed);
                Outcome::Unknown
            }
        };
        self.world.returned(&self.me, id, outcome);
        (id, result)
    }

    /// Holds something for a while, sometimes until it is lost.
    pub(super) async fn hold(&self, signal: &LossSignal) {
        let time = match self.rng.below(14) {
            0 => Duration::ZERO,
            1 => self.rng.millis(5_000, 16_000),
            _ => self.rng.millis(1, 800),
        };
        tokio::select! {
            biased; // whoever is told stops
            _ = signal.wait() => {}
            () = tokio::time::sleep(time) => {}
        }
        self.world.ask_everybody();
    }

    /// Gives a hold back, by release or by drop.
    pub(super) async fn give_back<G, F>(&self, id: OperationId, guard: G, release: impl FnOnce(G) -> F)
    where
        F: Future<Output = Result<Released>>,
    {
        self.world.believes_no_more(id);
        if self.rng.one_in(5) {
            self.world.note(&self.me.0, format_args!("drops #{}", id.0));
            drop(guard);
            return;
        }
        let answer = |released: &Released| match released {
            Released::Released => Answer::Done,
            Released::WasNotHolder => Answer::WasNotHolder,
        };
        self.perform(Asked::Release { hold: id }, self.patience(), release(guard), answer).await;
    }

    async fn look_around(&self) {
        let c = &self.coordinator;
        if self.rng.one_in(3) {
            let beat = Asked::Other("heartbeat");
            self.perform(beat, self.patience(), c.heartbeat(), |_| Answer::Done).await;
            return;
        }
        let listed = |groups: &Vec<tooz_core::GroupId>| {
            Answer::Groups(groups.iter().map(|group| self.world.recorder.name(&group.to_string())).collect())
        };
        self.perform(Asked::List, self.patience(), c.groups(), listed).await;
    }

    /// Keeps a task of this coordinator for as long as the coordinator lives.
    pub(super) fn keep(&self, task: Task) {
        locked(&self.crowd.followers).push(task);
    }
}
