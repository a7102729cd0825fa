//! The keeper: one task per coordinator that renews its session, settles what callers left unfinished, opens a
//! new session after a loss and joins the groups again, and closes everything in the end.
//!
//! It lives on the coordinator's runtime. When that runtime ends, the task is dropped, and with it the session:
//! every guard is lost at once.

mod beat;
mod reopen;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use crate::driver::support::backoff::Backoff;
use crate::driver::{End, Epoch, Grant, Held, Notice, Renewal, Session, SessionId};
use crate::platform::clock::{Instant, Sleeper};
use crate::platform::runtime::Spawner;
use crate::session::call::{Owned, Reads, closed};
use crate::session::limits::{period, time_limit};
use crate::session::live::SessionLease;
use crate::session::rejoin::Rejoined;
use crate::session::release::give_back_lost;
use crate::session::state::{Command, Phase, Shared};
use crate::{Error, ErrorKind, GroupId, LossReason, Result};

pub(crate) struct Keeper {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    sleeper: Sleeper,
    jobs: JoinSet<Done>,
    /// Those of the jobs that are beats.
    beats: Vec<AbortHandle>,
    state: State,
    backoff: Backoff,
    epoch: Epoch,
    /// Whether the backend lost its data and the groups have not all been joined since: it outlives sessions.
    recreate: bool,
    last_session: SessionId,
    /// Numbers the beats and the tries to open a session, so that a late answer is known as such.
    number: u64,
    /// Beats by hand that wait for their answer.
    asked: Vec<oneshot::Sender<Result<Option<Duration>>>>,
    /// From before the first poll: a runtime may end before it has run the keeper once.
    _abandon: Abandon,
}

enum State {
    Up(Up),
    Down(Down),
}

struct Up {
    lease: Arc<SessionLease>,
    session: Arc<dyn Session>,
    /// When the next beat is due.
    next: Instant,
    /// The newest beat that was sent and not answered: its number, and until when it may take.
    flying: Option<(u64, Instant)>,
    /// Beats with a number up to this one belong to earlier sessions.
    first: u64,
    /// Whether it has lived for a beat; the first session of all counts as if.
    beaten: bool,
    /// Set while groups are to be rejoined: when to try next, and whether that announces a new session.
    rejoin: Option<Rejoining>,
}

#[derive(Default)]
struct Rejoining {
    at: Option<Instant>,
    announce: bool,
    /// What earlier tries of it have joined.
    joined: Vec<GroupId>,
}

struct Down {
    /// The lost session, to be ended on the backend before a new one is opened.
    old: Option<Arc<dyn Session>>,
    /// When the backend itself would end that session, if we stopped believing earlier: nothing is given back before.
    over: Option<Instant>,
    /// When to try next; `None` while a try is under way or the heart is stopped.
    next: Option<Instant>,
    /// The try under way, and until when it may take.
    flying: Option<(u64, Instant)>,
}

/// What a job of the keeper's came to.
enum Done {
    Settled,
    Beat { number: u64, sent: Instant, held: Held, answer: Result<Renewal> },
    Opened { number: u64, answer: Result<Arc<dyn Session>> },
    Rejoined { session: SessionId, rejoined: Rejoined },
}

/// When the runtime ends, or the keeper panics: everything is lost at once.
struct Abandon(Arc<Shared>);

impl Drop for Abandon {
    fn drop(&mut self) {
        let mut last = None;
        self.0.phase.send_modify(|phase| {
            if !matches!(phase, Phase::Closed(Some(_))) {
                let reason = "the runtime on which it lived has ended; its session is abandoned";
                let ended = Err(Error::new(ErrorKind::Closed, reason));
                last = Some(std::mem::replace(phase, Phase::Closed(Some(ended))));
            }
        });
        if let Some(Phase::Up(lease)) = last {
            drop(lease.end(&LossReason::SessionClosed));
        }
        self.0.ended();
    }
}

