//! Groups, watches, observers and hooks.

use std::future::Future;
use std::sync::Arc;

use tooz_core::{Capabilities, Election, ErrorKind, GroupEvent, HookEvent};

use super::worker::{Wish, Worker};
use super::world::{Patience, Task, World, leader_of, locked, outcome_of, patiently};
use crate::history::{Answer, Asked, Mode, Name, OperationId, Outcome, Record, Seen};

/// Two names that a careless backend takes for one.
pub(super) const GROUPS: [&str; 2] = ["g", "G"];

impl Worker {
    pub(super) async fn change_group(&self) {
        let title = self.rng.one_of(&GROUPS).unwrap_or("g");
        let Ok(group) = self.coordinator.group(title) else { return };
        let name = self.world.recorder.name(title);
        let value = self.world.value();
        let Ok(published) = Capabilities::new(&value) else { return };
        let patience = self.patience();
        match self.rng.below(12) {
            0 => drop(self.perform(Asked::Create(name), patience, group.create(), |()| Answer::Done).await),
            1 => drop(self.perform(Asked::Delete(name), patience, group.delete(), |()| Answer::Done).await),
            2..=5 => {
                let either = self.rng.one_in(3);
                let joining = async {
                    if either { group.join(published).await } else { group.join_or_create(published).await }
                };
                let before = self.changing(name);
                let (_, result) =
                    self.perform(Asked::Join(name, value), patience, joining, |()| Answer::Done).await;
                // Whoever was refused as a member already stays what he was; everybody else who did not get his
                // answer is no member.
                let after = match result {
                    Some(Ok(())) => Wish::In(Some(value)),
                    Some(Err(error)) if error.kind() == ErrorKind::MemberExists => before,
                    _ if before == Wish::Out => Wish::Out,
                    _ => Wish::Open,
                };
                self.changed(name, after);
            }
            6 | 7 => {
                let before = self.changing(name);
                let (_, result) =
                    self.perform(Asked::Leave(name), patience, group.leave(), |()| Answer::Done).await;
                let after = match result {
                    Some(Ok(())) => Wish::Out,
                    _ if before == Wish::Out => Wish::Out,
                    _ => Wish::Open,
                };
                self.changed(name, after);
            }
            8 | 9 => {
                let before = self.changing(name);
                let updating = group.update_capabilities(published);
                let asked = Asked::Update(name, value);
                let (_, result) = self.perform(asked, patience, updating, |()| Answer::Done).await;
                let after = match (before, result) {
                    (Wish::In(_), Some(Ok(()))) => Wish::In(Some(value)),
                    (Wish::In(_), Some(Err(error))) if error.is_indeterminate() => Wish::In(None),
                    (Wish::In(_), None) => Wish::In(None),
                    (before, _) => before,
                };
                self.changed(name, after);
            }
            _ => {
                let Some((title, member)) =
                    self.world.members.get(usize::try_from(self.rng.below(3)).unwrap_or(0))
                else {
                    return;
                };
                let reading = async {
                    match group.member(title).await {
                        Ok(record) => Ok(Some(self.world.record_of(&record).value)),
                        Err(error)
                            if matches!(
                                error.kind(),
                                ErrorKind::MemberNotFound | ErrorKind::GroupNotFound
                            ) =>
                        {
                            Ok(None)
                        }
                        Err(error) => Err(error),
                    }
                };
                let answer = |value: &Option<u64>| Answer::Value(*value);
                self.perform(Asked::Read(name, *member), patience, reading, answer).await;
            }
        }
    }

    /// A change of membership begins; answers what was wanted before.
    fn changing(&self, group: Name) -> Wish {
        let mut wanted = locked(&self.crowd.wanted);
        let wanted = wanted.entry(group).or_default();
        wanted.changing += 1;
        wanted.mixed |= wanted.changing > 1;
        if wanted.mixed { Wish::Open } else { wanted.wish }
    }

    fn changed(&self, group: Name, wish: Wish) {
        if let Some(wanted) = locked(&self.crowd.wanted).get_mut(&group) {
            wanted.changing -= 1;
            // Two at once: which came last cannot be known.
            wanted.wish = if wanted.mixed { Wish::Open } else { wish };
            wanted.mixed &= wanted.changing > 0;
        }
    }

    pub(super) async fn follow(&self) {
        let title = self.rng.one_of(&GROUPS).unwrap_or("g");
        let Ok(group) = self.coordinator.group(title) else { return };
        if locked(&self.crowd.watches).len() >= 2 {
            return;
        }
        let (_, result) =
            self.perform(Asked::Other("watch"), self.patience(), group.watch(), |_| Answer::Done).await;
        let Some(Ok(mut watch)) = result else { return };
        let place = self.world.recorder.watches(self.me.1, self.world.recorder.name(title));
        locked(&self.crowd.watches).insert(place);
        let (world, crowd, me) = (Arc::clone(&self.world), Arc::clone(&self.crowd), self.me.0.clone());
        let slow = self.rng.one_in(4).then(|| self.rng.split());
        self.keep(Task::spawn(async move {
            while let Some(Ok(event)) = watch.next().await {
                let seen = seen(&world, &event);
                world.note(&me, format_args!("watch {place}: {seen:?}"));
                world.recorder.seen(place, seen);
                if matches!(event, GroupEvent::Deleted) {
                    break;
                }
                if let Some(rng) = &slow {
                    tokio::time::sleep(rng.millis(0, 300)).await;
                }
            }
            locked(&crowd.watches).remove(&place);
        }));
    }

