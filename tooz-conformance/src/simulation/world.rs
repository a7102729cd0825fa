//! What all tasks of a run share: the record, the trace, the backend's other end, and who believes to hold what.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tooz_core::driver::{LockKey, LockMode, MemberRecord, Previous};
use tooz_core::{Error, LossSignal};
use tooz_memory::{Cut, Happened, Kit};

use crate::history::{Asked, End, Fact, Mode, Name, OperationId, Outcome, Record, Recorder};

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The world of one run.
pub(super) struct World {
    pub(super) recorder: Recorder,
    pub(super) kit: Kit,
    trace: Mutex<String>,
    /// Who believes to hold what, asked at every grant.
    believed: Mutex<BTreeMap<OperationId, LossSignal>>,
    /// Set while what happens is force, not fate.
    force: AtomicBool,
    cut: Mutex<(BTreeSet<Name>, bool)>,
    sessions: Mutex<BTreeMap<Name, Sessions>>,
    /// The members of the run.
    pub(super) members: Vec<(String, Name)>,
    /// Set when no new work is to be begun.
    pub(super) over: AtomicBool,
    pub(super) values: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) wrong: Mutex<Vec<(&'static str, String)>>,
}

/// A member's sessions on the backend.
#[derive(Clone, Copy, Default)]
struct Sessions {
    live: usize,
    /// Of how many of them nobody knows (any more): their process crashed, or the answer to their opening was lost. They hold
    /// nothing that `close` promises to give back, and end by themselves.
    unknown: usize,
}

impl Sessions {
    fn opened(&mut self) {
        self.unknown = self.live + 1;
        self.live += 1;
    }

