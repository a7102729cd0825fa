//! The members of a run: connected, crashed, closed, and connected again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tooz_core::{Builder, Coordinator, ErrorKind, Event, Result, Runtime};
use tooz_memory::Cut;

use super::rng::Rng;
use super::worker::{Crowd, Wish, Worker};
use super::world::{Task, World, locked};
use crate::history::{Name, Record};

/// How a coordinator connects.
pub(super) struct Connector {
    pub(super) url: String,
    pub(super) ttl: Option<Duration>,
    /// Tasks of each coordinator.
    pub(super) tasks: u64,
    /// Whether the members' clocks stand still while the machine is suspended; the backend's goes on.
    pub(super) clocks_stop: bool,
}

impl Connector {
    pub(super) async fn connect(&self, title: &str, seed: u64) -> Result<Coordinator> {
        self.builder(title, seed).connect().await
    }

    pub(super) fn builder(&self, title: &str, seed: u64) -> Builder {
        let builder = Coordinator::builder(&self.url, title)
            .driver(tooz_memory::REGISTRATION)
            .runtime(Runtime::Current)
            .seed(seed)
            // Short, so that little virtual time passes until everything is at rest.
            .operation_timeout(Duration::from_secs(2))
            .connect_timeout(Duration::from_secs(2))
            .close_timeout(Duration::from_secs(2))
            .option("initial_reconnect_backoff", "50ms")
            .option("max_reconnect_backoff", "1s");
        match self.ttl {
            Some(ttl) => builder.ttl(ttl),
            None => builder,
        }
    }
}

/// One member that is there.
struct Participant {
    coordinator: Coordinator,
    crowd: Arc<Crowd>,
    workers: Vec<Task>,
    listener: Task,
}

/// All participants, by their index among the members.
pub(super) struct Participants {
    connector: Connector,
    /// Brings the backend's clock. It is no member's and does nothing.
    observer: Coordinator,
    there: BTreeMap<usize, Participant>,
}

impl Participants {
    pub(super) fn new(connector: Connector, observer: Coordinator) -> Self {
        Self { connector, observer, there: BTreeMap::new() }
    }

    pub(super) fn observer(&self) -> &Coordinator {
        &self.observer
    }

    /// All clocks jump at once: it is one machine.
    pub(super) fn suspend(&self, time: Duration) {
        self.observer.simulate_suspend(time);
        if self.connector.clocks_stop {
            return;
        }
        for participant in self.there.values() {
            participant.coordinator.simulate_suspend(time);
        }
    }

    /// Connects a member, again and again until it is let in.
    pub(super) async fn enter(&mut self, world: &Arc<World>, rng: &Rng, index: usize) {
        let Some(me) = world.members.get(index).cloned() else { return };
        let coordinator = loop {
            match self.connector.connect(&me.0, rng.seed()).await {
                Ok(coordinator) => break coordinator,
                Err(error) => world.note(&me.0, format_args!("not connected: {:?}", error.kind())),
            }
            tokio::time::sleep(rng.millis(50, 500)).await;
        };
        world.note(&me.0, format_args!("connected"));
        world.stands(me.1);
        let crowd = Arc::new(Crowd::default());
        let mut events = coordinator.events();
        let (listening, wanting, (title, name)) = (Arc::clone(world), Arc::clone(&crowd), me.clone());
        let listener = Task::spawn(async move {
            while let Some(event) = events.next().await {
                listening.note(&title, format_args!("{event:?}"));
                if let Event::Rejoined(_) = &event {
                    listening.stands(name);
                }
                if let Event::GroupDeleted(group) = &event {
                    let group = listening.recorder.name(&group.to_string());
                    locked(&wanting.wanted).entry(group).or_default().wish = Wish::Open;
                }
            }
        });
        let worker = |_| {
            let (world, me, coordinator) = (Arc::clone(world), me.clone(), coordinator.clone());
            let worker = Worker { world, me, rng: rng.split(), coordinator, crowd: Arc::clone(&crowd) };
            worker.work()
        };
        let workers = (0..self.connector.tasks).map(|number| Task::spawn(worker(number))).collect();
        self.there.insert(index, Participant { coordinator, crowd, workers, listener });
    }

