//! Taking a lock: one exchange where nothing stands at the gate, more where something does.
//!
//! Each step looks at what the last exchange found, and puts one thing right: it stores the grant, then the mark, then a larger
//! token if the base was raised. The grant counts when one exchange shows all of it right and the own session alive (L14).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tooz_core::driver::support::lock_state::{Holder, Waiter};
use tooz_core::driver::support::rule::Foreign;
use tooz_core::driver::{Acquire, AttemptId, Grant, Instant, LockKey, LockMode};
use tooz_core::{Error, ErrorKind, Result};

use super::cell::{self, Cell};
use super::epoch::Origin;
use super::give_back::{Ending, clear_mark, give_back};
use super::mark::Mark;
use super::record::{self, Data, State, worse};
use crate::client::Tries;
use crate::connection::command::{Answers, Batch, Call, Item, Look, Stored};
use crate::connection::link::Link;
use crate::keys::LockKeys;
use crate::session_state::{Hold, SessionState, Version};

/// A lock that changes under so many looks in a row is given up for now.
const ROUNDS: usize = 64;
/// How long to wait for a server whose clock stands behind, which goes on within a second.
const BEHIND: Duration = Duration::from_millis(200);

/// What became of it.
#[derive(Debug)]
pub(crate) enum Taken {
    Granted(Grant),
    /// Another attempt holds it, or is before this one.
    Held,
}

/// One attempt to take a lock.
struct Taking<'a> {
    session: &'a SessionState,
    request: &'a Acquire,
    keys: LockKeys,
    tries: Tries<'a>,
    /// Just before the exchange that stored what stands at the gate.
    proved: Option<Instant>,
    /// It stood at the gate at some time.
    stored: bool,
    /// The gate as this attempt stored it.
    gate: Option<Version>,
}

/// What one exchange found.
struct Sight {
    cell: Cell,
    epoch: Option<Item>,
    own: Option<Item>,
    sent: Instant,
}

/// What a step leads to.
enum Step {
    Ended(Taken),
    /// Look at this, or look again.
    Again(Option<Box<Sight>>),
}

/// Takes the lock if it can be had. `blind`: nothing is known to stand at the gate.
pub(crate) async fn take(session: &SessionState, request: &Acquire, blind: bool) -> Result<Taken> {
    let client = &session.client;
    let keys = client.keys.lock(&request.key);
    let mut taking =
        Taking { session, request, keys, tries: client.tries(), proved: None, stored: false, gate: None };
    match taking.run(blind).await {
        Ok(taken) => Ok(taken),
        Err(error) => {
            let (error, unsure) = (taking.tries.failed(error), taking.tries.unsure);
            if !taking.stored && error.is_retryable() {
                return Err(error);
            }
            // A grant that does not count must not keep others out.
            let mut tries = client.tries();
            let own = (session.id, request.attempt);
            let back = give_back(client, &mut tries, &request.key, own, Ending::Withdraw).await;
            drop_gate(session, &request.key, request.attempt).await;
            if !unsure && (back.is_ok() || !taking.stored) {
                session.set_doubtful(request.attempt, false);
            }
            Err(if back.is_ok() || !taking.stored { error } else { error.indeterminate() })
        }
    }
}

/// Deletes the gate of an election that an attempt stored without its mark: it cannot be told from another's then.
pub(crate) async fn drop_gate(session: &SessionState, key: &LockKey, attempt: AttemptId) {
    let client = &session.client;
    let Some(gate) = session.gate(attempt).filter(|_| matches!(key, LockKey::Leader(_))) else { return };
    let Ok(link) = client.link(0, client.config.limits.operation_timeout).await else { return };
    if let Some(cas) = gate.on(link.number) {
        // Without an answer the gate ends with its time.
        let mut tries = client.tries();
        tries.follow(&link, Batch::new().delete(&client.keys.lock(key).gate, cas)).await;
    }
}

