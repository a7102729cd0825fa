//! Runs of the watchers: what is read of the groups with hooks, and the hooks of what has changed.
//!
//! Events are the differences, by incarnation, between what is read of a group and what was read of it before. A stream of
//! changes only tells a run that waits when to read again: what it delivers may have been read already, or not yet, and
//! nothing in it says which.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream as _;

use crate::driver::{LockKey, LockMode, MemberRecord};
use crate::session::acquire::{Patience, acquire};
use crate::session::call::{Reads, members};
use crate::session::events::Event;
use crate::session::hook_registry::{Callback, HookEvent, HookId, HookKind, HookRegistry};
use crate::session::live::GrantState;
use crate::session::release::release;
use crate::session::state::Shared;
use crate::watch::{GroupEvent, GroupWatch};
use crate::{Error, ErrorKind, GroupId, MemberId, Result};

#[derive(Default)]
struct Running {
    /// Every group that join or leave hooks wait for, and those of hooks that went since the last run.
    watched: BTreeMap<GroupId, WatchedGroup>,
    leading: BTreeMap<GroupId, Arc<GrantState>>,
}

struct WatchedGroup {
    /// The members as they were last read, which is what hooks were told.
    known: BTreeMap<MemberId, MemberRecord>,
    /// Tells when to read again; opened by the first run that waits.
    watch: Option<GroupWatch>,
}

/// The hooks, and what was read of their groups.
#[derive(Default)]
pub(crate) struct Watchers {
    pub(crate) hooks: HookRegistry,
    /// One run at a time.
    running: tokio::sync::Mutex<Running>,
}

impl Watchers {
    /// The coordinator has ended: hooks that hold a handle of it must not keep it, nor watches the backend's.
    pub(crate) fn end(&self) {
        self.hooks.clear();
        if let Ok(mut running) = self.running.try_lock() {
            running.watched.clear();
        }
    }

