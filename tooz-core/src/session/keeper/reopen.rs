//! After a loss: handles and events tell the program, a new session is opened, and the groups are joined again.

use std::sync::Arc;
use std::time::Duration;

use super::{Done, Down, Keeper, Rejoining, State, Up, close_late, settle};
use crate::driver::{End, OpenSession, Session, SessionId};
use crate::platform::clock::Instant;
use crate::session::events::Event;
use crate::session::limits::period;
use crate::session::live::SessionLease;
use crate::session::rejoin::{Rejoined, rejoin};
use crate::session::state::Phase;
use crate::{Error, ErrorKind, GroupId, LossReason, Result};

impl Keeper {
    /// The session is gone: tells the program, then opens a new one.
    pub(super) fn lose(&mut self, reason: &LossReason) {
        let State::Up(up) = &mut self.state else { return };
        let lease = Arc::clone(&up.lease);
        let old = lease.end(reason);
        let reason = lease.loss().unwrap_or_else(|| reason.clone());
        tracing::warn!(%reason, "the session is lost");
        if !self.shared.config.rejoin {
            self.shared.joined().clear();
        }
        let mut next = self.shared.clock.now();
        if !up.beaten {
            // Opened again and lost before its first beat: sessions that die at once must not follow each other
            // as fast as the backend answers.
            next = next + self.backoff.next(&self.shared.entropy);
        }
        // Work that is cancelled at the deadline gets the margin to end in. Ending the session at once would give that
        // away: the next holder might begin in the same instant.
        let over = lease.is_past_deadline().then(|| lease.over_at()).flatten();
        self.state = State::Down(Down { old, over, next: Some(next), flying: None });
        self.shared.phase.send_replace(Phase::Down(reason.clone()));
        self.shared.publish(Event::Lost(reason.clone()));
        let lost = Error::new(ErrorKind::SessionLost, reason.to_string()).during("heartbeat");
        self.answer_beats(&Err(lost));
    }

    /// Ends the old session as far as the backend answers, then opens a new one.
    pub(super) fn open(&mut self) {
        let State::Down(down) = &mut self.state else { return };
        self.number += 1;
        down.next = None;
        let limit = self.shared.config.limits.connect_timeout;
        let now = self.shared.clock.now();
        let wait = down.over.take().map_or(Duration::ZERO, |over| over.saturating_since(now));
        down.flying = Some((self.number, now + wait + limit * 2));
        let (shared, number, old) = (Arc::clone(&self.shared), self.number, down.old.clone());
        let request =
            OpenSession::new(shared.config.member.clone(), shared.instance).after(Some(self.last_session));
        self.jobs.spawn(async move {
            if !wait.is_zero() {
                shared.spawner.sleep(wait).await;
            }
            if let Some(old) = old {
                let mut closing = shared.spawner.spawn(async move { old.close(End::Unclean).await });
                let limit = period(Some(shared.config.limits.ttl)).min(limit / 2);
                // A backend that does not end it now ends it by its ttl, or for the new session.
                if !matches!(shared.spawner.timeout(limit, &mut closing).await, Some(Some(Ok(())))) {
                    tracing::debug!("the lost session could not be closed yet");
                }
                closing.detach();
            }
            Done::Opened { number, answer: shared.driver.open_session(&request).await }
        });
    }

    pub(super) fn opened(&mut self, number: u64, answer: Result<Arc<dyn Session>>) {
        let wanted =
            matches!(&self.state, State::Down(down) if down.flying.is_some_and(|(n, _)| n == number));
        let session = match answer {
            Ok(session) => session,
            Err(error) if wanted => return self.open_failed(&error),
            Err(_) => return,
        };
        if !wanted {
            // Another one stands or is being opened.
            return settle(&mut self.jobs, Box::pin(close_late(session)));
        }
        let lease = SessionLease::new(Arc::clone(&session), self.shared.clock.clone());
        if lease.loss().is_some() {
            let error =
                Error::new(ErrorKind::Timeout, "the new session was over before its opening was heard");
            self.state = State::Down(Down { old: Some(session), over: None, next: None, flying: None });
            return self.open_failed(&error);
        }
        let lost_data = session.epoch() != self.epoch;
        self.epoch = session.epoch();
        self.recreate |= lost_data;
        self.last_session = session.id();
        tracing::info!(session = %session.id(), lost_data, "a new session stands");
        let mut up = Up::new(&self.shared, Arc::clone(&lease), session, self.number);
        let at = Some(self.shared.clock.now());
        up.rejoin = Some(Rejoining { at, announce: true, joined: Vec::new() });
        self.state = State::Up(up);
        self.shared.phase.send_replace(Phase::Up(lease));
        self.answer_beats(&Ok(()));
    }

    pub(super) fn open_failed(&mut self, error: &Error) {
        tracing::warn!(%error, "no new session could be opened; it is tried again");
        let pause = self.backoff.next(&self.shared.entropy);
        if let State::Down(down) = &mut self.state {
            down.flying = None;
            down.next = Some(self.shared.clock.now() + pause);
        }
        self.answer_beats(&Err(error.clone()));
    }

    pub(super) fn evicted(&mut self, group: GroupId) {
        let State::Up(up) = &mut self.state else { return };
        {
            let mut joined = self.shared.joined();
            let Some(membership) = joined.get_mut(&group) else { return };
            if membership.session != Some(up.lease.id) {
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
            let rejoining = up.rejoin.get_or_insert_default();
            rejoining.at = rejoining.at.or(at);
        }
    }

    pub(super) fn rejoin_if_due(&mut self, now: Instant) {
        let State::Up(up) = &mut self.state else { return };
        let Some(rejoining) = &mut up.rejoin else { return };
        if rejoining.at.is_some_and(|at| at <= now) {
            rejoining.at = None;
            let job = rejoin(Arc::clone(&self.shared), Arc::clone(&up.session), self.recreate);
            let session = up.lease.id;
            self.jobs.spawn(async move { Done::Rejoined { session, rejoined: job.await } });
        }
    }

    pub(super) fn rejoined(&mut self, session: SessionId, rejoined: Rejoined) {
        let State::Up(up) = &mut self.state else { return };
        if up.lease.id != session {
            return;
        }
        for group in rejoined.deleted {
            self.shared.publish(Event::GroupDeleted(group));
        }
        // Gone where two tries of it crossed and the other one came to the end first.
        let rejoining = up.rejoin.get_or_insert_default();
        rejoining.joined.extend(rejoined.joined);
        if rejoined.open {
            rejoining.at = Some(self.shared.clock.now() + self.backoff.next(&self.shared.entropy));
            return;
        }
        let Some(ended) = up.rejoin.take_if(|rejoining| rejoining.at.is_none()) else { return };
        self.backoff = self.shared.config.backoff();
        self.recreate = false;
        if ended.announce || !ended.joined.is_empty() {
            self.shared.publish(Event::Rejoined(ended.joined));
        }
    }
}