impl Keeper {
    pub(crate) fn start(
        shared: &Arc<Shared>,
        commands: mpsc::UnboundedReceiver<Command>,
        lease: Arc<SessionLease>,
        session: Arc<dyn Session>,
    ) {
        let keeper = Self {
            sleeper: Sleeper::new(shared.clock.clone()),
            jobs: JoinSet::new(),
            beats: Vec::new(),
            backoff: shared.config.backoff(),
            epoch: session.epoch(),
            recreate: false,
            last_session: session.id(),
            state: State::Up(Up::new(shared, lease, session, 0)),
            number: 0,
            asked: Vec::new(),
            commands,
            _abandon: Abandon(Arc::clone(shared)),
            shared: Arc::clone(shared),
        };
        shared.spawner.spawn(keeper.run()).detach();
    }

    async fn run(mut self) {
        loop {
            let due = self.due();
            let session = match &self.state {
                State::Up(up) => Some(Arc::clone(&up.session)),
                State::Down(_) => None,
            };
            let notice = async {
                match &session {
                    Some(session) => session.notice().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Time first: at the deadline everything is lost, whatever else has come. Commands last: each makes
                // at most one job, so they cannot keep the answer to a beat from being heard.
                biased;
                () = self.sleeper.until(due) => {}
                Some(job) = self.jobs.join_next() => match job {
                    Ok(Done::Settled) => {}
                    Ok(Done::Beat { number, sent, held, answer }) => self.beaten(number, sent, &held, answer),
                    Ok(Done::Opened { number, answer }) => self.opened(number, answer),
                    Ok(Done::Rejoined { session, rejoined }) => self.rejoined(session, rejoined),
                    Err(panic) => tracing::error!(%panic, "a driver panicked"),
                },
                notice = notice => self.noticed(notice),
                command = self.commands.recv() => match command {
                    Some(Command::Wake) => {}
                    Some(Command::Settle(job)) => settle(&mut self.jobs, job),
                    Some(Command::Beat(answer)) => self.beat_by_hand(answer),
                    Some(Command::Suspect) => self.suspect(),
                    Some(Command::Close) | None => break,
                },
            }
            self.on_time();
        }
        self.close().await;
    }

    /// The earliest moment at which something is to be done.
    fn due(&self) -> Option<Instant> {
        let beating = self.shared.beating.load(Ordering::Acquire);
        match &self.state {
            State::Up(up) => {
                let own = up.lease.first_own_deadline().map(|(at, _)| at);
                let beat = match up.flying {
                    Some((_, limit)) => Some(limit),
                    None => beating.then_some(up.next),
                };
                let rejoin = up.rejoin.as_ref().and_then(|rejoin| rejoin.at);
                [up.lease.deadline_at(), own, beat, rejoin].into_iter().flatten().min()
            }
            State::Down(down) => down.flying.map(|(_, limit)| limit).or(down.next.filter(|_| beating)),
        }
    }

    /// Does what is due by the clock.
    fn on_time(&mut self) {
        let now = self.shared.clock.now();
        let beating = self.shared.beating.load(Ordering::Acquire);
        match &mut self.state {
            State::Up(up) => {
                if let Some(reason) = up.lease.loss() {
                    return self.lose(&reason);
                }
                while let Some((_, attempt)) = up.lease.first_own_deadline().filter(|(at, _)| *at <= now) {
                    let lost = up.lease.lose(attempt, LossReason::Expired);
                    if let Some(job) = lost.and_then(|state| give_back_lost(&self.shared, state)) {
                        self.shared.settle(job);
                    }
                }
                if up.flying.is_some_and(|(_, limit)| limit <= now) {
                    up.flying = None;
                    // Another is sent at once; the unanswered one may still prove the session.
                    up.next = now;
                    let limit = time_limit(up.lease.ttl, self.shared.config.limits.operation_timeout);
                    let error =
                        Error::new(ErrorKind::Timeout, format!("no answer to a beat within {limit:?}"));
                    self.beat_failed(&error.during("heartbeat"));
                    return self.on_time();
                }
                if beating && up.flying.is_none() && up.next <= now {
                    self.beat();
                }
                self.rejoin_if_due(now);
            }
            State::Down(down) => {
                if down.flying.is_some_and(|(_, limit)| limit <= now) {
                    down.flying = None;
                    let error = Error::new(ErrorKind::Timeout, "opening a new session").during("connect");
                    self.open_failed(&error);
                } else if beating && down.next.is_some_and(|next| next <= now) {
                    self.open();
                }
            }
        }
    }

    /// A caller was told that the session is gone: the next beat is due at once.
    fn suspect(&mut self) {
        if let State::Up(up) = &mut self.state {
            up.next = self.shared.clock.now();
        }
    }

    fn noticed(&mut self, notice: Notice) {
        let State::Up(up) = &mut self.state else { return };
        match notice {
            Notice::SessionLost(reason) => self.lose(&reason),
            Notice::GrantLost(attempt, reason) => drop(up.lease.lose(attempt, reason)),
            Notice::Evicted(group) => self.evicted(group),
        }
    }

    /// Leaves everything, within the close time limit.
    async fn close(mut self) {
        self.commands.close();
        drop(self.shared.phase.send_replace(Phase::Closed(None)));
        self.answer_beats(&Err(closed()));
        let (session, unclean) = match self.state {
            State::Up(up) => {
                let end = if up.lease.loss().is_some() { End::Unclean } else { End::Clean };
                drop(up.lease.end(&LossReason::SessionClosed));
                (Some((up.session, end)), up.lease.unclean())
            }
            State::Down(down) => (down.old.map(|old| (old, End::Unclean)), Vec::new()),
        };
        let (driver, mut jobs, mut commands) = (Arc::clone(&self.shared.driver), self.jobs, self.commands);
        let beats = self.beats;
        // When the time is over it is dropped, and the session with it: its operating-system locks must not stay
        // as long as this process does, and what it has on a network ends because it is not renewed.
        let (limit, spawner) = (self.shared.config.limits.close_timeout, self.shared.spawner.clone());
        let closing = self.shared.spawner.spawn(async move {
            // What callers left unfinished goes first: it may hold what the session's end would not.
            while let Some(command) = commands.recv().await {
                if let Command::Settle(job) = command {
                    settle(&mut jobs, job);
                }
            }
            let session = match session {
                Some((session, end)) => {
                    let unanswered = release_unclean(&spawner, &session, unclean);
                    // Half of the time at most: the session's end must not fall short.
                    let released = spawner.timeout(limit / 2, unanswered).await;
                    session.close(if released == Some(true) { end } else { End::Unclean }).await
                }
                None => Ok(()),
            };
            // An answer to a beat says nothing any more, and may be as late as the backend likes.
            beats.iter().for_each(AbortHandle::abort);
            while let Some(done) = jobs.join_next().await {
                if let Ok(Done::Opened { answer: Ok(late), .. }) = done {
                    close_late(late).await;
                }
            }
            session.and(driver.close().await)
        });
        let mut closing = std::pin::pin!(closing);
        let result = match self.shared.spawner.timeout(limit, &mut closing).await {
            Some(Some(result)) => result,
            Some(None) => Err(Error::new(ErrorKind::Backend, "a driver panicked while closing")),
            None => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "the backend did not answer within {limit:?} (option close_timeout); what was held ends with the session"
                ),
            )),
        };
        let result = result.map_err(|error| error.during("close"));
        self.shared.phase.send_replace(Phase::Closed(Some(result)));
    }
}