    pub(super) async fn observe(&self, election: &Election) {
        let observing = election.observe();
        let (_, result) =
            self.perform(Asked::Other("observe"), self.patience(), observing, |_| Answer::Done).await;
        let Some(Ok(mut observer)) = result else { return };
        let (world, me) = (Arc::clone(&self.world), self.me.0.clone());
        self.keep(Task::spawn(async move {
            let mut newest = 0;
            while let Some(Ok(leader)) = observer.next().await {
                let term = leader.and_then(|leader| leader.term).map(tooz_core::Term::get);
                world.note(&me, format_args!("observes term {term:?}"));
                if term.is_some_and(|term| term < newest) {
                    world.wrong("E3", format!("{me} observed term {term:?} after {newest}"));
                }
                newest = newest.max(term.unwrap_or(0));
            }
        }));
    }

    pub(super) async fn run_hooks(&self) {
        let c = &self.coordinator;
        if self.rng.one_in(3) {
            let (world, me) = (Arc::clone(&self.world), self.me.0.clone());
            let told = move |event: &HookEvent| {
                world.note(&me, format_args!("hook: {}", hooked(event)));
                Ok(())
            };
            let title = self.rng.one_of(&GROUPS).unwrap_or("g");
            let asked = Asked::Other("watch_join_group");
            let hook = c.hooks().watch_join_group(title, told);
            let (_, hook) = self.perform(asked, self.patience(), hook, |_| Answer::Done).await;
            if let Some(Ok(hook)) = hook {
                self.elected_by(c.hooks().run_watchers(self.rng.millis(0, 500))).await;
                if let Err(error) = c.hooks().unwatch_join_group(title, hook) {
                    self.world.wrong("W5", format!("a registered hook cannot be unregistered: {error}"));
                }
            }
            return;
        }
        if !std::mem::replace(&mut locked(&self.crowd.hooks).elected, true) {
            let (world, me, crowd) = (Arc::clone(&self.world), self.me.clone(), Arc::clone(&self.crowd));
            let told = move |event: &HookEvent| {
                let running = locked(&crowd.hooks).running.take();
                match (event, running) {
                    (HookEvent::Elected { term, .. }, Some(id)) => {
                        world.returned(&me, id, Outcome::Ok(Answer::Granted(term.get())));
                    }
                    _ => world.wrong("W5", format!("{} outside of run_watchers", hooked(event))),
                }
                Ok(())
            };
            let hook = c.hooks().watch_elected_as_leader("g", told);
            let asked = Asked::Other("watch_elected_as_leader");
            self.perform(asked, Patience::Endless, hook, |_| Answer::Done).await;
        }
        self.elected_by(c.hooks().run_elect_coordinator()).await;
        if self.rng.one_in(2) {
            tokio::time::sleep(self.rng.millis(1, 500)).await;
            self.stand_down().await;
        }
    }

    /// Runs what may elect this coordinator; one task at a time, since the hook cannot tell whose run it is.
    async fn elected_by(&self, run: impl Future<Output = tooz_core::Result<Vec<HookEvent>>>) {
        if locked(&self.crowd.hooks).running.is_some() {
            return;
        }
        let lock = self.world.recorder.name(&leader_of("g"));
        let asked = Asked::Acquire { lock, mode: Mode::Exclusive, waits: false };
        let id: OperationId = self.world.called(&self.me, asked);
        locked(&self.crowd.hooks).running = Some(id);
        let result = patiently(self.patience(), run).await;
        // Not taken by the hook: not elected.
        if locked(&self.crowd.hooks).running.take().is_some() {
            let outcome = match result {
                Some(Ok(_)) => Outcome::Ok(Answer::NotGranted),
                Some(Err(error)) => outcome_of(&error),
                None => Outcome::Unknown,
            };
            self.world.returned(&self.me, id, outcome);
        }
    }

    pub(super) async fn stand_down(&self) {
        let asked = Asked::Other("stand_down");
        self.perform(asked, Patience::Endless, self.coordinator.hooks().stand_down("g"), |_| Answer::Done)
            .await;
    }
}

fn hooked(event: &HookEvent) -> String {
    match event {
        HookEvent::Joined { group, member } => format!("{} joined {group}", member.member),
        HookEvent::Left { group, member } => format!("{} left {group}", member.member),
        HookEvent::Elected { group, term, .. } => format!("elected in {group}, term {term}"),
        other => format!("{other:?}"),
    }
}

fn seen(world: &World, event: &GroupEvent) -> Seen {
    let all =
        |records: &Vec<_>| -> Vec<Record> { records.iter().map(|record| world.record_of(record)).collect() };
    match event {
        GroupEvent::Snapshot(records) => Seen::Snapshot(all(records)),
        GroupEvent::Resync(records) => Seen::Resync(all(records)),
        GroupEvent::Joined(record) => Seen::Joined(world.record_of(record)),
        GroupEvent::Left(record, how) => Seen::Left(world.record_of(record), *how),
        GroupEvent::Updated(record) => Seen::Updated(world.record_of(record)),
        _ => Seen::Deleted,
    }
}
