//! The state of one lock, and what an attempt may do in it. Nothing here talks to a server.

use etcd_client::{Compare, CompareOp, GetOptions, SortOrder, SortTarget, TxnOp, TxnResponse};
use tooz_core::Result;
use tooz_core::driver::support::rule::{self, Foreign};
use tooz_core::driver::{AttemptId, LockMode, Previous};

use crate::connection::answer;
use crate::error::corrupt;
use crate::keys::{LockKeys, LockPart, Range, below, only};
use crate::lock::fence::{self, Raises};
use crate::lock::record::{Holder, Waiter, read_mark};
use crate::lock::{Gate, GateKind};

/// One lock at one revision. The default is a lock without keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) revision: i64,
    /// In the order of their grants.
    pub(crate) holders: Vec<Holder>,
    /// In the order of their positions: all waiters, or those that [`look_before`] reads.
    pub(crate) queue: Vec<Waiter>,
    marks: Vec<(AttemptId, Previous)>,
    pub(crate) raises: Raises,
    pub(crate) gate: Option<Gate>,
}

/// Whether an attempt may have the lock. A waiter that has to go first is named by its key.
pub(crate) type Verdict = rule::Verdict<Vec<u8>>;

fn all(prefix: Vec<u8>) -> TxnOp {
    TxnOp::get(prefix, Some(GetOptions::new().with_prefix()))
}

/// The operations that read the whole lock; [`State::read`] reads their answer.
pub(crate) fn look(keys: &LockKeys) -> Vec<TxnOp> {
    let gate = keys.gate.iter().map(|gate| TxnOp::get(gate.clone(), None));
    [fence::look(&keys.fence), all(keys.prefix.clone())].into_iter().chain(gate).collect()
}

/// The same for an attempt at [`LockMode::Exclusive`], which waits for the waiter right before it: of the queue only that
/// waiter and the attempt's own are read. A thousand waiters that each read all thousand would keep a server busy.
/// `position`: the attempt's; if it is not known, the attempt is taken to be the last.
pub(crate) fn look_before(keys: &LockKeys, own: Vec<u8>, position: Option<i64>) -> Vec<TxnOp> {
    let last = GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Descend);
    let before = match position {
        Some(position) => last.with_max_create_revision(position - 1).with_limit(1),
        None => last.with_limit(2),
    };
    let mut operations = vec![
        fence::look(&keys.fence),
        all(keys.holders()),
        all(keys.marks()),
        TxnOp::get(own, None),
        TxnOp::get(keys.queue(true), Some(before)),
    ];
    operations.extend(keys.gate.iter().map(|gate| TxnOp::get(gate.clone(), None)));
    operations
}

impl State {
    /// Reads what the operations of [`look`] or [`look_before`] found, which are the last ones, from this index on.
    pub(crate) fn read(keys: &LockKeys, response: &TxnResponse, at: usize) -> Result<Self> {
        let mut state = Self { revision: answer::revision(response), ..Self::default() };
        for kv in &answer::found_from(response, at) {
            if keys.gate.as_deref() == Some(kv.key()) {
                state.gate = Some(Gate::read(kv));
                continue;
            }
            if kv.key().starts_with(keys.fence.prefix()) {
                state.raises.add(&keys.fence, kv);
                continue;
            }
            let (key, value, created) = (kv.key(), kv.value(), kv.create_revision());
            let unreadable =
                || corrupt(key, "holds a foreign value; look at it, and delete it if no program needs it");
            match keys.parse(key) {
                Some(LockPart::Holder(attempt)) => {
                    let holder = Holder::read(attempt, value, created, kv.mod_revision());
                    state.holders.push(holder.ok_or_else(unreadable)?);
                }
                Some(LockPart::Waiter(attempt)) => {
                    state.queue.push(Waiter::read(attempt, key, value, created).ok_or_else(unreadable)?);
                }
                Some(LockPart::Mark(attempt)) => state.marks.push((attempt, read_mark(value))),
                None => tracing::warn!(key = %key.escape_ascii(), "not a key of ours; it is left alone"),
            }
        }
        for holder in &mut state.holders {
            holder.token = state.raises.token(holder.created);
        }
        state.holders.sort_unstable_by_key(|holder| holder.created);
        state.queue.sort_unstable_by_key(|waiter| waiter.position);
        // Two operations may have found the attempt's own key.
        state.queue.dedup_by_key(|waiter| waiter.attempt);
        Ok(state)
    }

