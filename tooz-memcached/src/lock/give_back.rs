//! Taking an attempt off the gate: a release, a withdrawal, or a break.
//!
//! The mark is changed before the gate: it is gone when the gate is free, or says how the holder ended.

use tooz_core::driver::{AttemptId, End, LockKey, Previous, SessionId};
use tooz_core::{Error, ErrorKind, MemberId, Result};

use super::cell::{self, Cell};
use super::mark::Mark;
use super::record::{self, State};
use crate::client::{Client, Tries};
use crate::connection::command::{Batch, Call, Look, Stored};
use crate::keys::LockKeys;

/// A lock that changes under so many looks in a row is given up for now.
const ROUNDS: usize = 64;

/// Why an attempt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Release(End),
    /// Its session has not seen a grant of it.
    Withdraw,
}

impl Ending {
    pub(crate) fn call(self) -> Call {
        match self {
            Self::Release(_) => Call::Release,
            Self::Withdraw => Call::Withdraw,
        }
    }
}

/// Takes a session's attempt off the lock. Returns whether it was there.
pub(crate) async fn give_back(
    client: &Client,
    tries: &mut Tries<'_>,
    key: &LockKey,
    own: (SessionId, AttemptId),
    ending: Ending,
) -> Result<bool> {
    give_back_rest(client, tries, key, own, ending, None).await
}

/// The same. `led`: the member id of a leader whose mark this call has taken away already, while a beat wrote the gate again.
pub(crate) async fn give_back_rest(
    client: &Client,
    tries: &mut Tries<'_>,
    key: &LockKey,
    (session, attempt): (SessionId, AttemptId),
    ending: Ending,
    mut led: Option<MemberId>,
) -> Result<bool> {
    for _ in 0..ROUNDS {
        let mut cell = Cell::ask(client, tries, key).await?;
        if let Some(member) = &led {
            match delete_led(client, tries, key, &cell, member, ending.call()).await? {
                Rest::Deleted => return Ok(true),
                Rest::Changed => continue,
                Rest::Gone => {}
            }
        }
        let holder = cell.state.holder(attempt).filter(|holder| holder.session == session).cloned();
        let waits = cell.state.waiter(attempt).is_some_and(|waiter| waiter.session == session);
        if holder.is_none() && !waits {
            if clear(client, tries, key, &cell, attempt).await?.is_some() {
                return Ok(false);
            }
            continue;
        }
        if cell.without_dead(client, tries, Some(session)).await?.is_none() {
            continue;
        }
        let told = holder.as_ref().map_or(Previous::Clean, |holder| cell.told(holder));
        let state = &mut cell.state;
        match ending {
            Ending::Release(end) => drop(state.release(session, attempt, end.previous())),
            Ending::Withdraw => {
                for holder in state.holders.iter_mut().filter(|holder| holder.attempt == attempt) {
                    holder.previous = told;
                }
                drop(state.withdraw(session, attempt));
            }
        }
        drop(state.promote(|_| true, record::unwritten));
        let mut batch = Batch::new();
        let operations = store(client, &mut batch, key, &cell);
        batch.get_in(&client.keys.lock(key).gate, Look::Presence, ending.call());
        let leader = holder.filter(|_| matches!(key, LockKey::Leader(_))).map(|holder| holder.data.member);
        let link = cell.link;
        let Some(mut reply) = tries.follow(&link, &batch).await else {
            led = leader; // its mark may be gone, and the gate not
            continue;
        };
        let mut stored = Vec::new();
        for _ in 0..operations {
            stored.push(reply.answers.stored()?);
        }
        // The last one is the gate's.
        if stored.pop().is_none_or(|gate| gate == Stored::Done) {
            if stored.contains(&Stored::Taken) {
                end_mark(client, tries, key, attempt, cell.state.mark).await?;
            }
            return Ok(true);
        }
        if stored.contains(&Stored::Done) {
            tries.unsure |= leader.is_some();
            led = leader;
        }
    }
    Err(tries.failed(changes_too_often(key)))
}

/// What became of the rest of a leadership.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    Deleted,
    /// It changed, or there was no answer: it has to be read again.
    Changed,
    /// The gate is free, or another's.
    Gone,
}

/// Deletes the gate of a leader whose mark was taken away by this call, while a beat wrote the gate again: no mark says any more
/// whose it is.
pub(crate) async fn delete_led(
    client: &Client,
    tries: &mut Tries<'_>,
    key: &LockKey,
    cell: &Cell,
    member: &MemberId,
    purpose: Call,
) -> Result<Rest> {
    // Another session that tries may have added a mark of its own.
    let is_marked = cell.marked().is_some_and(|holder| holder.data.member == *member);
    let gate = cell.gate.as_ref().filter(|gate| gate.value == member.as_bytes() && !is_marked);
    let Some(gate) = gate else { return Ok(Rest::Gone) };
    let keys = client.keys.lock(key);
    let mut batch = Batch::new();
    batch.delete(&keys.gate, gate.cas).get_in(&keys.gate, Look::Presence, purpose);
    Ok(if tries.store(&cell.link, &batch).await? { Rest::Deleted } else { Rest::Changed })
}

