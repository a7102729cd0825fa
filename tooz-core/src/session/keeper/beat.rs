//! Beats: the only place that renews a session.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Done, Keeper, State};
use crate::driver::{Held, Renewal};
use crate::platform::clock::Instant;
use crate::session::events::Event;
use crate::session::limits::{period, time_limit};
use crate::{Error, ErrorKind, LossReason, Result};

impl Keeper {
    pub(super) fn beat_by_hand(&mut self, answer: oneshot::Sender<Result<Option<Duration>>>) {
        self.asked.push(answer);
        match &self.state {
            State::Up(up) if up.flying.is_none() => self.beat(),
            State::Down(down) if down.flying.is_none() => self.open(),
            _ => {} // the answer to what is under way answers this one, too
        }
    }

    /// Sends one beat.
    pub(super) fn beat(&mut self) {
        let State::Up(up) = &mut self.state else { return };
        let sent = self.shared.clock.now();
        let ttl = up.lease.ttl;
        self.number += 1;
        up.flying = Some((self.number, sent + time_limit(ttl, self.shared.config.limits.operation_timeout)));
        up.next = sent + period(ttl);
        let here = Some(up.lease.id);
        let joined = self.shared.joined();
        let groups = joined.iter().filter(|(_, m)| m.session == here).map(|(id, _)| id.clone()).collect();
        drop(joined);
        let held = up.lease.held(groups);
        let (session, number) = (Arc::clone(&up.session), self.number);
        self.beats.retain(|beat| !beat.is_finished());
        self.beats.push(self.jobs.spawn(async move {
            let answer = session.renew(&held).await;
            Done::Beat { number, sent, held, answer }
        }));
    }

    /// A beat was answered, perhaps after its time limit: it still proves the session from when it was sent.
    pub(super) fn beaten(&mut self, number: u64, sent: Instant, held: &Held, answer: Result<Renewal>) {
        let State::Up(up) = &mut self.state else { return };
        if number <= up.first {
            return; // of an earlier session
        }
        let newest = up.flying.is_some_and(|(flying, _)| flying == number);
        if newest {
            up.flying = None;
        }
        let took = self.shared.clock.now().saturating_since(sent);
        let late = time_limit(up.lease.ttl, period(None));
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
        up.beaten = true;
        let lease = Arc::clone(&up.lease);
        if !lease.prove(sent, &held.grants) {
            let reason = lease.loss().unwrap_or(LossReason::Expired);
            return self.lose(&reason);
        }
        for (attempt, reason) in renewal.gone {
            lease.lose(attempt, reason);
        }
        for attempt in renewal.unqueued {
            lease.unqueue(attempt);
        }
        for group in renewal.evicted {
            self.evicted(group);
        }
        self.shared.beats.fetch_add(1, Ordering::AcqRel);
        if lease.set_suspended(false) && lease.ttl.is_some() {
            self.shared.publish(Event::Recovered);
        }
        self.answer_beats(&Ok(()));
    }

    pub(super) fn beat_failed(&mut self, error: &Error) {
        let State::Up(up) = &mut self.state else { return };
        tracing::warn!(%error, "a beat failed");
        let ttl = up.lease.ttl;
        if let Some(ttl) = ttl {
            if !up.lease.set_suspended(true) {
                self.shared.publish(Event::Suspended);
            }
            // Soon again, but not in step with all others whose beat failed.
            let pause = self.shared.entropy.between(ttl / 24, ttl / 12);
            let at = self.shared.clock.now() + pause;
            up.next = up.next.min(at).max(self.shared.clock.now());
        }
        self.answer_beats(&Err(error.clone()));
    }

    /// Answers the beats that were asked for by hand: how long until the next is due.
    pub(super) fn answer_beats(&mut self, outcome: &Result<()>) {
        let until = match &self.state {
            State::Up(up) => up.lease.ttl.map(|_| up.next.saturating_since(self.shared.clock.now())),
            State::Down(_) => None,
        };
        for answer in self.asked.drain(..) {
            // The caller may be gone.
            let _ = answer.send(outcome.clone().map(|()| until));
        }
    }
}