impl Taking<'_> {
    async fn run(&mut self, blind: bool) -> Result<Taken> {
        let mut sight = None;
        if blind {
            let limit = self.session.client.config.limits.operation_timeout;
            let link = self.session.client.link(0, limit).await?;
            let mut state = State::default();
            state.request(self.waiter(&link), false, record::unwritten);
            sight = self.store(&Cell::empty(&link), &state, true).await?;
        }
        for _ in 0..ROUNDS {
            let now = match sight.take() {
                Some(sight) => *sight,
                None => self.look().await?,
            };
            match self.step(now).await? {
                Step::Ended(taken) => return Ok(taken),
                Step::Again(next) => sight = next,
            }
        }
        let why = format!("{}: others change it again and again", self.request.key);
        Err(Error::new(ErrorKind::Unavailable, why))
    }

    fn waiter(&self, link: &Link) -> Waiter<Data> {
        let (session, client) = (self.session, &self.session.client);
        let data = Data {
            member: session.member.clone(),
            since: client.seconds(link),
            ttl: session.expires() - 1,
            fresh: false,
        };
        Waiter { attempt: self.request.attempt, session: session.id, mode: self.request.mode, data }
    }

    /// Appends the looks of every exchange.
    fn looks(&self, batch: &mut Batch, call: Option<Call>) {
        cell::look(batch, &self.keys);
        batch.get(&self.session.client.keys.epoch(), Look::Whole);
        let own = self.session.key();
        match call {
            Some(call) => batch.get_in(&own, Look::Whole, call),
            None => batch.get(&own, Look::Whole),
        };
    }

    fn sight(&self, link: &Arc<Link>, sent: Instant, mut answers: Answers) -> Result<Sight> {
        let cell = Cell::read(link, &self.request.key, &self.keys, &mut answers)?;
        Ok(Sight { cell, epoch: answers.item()?, own: answers.item()?, sent })
    }

    async fn look(&mut self) -> Result<Sight> {
        let mut batch = Batch::new();
        self.looks(&mut batch, None);
        let reply = self.tries.ask(&batch).await?;
        self.sight(&reply.link, reply.sent, reply.answers)
    }

    /// Looks over this link, on which alone it is known what stands at the gate; `None`: the link ended.
    async fn look_over(&mut self, link: &Arc<Link>) -> Result<Option<Box<Sight>>> {
        let mut batch = Batch::new();
        self.looks(&mut batch, None);
        let Some(reply) = self.tries.follow(link, &batch).await else { return Ok(None) };
        self.sight(&reply.link, reply.sent, reply.answers).map(|sight| Some(Box::new(sight)))
    }

    /// Stores what stands at the gate; `marked`: the first holder's mark, too. `None`: the link ended.
    async fn store(&mut self, cell: &Cell, state: &State, marked: bool) -> Result<Option<Box<Sight>>> {
        let base = self.session.client.base.load(Ordering::Acquire);
        let value = cell::gate_value(&self.request.key, base, state);
        let mut batch = Batch::new();
        cell::store_gate(&mut batch, &self.keys, &value, cell::gate_expires(state), cell.gate_cas());
        let marked = state.holders.first().filter(|_| marked);
        if let Some(holder) = marked {
            let mark = Mark::Holder { confirmed: false, base, holder: holder.clone() };
            cell::store_mark(&mut batch, &self.keys, &mark, cell.mark_cas());
        }
        let Some((sent, mut answers)) = self.exchange(cell, batch).await else { return Ok(None) };
        let stored = answers.stored()? == Stored::Done;
        if stored {
            (self.proved, self.stored) = (Some(sent), true);
        }
        if marked.is_some() {
            answers.stored()?; // the look behind it tells
        }
        let sight = self.sight(&cell.link, sent, answers)?;
        if stored && sight.cell.gate.as_ref().is_some_and(|gate| gate.value == value) {
            let version = sight.cell.gate_cas().map(|cas| Version { link: cell.link.number, cas });
            self.gate = version;
            self.session.set_gate(self.request.attempt, version);
        }
        Ok(Some(Box::new(sight)))
    }

    /// Stores the mark.
    async fn store_mark(&mut self, cell: &Cell, holder: Holder<Data>) -> Result<Option<Box<Sight>>> {
        let base = self.session.client.base.load(Ordering::Acquire);
        let mut batch = Batch::new();
        let mark = Mark::Holder { confirmed: false, base, holder };
        cell::store_mark(&mut batch, &self.keys, &mark, cell.mark_cas());
        let Some((sent, mut answers)) = self.exchange(cell, batch).await else { return Ok(None) };
        answers.stored()?; // as above
        self.sight(&cell.link, sent, answers).map(|sight| Some(Box::new(sight)))
    }

    /// Sends what takes effect, and looks.
    async fn exchange(&mut self, cell: &Cell, mut batch: Batch) -> Option<(Instant, Answers)> {
        self.looks(&mut batch, Some(Call::Acquire));
        self.session.set_doubtful(self.request.attempt, true);
        let reply = self.tries.follow(&cell.link, &batch).await?;
        Some((reply.sent, reply.answers))
    }

    async fn step(&mut self, sight: Sight) -> Result<Step> {
        let client = &self.session.client;
        if sight.own.is_none() {
            return Err(self.session.lost());
        }
        let Some(epoch) = &sight.epoch else {
            // It was evicted alone.
            Origin::again(client, &sight.cell.link, self.session.stamp).or_add(client).await?;
            return Ok(Step::Again(None));
        };
        let origin = Origin::read(client, epoch)?;
        if origin.stamp != self.session.stamp {
            return Err(self.session.data_lost());
        }
        if let Some(leader) = self.unmarked_leader(&sight.cell) {
            return self.mark(&sight.cell, leader).await;
        }
        match sight.cell.state.holder(self.request.attempt).cloned() {
            Some(holder) if self.is_own_gate(&sight.cell) => self.settle(sight, holder, origin.base).await,
            _ => self.contend(sight.cell).await,
        }
    }

    /// Whether what stands at the gate is what this attempt stored. An election's gate says the member id alone, which two sessions
    /// may have.
    fn is_own_gate(&self, cell: &Cell) -> bool {
        let gate = self.gate.or_else(|| self.session.gate(self.request.attempt));
        matches!(self.request.key, LockKey::Named(_))
            || gate.is_some_and(|gate| gate.on(cell.link.number) == cell.gate_cas())
    }

    /// This attempt stored the member id at an election's gate, and the mark is another's: one that was left, or one of a
    /// session that tried at the same time.
    fn unmarked_leader(&self, cell: &Cell) -> Option<Holder<Data>> {
        let is_ours = matches!(self.request.key, LockKey::Leader(_))
            && self.is_own_gate(cell)
            && !cell.is_marked_by(self.request.attempt)
            && cell.gate.as_ref().is_some_and(|gate| gate.value == self.session.member.as_bytes());
        let mut state = State::default();
        state.request(self.waiter(&cell.link), false, record::unwritten);
        state.holders.pop().filter(|_| is_ours)
    }

    /// Stores the mark of the first holder, which takes over how the one before it ended.
    async fn mark(&mut self, cell: &Cell, holder: Holder<Data>) -> Result<Step> {
        let client = &self.session.client;
        let Some(ended) = cell.ended(client, &mut self.tries, self.session.id).await? else {
            return Ok(Step::Again(None));
        };
        let previous = worse(holder.previous, ended);
        self.store_mark(cell, Holder { previous, ..holder }).await.map(Step::Again)
    }

    /// The attempt is at the gate: puts right what is missing for its grant to count.
    async fn settle(&mut self, sight: Sight, holder: Holder<Data>, base: u64) -> Result<Step> {
        let (client, attempt) = (&self.session.client, self.request.attempt);
        let cell = &sight.cell;
        let Some(proved) = self.proved else {
            // An earlier exchange stored it, nobody knows when.
            return self.store(cell, &cell.state, false).await.map(Step::Again);
        };
        if sight.own.as_ref().is_some_and(|own| self.session.is_behind(own, cell.link.number, sight.sent)) {
            self.proved = None;
            client.context.spawner.sleep(BEHIND).await;
            return self.look_over(&cell.link).await.map(Step::Again);
        }
        let is_first = cell.state.holders.first().is_some_and(|first| first.attempt == attempt);
        if is_first && !cell.is_marked_by(attempt) {
            return self.mark(cell, holder).await;
        }
        if holder.token.get() <= base {
            if matches!(self.request.key, LockKey::Leader(_)) {
                let token = record::token(base, cell.gate_cas().unwrap_or_default());
                return self.store_mark(cell, Holder { token, ..holder }).await.map(Step::Again);
            }
            let mut state = cell.state.clone();
            for known in state.holders.iter_mut().filter(|known| known.attempt == attempt) {
                known.data.fresh = true; // this store makes the token, on top of the raised base
            }
            return self.store(cell, &state, false).await.map(Step::Again);
        }
        let (key, mode) = (self.request.key.clone(), self.request.mode);
        let mut grant = Grant::new(attempt, key, mode, holder.token, cell.told(&holder));
        grant.proved_at = Some(proved);
        self.session.grant(&grant, hold_of(&self.request.key, cell, base));
        Ok(Step::Ended(Taken::Granted(grant)))
    }

    /// The attempt is not at the gate: takes a place there if the rule lets it.
    async fn contend(&mut self, mut cell: Cell) -> Result<Step> {
        let (client, attempt, mode) = (&self.session.client, self.request.attempt, self.request.mode);
        self.proved = None;
        // A mark may be an old one of the same member id, beside a gate that another leader or Python stored since: it does not say
        // whose the gate is. The gate of a leader that died ends with its time.
        let is_led = matches!(self.request.key, LockKey::Leader(_)) && cell.gate.is_some();
        if cell.state.foreign == Foreign::None && !is_led {
            let own = Some(self.session.id);
            if cell.without_dead(client, &mut self.tries, own).await?.is_none() {
                return Ok(Step::Again(None));
            }
        }
        let mut state = cell.state.clone();
        if is_led {
            // Nothing is asked of it.
        } else if state.waiter(attempt).is_some() {
            drop(state.promote(|_| true, record::unwritten));
        } else {
            state.request(self.waiter(&cell.link), false, record::unwritten).checked(&self.request.key)?;
        }
        if !is_led && state.holder(attempt).is_some() {
            let is_first = state.holders.first().is_some_and(|first| first.attempt == attempt);
            return self.store(&cell, &state, is_first).await.map(Step::Again);
        }
        if self.request.wait && !is_led && state.queue.is_empty() && is_passed(mode, &state) {
            state.queue.push_back(self.waiter(&cell.link));
            return self.store(&cell, &state, false).await.map(Step::Again);
        }
        let mut batch = Batch::new();
        if clear_mark(&mut batch, &self.keys, &cell, attempt) {
            // Another one was faster at the gate.
            if self.tries.follow(&cell.link, &batch).await.is_none() {
                return Ok(Step::Again(None));
            }
        }
        let waits_there = state.waiter(attempt).is_some();
        // What this attempt stored over a link that ended cannot be told from another's.
        let own = self.session.member.as_bytes();
        let may_lead = is_led && self.stored && cell.gate.as_ref().is_some_and(|gate| gate.value == own);
        self.session.set_doubtful(attempt, waits_there || may_lead || self.tries.unsure);
        Ok(Step::Ended(Taken::Held))
    }
}