/// The attempt is off the gate, and its mark could not be changed before: a beat confirmed it at the same time. Says now how
/// the holder ended.
pub(crate) async fn end_mark(
    client: &Client,
    tries: &mut Tries<'_>,
    key: &LockKey,
    attempt: AttemptId,
    how: Previous,
) -> Result<()> {
    for _ in 0..ROUNDS {
        let cell = Cell::ask(client, tries, key).await?;
        let is_off = cell.state.holder(attempt).is_none();
        let Some(cas) = cell.mark_cas().filter(|_| is_off && cell.is_marked_by(attempt)) else {
            return Ok(());
        };
        let mut batch = Batch::new();
        leave_mark(&mut batch, &client.keys.lock(key), how, cas);
        if tries.store(&cell.link, &batch).await? {
            return Ok(());
        }
    }
    Err(tries.failed(changes_too_often(key)))
}

/// Leaves behind how a holder ended.
fn leave_mark(batch: &mut Batch, keys: &LockKeys, how: Previous, cas: u64) {
    match how {
        Previous::Clean => drop(batch.delete(&keys.mark, cas)),
        how => cell::store_mark(batch, keys, &Mark::Ended(how), Some(cas)),
    }
}

/// Clears away the mark of an attempt that is not at the gate, and leaves what it had replaced. Returns whether there is one.
pub(crate) fn clear_mark(batch: &mut Batch, keys: &LockKeys, cell: &Cell, attempt: AttemptId) -> bool {
    match &cell.mark {
        Some((Mark::Holder { holder, .. }, cas)) if holder.attempt == attempt => {
            leave_mark(batch, keys, holder.previous, *cas);
            true
        }
        _ => false,
    }
}

pub(crate) fn changes_too_often(key: &LockKey) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{key}: others change it again and again"))
}

/// The attempt is not at the gate: clears away its mark, and lets a store of it fail that comes late. `None`: the link ended,
/// or the mark changed.
async fn clear(
    client: &Client,
    tries: &mut Tries<'_>,
    key: &LockKey,
    cell: &Cell,
    attempt: AttemptId,
) -> Result<Option<()>> {
    let keys = client.keys.lock(key);
    let mut batch = Batch::new();
    let mut operations = usize::from(clear_mark(&mut batch, &keys, cell, attempt));
    if tries.unsure
        && let Some(gate) = &cell.gate
        && record::is_record(&gate.value)
        && let Some(left) = gate.left
    {
        // It gets a new cas number, no more time than before, and every token in writing.
        let base = client.base.load(std::sync::atomic::Ordering::Acquire);
        let value = cell::gate_value(key, base, &cell.state);
        cell::store_gate(&mut batch, &keys, &value, left.max(1), Some(gate.cas));
        operations += 1;
    }
    if operations == 0 {
        return Ok(Some(()));
    }
    batch.get_in(&keys.gate, Look::Presence, Call::Withdraw);
    let Some(mut reply) = tries.follow(&cell.link, &batch).await else { return Ok(None) };
    for _ in 0..operations {
        if reply.answers.stored()? == Stored::Taken {
            return Ok(None);
        }
    }
    Ok(Some(()))
}

/// Writes mark and gate as the state says, in the place of what was read; the gate last. Returns how many commands that takes.
pub(crate) fn store(client: &Client, batch: &mut Batch, key: &LockKey, cell: &Cell) -> usize {
    let keys = client.keys.lock(key);
    let state: &State = &cell.state;
    let base = client.base.load(std::sync::atomic::Ordering::Acquire);
    let before = batch.commands();
    match (state.holders.first(), state.queue.is_empty()) {
        (Some(first), _) => {
            if !cell.is_marked_by(first.attempt) {
                // One that was just granted the lock has not seen it.
                let confirmed = !first.data.fresh;
                let mark = Mark::Holder { confirmed, base, holder: first.clone() };
                cell::store_mark(batch, &keys, &mark, cell.mark_cas());
            }
        }
        (None, true) => match (state.mark, cell.mark_cas()) {
            (Previous::Clean, None) => {}
            (Previous::Clean, Some(cas)) => drop(batch.delete(&keys.mark, cas)),
            (previous, cas) => cell::store_mark(batch, &keys, &Mark::Ended(previous), cas),
        },
        (None, false) => {}
    }
    match (state.holders.is_empty() && state.queue.is_empty(), cell.gate_cas()) {
        (true, Some(cas)) => drop(batch.delete(&keys.gate, cas)),
        (true, None) => {}
        (false, cas) => {
            let value = cell::gate_value(key, base, state);
            cell::store_gate(batch, &keys, &value, cell::gate_expires(state), cas);
        }
    }
    batch.commands() - before
}
