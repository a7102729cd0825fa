//! What stands at a lock's gate and mark, as it was read in one exchange.

use std::collections::BTreeSet;
use std::sync::Arc;

use tooz_core::Result;
use tooz_core::driver::support::lock_state::Holder;
use tooz_core::driver::support::rule::Foreign;
use tooz_core::driver::{AttemptId, LockKey, Previous, SessionId};

use super::mark::Mark;
use super::record::{self, Data, State};
use crate::client::{Client, Tries};
use crate::connection::command::{Answers, Batch, Item, Look, Store};
use crate::connection::link::Link;
use crate::error::corrupt;
use crate::keys::LockKeys;

/// A lock as it was read.
#[derive(Debug)]
pub(crate) struct Cell {
    /// Over which link: its cas numbers count there alone.
    pub(crate) link: Arc<Link>,
    pub(crate) gate: Option<Item>,
    pub(crate) mark: Option<(Mark, u64)>,
    pub(crate) state: State,
}

/// Asks for a lock's gate and mark.
pub(crate) fn look(batch: &mut Batch, keys: &LockKeys) {
    batch.get(&keys.gate, Look::Whole).get(&keys.mark, Look::Whole);
}

impl Cell {
    /// A lock of which nothing stands there.
    pub(crate) fn empty(link: &Arc<Link>) -> Self {
        Self { link: Arc::clone(link), gate: None, mark: None, state: State::default() }
    }

    /// Reads the answers to [`look`].
    pub(crate) fn read(
        link: &Arc<Link>,
        key: &LockKey,
        keys: &LockKeys,
        answers: &mut Answers,
    ) -> Result<Self> {
        let (gate, mark) = (answers.item()?, answers.item()?);
        Self::of(link, key, keys, gate, mark)
    }

    pub(crate) fn of(
        link: &Arc<Link>,
        key: &LockKey,
        keys: &LockKeys,
        gate: Option<Item>,
        mark: Option<Item>,
    ) -> Result<Self> {
        let cas = gate.as_ref().map_or(0, |gate| gate.cas);
        let mark = match mark {
            None => None,
            Some(item) => {
                let mark = Mark::read(&item.value, cas);
                Some((mark.ok_or_else(|| corrupt(&keys.mark, "is no mark of a lock"))?, item.cas))
            }
        };
        let state = match (&gate, key) {
            (None, _) => State::default(),
            (Some(gate), LockKey::Named(_)) if record::is_record(&gate.value) => {
                let state = record::read(&gate.value, gate.cas);
                state.ok_or_else(|| corrupt(&keys.gate, "is no record of a lock"))?
            }
            (Some(gate), LockKey::Leader(_)) => match &mark {
                Some((Mark::Holder { holder, .. }, _)) if holder.data.member.as_bytes() == gate.value => {
                    State { holders: vec![holder.clone()], ..State::default() }
                }
                _ => State { foreign: Foreign::Exclusive, ..State::default() },
            },
            _ => State { foreign: Foreign::Exclusive, ..State::default() },
        };
        Ok(Self { link: Arc::clone(link), gate, mark, state })
    }

    /// Reads a lock.
    pub(crate) async fn ask(client: &Client, tries: &mut Tries<'_>, key: &LockKey) -> Result<Self> {
        let keys = client.keys.lock(key);
        let mut batch = Batch::new();
        look(&mut batch, &keys);
        let mut reply = tries.ask(&batch).await?;
        Self::read(&reply.link, key, &keys, &mut reply.answers)
    }

    pub(crate) fn gate_cas(&self) -> Option<u64> {
        self.gate.as_ref().map(|gate| gate.cas)
    }

    pub(crate) fn mark_cas(&self) -> Option<u64> {
        self.mark.as_ref().map(|(_, cas)| *cas)
    }

    /// The holder that the mark belongs to.
    pub(crate) fn marked(&self) -> Option<&Holder<Data>> {
        match &self.mark {
            Some((Mark::Holder { holder, .. }, _)) => Some(holder),
            _ => None,
        }
    }