    /// The turn to use what was read, which a run of the watchers has as long as it waits.
    async fn turn(&self, shared: &Shared) -> Result<tokio::sync::MutexGuard<'_, Running>> {
        let turn = shared.limited(shared.config.limits.operation_timeout, self.running.lock()).await;
        turn.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "run_watchers is running; register hooks before it, or give it a shorter timeout",
            )
        })
    }

    /// Registers a hook; for joins and leaves the group is read once, so that members who are there already give no
    /// event.
    pub(crate) async fn register(
        &self,
        shared: &Shared,
        kind: HookKind,
        group: GroupId,
        callback: Callback,
    ) -> Result<HookId> {
        if kind == HookKind::Elected {
            return Ok(self.hooks.add(kind, group, callback));
        }
        let mut running = self.turn(shared).await?;
        running.forget_unwanted(&self.hooks);
        if !running.watched.contains_key(&group) {
            let mut watched = WatchedGroup { known: BTreeMap::new(), watch: None };
            watched.replace(&group, members(shared.reader(), &group).await?);
            running.watched.insert(group.clone(), watched);
        }
        // INVARIANT: added while it has the turn, or a run in between would forget the group again.
        Ok(self.hooks.add(kind, group, callback))
    }

    /// Reads these groups and runs the hooks of what has changed since they were read before. Where one cannot be read no hook
    /// runs, and the next look finds everything.
    async fn look(
        &self,
        shared: &Arc<Shared>,
        running: &mut Running,
        groups: &[GroupId],
    ) -> Result<Vec<HookEvent>> {
        let reads = groups.iter().map(|group| async move {
            match members(shared.reader(), group).await {
                // It was deleted. Its members, when it exists again, have joined since.
                Err(error) if error.kind() == ErrorKind::GroupNotFound => Ok(Vec::new()),
                read => read,
            }
        });
        let read = together(reads).await.into_iter().collect::<Result<Vec<_>>>()?;
        // INVARIANT: nothing is awaited from here on. What is known was told, even if the run is dropped.
        let mut events = Vec::new();
        for (group, members) in groups.iter().zip(read) {
            if let Some(watched) = running.watched.get_mut(group) {
                events.extend(watched.replace(group, members));
            }
        }
        for event in &events {
            self.run_hooks(shared, event);
        }
        Ok(events)
    }

    /// Waits for a first event, and runs its hooks.
    async fn wait(&self, shared: &Arc<Shared>, running: &mut Running) -> Result<Vec<HookEvent>> {
        loop {
            let mut groups = open(shared, running).await?;
            if groups.is_empty() {
                // A watch begins with a view, so what came between reading and opening is looked at.
                groups = hear(running).await?;
            }
            let events = self.look(shared, running, &groups).await?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    /// Runs the hooks of what has happened, and runs for the elections that have hooks. If there was nothing, waits up to
    /// `timeout` for a first event.
    pub(crate) async fn run(&self, shared: &Arc<Shared>, timeout: Duration) -> Result<Vec<HookEvent>> {
        shared.check()?;
        let mut running = self.turn(shared).await?;
        let running = &mut *running;
        let groups = running.forget_unwanted(&self.hooks);
        // What was pushed so far is in what is read now.
        for (group, watched) in &mut running.watched {
            if let Err(error) = poll_fn(|cx| Poll::Ready(watched.hear(cx))).await {
                tracing::warn!(%group, %error, "a watch failed; a run that waits opens it again");
            }
        }
        let events = self.look(shared, running, &groups).await?;
        let events = self.elect(shared, running, events).await?;
        if !events.is_empty() || timeout.is_zero() || groups.is_empty() {
            return Ok(events);
        }
        shared.limited(timeout, self.wait(shared, running)).await.unwrap_or(Ok(events))
    }

    pub(crate) async fn run_for_leader(&self, shared: &Arc<Shared>) -> Result<Vec<HookEvent>> {
        shared.check()?;
        let mut running = self.turn(shared).await?;
        self.elect(shared, &mut running, Vec::new()).await
    }

    /// Runs for leader where hooks wait for it, after `events` that ran already.
    async fn elect(
        &self,
        shared: &Arc<Shared>,
        running: &mut Running,
        mut events: Vec<HookEvent>,
    ) -> Result<Vec<HookEvent>> {
        let wanted = self.hooks.groups(|kind| kind == HookKind::Elected);
        running.leading.retain(|_, state| state.loss().is_none());
        for group in wanted {
            if running.leading.contains_key(&group) {
                continue;
            }
            let key = LockKey::Leader(group.clone());
            let state = match acquire(shared, key, LockMode::Exclusive, Patience::None).await {
                Ok(state) => state,
                // What ran already is the answer; this one is tried again at the next call.
                Err(error) if !events.is_empty() => {
                    tracing::warn!(%group, %error, "running for leader failed");
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(state) = state {
                let term = state.grant.token.into();
                running.leading.insert(group.clone(), state);
                let event = HookEvent::Elected { group, member: shared.config.member.clone(), term };
                self.run_hooks(shared, &event);
                events.push(event);
            }
        }
        Ok(events)
    }

    /// Gives up a leadership that the elected hooks won; answers whether there was one.
    pub(crate) async fn stand_down(&self, shared: &Arc<Shared>, group: &GroupId) -> Result<bool> {
        shared.check()?;
        let state = self.turn(shared).await?.leading.remove(group);
        match state {
            Some(state) => {
                let led = state.loss().is_none();
                release(shared, &state).await?;
                Ok(led)
            }
            None => Ok(false),
        }
    }

    fn run_hooks(&self, shared: &Shared, event: &HookEvent) {
        let (kind, group) = match event {
            HookEvent::Joined { group, .. } => (HookKind::Join, group),
            HookEvent::Left { group, .. } => (HookKind::Leave, group),
            HookEvent::Elected { group, .. } => (HookKind::Elected, group),
        };
        for callback in self.hooks.callbacks(kind, group) {
            let error = match catch_unwind(AssertUnwindSafe(|| callback(event))) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it panicked".to_owned(),
            };
            tracing::error!(%group, ?kind, %error, "a hook failed");
            shared
                .publish(Event::HookFailed { error: format!("{kind:?} hook of group \"{group}\": {error}") });
        }
    }
}

impl Running {
    /// Forgets groups whose last hook is gone. Answers the others.
    fn forget_unwanted(&mut self, hooks: &HookRegistry) -> Vec<GroupId> {
        let wanted = hooks.groups(|kind| kind != HookKind::Elected);
        self.watched.retain(|group, _| wanted.contains(group));
        wanted
    }
}

impl WatchedGroup {
    /// Takes `members` for what is known, and answers how they differ from what was.
    fn replace(&mut self, group: &GroupId, members: Vec<MemberRecord>) -> Vec<HookEvent> {
        let now = members.into_iter().map(|member| (member.member.clone(), member)).collect();
        let before = std::mem::replace(&mut self.known, now);
        let another = |member: &MemberRecord, there: &BTreeMap<MemberId, MemberRecord>| {
            there.get(&member.member).is_none_or(|there| there.incarnation != member.incarnation)
        };
        let left = before.values().filter(|member| another(member, &self.known));
        let left = left.map(|member| HookEvent::Left { group: group.clone(), member: member.clone() });
        let joined = self.known.values().filter(|member| another(member, &before));
        let joined = joined.map(|member| HookEvent::Joined { group: group.clone(), member: member.clone() });
        left.chain(joined).collect()
    }

    /// Takes all that was pushed; returns whether members may have joined or left.
    fn hear(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        let mut news = false;
        while let Some(watch) = &mut self.watch {
            match Pin::new(watch).poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(GroupEvent::Updated(member)))) => {
                    let known = self.known.get_mut(&member.member);
                    // Not worth reading the group for: a member that leaves is shown with what it published last.
                    if let Some(known) = known.filter(|known| known.incarnation == member.incarnation) {
                        *known = member;
                    }
                }
                Poll::Ready(Some(Ok(_))) => news = true,
                Poll::Ready(Some(Err(error))) => {
                    self.watch = None;
                    return Err(error);
                }
                Poll::Ready(None) => {
                    self.watch = None;
                    news = true;
                }
            }
        }
        Ok(news)
    }
}