    /// The guess that there is no holder and no other waiter.
    pub(crate) fn free_for(waiter: Waiter) -> Self {
        Self { queue: vec![waiter], ..Self::default() }
    }

    pub(crate) fn holder(&self, attempt: AttemptId) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.attempt == attempt)
    }

    pub(crate) fn waiter(&self, attempt: AttemptId) -> Option<&Waiter> {
        self.queue.iter().find(|waiter| waiter.attempt == attempt)
    }

    /// Whether the attempt at `position`, or else the last one, may hold the lock in this mode.
    pub(crate) fn verdict(&self, mode: LockMode, position: Option<i64>) -> Verdict {
        let before =
            self.queue.iter().filter(|waiter| position.is_none_or(|position| waiter.position < position));
        let foreign = match self.gate.map(|gate| gate.kind) {
            Some(GateKind::Foreign) => Foreign::Exclusive,
            // A crash or an operator left a gate without its holder.
            Some(GateKind::Holder(attempt)) if self.holder(attempt).is_none() => Foreign::Exclusive,
            _ => Foreign::None,
        };
        let before = before.map(|waiter| (waiter.key.clone(), waiter.mode));
        rule::verdict(mode, before, self.holders.iter().map(|holder| holder.mode), foreign)
    }

    /// The gate's lease, if the present holders share the gate.
    pub(crate) fn shared_gate(&self) -> Option<i64> {
        let gate = self.gate.filter(|gate| gate.kind == GateKind::Shared)?;
        self.holders.iter().any(|holder| holder.shared_gate == Some(gate.lease)).then_some(gate.lease)
    }

    /// The attempts whose grants ended uncleanly, and how the last holder ended.
    pub(crate) fn unclean(&self) -> (Vec<AttemptId>, Previous) {
        let dead = || self.marks.iter().filter(|(attempt, _)| self.holder(*attempt).is_none());
        // Of several ends, the one that says most.
        let order = [Previous::Broken, Previous::Expired, Previous::Unknown];
        let how = order.into_iter().find(|how| dead().any(|(_, ended)| ended == how));
        (dead().map(|(attempt, _)| *attempt).collect(), how.unwrap_or(Previous::Clean))
    }

    /// What must still hold when a claim that relies on this state is executed: no waiter is before the attempt, there is no
    /// holder that the state does not show, and no mark of an unclean end is missed.
    pub(crate) fn compares(&self, keys: &LockKeys, mode: LockMode, position: Option<i64>) -> Vec<Compare> {
        let all = mode != LockMode::Shared;
        let unchanged =
            |prefix: Vec<u8>| Compare::mod_revision(prefix, CompareOp::Less, self.revision + 1).with_prefix();
        // etcd compares zero where a range is empty. The range of all waiters holds the attempt's own key, too.
        let counts = |waiter: &&Waiter| all || waiter.mode != LockMode::Shared;
        let queue = match position {
            Some(position) if all || self.queue.iter().any(|waiter| counts(&waiter)) => {
                Compare::create_revision(keys.queue(all), CompareOp::Greater, position - 1)
            }
            _ => Compare::create_revision(keys.queue(all), CompareOp::Equal, 0),
        };
        let mut compares = vec![queue.with_prefix(), unchanged(keys.marks())];
        compares.push(if self.holders.is_empty() {
            Compare::create_revision(keys.holders(), CompareOp::Equal, 0).with_prefix()
        } else {
            unchanged(keys.holders())
        });
        if let Some(gate) = &keys.gate {
            let seen = self.gate.map_or(0, |gate| gate.revision);
            compares.push(Compare::mod_revision(gate.clone(), CompareOp::Equal, seen));
        }
        compares
    }
}

/// The keys whose end may change the verdict.
pub(crate) fn ranges(keys: &LockKeys, verdict: &Verdict) -> Vec<Range> {
    match verdict {
        Verdict::Behind(key) => vec![only(key)],
        // Holders and waiters.
        Verdict::OtherLimit { .. } => vec![below(&keys.prefix)],
        _ => std::iter::once(below(&keys.holders())).chain(keys.gate.as_deref().map(only)).collect(),
    }
}

/// True while no other attempt than this one holds the lock.
pub(crate) fn alone(keys: &LockKeys, attempt: AttemptId) -> Vec<Compare> {
    let (own, (from, end)) = (keys.holder(attempt), below(&keys.holders()));
    let after = [own.as_slice(), b"\0"].concat();
    vec![
        Compare::create_revision(from, CompareOp::Equal, 0).with_range(own),
        Compare::create_revision(after, CompareOp::Equal, 0).with_range(end),
    ]
}