fn settle(jobs: &mut JoinSet<Done>, job: Owned<()>) {
    jobs.spawn(async move {
        job.await;
        Done::Settled
    });
}

/// A session that was opened too late must not linger.
async fn close_late(session: Arc<dyn Session>) {
    if let Err(error) = session.close(End::Clean).await {
        tracing::debug!(%error, "a session that came too late could not be closed");
    }
}

/// Before the session's clean end takes the grants along: these did not end cleanly.
async fn release_unclean(spawner: &Spawner, session: &Arc<dyn Session>, unclean: Vec<Grant>) -> bool {
    let release = |grant: Grant| {
        let session = Arc::clone(session);
        spawner.spawn(async move { session.locks().release(&grant, End::Unclean).await.is_ok() })
    };
    let mut all = true;
    // All at once, and every one is waited for.
    for released in unclean.into_iter().map(release).collect::<Vec<_>>() {
        all &= released.await == Some(true);
    }
    all
}

impl Up {
    fn new(shared: &Shared, lease: Arc<SessionLease>, session: Arc<dyn Session>, first: u64) -> Self {
        let next = session.opened_at() + period(session.ttl());
        let next = next.max(shared.clock.now());
        Self { lease, session, next, flying: None, first, beaten: first == 0, rejoin: None }
    }
}
