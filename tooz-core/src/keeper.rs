//! The keeper: one task per coordinator that renews its session, settles what callers left unfinished, opens a
//! new session after a loss and joins the groups again, and closes everything in the end.
//!
//! It lives on the coordinator's runtime. When that runtime ends, the task is dropped, and with it the session:
//! every guard is lost at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::clock::{Instant, Sleeper};
use crate::driver::{Epoch, Held, Notice, OpenSession, Renewal, Session, SessionId};
use crate::group::{Rejoined, rejoin};
use crate::heart::{Event, period, time_limit};
use crate::shared::{Backoff, Command, Phase, Shared, closed};
use crate::tenure::Tenure;
use crate::{Error, ErrorKind, LossReason, Result};

pub(crate) struct Keeper {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    sleeper: Sleeper,
    jobs: JoinSet<Done>,
    state: State,
    backoff: Backoff,
    epoch: Epoch,
    last_session: SessionId,
    /// Numbers the beats and the tries to open a session, so that a late answer is known as such.
    number: u64,
    /// Beats by hand that wait for their answer.
    asked: Vec<oneshot::Sender<Result<Option<Duration>>>>,
}

enum State {
    Up(Up),
    Down(Down),
}

struct Up {
    tenure: Arc<Tenure>,
    session: Arc<dyn Session>,
    /// When the next beat is due.
    next: Instant,
    /// The newest beat that was sent and not answered: its number, and until when it may take.
    flying: Option<(u64, Instant)>,
    /// Beats with a number up to this one belong to earlier sessions.
    first: u64,
    /// Set while groups are to be rejoined: when to try next, and whether that announces a new session.
    rejoin: Option<Rejoining>,
}

struct Rejoining {
    at: Option<Instant>,
    announce: bool,
    create: bool,
}

struct Down {
    /// The lost session, to be ended on the backend before a new one is opened.
    old: Option<Arc<dyn Session>>,
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

enum Wake {
    Command(Option<Command>),
    Notice(Notice),
    Job(Option<std::result::Result<Done, tokio::task::JoinError>>),
    Time,
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
        if let Some(Phase::Up(tenure)) = last {
            drop(tenure.end(&LossReason::SessionClosed));
        }
    }
}

impl Keeper {
    pub(crate) fn start(
        shared: &Arc<Shared>,
        commands: mpsc::UnboundedReceiver<Command>,
        tenure: Arc<Tenure>,
        session: Arc<dyn Session>,
    ) {
        let keeper = Self {
            sleeper: Sleeper::new(shared.clock.clone()),
            jobs: JoinSet::new(),
            backoff: Backoff::new(&shared.config),
            epoch: session.epoch(),
            last_session: session.id(),
            state: State::Up(Up::new(shared, tenure, session, 0)),
            number: 0,
            asked: Vec::new(),
            commands,
            shared: Arc::clone(shared),
        };
        shared.spawner.spawn(keeper.run()).detach();
    }

