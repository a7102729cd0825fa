//! An operation in a situation, and how it is swept.
#![allow(clippy::disallowed_methods)] // runtimes are made here, one per scene

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use super::call::Called;
use super::conditions::Conditions;
use super::point::Point;
use super::stack::Line;
use super::world::World;
use crate::case::Running;
use crate::harness::Harness;
use crate::target::{Target, Time, Wish};
use crate::tools::{Outcome, panic_text};

/// More than any future needs until it ends.
const MOST: usize = 120;

/// A scene that hangs is ended.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// How one scene went.
#[derive(Clone, Debug)]
pub struct Swept {
    /// The operation.
    pub operation: &'static str,
    /// In which situation, and what became of its calls.
    pub scene: String,
    /// At how many points it was dropped.
    pub points: usize,
    /// The lines of the core at which it was suspended then, with the number of points.
    pub lines: BTreeMap<Line, usize>,
    /// Whether its stacks were looked at.
    pub looks: bool,
    /// What was left behind, or was not as promised.
    pub failure: Option<String>,
}

/// One operation in one situation under one kind of conditions.
pub(super) struct Scene {
    pub(super) operation: &'static str,
    situation: String,
    pub(super) conditions: Conditions,
    needs: Needs,
    looks: bool,
    run: Box<dyn Fn(Point) -> Running + Send>,
}

/// What a scene needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// The memory driver's kit.
    Kit,
    /// The kit, and sessions that end by time.
    Ttl,
}

impl Scene {
    /// A scene for every backend.
    pub(super) fn new<F>(operation: &'static str, situation: impl Into<String>, run: F) -> Self
    where
        F: Fn(Point) -> Running + Send + 'static,
    {
        Self {
            operation,
            situation: situation.into(),
            conditions: Conditions::Normal,
            needs: Needs::Nothing,
            looks: true,
            run: Box::new(run),
        }
    }

    pub(super) fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    /// Whether its stacks are looked at. That takes longer than all the rest, so it is done once for every way through
    /// the core.
    pub(super) fn looks(mut self, looks: bool) -> Self {
        self.looks = looks;
        self
    }

    pub(super) fn under(self, conditions: Conditions) -> Self {
        Self { conditions, ..self }
    }

    pub(super) fn fits(&self, memory: bool, ttl: bool) -> bool {
        match self.needs {
            Needs::Nothing => true,
            Needs::Kit => memory,
            Needs::Ttl => memory && ttl,
        }
    }

    fn title(&self) -> String {
        let conditions = self.conditions.to_string();
        if conditions.is_empty() {
            self.situation.clone()
        } else {
            format!("{}; {conditions}", self.situation)
        }
    }

    pub(super) fn sweep(&self, target: &Target, time: Time, abandons: bool) -> Swept {
        let mut swept = Swept {
            operation: self.operation,
            scene: self.title(),
            points: 0,
            lines: BTreeMap::new(),
            looks: self.looks && !abandons,
            failure: None,
        };
        let outcome =
            catch_unwind(AssertUnwindSafe(|| self.on_a_runtime(target, time, abandons, &mut swept)));
        swept.failure = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic_text(&*panic)),
        };
        swept
    }

    fn on_a_runtime(&self, target: &Target, time: Time, abandons: bool, swept: &mut Swept) -> Outcome {
        let runtime = match time {
            Time::Virtual => {
                tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()
            }
            Time::Real => tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build(),
        }?;
        let outcome = runtime.block_on(async {
            let harness = Harness::new(target, Wish { time, lasting: true })?;
            let outcome = self.points(harness.clone(), abandons, swept).await;
            harness.close_all().await;
            outcome
        });
        runtime.shutdown_timeout(SHUTDOWN);
        outcome
    }

    async fn points(&self, harness: Harness, abandons: bool, swept: &mut Swept) -> Outcome {
        let world = Rc::new(World::new(harness, abandons, self.looks && !abandons).await?);
        for number in 0..MOST {
            let point = Point::new(&world, self.conditions, number);
            let outcome = async {
                (self.run)(point.clone()).await?;
                point.end().await?;
                world.nothing_stands()
            };
            if let Err(error) = outcome.await {
                return Err(format!("dropped at {:?}: {error}", point.moment()).into());
            }
            if point.ended() {
                return Ok(());
            }
            swept.points += 1;
            for line in point.seen() {
                *swept.lines.entry(line).or_default() += 1;
            }
        }
        Err(format!("it has not ended after {MOST} points").into())
    }
}

/// The same situation under all conditions. All but the normal ones need the kit.
pub(super) fn under_all_conditions<F>(
    operation: &'static str,
    situation: &str,
    call: Called,
    run: F,
) -> Vec<Scene>
where
    F: Fn(Point) -> Running + Send + Clone + 'static,
{
    let scene = |conditions| {
        let needs = if conditions == Conditions::Normal { Needs::Nothing } else { Needs::Kit };
        let scene = Scene::new(operation, situation, run.clone()).needs(needs).under(conditions);
        scene.looks(conditions == Conditions::Normal)
    };
    Conditions::all(call).into_iter().map(scene).collect()
}

/// A function of the scene as the value that a scene keeps.
macro_rules! run {
    ($function:ident $(, $argument:expr)*) => {
        move |point| -> $crate::case::Running { Box::pin($function(point $(, $argument)*)) }
    };
}
pub(super) use run;
