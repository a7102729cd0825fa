//! What a driver, its session and its streams share, and the path of every call to the backend.

use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tooz_core::driver::{Connect, Context, Entropy};
use tooz_core::{Characteristics, Error, ErrorKind, MemberId, Result};

use crate::config::{self, Config};
use crate::faults::gate::{self, Cut, Operation, Outcome};
use crate::faults::planted::Fault;
use crate::store::Backend;
use crate::store::state::{State, Step};

/// The longest random wait with `yield_seed`: long against a yield, short against every ttl.
const RANDOM_WAIT: Duration = Duration::from_millis(5);

/// The number by which the seeds of a backend's drivers differ (2^64 divided by the golden ratio, Knuth's
/// multiplicative hashing), so that equal URLs do not walk in step.
const SEED_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// One connection.
pub(crate) struct Client {
    pub(crate) backend: Arc<Backend>,
    pub(crate) context: Context,
    pub(crate) config: Config,
    /// `None`: sessions do not end by time.
    pub(crate) ttl: Option<Duration>,
    pub(crate) space: Arc<str>,
    pub(crate) characteristics: Characteristics,
    pace: Option<Entropy>,
    /// The member of the first session: cutting a member off cuts all calls of its driver.
    member: OnceLock<MemberId>,
    closed: AtomicBool,
}

impl Client {
    pub(crate) fn connect(request: Connect) -> Result<Self> {
        let config = Config::read(&request.url)?;
        let backend = Backend::named(&config.name);
        let number = backend.attach(&config, &request.context);
        let pace =
            config.yield_seed.map(|seed| Entropy::seeded(seed.wrapping_add(number.wrapping_mul(SEED_STEP))));
        Ok(Self {
            backend,
            space: config.namespace.as_str().into(),
            ttl: request.url.option("ttl").map(|_| request.limits.ttl),
            characteristics: config::characteristics(&request.url),
            context: request.context,
            config,
            pace,
            member: OnceLock::new(),
            closed: AtomicBool::new(false),
        })
    }

    /// Takes the driver for a member. A driver belongs to one coordinator: a second member on it is cut off together
    /// with the first.
    pub(crate) fn claim_for(&self, member: &MemberId) {
        let _ = self.member.set(member.clone());
    }

    /// Ends the driver; calls that wait through it look again and end.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.backend.act(|state| state.wakes.push(state.changed.clone()));
    }

    /// One call: passes the gate, then acts in one atomic step.
    pub(crate) async fn call<T: Send>(
        &self,
        operation: Operation,
        act: impl FnOnce(&mut State) -> Result<T> + Send,
    ) -> Result<T> {
        let outcome = self.gate(operation).await.map_err(|error| error.during(operation.name()))?;
        let answer = match outcome {
            Some(Outcome::Fail) => Err(gate::refused("let this call fail")),
            Some(Outcome::Lost) => Err(self.lost_answer()),
            Some(Outcome::Indeterminate) => {
                // The result is dropped here, outside the lock.
                drop(self.backend.act(act));
                Err(self.lost_answer())
            }
            None => self.backend.act(act),
        };
        let delay = self.backend.act(|state| state.plan.answer_delay);
        if !delay.is_zero() {
            self.context.spawner.sleep(delay).await;
        }
        self.random_pace().await;
        answer.map_err(|error| error.during(operation.name()))
    }

    /// The point that every call passes: yields, waits as the kit says, and returns what shall become of the call.
    pub(crate) async fn gate(&self, operation: Operation) -> Result<Option<Outcome>> {
        // So that the tasks of a program take turns here as they do where a network stands between.
        yield_now().await;
        self.random_pace().await;
        let delay = self.backend.act(|state| {
            *state.plan.calls.entry(operation).or_default() += 1;
            state.plan.delay
        });
        if !delay.is_zero() {
            self.context.spawner.sleep(delay).await;
        }
        let mut hanging = Hanging { backend: &self.backend, counted: false };
        self.backend
            .wait(&self.context.spawner, |state| {
                // A session may be closed after its driver.
                if self.is_closed() && operation != Operation::Close {
                    return Step::Done(Err(closed()));
                }
                match state.plan.obstacle(self.member.get()) {
                    Some(Cut::Hang) => {
                        if !std::mem::replace(&mut hanging.counted, true) {
                            state.plan.hanging += 1;
                        }
                        Step::Wait(state.changed.clone())
                    }
                    Some(Cut::Fail) => Step::Done(Err(gate::refused("cut this member off"))),
                    None => Step::Done(Ok(state.plan.take(operation, self.member.get()))),
                }
            })
            .await
    }

    /// Waits for what the backend sends without being asked; while the member is cut off nothing gets through.
    pub(crate) async fn listen<T>(&self, mut look: impl FnMut(&mut State) -> Step<T>) -> T {
        let spawner = &self.context.spawner;
        self.backend
            .wait(spawner, |state| match state.plan.obstacle(self.member.get()) {
                Some(_) => Step::Wait(state.changed.clone()),
                None => look(state),
            })
            .await
    }

    /// As `listen`, for a call that waits: it fails when other calls fail.
    pub(crate) async fn wait<T>(&self, mut look: impl FnMut(&mut State) -> Step<Result<T>>) -> Result<T> {
        let spawner = &self.context.spawner;
        self.backend
            .wait(spawner, |state| match state.plan.obstacle(self.member.get()) {
                _ if self.is_closed() => Step::Done(Err(closed())),
                Some(Cut::Hang) => Step::Wait(state.changed.clone()),
                Some(Cut::Fail) => Step::Done(Err(gate::refused("cut this member off"))),
                None => look(state),
            })
            .await
    }

    /// Whether this fault was planted.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.backend.act(|state| state.has(fault))
    }

    /// The error of a call whose answer is lost.
    pub(crate) fn lost_answer(&self) -> Error {
        if self.has(Fault::UnknownIsFailure) { gate::refused("let this call fail") } else { gate::lost() }
    }

    /// The result of a call that returns only that it was done; with a planted fault a lost answer counts as done.
    pub(crate) fn assume_done<T>(&self, answer: Result<T>, done: T) -> Result<T> {
        match answer {
            Err(error) if error.is_indeterminate() && self.has(Fault::UnknownIsSuccess) => Ok(done),
            answer => answer,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// With `yield_seed`: up to three yields, and in one of eight cases a short wait.
    async fn random_pace(&self) {
        let Some(pace) = &self.pace else { return };
        let random = pace.id();
        for _ in 0..random & 3 {
            yield_now().await;
        }
        if (random >> 2).is_multiple_of(8) {
            self.context.spawner.sleep(pace.between(Duration::ZERO, RANDOM_WAIT)).await;
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &String::from_utf8_lossy(&self.config.name))
            .field("namespace", &self.space)
            .field("member", &self.member.get())
            .finish_non_exhaustive()
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this driver was closed; connect a new one")
}

/// A call that may hang at the gate; it is counted until it goes on or is dropped.
struct Hanging<'a> {
    backend: &'a Backend,
    counted: bool,
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.backend.act(|state| state.plan.hanging -= 1);
        }
    }
}

async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