    async fn run(mut self) {
        let abandon = Abandon(Arc::clone(&self.shared));
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
            let wake = tokio::select! {
                // Time first: at the deadline everything is lost, whatever else has come.
                biased;
                () = self.sleeper.until(due) => Wake::Time,
                command = self.commands.recv() => Wake::Command(command),
                notice = notice => Wake::Notice(notice),
                job = self.jobs.join_next(), if !self.jobs.is_empty() => Wake::Job(job),
            };
            match wake {
                Wake::Time | Wake::Job(None) => {}
                Wake::Command(Some(Command::Settle(job))) => self.settle(job),
                Wake::Command(Some(Command::Beat(answer))) => self.beat_by_hand(answer),
                Wake::Command(Some(Command::Suspect)) => self.suspect(),
                Wake::Command(Some(Command::Wake)) => self.wake(),
                Wake::Command(Some(Command::Close) | None) => break,
                Wake::Notice(notice) => self.noticed(notice),
                Wake::Job(Some(Ok(done))) => self.done(done),
                Wake::Job(Some(Err(panic))) => tracing::error!(%panic, "a driver panicked"),
            }
            self.on_time();
        }
        self.close().await;
        drop(abandon);
    }

    /// The earliest moment at which something is to be done.
    fn due(&self) -> Option<Instant> {
        let beating = self.shared.beating.load(Ordering::Acquire);
        match &self.state {
            State::Up(up) => {
                let own = up.tenure.first_own_deadline().map(|(at, _)| at);
                let beat = match up.flying {
                    Some((_, limit)) => Some(limit),
                    None => beating.then_some(up.next),
                };
                let rejoin = up.rejoin.as_ref().and_then(|rejoin| rejoin.at);
                [up.tenure.deadline_at(), own, beat, rejoin].into_iter().flatten().min()
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
                if let Some(reason) = up.tenure.loss() {
                    return self.lose(&reason);
                }
                while let Some((_, attempt)) = up.tenure.first_own_deadline().filter(|(at, _)| *at <= now) {
                    up.tenure.lose(attempt, LossReason::Expired);
                }
                if up.flying.is_some_and(|(_, limit)| limit <= now) {
                    up.flying = None;
                    // Another is sent at once; the unanswered one may still prove the session.
                    up.next = now;
                    let limit = time_limit(up.tenure.ttl(), self.shared.config.operation_timeout);
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
                } else if beating && down.flying.is_none() && down.next.is_some_and(|next| next <= now) {
                    self.open();
                }
            }
        }
    }

    fn settle(&mut self, job: crate::shared::Owned<()>) {
        self.jobs.spawn(async move {
            job.await;
            Done::Settled
        });
    }

    fn wake(&mut self) {
        // The heart was started or stopped: a session that is down is opened again only while it beats.
        if let State::Down(down) = &mut self.state
            && down.flying.is_none()
            && down.next.is_none()
        {
            down.next = Some(self.shared.clock.now());
        }
    }

    /// Somebody was told that the session is gone: the next beat is due at once.
    fn suspect(&mut self) {
        if let State::Up(up) = &mut self.state {
            up.next = self.shared.clock.now();
        }
    }

    fn beat_by_hand(&mut self, answer: oneshot::Sender<Result<Option<Duration>>>) {
        self.asked.push(answer);
        match &mut self.state {
            State::Up(up) => {
                if up.flying.is_none() {
                    self.beat();
                }
            }
            State::Down(down) => {
                if down.flying.is_none() {
                    self.open();
                }
            }
        }
    }

    /// Sends one beat.
    fn beat(&mut self) {
        let State::Up(up) = &mut self.state else { return };
        let sent = self.shared.clock.now();
        let ttl = up.tenure.ttl();
        self.number += 1;
        up.flying = Some((self.number, sent + time_limit(ttl, self.shared.config.operation_timeout)));
        up.next = sent + period(ttl);
        let here = Some(up.tenure.id());
        let joined = self.shared.joined();
        let groups = joined.iter().filter(|(_, m)| m.session == here).map(|(id, _)| id.clone()).collect();
        drop(joined);
        let held = up.tenure.held(groups);
        let (session, number) = (Arc::clone(&up.session), self.number);
        self.jobs.spawn(async move {
            let answer = session.renew(&held).await;
            Done::Beat { number, sent, held, answer }
        });
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Settled => {}
            Done::Beat { number, sent, held, answer } => self.beaten(number, sent, &held, answer),
            Done::Opened { number, answer } => self.opened(number, answer),
            Done::Rejoined { session, rejoined } => self.rejoined(session, rejoined),
        }
    }

    /// A beat was answered, perhaps after its time limit: it still proves the session from when it was sent.
    fn beaten(&mut self, number: u64, sent: Instant, held: &Held, answer: Result<Renewal>) {
        let State::Up(up) = &mut self.state else { return };
        if number <= up.first {
            return; // of an earlier session
        }
        let newest = up.flying.is_some_and(|(flying, _)| flying == number);
        if newest {
            up.flying = None;
        }
        let took = self.shared.clock.now().saturating_since(sent);
        let late = time_limit(up.tenure.ttl(), period(None));
        if took > late {
            tracing::warn!(
                ?took,
                "a beat took longer than the idle time left; make the backend faster or the ttl longer"
            );
            self.shared.publish(Event::BeatLate { took });
        }
        let renewal = match answer {
            Ok(renewal) => renewal,
            Err(error) if error.kind() == ErrorKind::SessionLost => Renewal::lost(LossReason::Expired),
            Err(error) => {
                if newest {
                    self.beat_failed(&error);
                }
                return;
            }
        };
        if let Some(reason) = renewal.lost {
            return self.lose(&reason);
        }
        let tenure = Arc::clone(&up.tenure);
        if !tenure.prove(sent, &held.grants) {
            let reason = tenure.loss().unwrap_or(LossReason::Expired);
            return self.lose(&reason);
        }
        for (attempt, reason) in renewal.gone {
            tenure.lose(attempt, reason);
        }
        for attempt in renewal.unqueued {
            tenure.unqueue(attempt);
        }
        for group in renewal.evicted {
            self.evicted(group);
        }
        self.shared.beats.fetch_add(1, Ordering::AcqRel);
        if tenure.set_suspended(false) && tenure.ttl().is_some() {
            self.shared.publish(Event::Recovered);
        }
        self.answer_beats(&Ok(()));
    }

    fn beat_failed(&mut self, error: &Error) {
        let State::Up(up) = &mut self.state else { return };
        tracing::warn!(%error, "a beat failed");
        let ttl = up.tenure.ttl();
        if let Some(ttl) = ttl {
            if !up.tenure.set_suspended(true) {
                self.shared.publish(Event::Suspended);
            }
            // Soon again, but not in step with everybody else whose beat failed.
            let pause = self.shared.entropy.between(ttl / 24, ttl / 12);
            let at = self.shared.clock.now() + pause;
            up.next = up.next.min(at).max(self.shared.clock.now());
        }
        self.answer_beats(&Err(error.clone()));
    }

    /// Answers the beats that were asked for by hand: how long until the next is due.
    fn answer_beats(&mut self, outcome: &Result<()>) {
        let until = match &self.state {
            State::Up(up) => {
                let left = up.next.saturating_since(self.shared.clock.now());
                up.tenure.ttl().map(|_| left)
            }
            State::Down(_) => None,
        };
        for answer in self.asked.drain(..) {
            // Whoever asked may be gone.
            let _ = answer.send(outcome.clone().map(|()| until));
        }
    }

    fn noticed(&mut self, notice: Notice) {
        let State::Up(up) = &mut self.state else { return };
        match notice {
            Notice::SessionLost(reason) => self.lose(&reason),
            Notice::GrantLost(attempt, reason) => up.tenure.lose(attempt, reason),
            Notice::Evicted(group) => self.evicted(group),
        }
    }

    fn evicted(&mut self, group: crate::GroupId) {
        let State::Up(up) = &mut self.state else { return };
        {
            let mut joined = self.shared.joined();
            let Some(membership) = joined.get_mut(&group) else { return };
            if membership.session != Some(up.tenure.id()) {
                return; // told before
            }
            membership.session = None;
            if !self.shared.config.rejoin {
                joined.remove(&group);
            }
        }
        self.shared.publish(Event::Evicted(group));
        if self.shared.config.rejoin {
            let at = Some(self.shared.clock.now());
            match &mut up.rejoin {
                Some(rejoin) => rejoin.at = rejoin.at.or(at),
                None => up.rejoin = Some(Rejoining { at, announce: false, create: false }),
            }
        }
    }

    fn rejoin_if_due(&mut self, now: Instant) {
        let State::Up(up) = &mut self.state else { return };
        let Some(rejoining) = &mut up.rejoin else { return };
        if rejoining.at.is_some_and(|at| at <= now) {
            rejoining.at = None;
            let job = rejoin(Arc::clone(&self.shared), Arc::clone(&up.session), rejoining.create);
            let session = up.tenure.id();
            self.jobs.spawn(async move { Done::Rejoined { session, rejoined: job.await } });
        }
    }

    fn rejoined(&mut self, session: SessionId, rejoined: Rejoined) {
        let State::Up(up) = &mut self.state else { return };
        if up.tenure.id() != session {
            return;
        }
        for group in rejoined.deleted {
            self.shared.publish(Event::GroupDeleted(group));
        }
        if rejoined.open {
            if let Some(rejoining) = &mut up.rejoin {
                rejoining.at = Some(self.shared.clock.now() + self.backoff.next(&self.shared.entropy));
            }
            return;
        }
        let again = up.rejoin.take_if(|rejoining| rejoining.at.is_none());
        self.backoff = Backoff::new(&self.shared.config);
        if again.is_some_and(|rejoining| rejoining.announce) || !rejoined.joined.is_empty() {
            self.shared.publish(Event::Rejoined(rejoined.joined));
        }
    }

    /// The session is gone: everybody is told, then a new one is opened.
    fn lose(&mut self, reason: &LossReason) {
        let State::Up(up) = &mut self.state else { return };
        let tenure = Arc::clone(&up.tenure);
        let old = tenure.end(reason);
        let reason = tenure.loss().unwrap_or_else(|| reason.clone());
        tracing::warn!(%reason, "the session is lost");
        if !self.shared.config.rejoin {
            self.shared.joined().clear();
        }
        let now = self.shared.clock.now();
        self.state = State::Down(Down { old, next: Some(now), flying: None });
        self.backoff = Backoff::new(&self.shared.config);
        self.shared.phase.send_replace(Phase::Down(reason.clone()));
        self.shared.publish(Event::Lost(reason.clone()));
        let lost = Error::new(ErrorKind::SessionLost, reason.to_string()).during("heartbeat");
        self.answer_beats(&Err(lost));
    }

    /// Ends the old session as far as the backend answers, then opens a new one.
    fn open(&mut self) {
        let State::Down(down) = &mut self.state else { return };
        self.number += 1;
        down.next = None;
        let limit = self.shared.config.connect_timeout;
        down.flying = Some((self.number, self.shared.clock.now() + limit * 2));
        let (shared, number, old) = (Arc::clone(&self.shared), self.number, down.old.clone());
        let request = OpenSession::new(shared.config.member.clone(), shared.instance, shared.config.ttl)
            .after(Some(self.last_session));
        self.jobs.spawn(async move {
            if let Some(old) = old {
                let mut closing = shared.spawner.spawn(async move { old.close().await });
                let limit = period(shared.config.ttl).min(limit / 2);
                // A backend that does not end it now ends it by its ttl, or for the new session.
                if !matches!(shared.spawner.timeout(limit, &mut closing).await, Some(Some(Ok(())))) {
                    tracing::debug!("the lost session could not be closed yet");
                }
                closing.detach();
            }
            Done::Opened { number, answer: shared.driver.open_session(&request).await }
        });
    }

    fn opened(&mut self, number: u64, answer: Result<Arc<dyn Session>>) {
        let wanted =
            matches!(&self.state, State::Down(down) if down.flying.is_some_and(|(n, _)| n == number));
        let session = match answer {
            Ok(session) => session,
            Err(error) if wanted => return self.open_failed(&error),
            Err(_) => return,
        };
        if !wanted {
            // Too late: another one stands or is being opened. This one must not linger.
            self.jobs.spawn(async move {
                if let Err(error) = session.close().await {
                    tracing::debug!(%error, "a session that came too late could not be closed");
                }
                Done::Settled
            });
            return;
        }
        let tenure = Tenure::new(Arc::clone(&session), self.shared.clock.clone());
        if tenure.loss().is_some() {
            let error =
                Error::new(ErrorKind::Timeout, "the new session was over before its opening was heard");
            self.state = State::Down(Down { old: Some(session), next: None, flying: None });
            return self.open_failed(&error);
        }
        let lost_data = session.epoch() != self.epoch;
        self.epoch = session.epoch();
        self.last_session = session.id();
        tracing::info!(session = %session.id(), lost_data, "a new session stands");
        let mut up = Up::new(&self.shared, Arc::clone(&tenure), session, self.number);
        let at = Some(self.shared.clock.now());
        up.rejoin = Some(Rejoining { at, announce: true, create: lost_data });
        self.state = State::Up(up);
        self.shared.phase.send_replace(Phase::Up(tenure));
        self.answer_beats(&Ok(()));
    }

    fn open_failed(&mut self, error: &Error) {
        tracing::warn!(%error, "no new session could be opened; it is tried again");
        let pause = self.backoff.next(&self.shared.entropy);
        if let State::Down(down) = &mut self.state {
            down.flying = None;
            down.next = Some(self.shared.clock.now() + pause);
        }
        self.answer_beats(&Err(error.clone()));
    }

    /// Leaves everything, within the close time limit.
    async fn close(mut self) {
        self.commands.close();
        let last = self.shared.phase.send_replace(Phase::Closed(None));
        let ended = match last {
            Phase::Up(tenure) => tenure.end(&LossReason::SessionClosed),
            _ => None,
        };
        self.answer_beats(&Err(closed()));
        self.shared.joined().clear();
        let session = match self.state {
            State::Up(up) => Some(up.session),
            State::Down(down) => down.old,
        };
        drop(ended);
        let (driver, mut jobs, mut commands) = (Arc::clone(&self.shared.driver), self.jobs, self.commands);
        // When the time is over it is dropped, and the session with it: its operating-system locks must not stay
        // as long as this process does, and what it has on a network ends because nobody renews it.
        let closing = self.shared.spawner.spawn(async move {
            // What callers left unfinished goes first: it may hold what the session's end would not.
            while let Some(command) = commands.recv().await {
                if let Command::Settle(job) = command {
                    jobs.spawn(async move {
                        job.await;
                        Done::Settled
                    });
                }
            }
            let session = match session {
                Some(session) => session.close().await,
                None => Ok(()),
            };
            while let Some(done) = jobs.join_next().await {
                if let Ok(Done::Opened { answer: Ok(late), .. }) = done
                    && let Err(error) = late.close().await
                {
                    tracing::debug!(%error, "a session that came too late could not be closed");
                }
            }
            session.and(driver.close().await)
        });
        let limit = self.shared.config.close_timeout;
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

impl Up {
    fn new(shared: &Shared, tenure: Arc<Tenure>, session: Arc<dyn Session>, first: u64) -> Self {
        let next = session.opened_at() + period(session.ttl());
        let next = next.max(shared.clock.now());
        Self { tenure, session, next, flying: None, first, rejoin: None }
    }
}