    /// A member's process ends without a word: nothing of it reaches the backend any more.
    pub(super) async fn crash(&mut self, world: &Arc<World>, rng: &Rng, index: usize) {
        let (Some(member), Some(participant)) = (world.members.get(index), self.there.remove(&index)) else {
            return;
        };
        world.note(&member.0, format_args!("crashes"));
        world.cut_off(member, Cut::Hang);
        drop(participant.workers);
        drop(participant.listener);
        locked(&participant.crowd.followers).clear();
        drop(participant.coordinator);
        // Longer than close_timeout: then the last of it is gone, as it is at once when a process dies.
        tokio::time::sleep(Duration::from_secs(2) + rng.millis(10, 2_000)).await;
        world.heal(member);
        self.enter(world, rng, index).await;
    }

    /// A member closes its coordinator, with work under way.
    pub(super) async fn close(&mut self, world: &Arc<World>, rng: &Rng, index: usize) {
        let (Some(member), Some(participant)) = (world.members.get(index), self.there.remove(&index)) else {
            return;
        };
        let result = participant.coordinator.close().await;
        world.closed(member, &result);
        drop(participant);
        tokio::time::sleep(rng.millis(10, 1_000)).await;
        self.enter(world, rng, index).await;
    }

    /// Waits until every task has come to its end.
    pub(super) async fn come_to_rest(&mut self, world: &World) {
        let limit = Duration::from_mins(1);
        for (index, participant) in &mut self.there {
            for (number, worker) in participant.workers.drain(..).enumerate() {
                if tokio::time::timeout(limit, worker).await.is_err() {
                    let title = world.members.get(*index).map_or("?", |(title, _)| title);
                    world.wrong("L8", format!("task {number} of {title} never came to its end"));
                }
            }
        }
    }

    /// Checks that every participant is a member of exactly the groups that it wanted, as the backend sees it.
    pub(super) fn check_membership(&self, world: &World, real: &BTreeMap<Name, Vec<Record>>) {
        for (index, participant) in &self.there {
            let Some((title, member)) = world.members.get(*index) else { continue };
            for (group, wanted) in &*locked(&participant.crowd.wanted) {
                let Some(members) = real.get(group) else { continue };
                let record = members.iter().find(|record| record.member == *member);
                let right = match (wanted.wish, record) {
                    _ if wanted.changing > 0 => true,
                    (Wish::Open, _) | (Wish::Out, None) | (Wish::In(None), Some(_)) => true,
                    (Wish::In(Some(value)), Some(record)) => record.value == value,
                    (Wish::Out, Some(_)) | (Wish::In(_), None) => false,
                };
                if !right {
                    let group = world.recorder.read(|history| history.name(*group).to_owned());
                    let what = format!("{title} in {group}: {record:?}, and it was told {:?}", wanted.wish);
                    world.wrong("S7", what);
                }
            }
        }
    }

    /// Closes all participants, one after the other.
    pub(super) async fn leave(&mut self, world: &World) {
        for participant in self.there.values() {
            for watch in &*locked(&participant.crowd.watches) {
                world.recorder.at_rest(*watch);
            }
        }
        for (index, participant) in std::mem::take(&mut self.there) {
            locked(&participant.crowd.followers).clear();
            let Some(member) = world.members.get(index) else { continue };
            let title = &member.0;
            let result = participant.coordinator.close().await;
            world.closed(member, &result);
            // A lost answer to the last call is planned now and then; anything else is a refusal to close.
            if let Err(error) = result
                && error.kind() != ErrorKind::Unavailable
            {
                world.wrong("S3", format!("{title} could not be closed: {error}"));
            }
        }
    }
}
