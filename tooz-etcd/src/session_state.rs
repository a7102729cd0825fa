//! What a session believes to have; only for what must be said to the server about it.

use std::collections::{BTreeMap, VecDeque};

use etcd_client::{Compare, CompareOp};
use tooz_core::driver::{AttemptId, Grant, LockKey, LockMode};

use crate::keys::{Keys, LockKeys};
use crate::lock::record::Gate;
use crate::session::Life;

/// How many attempts that are over a session remembers, to refuse them when they are asked for once more. The server
/// needs no memory for that: the fence is there.
const ENDED_ATTEMPTS: usize = 1_024;

/// One grant.
#[derive(Clone, Debug)]
pub(crate) struct Stand {
    pub(crate) key: LockKey,
    pub(crate) mode: LockMode,
    /// The lease of the gate that it shares with other holders.
    pub(crate) gate: Option<i64>,
    /// The create revision of its key.
    pub(crate) created: i64,
    course: Course,
}

/// Where a grant is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Held,
    /// It is being given back: that its keys go says nothing new.
    Leaving,
    /// It is known to be lost; what is left of it may still be in others' way.
    Lost,
}

impl Stand {
    /// A grant that is held, with the create revision of its key; `gate`: the lease of the gate that it shares.
    fn new(grant: &Grant, created: i64, gate: Option<i64>) -> Self {
        Self { key: grant.key.clone(), mode: grant.mode, gate, created, course: Course::Held }
    }

    /// True while the holder's key is there, as this session made it: whose grant it is says the server, not the caller.
    pub(crate) fn own_compares(&self, keys: &LockKeys, attempt: AttemptId, lease: i64) -> Vec<Compare> {
        let holder = keys.holder(attempt);
        vec![
            Compare::create_revision(holder.clone(), CompareOp::Equal, self.created),
            Compare::lease(holder, CompareOp::Equal, lease),
        ]
    }

    /// True while all of the grant is there.
    pub(crate) fn compares(&self, keys: &LockKeys, attempt: AttemptId, lease: i64) -> Vec<Compare> {
        let mut compares = self.own_compares(keys, attempt, lease);
        match (&keys.gate, self.gate) {
            (Some(gate), Some(lease)) => {
                compares.push(Compare::value(gate.clone(), CompareOp::Equal, Gate::shared()));
                compares.push(Compare::lease(gate.clone(), CompareOp::Equal, lease));
            }
            (Some(gate), None) => {
                compares.push(Compare::value(gate.clone(), CompareOp::Equal, Gate::holder(attempt)));
            }
            (None, _) => {}
        }
        compares
    }

    /// The keys that it stands on.
    pub(crate) fn keys(&self, keys: &Keys, attempt: AttemptId) -> Vec<Vec<u8>> {
        let lock = keys.lock(&self.key);
        std::iter::once(lock.holder(attempt)).chain(lock.gate).collect()
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    grants: BTreeMap<AttemptId, Stand>,
    /// Who waits, how, and where.
    places: BTreeMap<AttemptId, (LockMode, i64)>,
    ended: VecDeque<AttemptId>,
}

impl Standing {
    fn end(&mut self, attempt: AttemptId) {
        self.grants.remove(&attempt);
        self.places.remove(&attempt);
        if !self.ended.contains(&attempt) {
            self.ended.push_back(attempt);
            if self.ended.len() > ENDED_ATTEMPTS {
                self.ended.pop_front();
            }
        }
    }
}

impl Life {
    pub(crate) fn is_ended(&self, attempt: AttemptId) -> bool {
        self.standing().ended.contains(&attempt)
    }

    pub(crate) fn granted(&self, grant: &Grant, created: i64, gate: Option<i64>) {
        let stand = Stand::new(grant, created, gate);
        let mut standing = self.standing();
        standing.grants.insert(grant.attempt, stand);
        standing.places.remove(&grant.attempt);
        drop(standing);
        self.stands_changed.notify_one();
    }

    /// It waits, at this place; `None`: not any more.
    pub(crate) fn waits(&self, attempt: AttemptId, at: Option<(LockMode, i64)>) {
        let mut standing = self.standing();
        match at {
            // A turn that is being dropped may still say so after the withdrawal.
            Some(at) if !standing.ended.contains(&attempt) => drop(standing.places.insert(attempt, at)),
            _ => drop(standing.places.remove(&attempt)),
        }
    }

    /// Where it waits, as far as is known.
    pub(crate) fn place(&self, attempt: AttemptId) -> Option<(LockMode, i64)> {
        self.standing().places.get(&attempt).copied()
    }

    /// What is known of a grant, unless nothing of it is left on the server.
    pub(crate) fn stand(&self, attempt: AttemptId) -> Option<Stand> {
        self.standing().grants.get(&attempt).cloned()
    }

    /// The lease of the gate that this grant shares.
    pub(crate) fn gate_of(&self, attempt: AttemptId) -> Option<i64> {
        self.standing().grants.get(&attempt).and_then(|stand| stand.gate)
    }

    /// It is about to be given back.
    pub(crate) fn leave(&self, attempt: AttemptId) {
        self.pass(attempt, Course::Leaving);
    }

    /// It is known to be lost; `false`: that was known, or it was being given back.
    pub(crate) fn lose(&self, attempt: AttemptId) -> bool {
        self.pass(attempt, Course::Lost)
    }

    fn pass(&self, attempt: AttemptId, to: Course) -> bool {
        match self.standing().grants.get_mut(&attempt) {
            Some(stand) if stand.course == Course::Held => {
                stand.course = to;
                true
            }
            _ => false,
        }
    }

    /// Nothing of it is left on the server.
    pub(crate) fn end(&self, attempt: AttemptId) {
        self.standing().end(attempt);
        self.stands_changed.notify_one();
    }

    fn on_course(&self, course: Course) -> Vec<(AttemptId, Stand)> {
        let standing = self.standing();
        let on_course = standing.grants.iter().filter(|(_, stand)| stand.course == course);
        on_course.map(|(attempt, stand)| (*attempt, stand.clone())).collect()
    }

    /// What is held.
    pub(crate) fn held(&self) -> Vec<(AttemptId, Stand)> {
        self.on_course(Course::Held)
    }

    /// What is lost and was not cleared away.
    pub(crate) fn lost(&self) -> Vec<(AttemptId, Stand)> {
        self.on_course(Course::Lost)
    }

    /// Everything of which something may be on the server.
    pub(crate) fn all(&self) -> Vec<(AttemptId, Stand)> {
        self.standing().grants.iter().map(|(attempt, stand)| (*attempt, stand.clone())).collect()
    }
}
