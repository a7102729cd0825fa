//! Callbacks under tooz's names, built on the streams: join, leave, elected. They run inside
//! [`Coordinator::run_watchers`](crate::Coordinator::run_watchers) and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use crate::driver::{LockKey, LockMode, MemberRecord};
use crate::group::watch;
use crate::guard::release;
use crate::heart::Event;
use crate::lock::{Patience, acquire};
use crate::shared::{Shared, poll_once};
use crate::tenure::GrantState;
use crate::watch::{GroupEvent, GroupWatch};
use crate::{Error, ErrorKind, GroupId, MemberId, Result, Term};

/// What a hook may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a hook is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HookEvent {
    /// Somebody joined a watched group; our own join counts.
    Joined {
        /// The group.
        group: GroupId,
        /// Who.
        member: MemberRecord,
    },
    /// Somebody left a watched group.
    Left {
        /// The group.
        group: GroupId,
        /// Who.
        member: MemberRecord,
    },
    /// This coordinator was elected.
    Elected {
        /// The group.
        group: GroupId,
        /// This coordinator's member id.
        member: MemberId,
        /// The term.
        term: Term,
    },
}

/// A registered hook, for unwatching it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HookId(u64);

/// What a hook waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HookKind {
    Join,
    Leave,
    Elected,
}

type Callback = Arc<dyn Fn(&HookEvent) -> Result<(), BoxError> + Send + Sync>;

struct Hook {
    id: HookId,
    kind: HookKind,
    group: GroupId,
    callback: Callback,
}

/// The hooks of a coordinator.
#[derive(Default)]
pub(crate) struct HookRegistry {
    hooks: Mutex<(u64, Vec<Hook>)>,
    /// What the hooks stand on; one run at a time.
    running: tokio::sync::Mutex<Running>,
}

#[derive(Default)]
struct Running {
    watched: BTreeMap<GroupId, Watched>,
    /// Taken out of the streams and not yet given to the hooks: a run that fails or is dropped loses none.
    events: Vec<HookEvent>,
    leading: BTreeMap<GroupId, Arc<GrantState>>,
}

struct Watched {
    watch: GroupWatch,
    known: BTreeMap<MemberId, MemberRecord>,
    started: bool,
}

impl fmt::Debug for HookRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HookRegistry({} hooks)", self.hooks().1.len())
    }
}

impl HookRegistry {
    fn hooks(&self) -> MutexGuard<'_, (u64, Vec<Hook>)> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, kind: HookKind, group: GroupId, callback: Callback) -> HookId {
        let mut hooks = self.hooks();
        hooks.0 += 1;
        let id = HookId(hooks.0);
        hooks.1.push(Hook { id, kind, group, callback });
        id
    }

    /// The coordinator has ended: hooks that hold a handle of it must not keep it, nor watches the backend's.
    pub(crate) fn end(&self) {
        let hooks = std::mem::take(&mut self.hooks().1);
        drop(hooks);
        if let Ok(mut running) = self.running.try_lock() {
            running.watched.clear();
        }
    }

    fn groups(&self, wanted: impl Fn(HookKind) -> bool) -> Vec<GroupId> {
        let hooks = self.hooks();
        let mut groups: Vec<_> = hooks.1.iter().filter(|h| wanted(h.kind)).map(|h| h.group.clone()).collect();
        groups.sort();
        groups.dedup();
        groups
    }

    fn callbacks(&self, kind: HookKind, group: &GroupId) -> Vec<Callback> {
        let hooks = self.hooks();
        let wanted = hooks.1.iter().filter(|hook| hook.kind == kind && hook.group == *group);
        wanted.map(|hook| Arc::clone(&hook.callback)).collect()
    }
}

/// The turn to use what the hooks stand on, which a run of the watchers has as long as it waits.
async fn running(shared: &Shared) -> Result<tokio::sync::MutexGuard<'_, Running>> {
    let turn = shared.limited(shared.config.operation_timeout, shared.hooks.running.lock()).await;
    turn.ok_or_else(|| {
        Error::new(
            ErrorKind::Unavailable,
            "the watchers are being run; register hooks before, or run them shorter",
        )
    })
}