    /// Whether the mark is this attempt's.
    pub(crate) fn is_marked_by(&self, attempt: AttemptId) -> bool {
        self.marked().is_some_and(|holder| holder.attempt == attempt)
    }

    /// What the holder with this attempt is told of the one before it.
    pub(crate) fn told(&self, holder: &Holder<Data>) -> Previous {
        match self.marked() {
            Some(marked) if marked.attempt == holder.attempt => {
                record::worse(holder.previous, marked.previous)
            }
            _ => holder.previous,
        }
    }

    /// How the last holder ended, by the mark alone; `None`: the link ended.
    pub(crate) async fn ended(
        &self,
        client: &Client,
        tries: &mut Tries<'_>,
        own: SessionId,
    ) -> Result<Option<Previous>> {
        let Some((mark, _)) = &self.mark else { return Ok(Some(Previous::Clean)) };
        let lives = match mark {
            Mark::Holder { holder, .. } if holder.session != own => {
                let mut batch = Batch::new();
                batch.get(&client.keys.session(holder.session), Look::Presence);
                let Some(mut reply) = tries.follow(&self.link, &batch).await else { return Ok(None) };
                reply.answers.item()?.is_some()
            }
            _ => true,
        };
        Ok(Some(mark.ended(lives)))
    }

    /// The sessions that have to do with the lock, except `own`.
    fn sessions(&self, own: Option<SessionId>) -> BTreeSet<SessionId> {
        let holders = self.state.holders.iter().map(|holder| holder.session);
        let waiters = self.state.queue.iter().map(|waiter| waiter.session);
        let marked = self.marked().map(|holder| holder.session);
        holders.chain(waiters).chain(marked).filter(|session| Some(*session) != own).collect()
    }

    /// Takes out whose session is over, and says how the last holder ended where no lock is at the gate. `own`: a session that
    /// is known to live. `None`: the link ended; the lock has to be read again.
    pub(crate) async fn without_dead(
        &mut self,
        client: &Client,
        tries: &mut Tries<'_>,
        own: Option<SessionId>,
    ) -> Result<Option<()>> {
        let sessions = self.sessions(own);
        let mut dead = BTreeSet::new();
        if !sessions.is_empty() {
            let mut batch = Batch::new();
            for session in &sessions {
                batch.get(&client.keys.session(*session), Look::Presence);
            }
            let link = Arc::clone(&self.link);
            let Some(mut reply) = tries.follow(&link, &batch).await else { return Ok(None) };
            for session in sessions {
                if reply.answers.item()?.is_none() {
                    dead.insert(session);
                }
            }
        }
        for session in &dead {
            drop(self.state.session_ended(*session, Previous::Expired));
        }
        if self.gate.is_none()
            && let Some((mark, _)) = &self.mark
        {
            self.state.mark = match mark {
                Mark::Holder { holder, .. } => mark.ended(!dead.contains(&holder.session)),
                Mark::Ended(previous) => *previous,
            };
        }
        Ok(Some(()))
    }
}

/// The value at the gate of a lock that is held or waited for.
pub(crate) fn gate_value(key: &LockKey, base: u64, state: &State) -> Vec<u8> {
    match (key, state.holders.first()) {
        (LockKey::Leader(_), Some(leader)) => leader.data.member.as_bytes().to_vec(),
        _ => record::write(base, state),
    }
}

/// For how many seconds the item at the gate is stored: it outlives every holder, for Python. One that only waits is not worth
/// keeping Python out for long.
pub(crate) fn gate_expires(state: &State) -> u32 {
    state.holders.iter().map(|holder| holder.data.ttl.saturating_add(1)).max().unwrap_or(2)
}

/// Stores what stands at the gate.
pub(crate) fn store_gate(batch: &mut Batch, keys: &LockKeys, value: &[u8], expires: u32, cas: Option<u64>) {
    batch.replace(Store::bytes(&keys.gate, expires, value), cas);
}

/// Stores a mark.
pub(crate) fn store_mark(batch: &mut Batch, keys: &LockKeys, mark: &Mark, cas: Option<u64>) {
    batch.replace(Store::bytes(&keys.mark, 0, &mark.write()), cas);
}
