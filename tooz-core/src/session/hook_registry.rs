//! The hooks that are registered, and what they are told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::driver::MemberRecord;
use crate::{Error, ErrorKind, GroupId, MemberId, Result, Term};

/// What a hook may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a hook is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HookEvent {
    /// A member joined a watched group; our own join counts.
    Joined {
        /// The group.
        group: GroupId,
        /// Who.
        member: MemberRecord,
    },
    /// A member left a watched group.
    Left {
        /// The group.
        group: GroupId,
        /// Who.
        member: MemberRecord,
    },
    /// This coordinator was elected.
    Elected {
        /// The group.
        group: GroupId,
        /// This coordinator's member id.
        member: MemberId,
        /// The term.
        term: Term,
    },
}

/// A registered hook, for unwatching it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HookId(u64);

/// What a hook waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HookKind {
    Join,
    Leave,
    Elected,
}

pub(crate) type Callback = Arc<dyn Fn(&HookEvent) -> Result<(), BoxError> + Send + Sync>;

struct Hook {
    id: HookId,
    kind: HookKind,
    group: GroupId,
    callback: Callback,
}

/// The hooks of a coordinator.
#[derive(Default)]
pub(crate) struct HookRegistry {
    hooks: Mutex<(u64, Vec<Hook>)>,
}

impl HookRegistry {
    fn hooks(&self) -> MutexGuard<'_, (u64, Vec<Hook>)> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, kind: HookKind, group: GroupId, callback: Callback) -> HookId {
        let mut hooks = self.hooks();
        hooks.0 += 1;
        let id = HookId(hooks.0);
        hooks.1.push(Hook { id, kind, group, callback });
        id
    }

    /// Takes a hook out.
    ///
    /// # Errors
    /// `HookNotFound`.
    pub(crate) fn remove(&self, kind: HookKind, group: &GroupId, id: HookId) -> Result<()> {
        let mut hooks = self.hooks();
        let before = hooks.1.len();
        hooks.1.retain(|hook| hook.id != id || hook.kind != kind || hook.group != *group);
        if hooks.1.len() == before {
            return Err(Error::new(ErrorKind::HookNotFound, format!("no such hook on group \"{group}\"")));
        }
        Ok(())
    }

    pub(crate) fn clear(&self) {
        let hooks = std::mem::take(&mut self.hooks().1);
        drop(hooks); // not under the mutex: a hook may hold the last handle of something
    }

    pub(crate) fn groups(&self, wanted: impl Fn(HookKind) -> bool) -> Vec<GroupId> {
        let hooks = self.hooks();
        let mut groups: Vec<_> = hooks.1.iter().filter(|h| wanted(h.kind)).map(|h| h.group.clone()).collect();
        groups.sort();
        groups.dedup();
        groups
    }

    pub(crate) fn callbacks(&self, kind: HookKind, group: &GroupId) -> Vec<Callback> {
        let hooks = self.hooks();
        let wanted = hooks.1.iter().filter(|hook| hook.kind == kind && hook.group == *group);
        wanted.map(|hook| Arc::clone(&hook.callback)).collect()
    }
}