    fn ended(&mut self) {
        self.live = self.live.saturating_sub(1);
        self.unknown = self.unknown.min(self.live);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl World {
    pub(super) fn new(recorder: Recorder, kit: Kit, members: Vec<String>) -> Arc<Self> {
        let members = members.into_iter().map(|word| (word.clone(), recorder.name(&word))).collect();
        let world = Arc::new(Self {
            recorder,
            kit,
            trace: Mutex::default(),
            believed: Mutex::default(),
            force: AtomicBool::new(false),
            cut: Mutex::default(),
            sessions: Mutex::default(),
            members,
            over: AtomicBool::new(false),
            values: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            wrong: Mutex::default(),
        });
        // Weak, or the backend's listener would keep the world and its kit alive for ever.
        let listening = Arc::downgrade(&world);
        world.kit.listen(move |happened| {
            if let Some(world) = listening.upgrade() {
                world.happened(happened);
            }
        });
        world
    }

    /// One line of the trace.
    pub(super) fn note(&self, who: &str, what: fmt::Arguments<'_>) {
        let moment = self.recorder.now();
        // Writing to a string cannot fail.
        let _ = writeln!(locked(&self.trace), "[{moment}] {who:>4} {what}");
    }

    pub(super) fn take_trace(&self) -> String {
        std::mem::take(&mut locked(&self.trace))
    }

    /// Something is wrong that no checker of histories sees.
    pub(super) fn wrong(&self, clause: &'static str, what: String) {
        self.note("", format_args!("WRONG {clause}: {what}"));
        locked(&self.wrong).push((clause, what));
    }

    pub(super) fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(super) fn lock_name(&self, key: &LockKey) -> Name {
        match key {
            LockKey::Named(name) => self.recorder.name(&name.to_string()),
            LockKey::Leader(group) => self.recorder.name(&leader_of(&group.to_string())),
            other => self.recorder.name(&other.to_string()),
        }
    }

    pub(super) fn record_of(&self, record: &MemberRecord) -> Record {
        Record {
            member: self.recorder.name(&record.member.to_string()),
            incarnation: record.incarnation,
            value: record.capabilities.get().unwrap_or(u64::MAX),
        }
    }

    fn happened(&self, happened: &Happened) {
        let name = |word: &dyn fmt::Display| self.recorder.name(&word.to_string());
        let fact = match happened {
            Happened::Queued { key, member, attempt } => {
                Fact::Queued { lock: self.lock_name(key), member: name(member), attempt: *attempt }
            }
            Happened::Unqueued { key, member, attempt } => {
                Fact::Unqueued { lock: self.lock_name(key), member: name(member), attempt: *attempt }
            }
            Happened::Granted { key, member, attempt, mode, token } => Fact::Granted {
                lock: self.lock_name(key),
                member: name(member),
                attempt: *attempt,
                mode: mode_of(*mode),
                token: token.get(),
            },
            Happened::Freed { key, member, attempt, token, how } => Fact::Freed {
                lock: self.lock_name(key),
                member: name(member),
                attempt: *attempt,
                token: token.get(),
                end: match how {
                    _ if self.force.load(Ordering::Relaxed) => End::Forced,
                    Previous::Clean => End::Released,
                    Previous::Expired => End::Expired,
                    _ => End::Forced,
                },
            },
            Happened::Created(group) => Fact::Created { group: name(group) },
            Happened::Deleted(group) => Fact::Deleted { group: name(group) },
            Happened::Lost(group) => Fact::Lost { group: name(group) },
            Happened::Joined(group, record) => {
                Fact::Joined { group: name(group), record: self.record_of(record) }
            }
            Happened::Updated(group, record) => {
                Fact::Updated { group: name(group), record: self.record_of(record) }
            }
            Happened::Left(group, record, how) => {
                Fact::Left { group: name(group), record: self.record_of(record), how: *how }
            }
            Happened::Opened(member) => {
                locked(&self.sessions).entry(name(member)).or_default().opened();
                return self.note("", format_args!("session of {member} opened"));
            }
            Happened::Ended(member) => {
                if let Some(sessions) = locked(&self.sessions).get_mut(&name(member)) {
                    sessions.ended();
                }
                return self.note("", format_args!("session of {member} ended"));
            }
            other => return self.note("", format_args!("{other:?}")),
        };
        self.recorder.fact(fact);
        let word = |name: Name| self.recorder.read(|history| history.name(name).to_owned());
        match fact {
            Fact::Queued { lock, member, .. } => {
                self.note("", format_args!("{} queued for {}", word(member), word(lock)));
            }
            Fact::Unqueued { lock, member, .. } => {
                self.note("", format_args!("{} left the queue of {}", word(member), word(lock)));
            }
            Fact::Granted { lock, member, mode, token, .. } => {
                self.note("", format_args!("{} granted {} {mode:?} token {token}", word(member), word(lock)));
            }
            Fact::Freed { lock, member, token, end, .. } => {
                self.note("", format_args!("{} freed by {} token {token} {end:?}", word(lock), word(member)));
            }
            Fact::Joined { group, record }
            | Fact::Updated { group, record }
            | Fact::Left { group, record, .. } => {
                let verb = match fact {
                    Fact::Joined { .. } => "joined",
                    Fact::Updated { .. } => "updated in",
                    _ => "left",
                };
                let (member, value) = (word(record.member), record.value);
                self.note("", format_args!("{member} {verb} {} value {value}", word(group)));
            }
            Fact::Created { group } => self.note("", format_args!("group {} created", word(group))),
            Fact::Deleted { group } => self.note("", format_args!("group {} deleted", word(group))),
            Fact::Lost { group } => self.note("", format_args!("group {} lost", word(group))),
            Fact::Reachable { .. } => {}
        }
    }

    /// A member knows that the session that was opened last is its own.
    pub(super) fn stands(&self, member: Name) {
        if let Some(sessions) = locked(&self.sessions).get_mut(&member) {
            sessions.unknown = sessions.live.saturating_sub(1);
        }
    }

    /// A coordinator was closed: what it said about that must be true.
    pub(super) fn closed(&self, (word, member): &(String, Name), result: &tooz_core::Result<()>) {
        self.note(word, format_args!("closed: {:?}", result.as_ref().map_err(Error::kind)));
        if result.is_ok()
            && locked(&self.sessions).get(member).is_some_and(|sessions| sessions.live > sessions.unknown)
        {
            self.wrong("S3", format!("{word} was closed, and its session lives"));
        }
    }

    /// What the kit does to grants meanwhile is force: two guards may be valid until the victim hears of it.
    pub(super) fn by_force<T>(&self, act: impl FnOnce(&Kit) -> T) -> T {
        self.force.store(true, Ordering::Relaxed);
        let done = act(&self.kit);
        self.force.store(false, Ordering::Relaxed);
        done
    }

    fn reachable(&self, change: impl FnOnce(&mut (BTreeSet<Name>, bool))) {
        let mut cut = locked(&self.cut);
        let before = cut.clone();
        change(&mut cut);
        for (_, member) in &self.members {
            let up = |(cut, paused): &(BTreeSet<Name>, bool)| !paused && !cut.contains(member);
            if up(&before) != up(&cut) {
                self.recorder.fact(Fact::Reachable { member: *member, reachable: up(&cut) });
            }
        }
    }

    pub(super) fn cut_off(&self, (word, member): &(String, Name), how: Cut) {
        self.note("", format_args!("cut off {word}: {how:?}"));
        self.reachable(|(cut, _)| {
            cut.insert(*member);
        });
        self.kit.cut_off(word, how);
    }

    pub(super) fn heal(&self, (word, member): &(String, Name)) {
        self.note("", format_args!("heal {word}"));
        self.kit.heal(word);
        self.reachable(|(cut, _)| {
            cut.remove(member);
        });
    }

    pub(super) fn pause(&self, paused: bool) {
        self.note("", format_args!("{}", if paused { "pause" } else { "resume" }));
        self.reachable(|(_, now)| *now = paused);
        if paused { self.kit.pause() } else { self.kit.resume() }
    }

    /// While the machine is suspended nobody hears anything.
    pub(super) fn asleep(&self, suspend: impl FnOnce()) {
        let mut before = false;
        self.reachable(|(_, paused)| before = std::mem::replace(paused, true));
        suspend();
        self.reachable(|(_, paused)| *paused = before);
    }

    /// An acquire returned a guard; everybody else is asked whether he still believes in his.
    pub(super) fn believes(&self, id: OperationId, signal: LossSignal) {
        locked(&self.believed).insert(id, signal);
        self.ask_everybody();
    }

    pub(super) fn believes_no_more(&self, id: OperationId) {
        locked(&self.believed).remove(&id);
        self.recorder.ended(id);
    }

    pub(super) fn ask_everybody(&self) {
        // Whoever was lost once is lost for ever (L7): not asked again would hide that he comes back.
        for (id, signal) in &*locked(&self.believed) {
            if !signal.is_lost() {
                self.recorder.claimed(*id);
            }
        }
    }

    /// A new value to publish.
    pub(super) fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn called(&self, (word, client): &(String, Name), asked: Asked) -> OperationId {
        let id = self.recorder.called(*client, asked);
        self.note(word, format_args!("#{} {}", id.0, self.recorder.read(|history| history.describe(id))));
        id
    }

    pub(super) fn returned(&self, (word, _): &(String, Name), id: OperationId, outcome: Outcome) {
        self.note(word, format_args!("#{} -> {outcome:?}", id.0));
        self.recorder.returned(id, outcome);
    }
}

/// A task of the run; dropping it ends it.
#[derive(Debug)]
pub(super) struct Task(tokio::task::JoinHandle<()>);

impl Task {
    pub(super) fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        Self(tokio::task::spawn_local(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(drop)
    }
}

/// An error is a refusal, or nobody knows.
pub(super) fn outcome_of(error: &Error) -> Outcome {
    if error.is_indeterminate() { Outcome::Unknown } else { Outcome::Fail(error.kind()) }
}

/// The name of a group's leadership among the locks.
pub(super) fn leader_of(group: &str) -> String {
    format!("leader of {group}")
}

pub(super) fn mode_of(mode: LockMode) -> Mode {
    match mode {
        LockMode::Shared => Mode::Shared,
        LockMode::Permit { limit } => Mode::Permit(limit.get()),
        _ => Mode::Exclusive,
    }
}

/// When a caller loses patience.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    /// Never.
    Endless,
    /// After being polled so often, or after this time.
    Until(u64, Duration),
}

/// Polls `future` until it is done or the caller loses patience; then it is dropped.
pub(super) async fn patiently<F: Future>(patience: Patience, future: F) -> Option<F::Output> {
    let Patience::Until(polls, limit) = patience else { return Some(future.await) };
    // Boxed, so that it is gone when this returns.
    let mut future = Box::pin(future);
    let mut left = polls;
    let mut sleep = pin!(tokio::time::sleep(limit));
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        left = left.saturating_sub(1);
        if left == 0 || sleep.as_mut().poll(cx).is_ready() { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}