/// Awaits all of them at the same time.
async fn together<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(move |cx| {
        for (future, output) in futures.iter_mut().zip(&mut outputs).filter(|(_, output)| output.is_none()) {
            if let Poll::Ready(ready) = future.as_mut().poll(cx) {
                *output = Some(ready);
            }
        }
        if outputs.iter().any(Option::is_none) {
            return Poll::Pending;
        }
        Poll::Ready(outputs.drain(..).flatten().collect())
    })
    .await
}

/// Opens the watches that are missing. Answers the groups that went since they were read.
async fn open(shared: &Arc<Shared>, running: &mut Running) -> Result<Vec<GroupId>> {
    let missing = running.watched.iter_mut().filter(|(_, watched)| watched.watch.is_none());
    let opened = missing.map(|(group, watched)| async move {
        match GroupWatch::open(shared.reader(), group, None).await {
            Ok(watch) => watched.watch = Some(watch),
            Err(error) if error.kind() == ErrorKind::GroupNotFound => {
                return Ok((!watched.known.is_empty()).then(|| group.clone()));
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    });
    let opened = together(opened).await.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(opened.into_iter().flatten().collect())
}

/// Waits until members may have joined or left; returns the groups.
async fn hear(running: &mut Running) -> Result<Vec<GroupId>> {
    poll_fn(|cx| {
        let mut groups = Vec::new();
        for (group, watched) in &mut running.watched {
            if watched.hear(cx)? {
                groups.push(group.clone());
            }
        }
        if groups.is_empty() { Poll::Pending } else { Poll::Ready(Ok(groups)) }
    })
    .await
}