/// Whether holders could pass an attempt of this mode for ever, one beside the other (L9).
fn is_passed(mode: LockMode, state: &State) -> bool {
    let permits = |mode: LockMode| matches!(mode, LockMode::Permit { .. });
    state.holders.first().is_some_and(|holder| match holder.mode {
        LockMode::Exclusive => false,
        together => permits(together) != permits(mode) || mode == LockMode::Exclusive,
    })
}

/// What a beat has to write again of what stands there.
pub(crate) fn hold_of(key: &LockKey, cell: &Cell, base: u64) -> Hold {
    let version = |cas: Option<u64>| Version { link: cell.link.number, cas: cas.unwrap_or_default() };
    let mark = cell.marked().map(|holder| {
        let mark = Mark::Holder { confirmed: true, base, holder: holder.clone() };
        (holder.attempt, mark.write())
    });
    let first = cell.state.holders.first().map(|holder| holder.attempt);
    Hold {
        gate: cell::gate_value(key, base, &cell.state),
        gate_version: version(cell.gate_cas()),
        expires: cell::gate_expires(&cell.state),
        confirmed: matches!(&cell.mark, Some((Mark::Holder { confirmed: true, .. }, _))),
        mark: mark
            .filter(|(attempt, _)| Some(*attempt) == first)
            .map(|(_, mark)| (mark, version(cell.mark_cas()))),
        alone: cell.state.modes().eq([LockMode::Exclusive]) && cell.state.queue.is_empty(),
    }
}
