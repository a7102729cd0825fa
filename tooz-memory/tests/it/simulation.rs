//! Many members, random calls, random cancellation, deaths and lost answers: what must hold holds, whatever the seed.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use tooz_core::driver::{
    Acquired, AttemptId, Driver, End, Entropy, Grant, LockMode, Released, Session, Turn,
};
use tooz_core::{ErrorKind, FencingToken};
use tooz_memory::{Kit, Operation, Outcome};

/// What all tasks know together, to compare the answers with.
#[derive(Default)]
struct World {
    attempts: Cell<u128>,
    /// Exclusive grants that were returned and not given back, and whose session nobody ended.
    exclusive: RefCell<Vec<FencingToken>>,
    highest: Cell<Option<FencingToken>>,
    grants: Cell<u32>,
    cancelled: Cell<u32>,
    expired: Cell<u32>,
}

struct Actor<'a> {
    world: &'a World,
    kit: &'a Kit,
    rng: &'a Entropy,
    name: String,
    driver: Arc<dyn Driver>,
    session: Arc<dyn Session>,
}

impl Actor<'_> {
    fn roll(&self, sides: u128) -> u128 {
        self.rng.id() % sides
    }

    fn one_of<T: Copy>(&self, choices: &[T]) -> T {
        let index = self.roll(choices.len() as u128);
        choices[usize::try_from(index).unwrap()]
    }

    async fn reopen(&mut self) {
        let request = opening(&self.name).after(Some(self.session.id()));
        self.session = loop {
            match self.driver.open_session(&request).await {
                Ok(session) => break session,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
            }
        };
    }

    /// As the core does: until it is Ok or the session is over.
    async fn withdraw(&self, attempt: AttemptId) {
        while self.session.locks().withdraw(&key("x"), attempt).await.is_err() {}
    }

    async fn acquire(&self, attempt: AttemptId, mode: LockMode) -> Option<Grant> {
        let request = ask(attempt.0, "x", mode);
        let place = match self.session.locks().request(&request).await {
            Ok(Acquired::Granted(grant)) => return Some(grant),
            Ok(Acquired::Queued(place)) => place,
            Ok(other) => panic!("{other:?}"),
            Err(_) => return None,
        };
        let patience = self.rng.between(Duration::from_millis(1), Duration::from_millis(200));
        match tokio::time::timeout(patience, self.session.locks().turn(&place)).await {
            Ok(Ok(Turn::Granted(grant))) => Some(grant),
            Ok(Ok(Turn::Gone) | Err(_)) => None,
            Ok(Ok(other)) => panic!("{other:?}"),
            Err(_) => {
                self.world.cancelled.set(self.world.cancelled.get() + 1);
                None
            }
        }
    }

    async fn round(&mut self) {
        let world = self.world;
        world.attempts.set(world.attempts.get() + 1);
        let attempt = AttemptId(world.attempts.get());
        let mode = if self.roll(3) == 0 { Shared } else { Exclusive };
        if self.roll(5) == 0 {
            let outcome = self.one_of(&[Outcome::Fail, Outcome::Indeterminate, Outcome::Lost]);
            let operation =
                self.one_of(&[Operation::Request, Operation::Turn, Operation::Release, Operation::Withdraw]);
            self.kit.next(operation, 1, outcome);
        }
        let Some(grant) = self.acquire(attempt, mode).await else {
            self.withdraw(attempt).await;
            return;
        };
        world.grants.set(world.grants.get() + 1);
        if mode == Exclusive {
            assert!(world.exclusive.borrow().is_empty(), "two exclusive holders: {grant:?}");
            assert!(Some(grant.token) > world.highest.get(), "{grant:?}");
            world.exclusive.borrow_mut().push(grant.token);
        }
        world.highest.set(world.highest.get().max(Some(grant.token)));
        tokio::time::sleep(self.rng.between(Duration::ZERO, Duration::from_millis(20))).await;
        world.exclusive.borrow_mut().retain(|token| *token != grant.token);
        if self.roll(10) == 0 {
            world.expired.set(world.expired.get() + 1);
            assert_eq!(self.kit.expire(&self.name), 1);
            assert_ne!(self.session.locks().release(&grant, End::Clean).await.ok(), Some(Released::Released));
            self.reopen().await;
            return;
        }
        if self.session.locks().release(&grant, End::Clean).await.is_err() {
            self.withdraw(attempt).await;
        }
    }
}

async fn run(url: &str, seed: u64) {
    let (world, rng, kit) = (World::default(), Entropy::seeded(seed), Kit::of(url).unwrap());
    let mut actors = Vec::new();
    for index in 0..6 {
        let name = format!("m{index}");
        let (driver, session) = member(&format!("{url}&yield_seed={seed}"), &name).await;
        actors.push(Actor { world: &world, kit: &kit, rng: &rng, name, driver, session });
    }
    let play = async |actor: &mut Actor<'_>| {
        for _ in 0..40 {
            actor.round().await;
        }
    };
    let [one, two, three, four, five, six] = actors.as_mut_slice() else { unreachable!("there are six") };
    soon(async { tokio::join!(play(one), play(two), play(three), play(four), play(five), play(six)) }).await;
    assert_eq!(
        (kit.held(), kit.queued(), kit.sessions(), kit.hanging()),
        (0, 0, 6, 0),
        "left behind with seed {seed}"
    );
    // A run in which nothing happened would prove nothing.
    assert!(world.grants.get() > 20, "seed {seed}: {} grants", world.grants.get());
    assert!(world.cancelled.get() > 0 && world.expired.get() > 0, "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn exclusion_order_and_cleanliness_hold_for_every_seed() {
    for seed in 0..50 {
        run(&format!("memory://simulation-{seed}?namespace=s"), seed).await;
    }
}

/// The simulation is worth nothing unless it notices.
#[tokio::test(start_paused = true)]
#[should_panic(expected = "two exclusive holders")]
async fn two_holders_are_noticed() {
    run("memory://simulated-two?fault=two-holders", 1).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "Grant {")]
async fn repeated_tokens_are_noticed() {
    run("memory://simulated-tokens?fault=token-repeats", 1).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "left behind")]
async fn leaks_are_noticed() {
    run("memory://simulated-leak?fault=cancel-leaks", 1).await;
}
