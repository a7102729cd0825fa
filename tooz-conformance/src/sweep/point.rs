//! One point of a sweep: a future that is dropped after its n-th poll, or after the wake-up that follows it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tooz_core::Coordinator;

use super::call::LATENCY;
use super::conditions::Conditions;
use super::stack::{self, Line};
use super::world::World;
use crate::harness::Harness;
use crate::tools::{Outcome, within};

/// When a future is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// As soon as this poll has said "not yet"; 0: before the first.
    Polled(usize),
    /// When it was woken after this poll, before it is polled again: what woke it stands unseen.
    Woken(usize),
}

impl Moment {
    /// The moments in their order.
    pub(super) fn numbered(number: usize) -> Self {
        if number.is_multiple_of(2) { Self::Woken(number / 2) } else { Self::Polled(number.div_ceil(2)) }
    }
}

/// A future that is being swept; its output, unless it was dropped.
type Sweeping<'a, T> = Pin<Box<dyn Future<Output = Outcome<Option<T>>> + 'a>>;

/// What a scene is given: a world that it shares with the scene's other points, and names of its own.
#[derive(Clone)]
pub(super) struct Point(Rc<Inner>);

struct Inner {
    world: Rc<World>,
    conditions: Conditions,
    moment: Moment,
    name: String,
    polls: Cell<usize>,
    /// Whether the future ended by itself.
    ended: Cell<bool>,
    seen: RefCell<BTreeSet<Line>>,
    fresh: RefCell<Vec<Coordinator>>,
}

impl Point {
    pub(super) fn new(world: &Rc<World>, conditions: Conditions, number: usize) -> Self {
        Self(Rc::new(Inner {
            world: Rc::clone(world),
            conditions,
            moment: Moment::numbered(number),
            name: format!("point-{number}"),
            polls: Cell::default(),
            ended: Cell::default(),
            seen: RefCell::default(),
            fresh: RefCell::default(),
        }))
    }

    pub(super) fn moment(&self) -> Moment {
        self.0.moment
    }

    pub(super) fn world(&self) -> &World {
        &self.0.world
    }

    pub(super) fn conditions(&self) -> Conditions {
        self.0.conditions
    }

    pub(super) fn h(&self) -> &Harness {
        &self.0.world.h
    }

    /// The coordinator whose futures are dropped.
    pub(super) fn a(&self) -> &Coordinator {
        &self.0.world.a
    }

    /// Another one.
    pub(super) fn b(&self) -> &Coordinator {
        &self.0.world.b
    }

    /// A name that no other point uses.
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    /// How often the future was polled.
    pub(super) fn polls(&self) -> usize {
        self.0.polls.get()
    }

    pub(super) fn ended(&self) -> bool {
        self.0.ended.get()
    }

    pub(super) fn seen(&self) -> BTreeSet<Line> {
        self.0.seen.take()
    }

    /// A coordinator for this point alone.
    pub(super) async fn fresh(&self) -> Outcome<Coordinator> {
        let builder = self.h().builder(format!("own-{}", self.name()));
        let coordinator = self.world().prepared(builder.connect().await?);
        self.0.fresh.borrow_mut().push(coordinator.clone());
        Ok(coordinator)
    }

    /// Polls a future until its moment, and drops it then; meanwhile the conditions hold. Then waits until
    /// everything has been done that is promised to be done afterwards.
    pub(super) fn sweep<'a, F: Future + 'a>(&'a self, future: F) -> Sweeping<'a, F::Output> {
        self.sweep_while(future, async { Ok(()) })
    }

    /// The same, while something else happens.
    pub(super) fn sweep_while<'a, F: Future + 'a>(
        &'a self,
        future: F,
        other: impl Future<Output = Outcome> + 'a,
    ) -> Sweeping<'a, F::Output> {
        // Some of them are large.
        let future = Box::pin(future);
        Box::pin(async move {
            let dropped = async {
                self.0.conditions.begin(self.world());
                self.drop_at_its_moment(future).await
            };
            let all = async { tokio::join!(dropped, self.0.conditions.pass(self.world()), other) };
            let (output, (), other) = within("the end of a future that is dropped", LIMIT, all).await?;
            other?;
            self.calm().await;
            Ok(output)
        })
    }

    /// Lets everything happen that was begun, one call after the other.
    pub(super) async fn settle(&self) {
        self.h().pass(if self.h().is_virtual() { LATENCY * 8 } else { REAL }).await;
    }

    /// On the virtual clock exactly as long as is promised, whatever happened; on a real one it has to be looked for.
    pub(super) async fn calm(&self) {
        self.h().pass(if self.h().is_virtual() { self.0.conditions.cleared_after() } else { REAL }).await;
        self.world().forget_fates();
    }

    async fn drop_at_its_moment<F: Future>(&self, future: Pin<Box<F>>) -> Option<F::Output> {
        let mut future = Some(future);
        let alarm = Arc::new(Alarm { rung: AtomicBool::new(true), outer: Mutex::default() });
        let waker = Waker::from(Arc::clone(&alarm));
        let output = poll_fn(|cx| {
            *alarm.outer.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
            let Some(polled) = &mut future else { return Poll::Ready(None) };
            // Whatever else is polled beside it: it is polled when it was woken, and only then.
            if !alarm.rung.swap(false, Ordering::AcqRel) {
                return Poll::Pending;
            }
            let polls = self.polls();
            if self.moment() == Moment::Woken(polls) {
                return Poll::Ready(None);
            }
            self.0.polls.set(polls + 1);
            let mut context = Context::from_waker(&waker);
            // The stack is the same whether it is woken afterwards or not.
            let poll = if self.moment() == Moment::Polled(polls + 1) && self.world().looks() {
                let (poll, seen) = stack::watch(|| polled.as_mut().poll(&mut context));
                *self.0.seen.borrow_mut() = seen;
                poll
            } else {
                polled.as_mut().poll(&mut context)
            };
            match poll {
                Poll::Ready(output) => {
                    self.0.seen.take();
                    self.0.ended.set(true);
                    Poll::Ready(Some(output))
                }
                Poll::Pending if self.moment() == Moment::Polled(polls + 1) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        drop(future.take());
        output
    }

    /// Ends what is this point's alone.
    pub(super) async fn end(&self) -> Outcome {
        for coordinator in self.0.fresh.take() {
            within("the end of a point's own coordinator", LIMIT, coordinator.close()).await??;
        }
        Ok(())
    }
}

/// On a real clock what was sent has most likely arrived after it; where it has not, a point proves less, and what is
/// asserted is looked for until it is so.
const REAL: Duration = Duration::from_millis(20);

/// On the virtual clock longer than anything takes; on a real one a future that hangs.
const LIMIT: Duration = Duration::from_mins(2);

/// Wakes the polling task, and remembers that the future was meant.
struct Alarm {
    rung: AtomicBool,
    outer: Mutex<Option<Waker>>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In the middle of a poll it is a call of the driver that lets others go first.
        stack::look();
        self.rung.store(true, Ordering::Release);
        let outer = self.outer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(outer) = outer {
            outer.wake();
        }
    }
}
