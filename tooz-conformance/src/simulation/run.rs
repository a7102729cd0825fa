//! One run: what it is given, how it goes, and what came of it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime};

use tooz_core::driver::Clock;
use tooz_core::{Error, ErrorKind, Result};
use tooz_memory::Kit;

use super::follower;
use super::nemesis::Nemesis;
use super::participants::{Connector, Participants};
use super::rng::Rng;
use super::world::{Task, World, locked};
use crate::history::{Asked, Bounds, End, Fact, History, Name, Outcome, Recorder, Violation};
use crate::targets::memory::CLOCKS_STOP;

/// A run to be made.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    seed: u64,
    fault: Option<&'static str>,
}

impl Plan {
    /// The run of this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, fault: None }
    }

    /// On a backend that is wrong in this way (`memory://?fault=`), or with [`CLOCKS_STOP`].
    #[must_use]
    pub fn with_fault(mut self, fault: &'static str) -> Self {
        self.fault = Some(fault);
        self
    }
}

/// What was met in a run; one in which nothing happened proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Operations.
    pub operations: u64,
    /// Grants.
    pub grants: u64,
    /// Grants that followed on the end of another member's that he did not want.
    pub hand_overs: u64,
    /// Grants that ended with their session's time.
    pub expiries: u64,
    /// Operations of unknown outcome.
    pub unknown: u64,
    /// Operations that their callers gave up.
    pub cancelled: u64,
    /// Changes that watches delivered.
    pub watched: u64,
    /// Keys that were too busy for the search for an order.
    pub unsearched: u64,
}

impl Met {
    /// Whether the run counts: a hand-over that a fault caused, an expiry and an unknown outcome.
    pub fn counts(&self) -> bool {
        self.hand_overs > 0 && self.expiries > 0 && self.unknown > 0
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            operations: self.operations + other.operations,
            grants: self.grants + other.grants,
            hand_overs: self.hand_overs + other.hand_overs,
            expiries: self.expiries + other.expiries,
            unknown: self.unknown + other.unknown,
            cancelled: self.cancelled + other.cancelled,
            watched: self.watched + other.watched,
            unsearched: self.unsearched + other.unsearched,
        }
    }

    fn of(history: &History, cancelled: u64) -> Self {
        let mut met = Self { operations: history.operations.len() as u64, cancelled, ..Self::default() };
        met.unknown = history.operations.iter().filter(|o| o.outcome == Outcome::Unknown).count() as u64;
        met.watched = history.watches.iter().map(|watch| watch.seen.len() as u64).sum();
        let mut unwanted: BTreeMap<Name, Name> = BTreeMap::new();
        for (_, fact) in &history.facts {
            match *fact {
                Fact::Freed { end: End::Released, lock, .. } => drop(unwanted.remove(&lock)),
                Fact::Freed { lock, member, end, .. } => {
                    met.expiries += u64::from(end == End::Expired);
                    unwanted.insert(lock, member);
                }
                Fact::Granted { lock, member, .. } => {
                    met.grants += 1;
                    let before = unwanted.remove(&lock);
                    met.hand_overs += u64::from(before.is_some_and(|before| before != member));
                }
                _ => {}
            }
        }
        met
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Run {
    /// Its seed.
    pub seed: u64,
    /// One line for each event, with the virtual time.
    pub trace: String,
    /// What the contract forbids, and happened.
    pub violations: Vec<Violation>,
    /// What was met.
    pub met: Met,
}

impl Run {
    fn impossible(plan: &Plan, what: String) -> Self {
        let violations = vec![Violation { clause: "S1", operation: None, what }];
        Self { seed: plan.seed, trace: String::new(), violations, met: Met::default() }
    }

    /// The seed, what is wrong, and the whole trace.
    pub fn report(&self) -> String {
        let mut report = format!("{}seed {}\n", self.trace, self.seed);
        for violation in &self.violations {
            // Writing to a string cannot fail.
            let _ = writeln!(report, "{violation}");
        }
        let _ = writeln!(report, "to replay: TOOZ_SEED={}", self.seed);
        report
    }
}

/// Names of backends are shared by the process, and seeds run side by side.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// A run of virtual time lasts a few minutes at most; one that lasts longer waits for something that never comes.
const LONGEST: Duration = Duration::from_hours(1);

/// Makes a run, on a runtime of its own with a clock of its own.
pub fn run(plan: &Plan) -> Run {
    let (result, panics) = panics_in(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime =
            runtime.map_err(|error| Error::new(ErrorKind::NoRuntime, "no runtime").caused_by(error))?;
        let live = async {
            let late = |_| Error::new(ErrorKind::Timeout, "it never came to its end");
            tokio::time::timeout(LONGEST, live(plan)).await.map_err(late)?
        };
        tokio::task::LocalSet::new().block_on(&runtime, live)
    });
    let mut run = match result {
        Some(Ok(run)) => run,
        Some(Err(error)) => Run::impossible(plan, format!("the run could not be made: {error}")),
        None => Run::impossible(plan, "it panicked".to_owned()),
    };
    if panics > 0 {
        let what = format!("{panics} panics; standard error has them");
        run.violations.push(Violation { clause: "X2", operation: None, what });
    }
    run
}

