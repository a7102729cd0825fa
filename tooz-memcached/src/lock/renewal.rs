//! The locks of one beat: what stands at their gates is written again, with a new time limit, if it is what was read.
//!
//! Nothing is ever prolonged that was not compared: `mg … T` would shorten another holder's lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tooz_core::driver::{AttemptId, LockKey};
use tooz_core::{LossReason, MemberId, Result};

use super::cell::{self, Cell};
use super::record::Words;
use super::take::hold_of;
use crate::client::Client;
use crate::connection::command::{Answers, Batch, Look, Store, Stored};
use crate::connection::link::Link;
use crate::keys::LockKeys;
use crate::session_state::{Hold, SessionState, Version};

/// What is to be done about one lock.
#[derive(Debug)]
enum Doing {
    /// It is to be read.
    Read,
    /// It is to be written again.
    Write(Hold),
    Done,
    /// The grant is gone.
    Gone,
}

/// The locks of one beat.
#[derive(Debug)]
pub(crate) struct Renewals<'a> {
    state: &'a SessionState,
    locks: Vec<(LockKey, AttemptId, Doing)>,
}

impl<'a> Renewals<'a> {
    pub(crate) fn new(state: &'a SessionState, grants: &[(LockKey, AttemptId)], link: &Link) -> Self {
        let doing = |attempt: AttemptId| match state.hold(attempt) {
            Some(hold) if hold.gate_version.on(link.number).is_some() => Doing::Write(hold),
            _ => Doing::Read,
        };
        let locks = grants.iter().map(|(key, attempt)| (key.clone(), *attempt, doing(*attempt))).collect();
        Self { state, locks }
    }

    fn client(&self) -> &Client {
        &self.state.client
    }

    /// Whether the beat has more to do about a lock.
    pub(crate) fn is_pending(&self) -> bool {
        self.locks.iter().any(|(_, _, doing)| matches!(doing, Doing::Read | Doing::Write(_)))
    }

    /// Asks for what is not known, and confirms the marks of new leaders: their tokens stand there alone, and have to before the
    /// gate gets another cas number.
    pub(crate) fn prepare(&self, batch: &mut Batch) {
        for (key, _, doing) in &self.locks {
            let keys = self.client().keys.lock(key);
            match doing {
                Doing::Read => cell::look(batch, &keys),
                Doing::Write(hold) if matches!(key, LockKey::Leader(_)) => confirm(batch, &keys, hold),
                _ => {}
            }
        }
    }

    /// Reads the answers to [`prepare`](Self::prepare).
    pub(crate) fn prepared(&mut self, link: &Arc<Link>, answers: &mut Answers) -> Result<()> {
        let base = self.client().base.load(Ordering::Acquire);
        for (key, attempt, doing) in &mut self.locks {
            match doing {
                Doing::Read => {
                    let keys = self.state.client.keys.lock(key);
                    let (gate, mark) = (answers.item()?, answers.item()?);
                    *doing = match Cell::of(link, key, &keys, gate, mark) {
                        Ok(cell) => read(self.state, key, *attempt, &cell, base),
                        Err(error) => {
                            // One unreadable item does not cost the session.
                            tracing::warn!(%error, %key, "a lock that cannot be understood counts as lost");
                            Doing::Gone
                        }
                    };
                }
                Doing::Write(hold) if matches!(key, LockKey::Leader(_)) => {
                    confirmed(link, hold, answers)?;
                    if hold.mark.is_none() {
                        *doing = Doing::Read; // another one changed it
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes what is known again.
    pub(crate) fn write(&self, batch: &mut Batch) {
        for (key, _, doing) in &self.locks {
            if let Doing::Write(hold) = doing
                && may_write(key, hold)
            {
                let keys = self.client().keys.lock(key);
                confirm(batch, &keys, hold);
                cell::store_gate(batch, &keys, &hold.gate, hold.expires, Some(hold.gate_version.cas));
                batch.get(&keys.gate, Look::Whole);
            }
        }
    }

    /// Reads the answers to [`write`](Self::write).
    pub(crate) fn written(&mut self, link: &Link, answers: &mut Answers) -> Result<()> {
        for (key, attempt, doing) in &mut self.locks {
            let Doing::Write(hold) = doing else { continue };
            if !may_write(key, hold) {
                continue;
            }
            confirmed(link, hold, answers)?;
            let (stored, stands) = (answers.stored()?, answers.item()?);
            if stored != Stored::Done {
                *doing = Doing::Read; // another holder changed it, or it is gone
                continue;
            }
            // If another one changed it since, the next beat reads it.
            let own = stands.filter(|item| item.value == hold.gate);
            hold.gate_version =
                own.map_or(Version::default(), |item| Version { link: link.number, cas: item.cas });
            self.state.set_hold(*attempt, hold.clone());
            *doing = Doing::Done;
        }
        Ok(())
    }

    /// The grants that are gone.
    pub(crate) fn gone(&self) -> Vec<AttemptId> {
        let gone = self.locks.iter().filter(|(_, _, doing)| matches!(doing, Doing::Gone));
        gone.map(|(_, attempt, _)| *attempt).collect()
    }
}

/// A lock was read: what is to be done about it.
fn read(state: &SessionState, key: &LockKey, attempt: AttemptId, cell: &Cell, base: u64) -> Doing {
    if cell.state.holder(attempt).is_none() {
        return Doing::Gone;
    }
    let hold = hold_of(key, cell, base);
    let left = cell.gate.as_ref().and_then(|gate| gate.left).unwrap_or_default();
    if may_write(key, &hold) && left >= state.expires() {
        // Another holder wrote it again just now, with this one in it: it lasts as long as if this one had.
        state.set_hold(attempt, hold);
        return Doing::Done;
    }
    Doing::Write(hold)
}

/// Whether the gate may get another cas number: the token of a leader has to stand in its mark before.
fn may_write(key: &LockKey, hold: &Hold) -> bool {
    matches!(key, LockKey::Named(_)) || hold.confirmed
}

/// Confirms the mark of a new grant: who finds the gate free knows from now on that the lock was held.
fn confirm(batch: &mut Batch, keys: &LockKeys, hold: &Hold) {
    if let (Some((mark, version)), false) = (&hold.mark, hold.confirmed) {
        batch.cas(Store::bytes(&keys.mark, 0, mark), version.cas).get(&keys.mark, Look::Whole);
    }
}

/// Reads the answers to [`confirm`].
fn confirmed(link: &Link, hold: &mut Hold, answers: &mut Answers) -> Result<()> {
    if hold.mark.is_some() && !hold.confirmed {
        answers.stored()?;
        let stands = answers.item()?;
        hold.confirmed = true;
        let own = hold.mark.take().zip(stands).filter(|((mark, _), item)| *mark == item.value);
        hold.mark = own.map(|((mark, _), item)| (mark, Version { link: link.number, cas: item.cas }));
    }
    Ok(())
}

/// Why a grant is gone, by what stands at its attempt's key.
pub(crate) fn parse_broken(note: Option<&[u8]>) -> LossReason {
    let parsed = note.and_then(|note| {
        let mut words = Words(note);
        let by = MemberId::new(words.counted()?).ok()?;
        Some(LossReason::Broken { by: Some(by), why: String::from_utf8_lossy(words.0).into_owned() })
    });
    parsed.unwrap_or(LossReason::Vanished)
}