/// Registers a hook; for joins and leaves the group is read once, so that members who are there already give no
/// event.
pub(crate) async fn register(
    shared: &Arc<Shared>,
    kind: HookKind,
    group: GroupId,
    callback: Callback,
) -> Result<HookId> {
    if kind != HookKind::Elected {
        let mut running = running(shared).await?;
        if !running.watched.contains_key(&group) {
            let mut watched =
                Watched { watch: watch(shared, &group, None).await?, known: BTreeMap::new(), started: false };
            // The snapshot comes first and at once: it is the baseline.
            let first = shared.limited(shared.config.operation_timeout, watched.watch.next()).await;
            match first {
                Some(Some(event)) => drop(watched.apply(&group, event?)),
                Some(None) => return Err(Error::new(ErrorKind::GroupNotFound, format!("group \"{group}\""))),
                None => return Err(shared.timed_out()),
            }
            running.watched.insert(group.clone(), watched);
        }
    }
    Ok(shared.hooks.add(kind, group, callback))
}

pub(crate) fn unregister(shared: &Shared, kind: HookKind, group: &GroupId, id: HookId) -> Result<()> {
    let mut hooks = shared.hooks.hooks();
    let before = hooks.1.len();
    hooks.1.retain(|hook| hook.id != id || hook.kind != kind || hook.group != *group);
    if hooks.1.len() == before {
        return Err(Error::new(ErrorKind::HookNotFound, format!("no such hook on group \"{group}\"")));
    }
    Ok(())
}

impl Watched {
    /// Folds an event in and answers what it means for hooks.
    fn apply(&mut self, group: &GroupId, event: GroupEvent) -> Vec<HookEvent> {
        let group = || group.clone();
        let mut events = Vec::new();
        match event {
            GroupEvent::Joined(member) => {
                self.known.insert(member.member.clone(), member.clone());
                events.push(HookEvent::Joined { group: group(), member });
            }
            GroupEvent::Left(member) => {
                self.known.remove(&member.member);
                events.push(HookEvent::Left { group: group(), member });
            }
            GroupEvent::Updated(member) => {
                self.known.insert(member.member.clone(), member);
            }
            GroupEvent::Snapshot(members) | GroupEvent::Resync(members) => {
                let now: BTreeMap<_, _> = members.into_iter().map(|m| (m.member.clone(), m)).collect();
                let before = std::mem::replace(&mut self.known, now);
                if self.started {
                    let same = |a: &MemberRecord, b: Option<&MemberRecord>| {
                        b.is_some_and(|b| a.incarnation == b.incarnation)
                    };
                    let left = before.values().filter(|m| !same(m, self.known.get(&m.member)));
                    events.extend(left.map(|m| HookEvent::Left { group: group(), member: m.clone() }));
                    let joined = self.known.values().filter(|m| !same(m, before.get(&m.member)));
                    events.extend(joined.map(|m| HookEvent::Joined { group: group(), member: m.clone() }));
                }
                self.started = true;
            }
            GroupEvent::Deleted => {
                let left = std::mem::take(&mut self.known).into_values();
                events.extend(left.map(|member| HookEvent::Left { group: group(), member }));
            }
        }
        events
    }
}