async fn live(plan: &Plan) -> Result<Run> {
    let rng = Rng::new(plan.seed);
    let ttl = if rng.one_in(3) { None } else { Some(rng.millis(2_000, 6_000)) };
    let mut backend = format!("memory://simulation-{}?namespace=here", RUNS.fetch_add(1, Ordering::Relaxed));
    let kit = Kit::of(&backend)?;
    let clocks_stop = plan.fault == Some(CLOCKS_STOP);
    if let Some(fault) = plan.fault.filter(|_| !clocks_stop) {
        let _ = write!(backend, "&fault={fault}");
    }
    let url = if rng.one_in(3) { backend.clone() } else { format!("{backend}&yield_seed={}", rng.seed()) };
    let connector = Connector { url, ttl, tasks: rng.below(3) + 1, clocks_stop };
    let clock = Clock::tokio(SystemTime::UNIX_EPOCH);
    let members = (0..rng.below(3) + 2).map(|number| format!("m{number}")).collect();
    // The first to connect brings the backend's clock. It must outlive all members, and no fault is aimed at it.
    let observer = connector.connect("observer", rng.seed()).await?;
    let world = World::new(Recorder::new(clock), kit, members);
    world.note("", format_args!("seed {} ttl {ttl:?} fault {:?}", plan.seed, plan.fault));
    let elsewhere = Connector { url: backend.replace("=here", "=elsewhere"), ttl, tasks: 0, clocks_stop };
    let stranger = elsewhere.connect("stranger", rng.seed()).await?;
    stranger.group("elsewhere")?.create().await?;
    let (watcher, _) = connector.builder("watcher", rng.seed()).connect_driver().await?;
    let following = Task::spawn(follower::follow_leader(Arc::clone(&world), Arc::clone(&watcher), "g"));
    let mut participants = Participants::new(connector, observer);
    for index in 0..world.members.len() {
        participants.enter(&world, &rng, index).await;
    }
    Nemesis { world: &world, rng: &rng, ttl }.rage(&mut participants, 8 + rng.below(10)).await;
    rest(&world, &mut participants, ttl).await?;
    participants.observer().close().await?;
    drop(following);
    watcher.close().await?;
    stranger.close().await?;
    let kit = &world.kit;
    for (what, count) in [
        ("sessions", kit.sessions()),
        ("grants", kit.held()),
        ("places in queues", kit.queued()),
        ("watches", kit.watchers()),
        ("hanging calls", kit.hanging()),
    ] {
        world.recorder.left(what, count);
    }
    Ok(judge(plan, &world))
}

/// Everything is healed, and all members finish. Then the groups must be as the members believe.
async fn rest(world: &Arc<World>, participants: &mut Participants, ttl: Option<Duration>) -> Result<()> {
    world.note("", format_args!("the end: everything is healed"));
    world.over.store(true, Ordering::Relaxed);
    participants.come_to_rest(world).await;
    // Longer than the longest beat and what follows from it.
    tokio::time::sleep(Duration::from_secs(15)).await;
    // No member holds or waits any more, and all sessions live: nothing excuses a grant or waiter that is left.
    world.recorder.left("grants at rest", world.kit.held());
    world.recorder.left("places in queues at rest", world.kit.queued());
    let observer = participants.observer().clone();
    let mut real = BTreeMap::new();
    let id = world.called(&("obs".into(), world.recorder.name("observer")), Asked::List);
    let groups = observer.groups().await?;
    let names = groups.iter().map(|group| world.recorder.name(&group.to_string())).collect();
    world.recorder.returned(id, Outcome::Ok(crate::history::Answer::Groups(names)));
    for group in groups {
        let Ok(members) = observer.group(&group)?.members().await else { continue };
        let members = members.iter().map(|record| world.record_of(record));
        real.insert(world.recorder.name(&group.to_string()), members.collect());
    }
    participants.check_membership(world, &real);
    participants.leave(world).await;
    // What a lost answer to the last call left is the session's to end.
    tokio::time::sleep(ttl.unwrap_or_default() + Duration::from_secs(1)).await;
    for group in observer.groups().await? {
        let Ok(members) = observer.group(&group)?.members().await else { continue };
        world.recorder.left("members", members.len());
    }
    Ok(())
}

fn judge(plan: &Plan, world: &World) -> Run {
    // The longest beat is 5 s (without a ttl); one may fail, and a time limit and pauses come on top.
    let told_within = Some(Duration::from_secs(12).as_nanos()).and_then(|nanos| u64::try_from(nanos).ok());
    let bounds = Bounds { told_within, fair: true, every_change: true };
    let cancelled = world.cancelled.load(Ordering::Relaxed);
    let (violations, met) = world.recorder.read(|history| {
        let mut found = history.violations(&bounds);
        let mut met = Met::of(history, cancelled);
        let unsearched = history.check_locks_linear(&mut found) + history.check_members_linear(&mut found);
        met.unsearched = unsearched as u64;
        for (clause, what) in &*locked(&world.wrong) {
            found.push(Violation { clause, operation: None, what: what.clone() });
        }
        (found, met)
    });
    Run { seed: plan.seed, trace: world.take_trace(), violations, met }
}

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Runs `act` and answers what panicked in it: a task's panic ends that task alone, and would go unnoticed.
/// Everything that `act` does must happen on this thread.
fn panics_in<T>(act: impl FnOnce() -> T) -> (Option<T>, u64) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            before(info);
        }));
    });
    let before = PANICS.with(Cell::get);
    let done = catch_unwind(AssertUnwindSafe(act)).ok();
    (done, PANICS.with(Cell::get) - before)
}
