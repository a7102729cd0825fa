//! What this process knows of one session: its attempts, its beats, and what the server reported of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tooz_core::driver::support::notices::Notices;
use tooz_core::driver::{
    Acquire, AttemptId, Grant, Instant, Notice, OpenSession, Previous, SessionId, Stamp,
};
use tooz_core::{Error, ErrorKind, FencingToken, LossReason, MemberId, Result};

use crate::client::Client;
use crate::connection::link::Link;
use crate::scripts::codes::{parse_broken, parse_previous};

/// A grant, or a session, is given up after this many tries without confirmation: less than half a ttl together. Beats are
/// sent in between.
pub(crate) const CONFIRMATIONS: usize = 3;
/// How many beats' times of sending are remembered: a message about an older beat comes too late for anything.
const REMEMBERED: usize = 64;
/// The server's clock and ours go apart by this many milliseconds only if one of them was set.
const JUMP: i64 = 1_000;

#[derive(Debug)]
pub(crate) struct SessionState {
    pub(crate) client: Arc<Client>,
    pub(crate) id: SessionId,
    pub(crate) member: MemberId,
    pub(crate) ttl: Duration,
    pub(crate) previous: Option<SessionId>,
    pub(crate) attempts: Attempts,
    pub(crate) stamp: OnceLock<Stamp>,
    pub(crate) opened_at: Instant,
    beats: Mutex<Beats>,
    /// The number of the last beat whose echo came over the connection for messages.
    echoed: AtomicU64,
    pub(crate) notices: Notices,
}

#[derive(Debug, Default)]
struct Beats {
    last: u64,
    sent: VecDeque<(u64, Instant)>,
    /// The last beat that was answered, and the link over which.
    answered: (u64, u64),
    /// The link over which a beat was sent that is not answered.
    open: u64,
    /// Our clock's reading minus the server's, in milliseconds.
    apart: Option<i64>,
}

impl SessionState {
    pub(crate) fn new(client: &Arc<Client>, request: &OpenSession) -> Self {
        Self {
            client: Arc::clone(client),
            id: SessionId(client.context().entropy.id()),
            member: request.member.clone(),
            ttl: client.config().limits.ttl,
            previous: request.previous,
            attempts: Attempts::default(),
            stamp: OnceLock::new(),
            opened_at: client.context().clock.now(),
            beats: Mutex::default(),
            echoed: AtomicU64::new(0),
            notices: Notices::default(),
        }
    }

    pub(crate) fn key(&self) -> Vec<u8> {
        self.client.keys.session(self.id)
    }

    /// The error of a session that is not on the server any more.
    pub(crate) fn lost(&self) -> Error {
        Error::new(ErrorKind::SessionLost, format!("session {} is gone from the server", self.id))
    }

    /// Receives the epoch of the server's data, which is another one if ours were lost.
    pub(crate) fn receive_epoch(&self, epoch: &[u8]) {
        let ours = self.stamp.get().map(ToString::to_string);
        if ours.is_some_and(|ours| ours.as_bytes() != epoch) {
            self.notices.end(LossReason::Vanished);
        }
    }

    /// Receives what comes to the session's own channel; `None`: a gap.
    pub(crate) fn receive(&self, message: Option<&[u8]>) {
        let Some(message) = message else { return self.attempts.recheck_all() };
        if self.apply(message).is_none() {
            tracing::warn!(session = %self.id, "a message that cannot be understood was ignored");
        }
    }

    fn apply(&self, message: &[u8]) -> Option<()> {
        let (kind, rest) = (message.first()?, message.get(2..)?);
        match kind {
            b'b' => {
                self.echoed.fetch_max(std::str::from_utf8(rest).ok()?.parse().ok()?, Ordering::AcqRel);
            }
            b'G' => {
                let mut words = std::str::from_utf8(rest).ok()?.split(' ');
                let attempt = AttemptId::parse(words.next()?)?;
                let token = FencingToken::new(words.next()?.parse().ok()?)?;
                let previous = parse_previous(words.next()?);
                match self.beat_sent_at(words.next()?.parse().ok()?) {
                    Some(proved) => {
                        let confirmed = !self.client.config().confirms();
                        drop(self.attempts.grant(attempt, token, previous, proved, confirmed));
                    }
                    // Too old to say until when the grant lasts: the waiters ask the server.
                    None => self.attempts.recheck_all(),
                }
            }
            b'X' => {
                let (attempt, why) = std::str::from_utf8(rest).ok()?.split_once(' ')?;
                let why = if why == "E" { LossReason::Expired } else { LossReason::Vanished };
                self.notices.add(Notice::GrantLost(AttemptId::parse(attempt)?, why));
            }
            b'B' => {
                let attempt = AttemptId::parse(std::str::from_utf8(rest.get(..32)?).ok()?)?;
                self.notices.add(Notice::GrantLost(attempt, parse_broken(rest.get(33..)?)));
            }
            _ => return None,
        }
        Some(())
    }

    fn beats(&self) -> MutexGuard<'_, Beats> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers when a beat was sent; opening the session is beat 0.
    pub(crate) fn remember_beat(&self, number: u64, at: Instant) {
        let mut beats = self.beats();
        beats.sent.push_back((number, at));
        if beats.sent.len() > REMEMBERED {
            beats.sent.pop_front();
        }
    }

    pub(crate) fn beat_sent_at(&self, number: u64) -> Option<Instant> {
        self.beats().sent.iter().find(|(other, _)| *other == number).map(|(_, at)| *at)
    }