/// Takes what has come from all watched groups, without waiting.
async fn pending(shared: &Arc<Shared>, running: &mut Running) -> Result<()> {
    let wanted = shared.hooks.groups(|kind| kind != HookKind::Elected);
    running.watched.retain(|group, _| wanted.contains(group));
    for group in wanted {
        if running.watched.contains_key(&group) {
            continue;
        }
        // It was deleted; whoever is in it when it exists again has joined since.
        match watch(shared, &group, None).await {
            Ok(watch) => {
                let watched = Watched { watch, known: BTreeMap::new(), started: true };
                running.watched.insert(group, watched);
            }
            Err(error) if error.kind() == ErrorKind::GroupNotFound => {}
            Err(error) => return Err(error),
        }
    }
    let events = &mut running.events;
    let mut ended = Vec::new();
    let mut failed = None;
    for (group, watched) in &mut running.watched {
        loop {
            let polled = poll_once(pin!(watched.watch.next()).as_mut()).await;
            match polled {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(event))) => events.extend(watched.apply(group, event)),
                Poll::Ready(Some(Err(error))) => {
                    tracing::warn!(%group, %error, "a watch failed");
                    failed = Some(error);
                    ended.push(group.clone());
                    break;
                }
                Poll::Ready(None) => {
                    ended.push(group.clone());
                    break;
                }
            }
        }
    }
    for group in ended {
        running.watched.remove(&group);
    }
    match failed {
        // What the other groups said has been taken out of their streams and must not be lost.
        Some(error) if running.events.is_empty() => Err(error),
        _ => Ok(()),
    }
}

/// Waits until any watched group has something to say; it is kept for [`pending`].
async fn first(running: &mut Running) -> Option<(GroupId, Result<GroupEvent>)> {
    std::future::poll_fn(|cx| {
        for (group, watched) in &mut running.watched {
            if let Poll::Ready(Some(event)) = pin!(watched.watch.next()).poll(cx) {
                return Poll::Ready(Some((group.clone(), event)));
            }
        }
        Poll::Pending
    })
    .await
}

/// Runs the hooks of all pending events, waiting up to `timeout` for a first one; then runs for the elections
/// that have hooks.
pub(crate) async fn run_watchers(shared: &Arc<Shared>, timeout: Duration) -> Result<Vec<HookEvent>> {
    shared.check()?;
    let mut running = running(shared).await?;
    pending(shared, &mut running).await?;
    // With an election to run for there may be something to do at once: only a program of pure watchers waits.
    if running.events.is_empty() && !timeout.is_zero() && !running.watched.is_empty() {
        if let Some(Some((group, event))) = shared.limited(timeout, first(&mut running)).await {
            let running = &mut *running;
            if let Some(watched) = running.watched.get_mut(&group) {
                running.events.extend(watched.apply(&group, event?));
            }
        }
        pending(shared, &mut running).await?;
    }
    let events = std::mem::take(&mut running.events);
    // Taken out of the streams: whatever a hook does, an event runs once.
    for event in &events {
        run_hooks(shared, event);
    }
    elect(shared, &mut running, events).await
}

pub(crate) async fn run_elect_coordinator(shared: &Arc<Shared>) -> Result<Vec<HookEvent>> {
    shared.check()?;
    let mut running = running(shared).await?;
    elect(shared, &mut running, Vec::new()).await
}

/// Runs for leader where hooks wait for it, after `events` that ran already.
async fn elect(
    shared: &Arc<Shared>,
    running: &mut Running,
    mut events: Vec<HookEvent>,
) -> Result<Vec<HookEvent>> {
    let wanted = shared.hooks.groups(|kind| kind == HookKind::Elected);
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
            run_hooks(shared, &event);
            events.push(event);
        }
    }
    Ok(events)
}

/// Gives up a leadership that the elected hooks won; answers whether there was one.
pub(crate) async fn stand_down(shared: &Arc<Shared>, group: &GroupId) -> Result<bool> {
    shared.check()?;
    let state = running(shared).await?.leading.remove(group);
    match state {
        Some(state) => {
            let led = state.loss().is_none();
            release(shared, &state).await?;
            Ok(led)
        }
        None => Ok(false),
    }
}

fn run_hooks(shared: &Shared, event: &HookEvent) {
    let (kind, group) = match event {
        HookEvent::Joined { group, .. } => (HookKind::Join, group),
        HookEvent::Left { group, .. } => (HookKind::Leave, group),
        HookEvent::Elected { group, .. } => (HookKind::Elected, group),
    };
    for callback in shared.hooks.callbacks(kind, group) {
        let error = match catch_unwind(AssertUnwindSafe(|| callback(event))) {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        tracing::error!(%group, ?kind, %error, "a hook failed");
        shared.publish(Event::HookFailed { error: format!("{kind:?} hook of group \"{group}\": {error}") });
    }
}