    /// Numbers a beat that is about to be sent over this link.
    pub(crate) fn begin_beat(&self, link: &Link) -> u64 {
        let now = self.client.context().clock.now();
        let (number, silent, deaf) = {
            let mut beats = self.beats();
            beats.last += 1;
            let silent = beats.open == link.generation;
            beats.open = link.generation;
            // The echo of the last answered beat may still be on its way over the other connection.
            let (answered, over) = beats.answered;
            let deaf = over == link.generation && self.echoed.load(Ordering::Acquire) + 1 < answered;
            (beats.last, silent, deaf)
        };
        if silent || deaf {
            self.client.shared.suspect(link.generation, deaf);
        }
        self.remember_beat(number, now);
        number
    }

    /// A beat was answered, with the server's time in milliseconds since the session was opened.
    pub(crate) fn end_beat(&self, link: &Link, number: u64, server: i64) {
        let ours = self.client.context().clock.now().saturating_since(self.opened_at);
        let apart = i64::try_from(ours.as_millis()).unwrap_or_default() - server;
        let mut beats = self.beats();
        beats.open = 0;
        if number >= beats.answered.0 {
            beats.answered = (number, link.generation);
        }
        let jump = beats.apart.replace(apart).map_or(0, |before| apart - before);
        drop(beats);
        if jump.abs() > JUMP {
            tracing::warn!(
                milliseconds = -jump,
                "the server's clock was set, or this machine stood still: the server may have ended what is held here"
            );
        }
    }

    /// A beat was answered, and renewed nothing.
    pub(crate) fn fail_beat(&self) {
        self.beats().open = 0;
    }
}

/// The attempts of one session that wait or hold, as far as this process knows. A message may come before the answer to the
/// request that it is about, so an attempt is registered before the request is sent.
#[derive(Debug, Default)]
pub(crate) struct Attempts(Mutex<BTreeMap<AttemptId, Attempt>>);

#[derive(Debug)]
struct Attempt {
    request: Acquire,
    grant: Option<Grant>,
    /// Whether the grant counts: where replicas have to have it, they do.
    confirmed: bool,
    /// How long until the server is asked again, in case a message was lost.
    recheck: Duration,
    woken: Arc<Notify>,
}

/// How an attempt stands.
#[derive(Debug)]
pub(crate) enum AttemptState {
    Granted(Grant),
    /// The server granted it; the grant counts once replicas have it, too.
    Unconfirmed,
    /// Ask the server again after this long, or when woken.
    Waiting(Duration, Arc<Notify>),
    Unknown,
}

impl Attempts {
    fn attempts(&self) -> MutexGuard<'_, BTreeMap<AttemptId, Attempt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers an attempt before its request is sent.
    pub(crate) fn register(&self, request: &Acquire) -> Result<()> {
        let mut attempts = self.attempts();
        let attempt = attempts.entry(request.attempt).or_insert_with(|| Attempt {
            request: request.clone(),
            grant: None,
            confirmed: false,
            recheck: Duration::ZERO,
            woken: Arc::default(),
        });
        if attempt.request.key != request.key {
            let why = format!("attempt {} asked for {} before", request.attempt, attempt.request.key);
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Ok(())
    }

    pub(crate) fn forget(&self, attempt: AttemptId) {
        if let Some(attempt) = self.attempts().remove(&attempt) {
            // The waiter learns that its turn will not come.
            attempt.woken.notify_waiters();
        }
    }

    /// The server granted it; `None`: no such attempt is registered. `confirmed`: the grant counts.
    pub(crate) fn grant(
        &self,
        attempt: AttemptId,
        token: FencingToken,
        how: Previous,
        proved: Instant,
        confirmed: bool,
    ) -> Option<Grant> {
        let mut attempts = self.attempts();
        let known = attempts.get_mut(&attempt)?;
        let mut grant = Grant::new(attempt, known.request.key.clone(), known.request.mode, token, how);
        // The later of two times counts.
        let earlier = known.grant.as_ref().and_then(|grant| grant.proved_at);
        grant.proved_at = earlier.max(Some(proved));
        known.grant = Some(grant.clone());
        known.confirmed |= confirmed;
        known.woken.notify_waiters();
        Some(grant)
    }

    /// The server queued it.
    pub(crate) fn set_waiting(&self, attempt: AttemptId, recheck: Duration) {
        if let Some(attempt) = self.attempts().get_mut(&attempt) {
            attempt.recheck = recheck;
        }
    }

    /// Messages may have been missed: every waiter asks the server.
    pub(crate) fn recheck_all(&self) {
        for attempt in self.attempts().values_mut().filter(|attempt| attempt.grant.is_none()) {
            attempt.recheck = Duration::ZERO;
            attempt.woken.notify_waiters();
        }
    }

    pub(crate) fn state(&self, attempt: AttemptId) -> AttemptState {
        match self.attempts().get(&attempt) {
            Some(Attempt { grant: Some(grant), confirmed: true, .. }) => AttemptState::Granted(grant.clone()),
            Some(Attempt { grant: Some(_), .. }) => AttemptState::Unconfirmed,
            Some(attempt) => AttemptState::Waiting(attempt.recheck, Arc::clone(&attempt.woken)),
            None => AttemptState::Unknown,
        }
    }

    pub(crate) fn request(&self, attempt: AttemptId) -> Option<Acquire> {
        self.attempts().get(&attempt).map(|attempt| attempt.request.clone())
    }
}
